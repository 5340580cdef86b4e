//! What is counted of a READY instance: calls in flight, latency, silence, shedding. It knows no connection, so that
//! policies can be tested and measured without one.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::average::Average;
use super::clock::{SLACK, decayed, millis, since};
use super::lingering::{Lingering, PROBE_EVERY};
use super::quota::StreamQuota;

/// The load of one instance on its present connection.
///
/// Every pick reads two of them and writes one, so a load is small: with the two counts of its `Arc` it has the size of
/// a cache line. It may lie across two, as the allocator aligns to 16 bytes; one of its own would take 128.
pub(crate) struct Load {
    quota: StreamQuota,
    latency: Average,
    /// Calls whose places are free again and that count all the same.
    lingering: Lingering,
    /// Of the calls in flight, those whose response has begun.
    responding: AtomicU32,
    /// The peak in microseconds when it was updated, 0 before the first; [`UNMEASURED`] for policies that do not use
    /// it.
    peak: AtomicU32,
    /// When the peak was updated.
    peaked_at: AtomicU32,
    /// When the first call since the latest answer was sent, and 0 while there is none; moved on by each
    /// [probe](Self::claim_probe).
    asked_at: AtomicU32,
    /// Responses that have begun since the connection stands.
    answers: AtomicU32,
    /// Until when the instance is spared because it sheds calls: 0 if it is not, and never 0 if it is.
    spared_until: AtomicU32,
}

impl Load {
    /// An instance without calls, whose peer allows `limit` of them at once.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            quota: StreamQuota::new(limit),
            latency: Average::default(),
            lingering: Lingering::default(),
            responding: AtomicU32::new(0),
            peak: AtomicU32::new(UNMEASURED),
            peaked_at: AtomicU32::new(0),
            asked_at: AtomicU32::new(0),
            answers: AtomicU32::new(0),
            spared_until: AtomicU32::new(0),
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

    /// How busy the instance is: the calls in flight, and those that are over and still count. Of these, each that
    /// failed at once counts for about as long as a call takes `elsewhere`, in microseconds; 0 if that is unknown.
    pub(crate) fn outstanding(&self, elsewhere: u32) -> u32 {
        let usual = match (elsewhere, self.latency_micros()) {
            (0, 0) => UNKNOWN,
            (0, own) => own,
            (elsewhere, _) => elsewhere,
        };
        self.in_flight().saturating_add(self.lingering.calls(usual))
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
        self.latency.micros()
    }

    /// The peak as far as it has not decayed, in microseconds; 0 before the first answer.
    pub(crate) fn peak_micros(&self, now: Instant) -> u32 {
        match self.peak.load(Ordering::Relaxed) {
            UNMEASURED | 0 => 0,
            // Never taken for none.
            peak => decayed(peak, since(self.peaked_at.load(Ordering::Relaxed), now), HALF_LIFE).max(1),
        }
    }

    /// Whether the latest answers failed at once: then neither its latency nor its peak promises a soon answer.
    pub(crate) fn is_failing(&self) -> bool {
        self.lingering.is_failing()
    }

    /// Whether what is known of its latency is too old to hold against the instance.
    fn is_forgotten(&self, now: Instant) -> bool {
        let is_peak_old = || {
            self.peak.load(Ordering::Relaxed) == UNMEASURED
                || since(self.peaked_at.load(Ordering::Relaxed), now) >= self.latency.lasts()
        };
        self.latency.is_old(now) && is_peak_old()
    }

    /// Whether a latency that speaks against the instance is to be disregarded this once: it is old, and no call is on
    /// its way that will renew it.
    ///
    /// Not each time that it is old: where a second brings only a few calls, a slow instance would get one of each few.
    pub(crate) fn is_overlooked(&self) -> bool {
        // The clock is read last, so most picks do without.
        fastrand::u32(..self.latency.evidence().max(PROBE_OF)) == 0 && {
            let now = Instant::now();
            self.is_forgotten(now) && !self.is_expected_to_answer(now)
        }
    }

    /// Whether a call waits that was sent so recently that its answer may still come.
    fn is_expected_to_answer(&self, now: Instant) -> bool {
        self.silence(now).is_some_and(|silence| silence <= self.patience().max(PROBE_EVERY))
    }

    /// The calls whose response has not begun.
    pub(crate) fn awaited(&self) -> u32 {
        self.in_flight().saturating_sub(self.responding.load(Ordering::Relaxed))
    }

    /// Whether there are calls whose response has not begun.
    pub(crate) fn is_awaited(&self) -> bool {
        self.awaited() > 0
    }

    /// For how many milliseconds calls have waited of which the first was sent after the latest answer; `None` where
    /// there are none.
    ///
    /// Calls that an answer has overtaken say nothing: a quiet stream has no response before its first message, and
    /// that may take hours.
    fn silence(&self, now: Instant) -> Option<u32> {
        match self.asked_at.load(Ordering::Relaxed) {
            0 => None,
            asked_at => self.is_awaited().then(|| since(asked_at, now)),
        }
    }

    /// The milliseconds after which calls that wait are silence.
    fn patience(&self) -> u32 {
        SILENT_AFTER.max((self.latency_micros() / 1_000).saturating_mul(SILENT_TIMES))
    }

    /// Whether calls were sent, and none was answered since for longer than answers usually take: the instance may be
    /// frozen. Unknown, and so `false`, before the first answer.
    fn is_silent(&self, now: Instant) -> bool {
        self.latency_micros() > 0 && self.silence(now).is_some_and(|silence| silence > self.patience())
    }

    /// Whether a call should go elsewhere if it can: the instance sheds calls, or has missed some. Reads the clock only
    /// where there is something to compare with it.
    pub(crate) fn is_penalized(&self) -> bool {
        self.lingering.is_silent() || self.spared_until.load(Ordering::Relaxed) != 0 && self.is_spared_this_once()
    }

    #[cold]
    fn is_spared_this_once(&self) -> bool {
        // A few calls go to one that sheds all the same: it may shed only some.
        self.is_spared(Instant::now()) && fastrand::u32(..SPARED_OF) != 0
    }

    /// Takes the call that a silent instance, or one that has missed calls, gets each second: it finds out whether the
    /// instance is back. Of all picks one gets it, whatever waits there: that may be streams that stay quiet for hours.
    /// None does while its connection is in doubt: a ping finds out as well, and costs no call.
    #[cold]
    pub(crate) fn claim_probe(&self, now: Instant) -> bool {
        let has_missed = self.lingering.is_silent();
        if self.lingering.is_doubted() || self.is_spared(now) || has_missed && !self.lingering.is_due(now) {
            return false;
        }
        let is_claimed = if self.is_silent(now) { self.claim_silence(now) } else { has_missed };
        is_claimed && (!has_missed || self.lingering.claim_probe(now))
    }

    /// Takes the call that an instance of which nothing is known gets each second although others wait there.
    pub(crate) fn claim_first_answer(&self, now: Instant) -> bool {
        let asked_at = self.asked_at.load(Ordering::Relaxed);
        let asks = millis(now).max(1);
        self.is_awaited()
            && !self.is_failing()
            && !self.lingering.is_doubted()
            && (asked_at == 0 || since(asked_at, now) >= PROBE_EVERY)
            && self.asked_at.compare_exchange(asked_at, asks, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Moves the begin of the silence, so that it is silence still and due a second later.
    fn claim_silence(&self, now: Instant) -> bool {
        let (asked_at, patience) = (self.asked_at.load(Ordering::Relaxed), self.patience());
        let moved = millis(now).wrapping_sub(patience + 2).max(1);
        since(asked_at, now) >= patience + PROBE_EVERY
            && self.asked_at.compare_exchange(asked_at, moved, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn is_spared(&self, now: Instant) -> bool {
        let until = self.spared_until.load(Ordering::Relaxed);
        if until == 0 {
            return false;
        }
        let left = until.wrapping_sub(millis(now));
        let spared = (1..=MAX_SPARED + SLACK).contains(&left);
        if !spared {
            // Forgotten, unless a new one came meanwhile: the next picks need no clock.
            let _ = self.spared_until.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        spared
    }

    /// Whether a call should go elsewhere if it can, for policies that [tell](Self::on_pick) which instance they pick:
    /// these see silence also while no deadline has passed.
    pub(crate) fn is_shunned(&self, now: Instant) -> bool {
        self.is_silent(now) || self.is_penalized()
    }

    /// A call is about to go there. If it is the first one since the latest answer, or the only one that waits, silence
    /// begins with it.
    pub(crate) fn on_pick(&self, now: Instant) {
        if self.asked_at.load(Ordering::Relaxed) == 0 || !self.is_awaited() {
            self.asked_at.store(millis(now).max(1), Ordering::Relaxed);
        }
    }

    /// The instance answered a call, with whatever status.
    pub(crate) fn on_answer(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.asked_at.store(0, Ordering::Relaxed);
        self.lingering.on_answer();
    }

    /// A response began `after` its call was sent, with no status that says it failed.
    ///
    /// Its peak rises with a slower answer, and falls to a faster one if all that was known is
    /// [old](Average::is_old): then it was a probe. Not exact when two answers meet: one of them may be lost.
    pub(crate) fn on_latency(&self, now: Instant, after: Duration) {
        let sample = u32::try_from(after.as_micros()).unwrap_or(u32::MAX).max(1);
        if self.peak.load(Ordering::Relaxed) != UNMEASURED
            && (sample >= self.peak_micros(now) || self.is_forgotten(now))
        {
            self.set_peak(sample, now);
        }
        self.latency.add(sample, now);
        self.lingering.on_good_answer();
    }

    /// A call failed: its latency says nothing, and the peak doubles.
    pub(crate) fn on_failure(&self, now: Instant) {
        if self.peak.load(Ordering::Relaxed) != UNMEASURED {
            self.set_peak(self.peak_micros(now).saturating_mul(2).max(FAILURE), now);
            self.latency.harden();
        }
    }

    /// The instance failed a call at once: INTERNAL, UNIMPLEMENTED, UNKNOWN, `DATA_LOSS`, or an answer that is no gRPC.
    /// Its latency says nothing, and the call counts as in flight for about as long as calls take elsewhere.
    pub(crate) fn on_fast_failure(&self, now: Instant) {
        self.lingering.on_fast_failure(now);
    }

    /// The instance sheds: `RESOURCE_EXHAUSTED`, a push-back, or `REFUSED_STREAM`. For `pause`, five seconds at most,
    /// most calls go elsewhere; and the call lingers like one that failed at once, for where all instances shed.
    pub(crate) fn on_shed(&self, now: Instant, pause: Duration) {
        self.lingering.on_fast_failure(now);
        let pause = u32::try_from(pause.as_millis()).map_or(MAX_SPARED, |pause| pause.min(MAX_SPARED));
        let until = millis(now).wrapping_add(pause).max(1);
        let before = self.spared_until.load(Ordering::Relaxed);
        // A longer pause stays. Not exact when two answers meet.
        let is_longer = before == 0 || until.wrapping_sub(before) <= u32::MAX / 2;
        if pause > 0 && is_longer {
            self.spared_until.store(until, Ordering::Relaxed);
        }
    }

    /// A call's deadline passed, and the instance answered no call since that one was sent.
    pub(crate) fn on_missed(&self, now: Instant) {
        self.lingering.on_missed(now);
    }

    /// Whether the peer was asked for a sign of life, and has given none yet.
    pub(crate) fn set_doubted(&self, is_doubted: bool) {
        self.lingering.set_doubted(is_doubted);
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

/// No peak.
const UNMEASURED: u32 = u32::MAX;

/// The milliseconds in which half of a peak decays: tower and linkerd let an e-th be left after ten seconds.
const HALF_LIFE: u32 = 6_931;

/// The least latency that a failure counts as, in microseconds: more than most calls in a data centre take.
const FAILURE: u32 = 100_000;

/// What a call takes where nothing is known of that, in microseconds.
const UNKNOWN: u32 = 10_000;

/// The milliseconds without an answer that are silence: at least, and as a multiple of the usual latency.
const SILENT_AFTER: u32 = 16;
const SILENT_TIMES: u32 = 2;

/// Of how many picks that an old latency would decide one disregards it, at most.
const PROBE_OF: u32 = 4;

/// Of how many picks of an instance that sheds one stays with it.
const SPARED_OF: u32 = 16;

/// For how many milliseconds at most one answer has an instance spared: a server's mistake must not cost it its load.
const MAX_SPARED: u32 = 5_000;

/// With the two counts of its `Arc` a load is no larger than a cache line, wherever it lies.
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
    async fn an_instance_that_sheds_is_spared_for_as_long_as_it_says_up_to_five_seconds() {
        for (pause, spared) in [(500, 499), (3_000, 2_999), (60_000, 4_999)] {
            let (load, begin) = (Load::new(1), Instant::now());
            load.on_shed(begin, Duration::from_millis(pause));
            load.on_shed(begin, Duration::from_millis(100));
            let is_spared = |at| load.is_spared(begin + Duration::from_millis(at));
            assert!(is_spared(0) && is_spared(spared), "it is spared for {pause} ms, or for five seconds");
            assert!(!is_spared(spared + 1), "then no more");
            assert!(!is_spared(0), "and that is for good");
        }
        let load = Load::new(1);
        load.on_shed(Instant::now(), Duration::ZERO);
        assert!(!load.is_spared(Instant::now()), "it wants to be called again at once");
    }

    /// An instance that usually answers after a millisecond.
    fn fast() -> Load {
        let load = Load::new(100);
        load.on_answer();
        load.on_latency(Instant::now(), Duration::from_millis(1));
        load
    }

    /// A call that waits.
    fn call(load: &Load) {
        load.on_pick(Instant::now());
        assert!(load.quota().acquire(), "it has room");
    }

    async fn after(millis: u64) -> Instant {
        tokio::time::advance(Duration::from_millis(millis)).await;
        Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_stays_quiet_is_no_silence_once_a_later_call_was_answered() {
        let load = fast();
        call(&load);
        assert!(load.is_shunned(after(30).await), "nothing shows that it is not frozen");
        assert!(load.claim_probe(after(1_100).await), "a call finds out");
        call(&load);
        load.on_answer();
        load.quota().release();
        for _ in 0..100 {
            assert!(!load.is_shunned(after(60_000).await), "the stream alone says nothing");
            call(&load);
            assert!(!load.is_shunned(after(1).await), "a call has just been sent");
            load.on_answer();
            load.quota().release();
        }
        call(&load);
        assert!(load.is_shunned(after(30).await), "a call that waits does");
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_with_calls_that_wait_is_tried_once_a_second() {
        let (frozen, missed) = (fast(), fast());
        (0..3).for_each(|_| call(&frozen));
        call(&missed);
        missed.on_missed(Instant::now());
        for load in [frozen, missed] {
            let mut probes = 0;
            for _ in 0..1_000 {
                let now = after(10).await;
                if load.claim_probe(now) {
                    probes += 1;
                    assert!(!load.claim_probe(now), "one pick a second");
                    call(&load);
                }
                assert!(load.is_shunned(now) || load.silence(now) <= Some(16), "all others go elsewhere");
            }
            assert!((9..=10).contains(&probes), "in ten seconds it was tried {probes} times");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_instance_is_tried_again_although_a_stream_stays_quiet() {
        let load = Load::new(10);
        load.on_latency(Instant::now(), Duration::from_millis(400));
        call(&load);
        let is_tried = || (0..1_000).any(|_| load.is_overlooked());
        after(700).await;
        assert!(!is_tried(), "a call is on its way, and may be answered yet");
        after(400).await;
        assert!(is_tried(), "it is not answered soon");
        load.on_answer();
        after(100).await;
        assert!(is_tried(), "it was overtaken by another");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pick_that_looked_at_the_clock_before_an_instance_shed_spares_it() {
        let (load, begin) = (fast(), Instant::now());
        load.on_shed(begin + Duration::from_millis(3), Duration::from_secs(5));
        assert!(load.is_spared(begin) && load.is_spared(begin + Duration::from_secs(5)), "it is spared all the same");
        let later = begin + Duration::from_secs(20);
        load.on_shed(later, Duration::from_secs(1));
        assert!(load.is_spared(later), "a pause that is over is no longer one, although no pick has looked");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pick_that_looked_at_the_clock_before_a_call_was_sent_sees_no_silence() {
        let (load, begin) = (fast(), Instant::now());
        load.on_pick(begin + Duration::from_millis(3));
        assert!(load.quota().acquire(), "it has room");
        assert!(!load.is_shunned(begin) && !load.claim_probe(begin), "no time has passed");
        load.on_missed(begin + Duration::from_millis(3));
        assert!(!load.claim_probe(begin), "it was missed just now");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peak_falls_to_a_faster_answer_once_it_is_old_and_not_after_a_failure() {
        let load = Load::new(1).measuring_peaks(true);
        let answer = |micros| load.on_latency(Instant::now(), Duration::from_micros(micros));
        answer(2_000_000);
        answer(1_000);
        assert_eq!(load.peak_micros(Instant::now()), 2_000_000, "a peak counts in full at first");
        tokio::time::advance(Duration::from_millis(100)).await;
        answer(1_000);
        assert_eq!(load.peak_micros(Instant::now()), 1_000, "little was known, and that was old");
        load.on_failure(Instant::now());
        tokio::time::advance(Duration::from_millis(900)).await;
        answer(1_000);
        assert!(load.peak_micros(Instant::now()) > 90_000, "a failure is held against it for a second");
    }
}
