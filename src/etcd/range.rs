//! The two ranges that are ever read or watched: every key below a slash, and one key.

/// A range of keys. It can be neither empty nor the whole store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    start: String,
    end: Vec<u8>,
}

impl Range {
    /// Every key that begins with `prefix`, which ends in a slash.
    pub(crate) fn below(prefix: String) -> Self {
        debug_assert!(prefix.ends_with('/'), "a prefix that does not end in a slash covers its neighbours' keys");
        let mut end = prefix.clone().into_bytes();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        Self { start: prefix, end }
    }

    /// One key.
    pub(crate) fn key(key: String) -> Self {
        Self { start: key, end: Vec::new() }
    }

    /// The range for messages.
    pub(crate) fn name(&self) -> &str {
        &self.start
    }

    pub(super) fn start(&self) -> &[u8] {
        self.start.as_bytes()
    }

    /// The first key behind the range; empty for one key.
    pub(super) fn end(&self) -> Vec<u8> {
        self.end.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_before_names_that_only_begin_alike() {
        let range = Range::below("p/foo/".into());
        let inside = |key: &str| key.as_bytes() >= range.start() && key.as_bytes() < range.end().as_slice();
        assert!(inside("p/foo/a") && inside("p/foo/\u{10ffff}"));
        assert!(!inside("p/foobar/a") && !inside("p/foo_other/a") && !inside("p/foo") && !inside("p/fo/a"));
    }
}
