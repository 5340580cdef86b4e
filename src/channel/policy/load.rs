//! What is counted of a READY instance: calls in flight, latency, silence. It knows no connection, so that policies can
//! be tested and measured without one.

use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::quota::StreamQuota;

/// The load of one instance on its present connection.
///
/// Every pick reads two of them and writes one, so a load is small and one cache line holds it: ten thousand of them
/// stay in a core's cache.
pub(crate) struct Load {
    quota: StreamQuota,
    /// The moving average in microseconds; 0 before the first answer.
    latency: AtomicU32,
    /// When the average was updated, see [`millis`].
    averaged_at: AtomicU32,
    /// Calls whose deadline passed in silence, and when the last of them did. Their places are free again, but the
    /// instance may be stuck, and each would make room for another call.
    missed: AtomicU32,
    missed_at: AtomicU32,
    /// Of the calls in flight, those whose response has begun.
    responding: AtomicU32,
    /// The peak in microseconds when it was updated, 0 before the first; [`UNMEASURED`] for policies that do not use
    /// it.
    peak: AtomicU32,
    /// When the peak was updated.
    peaked_at: AtomicU32,
    /// When the instance last answered, or its calls began to wait.
    heard_at: AtomicU32,
    /// Responses that have begun since the connection stands.
    answers: AtomicU32,
}

impl Load {
    /// An instance without calls, whose peer allows `limit` of them at once.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            quota: StreamQuota::new(limit),
            latency: AtomicU32::new(0),
            averaged_at: AtomicU32::new(0),
            missed: AtomicU32::new(0),
            missed_at: AtomicU32::new(0),
            responding: AtomicU32::new(0),
            peak: AtomicU32::new(UNMEASURED),
            peaked_at: AtomicU32::new(0),
            heard_at: AtomicU32::new(0),
            answers: AtomicU32::new(0),
        }
    }

    /// Measures peaks from the next answer on, where the policy uses them.
    #[must_use]
    pub(crate) fn measuring_peaks(mut self, enabled: bool) -> Self {
        *self.peak.get_mut() = if enabled { 0 } else { UNMEASURED };
        self
    }

    /// The places for calls.
    pub(crate) fn quota(&self) -> &StreamQuota {
        &self.quota
    }

    /// The calls in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        self.quota.in_flight()
    }

    /// How busy the instance is: the calls in flight, and those that it left without an answer a moment ago.
    pub(crate) fn outstanding(&self) -> u32 {
        let missed = match self.missed.load(Ordering::Relaxed) {
            0 => 0,
            _ if has_passed(self.missed_at.load(Ordering::Relaxed), Instant::now()) => 0,
            missed => missed,
        };
        self.in_flight().saturating_add(missed)
    }

    /// Whether there is no room for another call: full or closed.
    pub(crate) fn is_saturated(&self) -> bool {
        self.quota.is_saturated()
    }

    /// The responses that have begun, modulo 2^32: a deadline that passes says something only if none began meanwhile.
    pub(crate) fn answers(&self) -> u32 {
        self.answers.load(Ordering::Relaxed)
    }

    /// The moving average; `None` before the first answer.
    pub(crate) fn latency(&self) -> Option<Duration> {
        match self.latency_micros() {
            0 => None,
            micros => Some(Duration::from_micros(u64::from(micros))),
        }
    }

    /// The moving average in microseconds; 0 before the first answer.
    pub(crate) fn latency_micros(&self) -> u32 {
        self.latency.load(Ordering::Relaxed)
    }

    /// The peak as far as it has not decayed, in microseconds; 0 before the first answer.
    pub(crate) fn peak_micros(&self, now: Instant) -> u32 {
        match self.peak.load(Ordering::Relaxed) {
            UNMEASURED | 0 => 0,
            peak => {
                let passed = millis(now).wrapping_sub(self.peaked_at.load(Ordering::Relaxed));
                // Never taken for none.
                decayed(peak, passed).max(1)
            }
        }
    }

    /// Whether the average is too old to hold against the instance.
    pub(crate) fn is_forgotten(&self, now: Instant) -> bool {
        has_passed(self.averaged_at.load(Ordering::Relaxed), now)
    }

    /// Whether there are calls whose response has not begun.
    pub(crate) fn is_awaited(&self) -> bool {
        self.in_flight() > self.responding.load(Ordering::Relaxed)
    }

    /// Whether calls wait, and none was answered for longer than answers usually take: the instance may be frozen.
    /// Unknown, and so `false`, before the first answer.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        let usual = self.latency_micros();
        let silence = millis(now).wrapping_sub(self.heard_at.load(Ordering::Relaxed));
        usual > 0 && self.is_awaited() && silence > SILENT_AFTER.max((usual / 1_000).saturating_mul(SILENT_TIMES))
    }

    /// A call is about to wait where none waited before.
    pub(crate) fn on_wait(&self, now: Instant) {
        self.heard_at.store(millis(now), Ordering::Relaxed);
    }

    /// The instance answered a call, with whatever status.
    pub(crate) fn on_answer(&self, now: Instant) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.heard_at.store(millis(now), Ordering::Relaxed);
        if self.missed.load(Ordering::Relaxed) != 0 {
            self.missed.store(0, Ordering::Relaxed);
        }
    }

    /// A response began `after` its call was sent.
    ///
    /// An answer counts for an eighth; after a pause for as much of a second as the pause was long, so that a value
    /// from a second ago counts for nothing. Not exact when two answers meet: one of them may be lost.
    pub(crate) fn on_latency(&self, now: Instant, after: Duration) {
        let sample = u32::try_from(after.as_micros()).unwrap_or(u32::MAX).max(1);
        if self.peak.load(Ordering::Relaxed) != UNMEASURED && sample >= self.peak_micros(now) {
            self.set_peak(sample, now);
        }
        let now = millis(now);
        let average = match self.latency.load(Ordering::Relaxed) {
            0 => sample,
            before => {
                let pause = now.wrapping_sub(self.averaged_at.load(Ordering::Relaxed));
                let gain = u64::from(pause.clamp(FORGETS_AFTER / 8, FORGETS_AFTER));
                let whole = u64::from(FORGETS_AFTER);
                let sum = u64::from(before) * (whole - gain) + u64::from(sample) * gain + whole / 2;
                u32::try_from(sum / whole).unwrap_or(u32::MAX)
            }
        };
        self.latency.store(average, Ordering::Relaxed);
        self.averaged_at.store(now, Ordering::Relaxed);
    }

    /// A call failed: its latency says nothing, and the peak doubles.
    pub(crate) fn on_failure(&self, now: Instant) {
        if self.peak.load(Ordering::Relaxed) != UNMEASURED {
            self.set_peak(self.peak_micros(now).saturating_mul(2).max(FAILURE), now);
        }
    }

    /// A call's deadline passed, and the instance answered no call since that one was sent.
    pub(crate) fn on_missed(&self, now: Instant) {
        self.missed_at.store(millis(now), Ordering::Relaxed);
        self.missed.fetch_add(1, Ordering::Relaxed);
    }

    /// A response has begun, and its call stays in flight.
    pub(crate) fn on_response_begin(&self) {
        self.responding.fetch_add(1, Ordering::Relaxed);
    }

    /// A response that had begun has ended.
    pub(crate) fn on_response_end(&self) {
        self.responding.fetch_sub(1, Ordering::Relaxed);
    }

    /// Not exact when two answers meet, like the average.
    fn set_peak(&self, micros: u32, now: Instant) {
        self.peak.store(micros.min(UNMEASURED - 1), Ordering::Relaxed);
        self.peaked_at.store(millis(now), Ordering::Relaxed);
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load").field("quota", &self.quota).field("latency", &self.latency()).finish_non_exhaustive()
    }
}

/// Whether an observation of `then` is too old to count.
fn has_passed(then: u32, now: Instant) -> bool {
    millis(now).wrapping_sub(then) >= FORGETS_AFTER
}

/// Milliseconds since the first use in this process. They start again after 49 days, so only differences mean
/// something.
fn millis(at: Instant) -> u32 {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    let low = |duration: Duration| u32::try_from(duration.as_millis() % (1 << 32)).unwrap_or_default();
    match at.checked_duration_since(*EPOCH) {
        Some(since) => low(since),
        None => 0_u32.wrapping_sub(low(EPOCH.duration_since(at))),
    }
}

/// The rest of a peak after so many milliseconds: half of it after seven seconds, as after ten seconds an e-th.
fn decayed(peak: u32, passed: u32) -> u32 {
    let (halvings, rest) = (passed / HALF_LIFE, passed % HALF_LIFE);
    let halved = u64::from(peak.checked_shr(halvings).unwrap_or(0));
    // Between two halvings a straight line is near enough.
    let left = halved * u64::from(2 * HALF_LIFE - rest) / u64::from(2 * HALF_LIFE);
    u32::try_from(left).unwrap_or(u32::MAX)
}

/// After how many milliseconds without an answer an average says nothing any more: an instance that was slow a second
/// ago may have been restarting or collecting garbage. A power of two, because every answer divides by it.
const FORGETS_AFTER: u32 = 1024;

/// No peak.
const UNMEASURED: u32 = u32::MAX;

/// The milliseconds in which half of a peak decays: tower and linkerd let an e-th be left after ten seconds.
const HALF_LIFE: u32 = 6_931;

/// The least latency that a failure counts as, in microseconds: more than most calls in a data centre take.
const FAILURE: u32 = 100_000;

/// The milliseconds without an answer that are silence: at least, and as a multiple of the usual latency.
const SILENT_AFTER: u32 = 16;
const SILENT_TIMES: u32 = 2;

/// With the two counts of its `Arc` a load fits into one cache line.
const _: () = assert!(size_of::<Load>() + 2 * size_of::<usize>() <= 64);

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn no_more_calls_than_the_limit_are_ever_let_in() {
        let load = Load::new(3);
        let most = AtomicU32::new(0);
        let inside = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        if load.quota().acquire() {
                            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            load.quota().release();
                        }
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 3, "a quota of three was taken by {most:?} calls at once");
        assert_eq!(load.in_flight(), 0, "the whole quota was given back");
    }

    #[test]
    fn a_refusal_means_that_the_whole_quota_is_taken() {
        // Two threads share a quota of two, each holds at most one: no call may ever be refused.
        let load = Load::new(2);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..100_000 {
                        assert!(load.quota().acquire(), "the other thread holds one of two, so one was free");
                        load.quota().release();
                    }
                });
            }
        });
    }

    #[test]
    fn the_limit_follows_the_peer_until_the_quota_is_closed() {
        let load = Load::new(1);
        assert!(load.quota().acquire() && !load.quota().acquire(), "a quota of one");
        load.quota().set_limit(2);
        assert!(load.quota().acquire() && !load.quota().acquire(), "a quota of two");
        load.quota().set_limit(0);
        assert!(load.is_saturated(), "a peer may allow no calls for a while");
        load.quota().set_limit(u32::MAX);
        assert!(load.quota().acquire(), "and all of them afterwards");
        load.quota().set_one_at_a_time(true);
        load.quota().set_limit(1_000);
        assert!(load.is_saturated(), "one at a time is less than three, whatever the peer allows");
        load.quota().set_one_at_a_time(false);
        assert!(!load.is_saturated(), "the peer's limit counts again");
        load.quota().close();
        load.quota().set_limit(100);
        load.quota().set_one_at_a_time(false);
        assert!(load.is_saturated() && !load.quota().acquire(), "closed is for good");
        assert_eq!(load.in_flight(), 3, "calls in flight stay counted");
    }

    #[tokio::test(start_paused = true)]
    async fn the_average_follows_what_is_seen_and_forgets_in_a_second() {
        let load = Load::new(1);
        let begin = Instant::now();
        let answer =
            |at: u64, micros| load.on_latency(begin + Duration::from_millis(at), Duration::from_micros(micros));
        assert_eq!(load.latency_micros(), 0, "nothing is known before the first answer");
        answer(0, 8_000);
        assert_eq!(load.latency_micros(), 8_000, "the first answer is all that is known");
        answer(1, 16_000);
        assert_eq!(load.latency_micros(), 9_000, "an answer in a row counts for an eighth");
        answer(513, 1_000);
        assert_eq!(load.latency_micros(), 5_000, "an answer after half a second counts for a half");
        assert!(!load.is_forgotten(begin + Duration::from_millis(1_500)), "a second has not passed");
        assert!(load.is_forgotten(begin + Duration::from_millis(1_600)), "a second has passed");
        answer(2_000, 100);
        assert_eq!(load.latency_micros(), 100, "what is older than a second counts for nothing");
        answer(3_100, u64::MAX);
        assert_eq!(load.latency_micros(), u32::MAX, "what does not fit is as long as fits");
        answer(4_200, 0);
        assert_eq!(load.latency_micros(), 1, "an answer is never taken for none");
    }

    #[tokio::test(start_paused = true)]
    async fn times_before_the_first_look_are_counted_backwards() {
        let now = Instant::now();
        let _ = millis(now);
        let earlier = now.checked_sub(Duration::from_secs(3)).expect("the machine runs for longer than that");
        let passed = millis(now).wrapping_sub(millis(earlier));
        assert!((2_999..=3_000).contains(&passed), "differences hold on both sides: {passed} ms of 3,000");
    }
}
