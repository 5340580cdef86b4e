//! The moving average of latencies, and how much evidence there is for it.
//!
//! An instance is avoided while its average is high, so what says that it has become faster are the few calls that it
//! still gets. How soon such a probe is due follows from the evidence: the number of answers, up to 32, that were
//! alike.
//!
//! | evidence | the average is old after | then a pick of so many is a probe |
//! | --- | --- | --- |
//! | 1 | 32 ms | 4 |
//! | 2 to 3 | 64 ms | 4 |
//! | 4 to 7 | 128 ms | 4 to 7 |
//! | 8 to 15 | 256 ms | 8 to 15 |
//! | 16 to 31 | 512 ms | 16 to 31 |
//! | 32 | 1024 ms | 32 |
//!
//! So an instance whose first answers are slow is tried again soon, and one that stays slow more and more rarely. With
//! `d` picks a second that would be probes, evidence grows by `d / evidence` a second: 32 of it take about `512 / d`
//! seconds, and 1 of 32 picks from then on.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::time::Instant;

use super::clock::{between, millis};

/// The moving average of one instance's latencies, in microseconds.
#[derive(Default)]
pub(super) struct Average {
    /// 0 before the first answer.
    micros: AtomicU32,
    /// The evidence in the upper bits, and in the others the milliseconds of the last answer. Those start again after
    /// 18 hours: then the average of an instance that was never called meanwhile counts for a minute again.
    stamp: AtomicU32,
}

impl Average {
    /// 0 before the first answer.
    pub(super) fn micros(&self) -> u32 {
        self.micros.load(Ordering::Relaxed)
    }

    /// The number of answers that were alike: at most [`FULL`].
    pub(super) fn evidence(&self) -> u32 {
        self.stamp.load(Ordering::Relaxed) >> TIME_BITS
    }

    /// After how many milliseconds without an answer the average says nothing any more. A power of two, because every
    /// answer divides by it.
    pub(super) fn lasts(&self) -> u32 {
        lasts(self.evidence())
    }

    /// Whether the average is too old to hold against the instance.
    pub(super) fn is_old(&self, now: Instant) -> bool {
        let stamp = self.stamp.load(Ordering::Relaxed);
        passed(stamp, millis(now)) >= lasts(stamp >> TIME_BITS)
    }

    /// An answer counts for an eighth; after a pause for as much of the time that the average lasts as the pause was
    /// long, so that an old one counts for nothing. Not exact when two answers meet: one of them may be lost.
    pub(super) fn add(&self, sample: u32, now: Instant) {
        let (now, stamp) = (millis(now), self.stamp.load(Ordering::Relaxed));
        let known = stamp >> TIME_BITS;
        let (average, evidence) = match self.micros() {
            0 => (sample, 1),
            before => {
                let whole = lasts(known);
                let gain = u64::from(passed(stamp, now).clamp(whole / 8, whole));
                let whole = u64::from(whole);
                let sum = u64::from(before) * (whole - gain) + u64::from(sample) * gain + whole / 2;
                let is_alike = sample / ALIKE <= before && before / ALIKE <= sample;
                let evidence = if is_alike { FULL.min(known + 1) } else { (known / 2).max(1) };
                (u32::try_from(sum / whole).unwrap_or(u32::MAX), evidence)
            }
        };
        self.micros.store(average, Ordering::Relaxed);
        self.stamp.store(evidence << TIME_BITS | now & TIME, Ordering::Relaxed);
    }

    /// An answer said nothing about latency, and yet that the instance is no better than it was: the next probe is due
    /// as late as can be.
    pub(super) fn harden(&self) {
        let stamp = self.stamp.load(Ordering::Relaxed);
        self.stamp.store(FULL << TIME_BITS | stamp & TIME, Ordering::Relaxed);
    }
}

fn lasts(evidence: u32) -> u32 {
    SHORTEST << evidence.max(1).ilog2()
}

/// The milliseconds from a stamp to `now`.
fn passed(stamp: u32, now: u32) -> u32 {
    between(stamp, now, TIME)
}

/// All evidence that counts.
const FULL: u32 = 32;

/// How long an average lasts at least: with full evidence about a second, after which an instance that was slow may be
/// done with restarting or with collecting garbage.
const SHORTEST: u32 = 32;

/// By which factor answers may differ and be alike.
const ALIKE: u32 = 4;

/// The bits of a stamp that are milliseconds, and the mask for them.
const TIME_BITS: u32 = 26;
const TIME: u32 = (1 << TIME_BITS) - 1;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Answers after so many milliseconds each.
    fn answers(average: &Average, begin: Instant, micros: u32, at: impl IntoIterator<Item = u64>) {
        at.into_iter().for_each(|at| average.add(micros, begin + Duration::from_millis(at)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_average_with_full_evidence_forgets_in_a_second() {
        let (average, begin) = (Average::default(), Instant::now());
        assert_eq!(average.micros(), 0, "nothing is known before the first answer");
        answers(&average, begin, 8_000, 0..32);
        assert_eq!((average.micros(), average.evidence()), (8_000, 32), "all that is known");
        answers(&average, begin, 16_000, [32]);
        assert_eq!(average.micros(), 9_000, "an answer in a row counts for an eighth");
        answers(&average, begin, 3_000, [544]);
        assert_eq!(average.micros(), 6_000, "an answer after half a second counts for a half");
        assert!(!average.is_old(begin + Duration::from_millis(1_500)), "a second has not passed");
        assert!(average.is_old(begin + Duration::from_millis(1_600)), "a second has passed");
        answers(&average, begin, 100, [2_000]);
        assert_eq!(average.micros(), 100, "what is older than a second counts for nothing");
        answers(&average, begin, u32::MAX, [3_100]);
        assert_eq!(average.micros(), u32::MAX, "what does not fit is as long as fits");
        let average = Average::default();
        answers(&average, begin, 1, [0]);
        answers(&average, begin, 2, [16]);
        assert_eq!(average.micros(), 2, "a half is rounded up");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_counted_after_a_later_one_is_no_old_news() {
        let (average, begin) = (Average::default(), Instant::now());
        answers(&average, begin, 8_000, 0..33);
        assert!(!average.is_old(begin), "the clock was read before the latest answer came");
        answers(&average, begin, 16_000, [30]);
        assert_eq!(average.micros(), 9_000, "it counts for an eighth, as answers in a row do");
    }

    #[tokio::test(start_paused = true)]
    async fn few_answers_are_soon_forgotten_and_so_is_all_that_was_known_before_a_change() {
        let (average, begin) = (Average::default(), Instant::now());
        answers(&average, begin, 2_000_000, [0]);
        assert_eq!((average.evidence(), average.lasts()), (1, 32));
        answers(&average, begin, 2_000_000, 1..5);
        assert_eq!((average.evidence(), average.lasts()), (5, 128));
        answers(&average, begin, 1_000, [200]);
        assert_eq!((average.micros(), average.evidence()), (1_000, 2), "one fast answer after a pause decides");
        average.harden();
        assert_eq!((average.evidence(), average.lasts()), (32, 1_024));
        assert!(!average.is_old(begin + Duration::from_millis(1_200)), "its time stays");
    }
}
