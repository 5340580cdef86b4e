//! Calls that are over and still count as in flight: what failed at once, and what was missed in silence.
//!
//! In flight are few calls where they fail at once, and none where all of them are given up. Both would look idle.
//!
//! | state | on | then |
//! | --- | --- | --- |
//! | nothing | a fast failure | failing, one call lingers |
//! | failing | a fast failure | one more lingers; each fades in the time that calls usually take elsewhere |
//! | failing | a good answer | no longer failing; what lingers fades all the same |
//! | any | a deadline missed in silence | silent, one (more) call lingers |
//! | silent | any answer | nothing |
//!
//! Apart from that: whether a ping waits for its answer. Meanwhile no trial call is made.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::time::Instant;

use super::clock::{decayed, millis, since};

/// The calls of one instance that linger.
#[derive(Default)]
pub(super) struct Lingering {
    /// In the lower half the calls in 256ths, above them [`SILENT`] or [`FAILING`], and [`DOUBTED`].
    calls: AtomicU32,
    /// When the latest one was missed or the instance was tried again, or when those that failed were counted.
    at: AtomicU32,
}

impl Lingering {
    /// The calls that linger, where a call usually takes `usual` microseconds.
    pub(super) fn calls(&self, usual: u32) -> u32 {
        match self.calls.load(Ordering::Relaxed) {
            word if word & CALLS == 0 => 0,
            word => self.look(word, usual),
        }
    }

    #[cold]
    fn look(&self, word: u32, usual: u32) -> u32 {
        let now = Instant::now();
        let (calls, passed) = (word & CALLS, since(self.at.load(Ordering::Relaxed), now));
        if word & SILENT != 0 {
            return if passed >= PROBE_EVERY { 0 } else { calls / ONE };
        }
        // Where calls fade like this, each of them lingers for the usual time on average.
        let half_life = (usual / 1_443).clamp(1, LONGEST);
        let left = decayed(calls, passed, half_life);
        // Calls are added without a look at the time, so that must be recent; and not so often that all is rounding.
        if passed >= half_life.div_ceil(4)
            && self.calls.compare_exchange(word, word & !CALLS | left, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.at.store(millis(now), Ordering::Relaxed);
        }
        // A single one counts until an e-th is left of it.
        (left + ONE - ONE * 3 / 8) / ONE
    }

    /// Whether the latest answers failed at once: how soon they came promises nothing.
    pub(super) fn is_failing(&self) -> bool {
        self.calls.load(Ordering::Relaxed) & FAILING != 0
    }

    /// Whether calls were missed, and none was answered since.
    pub(super) fn is_silent(&self) -> bool {
        self.calls.load(Ordering::Relaxed) & SILENT != 0
    }

    /// Whether the peer was asked for a sign of life, and has given none yet.
    pub(super) fn is_doubted(&self) -> bool {
        self.calls.load(Ordering::Relaxed) & DOUBTED != 0
    }

    pub(super) fn set_doubted(&self, is_doubted: bool) {
        if is_doubted {
            self.calls.fetch_or(DOUBTED, Ordering::Relaxed);
        } else {
            self.calls.fetch_and(!DOUBTED, Ordering::Relaxed);
        }
    }

    /// Whether a silent instance is due to be tried again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        since(self.at.load(Ordering::Relaxed), now) >= PROBE_EVERY
    }

    /// Takes the call with which a silent instance is tried again, if that is due. Of all picks one gets it, and the
    /// next is due a second later; until then the calls that were missed count again.
    pub(super) fn claim_probe(&self, now: Instant) -> bool {
        let at = self.at.load(Ordering::Relaxed);
        since(at, now) >= PROBE_EVERY
            && self.at.compare_exchange(at, millis(now), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The instance answered, with whatever status.
    pub(super) fn on_answer(&self) {
        if self.is_silent() {
            self.calls.fetch_and(DOUBTED, Ordering::Relaxed);
        }
    }

    /// The instance answered well.
    pub(super) fn on_good_answer(&self) {
        if self.is_failing() {
            self.calls.fetch_and(!FAILING, Ordering::Relaxed);
        }
    }

    /// An answer came at once, and was none that says how long calls take.
    pub(super) fn on_fast_failure(&self, now: Instant) {
        if self.calls.load(Ordering::Relaxed) & CALLS == 0 {
            self.at.store(millis(now), Ordering::Relaxed);
        }
        self.change(|word| if word & SILENT != 0 { word } else { FAILING | one_more(word) });
    }

    /// A call's deadline passed, and the instance answered no call since that one was sent.
    pub(super) fn on_missed(&self, now: Instant) {
        self.at.store(millis(now), Ordering::Relaxed);
        self.change(|word| SILENT | one_more(word));
    }

    fn change(&self, change: impl Fn(u32) -> u32) {
        // The closure never says no.
        let _ = self.calls.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| Some(change(word)));
    }
}

/// One call more, neither silent nor failing.
fn one_more(word: u32) -> u32 {
    word & DOUBTED | CALLS.min((word & CALLS) + ONE)
}

/// One call.
const ONE: u32 = 256;

/// The bits that count.
const CALLS: u32 = 0xffff;

/// Calls were missed in silence.
const SILENT: u32 = 1 << 31;

/// The latest answers failed at once.
const FAILING: u32 = 1 << 30;

/// A ping waits for its answer.
const DOUBTED: u32 = 1 << 29;

/// After how many milliseconds missed calls no longer count, and a silent instance is tried again: one caller a second
/// is what it may cost to see that it is back.
pub(super) const PROBE_EVERY: u32 = 1024;

/// The longest half-life of a failed call in milliseconds: where calls take longer, a failure should not weigh for
/// minutes.
const LONGEST: u32 = 5_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    const USUAL: u32 = 20_000;

    #[tokio::test(start_paused = true)]
    async fn each_fast_failure_lingers_for_the_usual_time_on_average() {
        let lingering = Lingering::default();
        let (mut sum, failures) = (0, 200);
        for _ in 0..failures {
            lingering.on_fast_failure(Instant::now());
            for _ in 0..10 {
                advance(Duration::from_millis(1)).await;
                sum += lingering.calls(USUAL);
            }
        }
        let each = f64::from(sum) / f64::from(failures);
        assert!((16.0..26.0).contains(&each), "each lingers for {each} ms of 20");
        advance(Duration::from_millis(150)).await;
        assert_eq!(lingering.calls(USUAL), 0, "all of them have faded");
        assert!(lingering.is_failing(), "which is remembered");
        lingering.on_good_answer();
        assert!(!lingering.is_failing(), "until a good answer");
    }

    #[tokio::test(start_paused = true)]
    async fn doubt_is_kept_beside_all_that_is_counted() {
        let lingering = Lingering::default();
        lingering.set_doubted(true);
        lingering.on_fast_failure(Instant::now());
        lingering.on_missed(Instant::now());
        assert!(lingering.is_doubted() && lingering.is_silent() && lingering.calls(USUAL) == 2);
        lingering.on_answer();
        assert!(
            lingering.is_doubted() && !lingering.is_silent() && lingering.calls(USUAL) == 0,
            "its ping is not answered"
        );
        lingering.set_doubted(false);
        lingering.on_missed(Instant::now());
        assert!(!lingering.is_doubted() && lingering.is_silent());
    }

    #[tokio::test(start_paused = true)]
    async fn missed_calls_linger_for_a_second_and_are_remembered_until_an_answer() {
        let lingering = Lingering::default();
        (0..3).for_each(|_| lingering.on_missed(Instant::now()));
        assert_eq!(lingering.calls(USUAL), 3);
        assert!(lingering.is_silent() && !lingering.is_due(Instant::now()), "it is to be left alone");
        lingering.on_fast_failure(Instant::now());
        lingering.on_good_answer();
        advance(Duration::from_millis(1_100)).await;
        assert_eq!(lingering.calls(USUAL), 0);
        assert!(lingering.is_silent() && lingering.is_due(Instant::now()), "one call is to find out");
        lingering.on_answer();
        assert!(!lingering.is_silent(), "it has answered");
    }
}
