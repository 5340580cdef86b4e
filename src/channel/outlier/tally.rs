//! Evidence about an instance, counted together: a row of failures, a probation, missed deadlines, the numbers of an
//! interval.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{Outcome, OutlierDetection, StatusOrigin};

/// Counts the evidence that an instance's calls bring; shared with them, and a few words small.
///
/// All of it is `Relaxed`: each word stands alone, and verdicts travel through the balancer's queue.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Failures in a row up to the limit, with the flags [`PROBATION`] and [`MISSED`].
    row: AtomicU32,
    successes: AtomicU32,
    failures: AtomicU32,
    /// Deadlines that passed, modulo 2^32, whatever they prove.
    missed: AtomicU32,
}

/// A verdict on an instance, for the balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Eject it: a row reached the limit, or a call failed while it was on probation.
    Failing,
    /// Take it back: a response began while it was on probation.
    Proved,
    /// A missed deadline is the first of its row: from now on the other instances are compared with.
    Suspected,
}

/// The row that the head of a response has ended. The same response may still fail, which goes on with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct EndedRow(u32);

impl Tally {
    /// The tally of a connection that is made on probation: its first response decides whether the instance returns.
    pub(crate) fn on_probation() -> Self {
        Self { row: AtomicU32::new(PROBATION), ..Self::default() }
    }

    /// A response has begun, with a status that is no failure or without one yet: ends the row, and a probation.
    /// Returns the verdict, if there is one, and the row for [`resume`](Self::resume).
    ///
    /// One load on the fast path, so that the cache line stays shared between cores.
    pub(crate) fn on_head(&self) -> (Option<Verdict>, EndedRow) {
        if self.row.load(Relaxed) == 0 {
            return (None, EndedRow::default());
        }
        let row = self.row.swap(0, Relaxed);
        ((row & PROBATION != 0).then_some(Verdict::Proved), EndedRow(row & !PROBATION))
    }

    /// A response that had ended this row fails, and no other has begun meanwhile: its head proved nothing. The failure
    /// itself is still to be recorded.
    pub(crate) fn resume(&self, ended: EndedRow, detection: &OutlierDetection) {
        // A whole row was reported, and what follows from it is the balancer's.
        if (1..detection.row_limit()).contains(&(ended.0 & COUNT)) {
            // Whatever was counted meanwhile is more recent.
            let _ = self.row.compare_exchange(0, ended.0, Relaxed, Relaxed);
        }
    }

    /// Counts the outcome of one call. A verdict goes to the balancer; each occasion has exactly one.
    pub(crate) fn record(&self, failed: bool, outcome: Outcome, detection: &OutlierDetection) -> Option<Verdict> {
        if failed && !detection.ends_in_ejection(outcome) && self.passes_probation() {
            self.count_failure(detection);
            Some(Verdict::Proved)
        } else if failed {
            self.failure(outcome.origin == StatusOrigin::Missed, detection)
        } else if outcome.origin == StatusOrigin::Answered {
            self.success(detection)
        } else {
            None
        }
    }

    /// A deadline passed, whatever that proves about the instance.
    pub(crate) fn on_missed(&self) {
        self.missed.fetch_add(1, Relaxed);
    }

    /// The deadlines that passed, modulo 2^32.
    pub(crate) fn missed(&self) -> u32 {
        self.missed.load(Relaxed)
    }

    /// Whether the present row has a missed deadline in it, or the latest call missed its own.
    pub(crate) fn has_missed(&self) -> bool {
        self.row.load(Relaxed) & MISSED != 0
    }

    /// Counts a success: ends the row, and a probation.
    fn success(&self, detection: &OutlierDetection) -> Option<Verdict> {
        if detection.counts_intervals() {
            self.successes.fetch_add(1, Relaxed);
        }
        self.on_head().0
    }

    /// A deadline was missed in a silence that is no pause: it counts as two in the row, and as one in the interval.
    pub(crate) fn on_long_silence(&self, detection: &OutlierDetection) -> Option<Verdict> {
        let first = self.failure(true, detection);
        if first == Some(Verdict::Failing) { first } else { self.lengthen(true, detection).or(first) }
    }

    /// Counts a failure. [`Verdict::Failing`] exactly when a row reaches the limit, or a probation ends by it.
    fn failure(&self, is_missed: bool, detection: &OutlierDetection) -> Option<Verdict> {
        self.count_failure(detection);
        self.lengthen(is_missed, detection)
    }

    fn count_failure(&self, detection: &OutlierDetection) {
        if detection.counts_intervals() {
            self.failures.fetch_add(1, Relaxed);
        }
    }

    /// Ends a probation. Returns whether there was one.
    fn passes_probation(&self) -> bool {
        self.row.fetch_update(Relaxed, Relaxed, |row| (row & PROBATION != 0).then_some(0)).is_ok()
    }

    fn lengthen(&self, is_missed: bool, detection: &OutlierDetection) -> Option<Verdict> {
        let limit = detection.row_limit();
        let flag = if is_missed { MISSED } else { 0 };
        let lengthen = |row| {
            let on_probation = row & PROBATION != 0;
            let count = if on_probation { limit } else { (row & COUNT) + 1 };
            let earlier = if row & COUNT == 0 { 0 } else { row & MISSED };
            (on_probation || row & COUNT < limit).then_some(count | earlier | flag)
        };
        let before = self.row.fetch_update(Relaxed, Relaxed, lengthen).ok()?;
        if before & PROBATION != 0 || (before & COUNT) + 1 == limit {
            Some(Verdict::Failing)
        } else {
            let is_first = before & MISSED == 0 || before & COUNT == 0;
            (is_missed && is_first).then_some(Verdict::Suspected)
        }
    }

    /// A connection broke under open calls: one failure, however many they are. True where that ejects.
    pub(crate) fn on_broken(&self, detection: &OutlierDetection) -> bool {
        self.failure(false, detection) == Some(Verdict::Failing)
    }

    /// Begins to count a new row, without a probation: after an ejection that was not allowed, so that the next full
    /// row asks again.
    pub(crate) fn restart_row(&self) {
        self.row.store(0, Relaxed);
    }

    /// The connection that the calls were made on is left: deadlines that were missed on it say nothing about the next.
    pub(crate) fn forget_missed(&self) {
        let forgotten = |row| (row & MISSED != 0 && row & PROBATION == 0).then_some(0);
        // The error only says that there is nothing to forget.
        let _ = self.row.fetch_update(Relaxed, Relaxed, forgotten);
    }

    /// Begins to count a new row after missed deadlines that prove nothing, and remembers that the latest call missed
    /// its own.
    pub(crate) fn excuse_row(&self) {
        self.row.store(MISSED, Relaxed);
    }

    /// Forgets everything but the number of missed deadlines, which only differences are made of.
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

/// In [`Tally::row`]: a missed deadline is among the failures.
const MISSED: u32 = 1 << 30;

/// In [`Tally::row`]: the number of failures.
const COUNT: u32 = MISSED - 1;

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

    /// A failure that is no missed deadline; whether it ejects.
    fn fails(tally: &Tally, detection: &OutlierDetection) -> bool {
        tally.failure(false, detection) == Some(Verdict::Failing)
    }

    /// A success; whether it ends a probation.
    fn succeeds(tally: &Tally, detection: &OutlierDetection) -> bool {
        tally.success(detection) == Some(Verdict::Proved)
    }

    fn off() -> OutlierDetection {
        OutlierDetection::new().consecutive_failures(None)
    }

    #[test]
    fn the_third_failure_in_a_row_is_reported_and_no_other() {
        let (tally, detection) = (Tally::default(), three());
        let reports: Vec<bool> = (0..10).map(|_| fails(&tally, &detection)).collect();
        let third: Vec<bool> = (0..10).map(|call| call == 2).collect();
        assert_eq!(reports, third, "one report a row, at the third failure");
    }

    #[test]
    fn a_success_ends_the_row() {
        let (tally, detection) = (Tally::default(), three());
        for _ in 0..5 {
            assert!(!fails(&tally, &detection), "the first of a row");
            assert!(!fails(&tally, &detection), "the second of a row");
            assert!(!succeeds(&tally, &detection), "there is no probation that it could end");
        }
        assert!(!fails(&tally, &detection) && !fails(&tally, &detection), "the row begins anew");
        assert!(fails(&tally, &detection), "and is reported at the third");
    }

    #[test]
    fn a_connection_that_is_left_takes_missed_deadlines_with_it_and_nothing_else() {
        let (tally, detection) = (Tally::default(), three());
        fails(&tally, &detection);
        fails(&tally, &detection);
        tally.forget_missed();
        assert!(fails(&tally, &detection), "failures that were answered count on");

        let tally = Tally::default();
        tally.failure(true, &detection);
        tally.failure(true, &detection);
        tally.forget_missed();
        assert!(!fails(&tally, &detection), "deadlines that were missed do not");

        let tally = Tally::on_probation();
        tally.forget_missed();
        assert!(fails(&tally, &detection), "a probation is none the less to be passed");
    }

    #[test]
    fn a_limit_of_one_reports_the_first_failure() {
        let (tally, detection) = (Tally::default(), three().consecutive_failures(1));
        assert!(fails(&tally, &detection), "the first failure is the whole row");
        assert!(!fails(&tally, &detection), "once a row");
    }

    #[test]
    fn no_row_is_reported_if_it_is_switched_off() {
        let (tally, detection) = (Tally::default(), off());
        assert!((0..100).all(|_| !fails(&tally, &detection)), "rows are off");
    }

    #[test]
    fn a_row_that_began_anew_is_reported_again() {
        let (tally, detection) = (Tally::default(), three());
        assert!((0..3).any(|_| fails(&tally, &detection)), "a whole row");
        tally.restart_row();
        let reports: Vec<bool> = (0..4).map(|_| fails(&tally, &detection)).collect();
        assert_eq!(reports, [false, false, true, false], "three more failures ask again");
    }

    #[test]
    fn on_probation_the_first_call_to_end_decides_once() {
        for detection in [three(), off()] {
            let tally = Tally::on_probation();
            assert!(succeeds(&tally, &detection), "it proves the instance");
            assert!(!succeeds(&tally, &detection), "which was reported already");

            let tally = Tally::on_probation();
            assert!(fails(&tally, &detection), "one failure is enough on probation");
            assert!(!fails(&tally, &detection), "which was reported already");
            assert!(!succeeds(&tally, &detection), "the probation is over");
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
    fn in_grpcs_terms_one_answer_on_probation_bypasses_no_threshold() {
        let grpc = || OutlierDetection::grpc().failure_percentage(FailurePercentage::new());
        let outcome = |code, origin| Outcome { code, origin };
        let not_found = outcome(Code::NotFound, StatusOrigin::Answered);
        let own = || OutlierDetection::new().failure_when(|outcome| outcome.code() != Code::Ok);
        for (detection, outcome, verdict) in [
            (grpc(), not_found, Verdict::Proved),
            (grpc().failure_when(|outcome| outcome.code() == Code::NotFound), not_found, Verdict::Proved),
            (grpc(), UNAVAILABLE, Verdict::Failing),
            (grpc(), outcome(Code::Internal, StatusOrigin::NotGrpc), Verdict::Failing),
            (grpc(), outcome(Code::DeadlineExceeded, StatusOrigin::Missed), Verdict::Failing),
            (own(), not_found, Verdict::Failing),
        ] {
            let tally = Tally::on_probation();
            let record = || tally.record(detection.is_failure(outcome), outcome, &detection);
            assert_eq!(record(), Some(verdict), "{outcome:?}");
            assert_eq!(record(), None, "once: {outcome:?}");
        }
        let (tally, detection) = (Tally::on_probation(), grpc());
        tally.record(true, not_found, &detection);
        assert_eq!(tally.take_interval(), (0, 1), "it counts in the interval as it does elsewhere");
    }

    #[test]
    fn intervals_are_counted_only_where_they_are_read() {
        let (tally, detection) = (Tally::default(), three().failure_percentage(FailurePercentage::new()));
        succeeds(&tally, &three());
        fails(&tally, &three());
        assert_eq!(tally.take_interval(), (0, 0), "no algorithm is on");
        for _ in 0..7 {
            succeeds(&tally, &detection);
        }
        fails(&tally, &detection);
        assert_eq!(tally.take_interval(), (7, 1), "one is on");
        assert_eq!(tally.take_interval(), (0, 0), "each interval begins at zero");
    }

    #[test]
    fn a_reset_forgets_row_probation_and_interval() {
        let (tally, detection) = (Tally::default(), three().failure_percentage(FailurePercentage::new()));
        fails(&tally, &detection);
        fails(&tally, &detection);
        tally.reset();
        assert!(!fails(&tally, &detection), "the row began anew");
        assert_eq!(tally.take_interval(), (0, 1), "the interval, too");
        let tally = Tally::on_probation();
        tally.reset();
        assert!(!succeeds(&tally, &detection), "the probation is over");
    }

    #[test]
    fn of_many_concurrent_failures_exactly_one_reports() {
        const THREADS: usize = 8;
        let reports = |tally: &Tally, detection: &OutlierDetection| {
            let start = Barrier::new(THREADS);
            let fail = || {
                start.wait();
                (0..50).filter(|_| fails(tally, detection)).count()
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
                    Success => succeeds(&tally, &detection),
                    Failure => fails(&tally, &detection),
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
    fn a_tally_is_four_words_of_32_bits() {
        assert_eq!(size_of::<Tally>(), 16, "it is part of every idle instance");
    }

    #[test]
    fn a_head_ends_a_row_and_a_probation_and_its_own_failure_goes_on_with_the_row() {
        let (tally, detection) = (Tally::default(), three());
        assert!(!fails(&tally, &detection) && !fails(&tally, &detection), "two of a row");
        let (verdict, ended) = tally.on_head();
        assert_eq!((verdict, ended), (None, EndedRow(2)), "there was no probation");
        assert_eq!(tally.on_head(), (None, EndedRow(0)), "the row is over");
        tally.resume(ended, &detection);
        assert!(fails(&tally, &detection), "the response of that head failed: the third in a row");
        let (_, whole) = tally.on_head();
        tally.resume(whole, &detection);
        assert!(!fails(&tally, &detection), "a whole row was reported already");

        let tally = Tally::default();
        fails(&tally, &detection);
        let (_, ended) = tally.on_head();
        fails(&tally, &detection);
        tally.resume(ended, &detection);
        assert!(!fails(&tally, &detection) && fails(&tally, &detection), "a newer row is not replaced");

        let tally = Tally::on_probation();
        let (verdict, ended) = tally.on_head();
        assert_eq!((verdict, ended), (Some(Verdict::Proved), EndedRow(0)), "it takes calls");
        tally.resume(ended, &detection);
        assert!(!fails(&tally, &detection), "a failure later is the first of a row");
    }

    #[test]
    fn the_first_missed_deadline_of_a_row_is_a_suspicion() {
        let (tally, detection) = (Tally::default(), three());
        assert_eq!(tally.failure(false, &detection), None, "not a missed one");
        assert!(!tally.has_missed());
        assert_eq!(tally.failure(true, &detection), Some(Verdict::Suspected), "the first missed one");
        assert!(tally.has_missed());
        assert_eq!(tally.failure(true, &detection), Some(Verdict::Failing), "the third failure");
        assert!(tally.has_missed(), "until the row ends");
        tally.on_head();
        assert!(!tally.has_missed(), "with a response");
        assert_eq!(tally.failure(true, &detection), Some(Verdict::Suspected), "anew");
        assert_eq!(tally.failure(true, &detection), None, "once a row");
        tally.forget_missed();
        assert!(!tally.has_missed(), "or with the connection");
        assert_eq!(tally.failure(true, &detection), Some(Verdict::Suspected), "the first of a row");
        let (_, ended) = tally.on_head();
        tally.resume(ended, &detection);
        assert!(tally.has_missed(), "its own failure goes on with a row that has one");
        tally.excuse_row();
        assert!(tally.has_missed(), "the latest call did");
        assert_eq!(tally.failure(true, &detection), Some(Verdict::Suspected), "the first of a new row");
        tally.excuse_row();
        assert_eq!(tally.failure(false, &detection), None);
        assert!(!tally.has_missed(), "the latest did not, and it is a new row");
        tally.on_head();
        assert_eq!(tally.on_long_silence(&detection), Some(Verdict::Suspected), "a long silence counts as two");
        assert_eq!(tally.on_long_silence(&detection), Some(Verdict::Failing), "the third is there");
        assert_eq!(tally.on_long_silence(&detection), None, "once a row");
        let tally = Tally::on_probation();
        assert_eq!(tally.failure(true, &detection), Some(Verdict::Failing), "one is enough on probation");
        assert!(tally.has_missed());
    }
}
