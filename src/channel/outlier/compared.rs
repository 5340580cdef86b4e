//! Whether an instance that misses deadlines is slower than the others.

/// What a channel's other instances did with their calls so far. Only differences of two mean something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    /// Responses that began.
    pub(crate) answered: u64,
    /// Deadlines that passed.
    pub(crate) missed: u64,
    /// Whether one of them missed the deadline of its latest call.
    pub(crate) is_missing: bool,
}

impl Compared {
    /// Whether the others missed so many deadlines since `then` that an instance that missed some is no slower: the
    /// method is slow, or its deadline short.
    pub(crate) fn is_as_slow(self, then: Self) -> bool {
        // An instance that reconnected counts from zero again.
        let answered = self.answered.saturating_sub(then.answered);
        let missed = self.missed.saturating_sub(then.missed);
        if answered == 0 && missed == 0 { self.is_missing } else { missed > 0 && answered <= missed * ANSWERS_PER_MISS }
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
        let calls = |answered, missed| Compared { answered, missed, is_missing: false };
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
        let before = Compared { answered: 3, missed: 3, is_missing: false };
        assert!(!before.is_as_slow(before), "the others are idle, or answered last");
        assert!(Compared { is_missing: true, ..before }.is_as_slow(before), "one of them missed its latest");
        let after = Compared { answered: 30, missed: 3, is_missing: true };
        assert!(!after.is_as_slow(before), "27 answers count more");
        assert!(!Compared::default().is_as_slow(before), "counts that began anew are no answers");
    }
}
