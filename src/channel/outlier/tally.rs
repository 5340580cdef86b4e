//! Outcomes of an instance's calls, counted together: a row of failures, a probation, the numbers of an interval.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{Outcome, OutlierDetection, StatusOrigin};

/// Counts the outcomes of an instance's calls; shared with them, and a few words small.
///
/// All of it is `Relaxed`: each word stands alone, and verdicts travel through the balancer's queue.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Failures in a row up to the limit, or [`PROBATION`].
    row: AtomicU32,
    successes: AtomicU32,
    failures: AtomicU32,
}

/// A verdict on an instance, for the balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Eject it: a row reached the limit, or a call failed while it was on probation.
    Failing,
    /// Take it back: a call succeeded while it was on probation.
    Proved,
}

impl Tally {
    /// The tally of a connection that is made on probation: the first of its calls to end decides whether the instance
    /// returns.
    pub(crate) fn on_probation() -> Self {
        Self { row: AtomicU32::new(PROBATION), ..Self::default() }
    }

    /// Counts the end of one call. A verdict goes to the balancer; each occasion has exactly one.
    pub(crate) fn record(&self, failed: bool, outcome: Outcome, detection: &OutlierDetection) -> Option<Verdict> {
        if failed {
            self.failure(detection).then_some(Verdict::Failing)
        } else if outcome.origin == StatusOrigin::Answered {
            self.success(detection).then_some(Verdict::Proved)
        } else {
            None
        }
    }

    /// Counts a success: ends the row. True exactly when it ends a probation.
    ///
    /// One load on the fast path, so that the cache line stays shared between cores.
    pub(crate) fn success(&self, detection: &OutlierDetection) -> bool {
        if detection.counts_intervals() {
            self.successes.fetch_add(1, Relaxed);
        }
        self.row.load(Relaxed) != 0 && self.row.swap(0, Relaxed) & PROBATION != 0
    }

    /// Counts a failure. True exactly when a row reaches the limit, or a probation ends by it.
    pub(crate) fn failure(&self, detection: &OutlierDetection) -> bool {
        if detection.counts_intervals() {
            self.failures.fetch_add(1, Relaxed);
        }
        let limit = detection.consecutive_failures;
        let lengthen = |row| if row & PROBATION != 0 { Some(limit) } else { (row < limit).then(|| row + 1) };
        let before = self.row.fetch_update(Relaxed, Relaxed, lengthen);
        before.is_ok_and(|row| row & PROBATION != 0 || row + 1 == limit)
    }

    /// Begins to count a new row: after an ejection that was not allowed, so that the next full row asks again.
    pub(crate) fn restart_row(&self) {
        self.row.store(0, Relaxed);
    }

    /// Forgets everything.
    pub(crate) fn reset(&self) {
        self.restart_row();
        self.take_interval();
    }

    /// The successes and failures since the last time.
    pub(crate) fn take_interval(&self) -> (u32, u32) {
        (self.successes.swap(0, Relaxed), self.failures.swap(0, Relaxed))
    }
}

/// In [`Tally::row`]: the instance is on probation.
const PROBATION: u32 = 1 << 31;

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use tonic::Code;

    use super::super::FailurePercentage;
    use super::*;

    const UNAVAILABLE: Outcome = Outcome { code: Code::Unavailable, origin: StatusOrigin::Answered };

    fn three() -> OutlierDetection {
        OutlierDetection::new()
    }

    fn off() -> OutlierDetection {
        OutlierDetection::new().consecutive_failures(0)
    }

    #[test]
    fn the_third_failure_in_a_row_is_reported_and_no_other() {
        let (tally, detection) = (Tally::default(), three());
        let reports: Vec<bool> = (0..10).map(|_| tally.failure(&detection)).collect();
        let third: Vec<bool> = (0..10).map(|call| call == 2).collect();
        assert_eq!(reports, third, "one report a row, at the third failure");
    }

    #[test]
    fn a_success_ends_the_row() {
        let (tally, detection) = (Tally::default(), three());
        for _ in 0..5 {
            assert!(!tally.failure(&detection), "the first of a row");
            assert!(!tally.failure(&detection), "the second of a row");
            assert!(!tally.success(&detection), "there is no probation that it could end");
        }
        assert!(!tally.failure(&detection) && !tally.failure(&detection), "the row begins anew");
        assert!(tally.failure(&detection), "and is reported at the third");
    }

    #[test]
    fn a_limit_of_one_reports_the_first_failure() {
        let (tally, detection) = (Tally::default(), three().consecutive_failures(1));
        assert!(tally.failure(&detection), "the first failure is the whole row");
        assert!(!tally.failure(&detection), "once a row");
    }

    #[test]
    fn no_row_is_reported_if_it_is_switched_off() {
        let (tally, detection) = (Tally::default(), off());
        assert!((0..100).all(|_| !tally.failure(&detection)), "rows are off");
    }

    #[test]
    fn a_row_that_began_anew_is_reported_again() {
        let (tally, detection) = (Tally::default(), three());
        assert!((0..3).any(|_| tally.failure(&detection)), "a whole row");
        tally.restart_row();
        let reports: Vec<bool> = (0..4).map(|_| tally.failure(&detection)).collect();
        assert_eq!(reports, [false, false, true, false], "three more failures ask again");
    }

    #[test]
    fn on_probation_the_first_call_to_end_decides_once() {
        for detection in [three(), off()] {
            let tally = Tally::on_probation();
            assert!(tally.success(&detection), "it proves the instance");
            assert!(!tally.success(&detection), "which was reported already");

            let tally = Tally::on_probation();
            assert!(tally.failure(&detection), "one failure is enough on probation");
            assert!(!tally.failure(&detection), "which was reported already");
            assert!(!tally.success(&detection), "the probation is over");
        }
    }

    #[test]
    fn answers_are_successes_and_what_says_nothing_counts_as_nothing() {
        let tally = Tally::default();
        let detection = OutlierDetection::new()
            .failure_percentage(FailurePercentage::new())
            .failure_when(|outcome| outcome.code() == Code::Unavailable);
        let outcome = |code, origin| Outcome { code, origin };
        let record = |outcome| tally.record(detection.is_failure(outcome), outcome, &detection);
        assert_eq!(record(UNAVAILABLE), None, "the first failure of a row");
        assert_eq!(record(UNAVAILABLE), None, "the second");
        assert_eq!(record(outcome(Code::DeadlineExceeded, StatusOrigin::Missed)), None, "counts as nothing");
        assert_eq!(record(UNAVAILABLE), Some(Verdict::Failing), "so the row was not broken");
        assert_eq!(tally.take_interval(), (0, 3), "three failures, and one outcome that says nothing");
        let tally = Tally::on_probation();
        let record = |outcome| tally.record(detection.is_failure(outcome), outcome, &detection);
        assert_eq!(record(outcome(Code::Internal, StatusOrigin::Broken)), None, "proves nothing");
        assert_eq!(record(outcome(Code::NotFound, StatusOrigin::Answered)), Some(Verdict::Proved), "an answer");
        assert_eq!(tally.take_interval(), (1, 0), "one success, and one outcome that says nothing");
    }

    #[test]
    fn intervals_are_counted_only_where_they_are_read() {
        let (tally, detection) = (Tally::default(), three().failure_percentage(FailurePercentage::new()));
        tally.success(&three());
        tally.failure(&three());
        assert_eq!(tally.take_interval(), (0, 0), "no algorithm is on");
        for _ in 0..7 {
            tally.success(&detection);
        }
        tally.failure(&detection);
        assert_eq!(tally.take_interval(), (7, 1), "one is on");
        assert_eq!(tally.take_interval(), (0, 0), "each interval begins at zero");
    }

    #[test]
    fn a_reset_forgets_row_probation_and_interval() {
        let (tally, detection) = (Tally::default(), three().failure_percentage(FailurePercentage::new()));
        tally.failure(&detection);
        tally.failure(&detection);
        tally.reset();
        assert!(!tally.failure(&detection), "the row began anew");
        assert_eq!(tally.take_interval(), (0, 1), "the interval, too");
        let tally = Tally::on_probation();
        tally.reset();
        assert!(!tally.success(&detection), "the probation is over");
    }

    #[test]
    fn of_many_concurrent_failures_exactly_one_reports() {
        const THREADS: usize = 8;
        let reports = |tally: &Tally, detection: &OutlierDetection| {
            let start = Barrier::new(THREADS);
            let fail = || {
                start.wait();
                (0..50).filter(|_| tally.failure(detection)).count()
            };
            thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(fail)).collect();
                threads.into_iter().map(|thread| thread.join().expect("no thread panics")).sum::<usize>()
            })
        };
        for _ in 0..100 {
            let (tally, detection) = (Tally::default(), three());
            assert_eq!(reports(&tally, &detection), 1, "one report for the row");
            assert_eq!(reports(&Tally::on_probation(), &detection), 1, "one report for the probation");
        }
    }

    /// What a [`Tally`] is meant to do, in plain words instead of bits.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Model {
        Row(u32),
        Probation,
    }

    impl Model {
        /// The next state and what the step returns.
        fn step(self, step: Step) -> (Self, bool) {
            match (step, self) {
                (Step::Success, state) => (Self::Row(0), matches!(state, Self::Probation)),
                (Step::Failure, Self::Row(row)) => (Self::Row((row + 1).min(3)), row == 2),
                (Step::Failure, Self::Probation) => (Self::Row(3), true),
                (Step::RestartRow, _) => (Self::Row(0), false),
            }
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Success,
        Failure,
        RestartRow,
    }

    /// Every step is one read-modify-write of one word (a success reads first, and then swaps whatever is there), so
    /// the orders of steps are all interleavings that there are.
    #[test]
    fn every_order_of_seven_steps_does_what_it_should() {
        use Step::{Failure, RestartRow, Success};
        const STEPS: [Step; 3] = [Success, Failure, RestartRow];
        let detection = three();
        let both = [Model::Row(0), Model::Probation];
        for (order, begin) in (0..STEPS.len().pow(7)).flat_map(|order| both.map(|begin| (order, begin))) {
            let tally = if begin == Model::Probation { Tally::on_probation() } else { Tally::default() };
            let (mut model, mut rest) = (begin, order);
            for _ in 0..7 {
                let step = STEPS[rest % STEPS.len()];
                rest /= STEPS.len();
                let returned = match step {
                    Success => tally.success(&detection),
                    Failure => tally.failure(&detection),
                    RestartRow => {
                        tally.restart_row();
                        false
                    }
                };
                let expected;
                (model, expected) = model.step(step);
                assert_eq!(returned, expected, "order {order}, at {step:?}, now {model:?}");
            }
        }
    }

    #[test]
    fn a_tally_is_three_words_of_32_bits() {
        assert_eq!(size_of::<Tally>(), 12, "it is part of every idle instance");
    }
}
