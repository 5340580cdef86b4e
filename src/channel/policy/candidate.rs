//! What a policy chooses among: a READY instance, and the place in the picker where its calls are counted.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::channel::policy::quota::StreamQuota;
use crate::channel::subchannel::connection::Link;
use crate::instance::Instance;

/// One READY instance as a [`Policy`](crate::Policy) sees it.
///
/// A cheap handle. What it counts belongs to the connection and survives every rebuild of the picker; what the instance
/// says of itself (weight, tags) is as it was when the picker was built.
#[derive(Clone)]
pub struct Candidate {
    load: Arc<Load>,
    instance: Arc<Instance>,
    weight: u32,
}

impl Candidate {
    pub(crate) fn new(load: Arc<Load>, instance: Arc<Instance>) -> Self {
        let weight = Self::full_weight_of(&instance);
        Self { load, instance, weight }
    }

    /// The same with this share of the load.
    pub(crate) fn with_weight(self, weight: u32) -> Self {
        Self { weight, ..self }
    }

    /// The instance: its address, weight and tags.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Its share of the load against the other candidates' weights: 1 or more, even where an instance states 0. While
    /// instances [start slowly](crate::ChannelBuilder::slow_start), a hundred times the weight that each has by now.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// The same for policies that instances do not start slowly with.
    pub(crate) fn full_weight(&self) -> u32 {
        Self::full_weight_of(&self.instance)
    }

    /// An instance's weight, also where it states none.
    pub(crate) fn full_weight_of(instance: &Instance) -> u32 {
        u32::from(instance.weight.max(1))
    }

    /// How many calls it has in flight, those of this channel only.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.load.in_flight()
    }

    /// How long it takes until a response begins: a moving average, in microseconds' precision. `None` before the first.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        self.load.latency()
    }

    /// How long it takes until a response begins, at its worst of late: a slower answer counts at once and in full, and less
    /// and less over some ten seconds, down to what faster ones take; each failure doubles it, at least to 100 ms. `None` before the first
    /// answer, and for policies that do not [ask for it](crate::Policy::measures_peaks).
    #[must_use]
    pub fn peak_latency(&self) -> Option<Duration> {
        match self.load.peak_micros(Instant::now()) {
            0 => None,
            micros => Some(Duration::from_micros(u64::from(micros))),
        }
    }

    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    pub(crate) fn shared_instance(&self) -> &Arc<Instance> {
        &self.instance
    }
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate")
            .field("instance", &self.instance)
            .field("in_flight", &self.in_flight())
            .field("latency", &self.latency())
            .finish_non_exhaustive()
    }
}

/// One connection's place in the picker: how many calls it has and may have, and how fast it answers.
///
/// Every pick reads two of them and writes one, so it is small: with the counts of its [`Arc`] it takes 40 bytes, and ten
/// thousand of them stay in a core's cache. Whatever a pick does not need lies behind the link.
pub(crate) struct Load {
    quota: StreamQuota,
    /// The moving average in microseconds; 0 before the first answer.
    latency: AtomicU32,
    /// When that was updated, see [`millis`].
    answered: AtomicU32,
    /// Calls whose deadline passed while it answered nobody, and when the last of them did: they are given back, but it may
    /// well be stuck, and each would make room for another.
    missed: AtomicU32,
    missed_at: AtomicU32,
    /// Of the calls in flight, those whose response has begun.
    begun: AtomicU32,
    /// The peak in microseconds when it was updated, 0 before the first; [`UNMEASURED`] where nobody wants it.
    peak: AtomicU32,
    /// When that was.
    peaked_at: AtomicU32,
    /// When it was last heard of, or its calls began to wait.
    heard_at: AtomicU32,
    link: Option<Box<Link>>,
}

impl Load {
    /// A place for at most `limit` calls at once over `link`.
    pub(crate) fn new(limit: u32, link: Option<Box<Link>>) -> Arc<Self> {
        Arc::new(Self {
            quota: StreamQuota::new(limit),
            latency: AtomicU32::new(0),
            answered: AtomicU32::new(0),
            missed: AtomicU32::new(0),
            missed_at: AtomicU32::new(0),
            begun: AtomicU32::new(0),
            peak: AtomicU32::new(UNMEASURED),
            peaked_at: AtomicU32::new(0),
            heard_at: AtomicU32::new(0),
            link,
        })
    }

    /// Has peaks measured, from the next answer on.
    pub(crate) fn measure_peaks(&self) {
        self.peak.store(0, Ordering::Relaxed);
    }

    pub(crate) fn link(&self) -> Option<&Link> {
        self.link.as_deref()
    }

    /// Takes one call's place, and tells whether there was one.
    pub(crate) fn acquire(&self) -> bool {
        self.quota.acquire()
    }

    /// Gives one acquired place back.
    pub(crate) fn release(&self) {
        self.quota.release();
    }

    /// How many calls are in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        self.quota.in_flight()
    }

    /// How busy it is: the calls in flight, and those that it left without an answer a moment ago.
    pub(crate) fn outstanding(&self) -> u32 {
        let missed = match self.missed.load(Ordering::Relaxed) {
            0 => 0,
            _ if has_passed(self.missed_at.load(Ordering::Relaxed), Instant::now()) => 0,
            missed => missed,
        };
        self.in_flight().saturating_add(missed)
    }

    /// A call's deadline passed, and it answered nobody since that was sent.
    pub(crate) fn missed_one(&self) {
        self.missed_at.store(millis(Instant::now()), Ordering::Relaxed);
        self.missed.fetch_add(1, Ordering::Relaxed);
    }

    /// It answers, whatever it says.
    pub(crate) fn is_alive(&self, now: Instant) {
        self.heard_at.store(millis(now), Ordering::Relaxed);
        if self.missed.load(Ordering::Relaxed) != 0 {
            self.missed.store(0, Ordering::Relaxed);
        }
    }

    /// Whether it has no room for another call: full or closed.
    pub(crate) fn is_saturated(&self) -> bool {
        self.quota.is_saturated()
    }

    /// Lets no further call in, whatever limit is set later.
    pub(crate) fn close(&self) {
        self.quota.close();
    }

    /// Changes how many calls it may have at once, unless it is closed.
    pub(crate) fn set_limit(&self, limit: u32) {
        self.quota.set_limit(limit);
    }

    /// Takes into the average that a response began `now`, `after` its call was sent.
    ///
    /// An answer counts for an eighth; after a pause for as much of a second as the pause was long, so that what is a second
    /// old counts for nothing. Not exact when two answers meet: one of them may be lost.
    pub(crate) fn answered_at(&self, now: Instant, after: Duration) {
        let sample = u32::try_from(after.as_micros()).unwrap_or(u32::MAX).max(1);
        if self.peak.load(Ordering::Relaxed) != UNMEASURED {
            self.peak_at(now, sample);
        }
        let now = millis(now);
        let average = match self.latency.load(Ordering::Relaxed) {
            0 => sample,
            before => {
                let pause = now.wrapping_sub(self.answered.load(Ordering::Relaxed));
                let gain = u64::from(pause.clamp(FORGETS_AFTER / 8, FORGETS_AFTER));
                let whole = u64::from(FORGETS_AFTER);
                let sum = u64::from(before) * (whole - gain) + u64::from(sample) * gain + whole / 2;
                u32::try_from(sum / whole).unwrap_or(u32::MAX)
            }
        };
        self.latency.store(average, Ordering::Relaxed);
        self.answered.store(now, Ordering::Relaxed);
    }

    /// A call failed.
    pub(crate) fn failed_at(&self, now: Instant) {
        if self.peak.load(Ordering::Relaxed) != UNMEASURED {
            self.set_peak(self.peak_micros(now).saturating_mul(2).max(FAILURE), now);
        }
    }

    /// The peak, as far as it is not taken back, in microseconds; 0 before the first answer.
    pub(crate) fn peak_micros(&self, now: Instant) -> u32 {
        match self.peak.load(Ordering::Relaxed) {
            UNMEASURED | 0 => 0,
            peak => {
                let passed = millis(now).wrapping_sub(self.peaked_at.load(Ordering::Relaxed));
                // Never taken for none.
                scaled(peak, passed).max(1)
            }
        }
    }

    /// Not exact when two answers meet, like the average.
    fn peak_at(&self, now: Instant, sample: u32) {
        let present = self.peak_micros(now);
        if sample >= present {
            self.set_peak(sample, now);
        }
    }

    fn set_peak(&self, micros: u32, now: Instant) {
        self.peak.store(micros.min(UNMEASURED - 1), Ordering::Relaxed);
        self.peaked_at.store(millis(now), Ordering::Relaxed);
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

    /// A response has begun, and its call stays in flight until [`finish`](Self::finish).
    pub(crate) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// The response has ended.
    pub(crate) fn finish(&self) {
        self.begun.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether it has calls whose response has not begun.
    pub(crate) fn is_awaited(&self) -> bool {
        self.in_flight() > self.begun.load(Ordering::Relaxed)
    }

    /// From now on somebody waits for it.
    pub(crate) fn begin_to_wait(&self, now: Instant) {
        self.heard_at.store(millis(now), Ordering::Relaxed);
    }

    /// Whether it has such calls, and has answered none for longer than it usually takes: it may be frozen. Nobody knows that
    /// of one whose first answer is still to come.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        let usual = self.latency_micros();
        let silence = millis(now).wrapping_sub(self.heard_at.load(Ordering::Relaxed));
        usual > 0 && self.is_awaited() && silence > SILENT_AFTER.max((usual / 1_000).saturating_mul(SILENT_TIMES))
    }

    /// Whether the average is too old to hold against the instance.
    pub(crate) fn is_forgotten(&self, now: Instant) -> bool {
        has_passed(self.answered.load(Ordering::Relaxed), now)
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load").field("quota", &self.quota).field("latency", &self.latency()).finish_non_exhaustive()
    }
}

/// Whether what was seen at `then` is too old to count.
fn has_passed(then: u32, now: Instant) -> bool {
    millis(now).wrapping_sub(then) >= FORGETS_AFTER
}

/// Milliseconds since this process first asked. They start again after 49 days, so only differences mean something.
fn millis(at: Instant) -> u32 {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    let low = |duration: Duration| u32::try_from(duration.as_millis() % (1 << 32)).unwrap_or_default();
    match at.checked_duration_since(*EPOCH) {
        Some(since) => low(since),
        None => 0_u32.wrapping_sub(low(EPOCH.duration_since(at))),
    }
}

/// After how many milliseconds without an answer an average says nothing any more: an instance that was slow a second ago
/// may have been restarting or collecting garbage. A power of two, because every answer divides by it.
const FORGETS_AFTER: u32 = 1024;

/// What is left of a peak after so many milliseconds: half of it after seven seconds, as after ten seconds an e-th.
fn scaled(peak: u32, passed: u32) -> u32 {
    let (halvings, rest) = (passed / HALF_LIFE, passed % HALF_LIFE);
    let halved = u64::from(peak.checked_shr(halvings).unwrap_or(0));
    // Between two halvings a straight line is near enough.
    let left = halved * u64::from(2 * HALF_LIFE - rest) / u64::from(2 * HALF_LIFE);
    u32::try_from(left).unwrap_or(u32::MAX)
}

/// No peak.
const UNMEASURED: u32 = u32::MAX;

/// After how many milliseconds half of a peak is taken back: tower and linkerd let an e-th be left after ten seconds.
const HALF_LIFE: u32 = 6_931;

/// What a failure is taken for at least, in microseconds: more than most calls in a data centre take.
const FAILURE: u32 = 100_000;

/// How many milliseconds without an answer are silence: at least, and as a multiple of what is usual there.
const SILENT_AFTER: u32 = 16;
const SILENT_TIMES: u32 = 2;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn no_more_calls_than_the_limit_are_ever_let_in() {
        let load = Load::new(3, None);
        let most = AtomicU32::new(0);
        let inside = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        if load.acquire() {
                            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            load.release();
                        }
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 3, "three places were taken by {most:?} calls at once");
        assert_eq!(load.in_flight(), 0, "every place was given back");
    }

    #[test]
    fn a_refusal_means_that_all_places_are_taken() {
        // Two threads share two places, each holds at most one: nobody may ever be refused.
        let load = Load::new(2, None);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..100_000 {
                        assert!(load.acquire(), "the other thread holds one place, so one was free");
                        load.release();
                    }
                });
            }
        });
    }

    #[test]
    fn the_limit_follows_the_peer_until_the_seat_is_closed() {
        let load = Load::new(1, None);
        assert!(load.acquire() && !load.acquire(), "one place");
        load.set_limit(2);
        assert!(load.acquire() && !load.acquire(), "two places");
        load.set_limit(0);
        assert!(load.is_saturated(), "a peer may allow no calls for a while");
        load.set_limit(u32::MAX);
        assert!(load.acquire(), "and all of them afterwards");
        load.close();
        load.set_limit(100);
        assert!(load.is_saturated() && !load.acquire(), "closed is for good");
        assert_eq!(load.in_flight(), 3, "calls in flight stay counted");
    }

    #[tokio::test(start_paused = true)]
    async fn the_average_follows_what_is_seen_and_forgets_in_a_second() {
        let load = Load::new(1, None);
        let begin = Instant::now();
        let answer =
            |at: u64, micros| load.answered_at(begin + Duration::from_millis(at), Duration::from_micros(micros));
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

    #[test]
    fn a_seat_is_small() {
        assert!(size_of::<Load>() <= 48, "with the counts of its Arc it must fit into one cache line");
    }
}
