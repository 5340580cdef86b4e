//! The tags of an instance: [`Tags`] is at the root.
//!
//! They are kept in two blocks of memory whatever their number: a client knows those of 100,000 instances.

use std::collections::BTreeMap;
use std::fmt;
use std::iter::FusedIterator;
use std::ops::Index;

/// Names with a value each: at most one value a name, in the order of the names.
///
/// ```
/// use tonic_etcd::Tags;
///
/// let tags = Tags::from([("zone", "a"), ("version", "1.2")]);
/// assert_eq!(tags.get("zone"), Some("a"));
/// assert_eq!(&tags["version"], "1.2");
/// assert_eq!(tags.iter().next(), Some(("version", "1.2")));
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Tags {
    /// Where each name ends in the text, and each value behind it.
    ends: Box<[u32]>,
    text: Box<str>,
}

impl Tags {
    /// No tags.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of the tag with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        // A handful, as a rule.
        self.iter().find_map(|(other, value)| (other == name).then_some(value))
    }

    /// Whether there is a tag with this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The number of tags.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len() / 2
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All tags, ordered by name.
    #[must_use = "an iterator does nothing unless it is used"]
    pub fn iter(&self) -> Iter<'_> {
        Iter { ends: &self.ends, text: &self.text, at: 0 }
    }

    /// Sets a tag. A value that it had is replaced. All tags are copied for that: collect many at once.
    pub fn insert(&mut self, name: impl AsRef<str>, value: impl AsRef<str>) {
        let mut tags: BTreeMap<&str, &str> = self.iter().collect();
        tags.insert(name.as_ref(), value.as_ref());
        *self = Self::of(&tags);
    }

    /// Removes a tag. Returns whether there was one with this name.
    pub fn remove(&mut self, name: &str) -> bool {
        let mut tags: BTreeMap<&str, &str> = self.iter().collect();
        let is_there = tags.remove(name).is_some();
        if is_there {
            *self = Self::of(&tags);
        }
        is_there
    }

    fn of(tags: &BTreeMap<&str, &str>) -> Self {
        let parts = || tags.iter().flat_map(|(name, value)| [*name, *value]);
        let mut text = String::with_capacity(parts().map(str::len).sum());
        let mut ends = Vec::with_capacity(tags.len() * 2);
        for part in parts() {
            text.push_str(part);
            ends.push(u32::try_from(text.len()).expect("tags are smaller than 4 GiB"));
        }
        Self { ends: ends.into(), text: text.into() }
    }
}

impl fmt::Debug for Tags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

/// # Panics
///
/// If there is no tag with this name.
impl Index<&str> for Tags {
    type Output = str;

    fn index(&self, name: &str) -> &str {
        self.get(name).unwrap_or_else(|| panic!("there is no tag {name:?}"))
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Tags {
    /// Of several values for one name the last one counts.
    ///
    /// # Panics
    ///
    /// If all names and values together take 4 GiB or more, as everything that adds to tags does.
    fn from_iter<I: IntoIterator<Item = (N, V)>>(tags: I) -> Self {
        let tags: Vec<(N, V)> = tags.into_iter().collect();
        Self::of(&tags.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).collect())
    }
}

impl<N: AsRef<str>, V: AsRef<str>, const COUNT: usize> From<[(N, V); COUNT]> for Tags {
    fn from(tags: [(N, V); COUNT]) -> Self {
        tags.into_iter().collect()
    }
}

impl<N: AsRef<str>, V: AsRef<str>> Extend<(N, V)> for Tags {
    /// Of several values for one name the last one counts.
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, tags: I) {
        let more: Self = tags.into_iter().collect();
        *self = self.iter().chain(&more).collect();
    }
}

impl<'a> IntoIterator for &'a Tags {
    type Item = (&'a str, &'a str);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// The tags of an instance, ordered by name: made by [`Tags::iter`].
#[derive(Debug, Clone)]
pub struct Iter<'a> {
    ends: &'a [u32],
    text: &'a str,
    /// Where the next name begins.
    at: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<(&'a str, &'a str)> {
        let [name, value, rest @ ..] = self.ends else { return None };
        let (middle, end) = (*name as usize, *value as usize);
        let tag = (&self.text[self.at..middle], &self.text[middle..end]);
        (self.ends, self.at) = (rest, end);
        Some(tag)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.ends.len() / 2, Some(self.ends.len() / 2))
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl FusedIterator for Iter<'_> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tags_are_what_a_map_of_them_is(tags in prop::collection::vec(("[a-c\u{0}ä]{0,2}", ".{0,3}"), 0..8)) {
            let map: BTreeMap<String, String> = tags.iter().cloned().collect();
            let mut inserted = Tags::new();
            for (name, value) in &tags {
                inserted.insert(name, value);
            }
            let collected: Tags = tags.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            prop_assert_eq!(&collected, &inserted);
            prop_assert_eq!(&collected, &map.iter().collect());
            let (some, others) = tags.split_at(tags.len() / 2);
            let mut extended: Tags = some.iter().cloned().collect();
            extended.extend(others.iter().map(|(name, value)| (name, value)));
            prop_assert_eq!(&collected, &extended);
            prop_assert_eq!((collected.len(), collected.is_empty()), (map.len(), map.is_empty()));
            prop_assert_eq!(collected.iter().len(), map.len());
            let listed: Vec<(&str, &str)> = collected.iter().collect();
            let expected: Vec<(&str, &str)> = map.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            prop_assert_eq!(listed, expected);
            for name in ["", "a", "ab", "ä", "zz"] {
                prop_assert_eq!(collected.get(name), map.get(name).map(String::as_str));
                prop_assert_eq!(collected.contains(name), map.contains_key(name));
            }
            prop_assert_eq!(format!("{collected:?}"), format!("{map:?}"));
            let mut map = map;
            for (name, _) in &tags {
                prop_assert_eq!(extended.remove(name), map.remove(name).is_some());
                prop_assert_eq!(&extended, &map.iter().collect());
            }
        }
    }

    #[test]
    fn tags_whose_texts_are_equal_and_whose_parts_are_not_differ() {
        assert_ne!(Tags::from([("a", "bc")]), Tags::from([("ab", "c")]));
        assert_ne!(Tags::from([("a", "")]), Tags::new());
    }

    #[test]
    #[should_panic(expected = "there is no tag \"b\"")]
    fn an_index_that_is_none_says_which() {
        let _ = &Tags::from([("a", "1")])["b"];
    }
}
