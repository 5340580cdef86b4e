//! The keys of a service that were left out because there are too many: how many, and how little room one needs.

use std::collections::HashSet;

use xxhash_rust::xxh3::xxh3_64;

/// The keys that were left out since the last list began.
#[derive(Debug, Default)]
pub(super) struct CutOff {
    /// The hashes of their segments: two in 2^64 being equal costs one in a count.
    hashes: HashSet<u64>,
    /// About how much memory the smallest of them would take.
    least: usize,
}

impl CutOff {
    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// How much memory must be free for a list to let in one of them; `None` where none was left out.
    pub(super) fn least(&self) -> Option<usize> {
        (!self.hashes.is_empty()).then_some(self.least)
    }

    /// Counts a key that would take `bytes`, unless `most` are counted already.
    pub(super) fn add(&mut self, segment: &str, bytes: usize, most: usize) {
        self.least = self.least().map_or(bytes, |least| least.min(bytes));
        if self.len() < most {
            self.hashes.insert(hash(segment));
        }
    }

    /// The key is gone, or was let in.
    pub(super) fn remove(&mut self, segment: &str) {
        if !self.hashes.is_empty() {
            self.hashes.remove(&hash(segment));
        }
    }
}

fn hash(segment: &str) -> u64 {
    xxh3_64(segment.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_counts_once_until_it_is_gone() {
        let mut cut_off = CutOff::default();
        assert_eq!((cut_off.len(), cut_off.least()), (0, None));
        cut_off.add("a", 700, 2);
        cut_off.add("a", 600, 2);
        cut_off.add("b", 900, 2);
        assert_eq!((cut_off.len(), cut_off.least()), (2, Some(600)));
        cut_off.add("c", 500, 2);
        assert_eq!((cut_off.len(), cut_off.least()), (2, Some(500)), "no more are counted");
        cut_off.remove("a");
        cut_off.remove("a");
        cut_off.remove("never seen");
        assert_eq!(cut_off.len(), 1);
        cut_off.remove("b");
        assert_eq!(cut_off.least(), None);
        cut_off.add("d", 800, 2);
        assert_eq!(cut_off.least(), Some(800), "what is gone counts no more");
    }
}
