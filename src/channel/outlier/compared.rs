//! Whether an instance that misses deadlines is slower than the others.

use std::ops::{Add, Sub};

/// What one or more instances of a channel did with their calls so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    /// Responses that began.
    pub(crate) answered: u64,
    /// Deadlines that passed.
    pub(crate) missed: u64,
    /// The instances that take calls now.
    pub(crate) ready: u32,
    /// Those of them of which the latest call missed its deadline.
    pub(crate) missing: u32,
}

impl Compared {
    /// Whether the others missed so many deadlines since `then` that an instance that missed some is no slower: the
    /// method is slow, or its deadline short.
    pub(crate) fn is_as_slow(self, then: Self) -> bool {
        let Self { answered, missed, .. } = self - then;
        if answered == 0 && missed == 0 {
            self.missing > 0 && self.missing * 2 >= self.ready
        } else {
            missed > 0 && answered <= missed * ANSWERS_PER_MISS
        }
    }
}

impl Add for Compared {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            answered: self.answered + other.answered,
            missed: self.missed + other.missed,
            ready: self.ready + other.ready,
            missing: self.missing + other.missing,
        }
    }
}

impl Sub for Compared {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            answered: self.answered.saturating_sub(other.answered),
            missed: self.missed.saturating_sub(other.missed),
            ready: self.ready.saturating_sub(other.ready),
            missing: self.missing.saturating_sub(other.missing),
        }
    }
}

/// With more answers than this for each missed deadline, the others do well: at a mixture of one slow call in five, an
/// instance has a row of three slow ones now and then.
const ANSWERS_PER_MISS: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_no_slower_than_others_that_miss_as_well() {
        let calls = |answered, missed| Compared { answered, missed, ready: 1, missing: 0 };
        for (answered, missed, is_as_slow) in
            [(0, 0, false), (0, 1, true), (1, 0, false), (4, 1, true), (5, 1, false), (40, 10, true), (41, 10, false)]
        {
            assert_eq!(calls(answered, missed).is_as_slow(Compared::default()), is_as_slow, "{answered} to {missed}");
            assert_eq!(
                calls(answered + 100, missed + 7).is_as_slow(calls(100, 7)),
                is_as_slow,
                "only what came since counts: {answered} to {missed}"
            );
        }
    }

    #[test]
    fn where_no_call_ended_since_the_latest_ones_decide() {
        let before = Compared { answered: 3, missed: 3, ready: 4, missing: 0 };
        assert!(!before.is_as_slow(before), "the others are idle, or answered last");
        assert!(!Compared { missing: 1, ..before }.is_as_slow(before), "one of four missed its latest");
        assert!(Compared { missing: 2, ..before }.is_as_slow(before), "half of them did");
        let after = Compared { answered: 30, missing: 4, ..before };
        assert!(!after.is_as_slow(before), "27 answers count more");
        assert!(!Compared::default().is_as_slow(before), "there are no others");
    }

    #[test]
    fn what_some_did_is_what_all_did_without_the_rest() {
        let one = Compared { answered: 1, missed: 2, ready: 1, missing: 1 };
        let other = Compared { answered: 10, missed: 20, ready: 1, missing: 0 };
        assert_eq!(one + other, Compared { answered: 11, missed: 22, ready: 2, missing: 1 });
        assert_eq!(one + other - one, other);
    }
}
