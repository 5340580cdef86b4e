//! What the calls of one instance tell about it: a row of failures, a probation, the numbers of an interval.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{Ending, Outcome, OutlierDetection};

/// What the calls of one instance tell about it; shared with them, and a few words small.
///
/// All of it is `Relaxed`: each word stands alone, and what follows from it travels through the control task's queue.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Failures in a row up to the limit, or [`PROBATION`].
    row: AtomicU32,
    successes: AtomicU32,
    failures: AtomicU32,
}

/// What the control task has to hear of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Eject it: a row reached the limit, or a call failed while it was on probation.
    Failing,
    /// Take it back: a call succeeded while it was on probation.
    Proved,
}

impl Tally {
    /// Counts the end of one call. The answer goes to the control task; each occasion has exactly one.
    pub(crate) fn record(&self, failed: bool, outcome: Outcome, detection: &OutlierDetection) -> Option<Verdict> {
        if failed {
            self.failure(detection).then_some(Verdict::Failing)
        } else if outcome.ending == Ending::Answered {
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

    /// Lets the next call that ends decide whether the instance returns. With [`Ejection::probe`].
    pub(crate) fn begin_probation(&self) {
        self.row.store(PROBATION, Relaxed);
    }

    /// Whether the next call that ends decides.
    pub(crate) fn is_on_probation(&self) -> bool {
        self.row.load(Relaxed) & PROBATION != 0
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
mod tests;
