//! Keys that cannot be used, or not all of them: what is wrong with them, and how often each kind was read.

/// What is wrong with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::discover) enum Defect {
    ForeignKey,
    TooLarge,
    Malformed,
    BadAddress,
    TooManyKeys,
    TooManyBytes,
    TooManyTags,
}

/// How often a key was read that cannot be used, by what is wrong with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::discover) struct Defects([u64; Defects::KINDS.len()]);

impl Defects {
    /// Their kinds, for metrics, in the order of their counts.
    pub(in crate::discover) const KINDS: [&'static str; 7] =
        ["foreign_key", "too_large", "malformed", "bad_address", "too_many_keys", "too_many_bytes", "too_many_tags"];

    /// These and one more.
    pub(super) fn with(mut self, defect: Defect) -> Self {
        self.0[defect as usize] += 1;
        self
    }

    pub(in crate::discover) fn counts(self) -> impl Iterator<Item = u64> {
        self.0.into_iter()
    }
}
