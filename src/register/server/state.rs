//! How far the drain of a server has come: calls and connections are given time to finish once it began, and are ended
//! from outside when that time is over.

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{self, Instant};
use tracing::Instrument as _;

use super::metrics::DrainMetrics;
use super::open_set::{Counted, OpenSet};
use super::places::Places;
use crate::metrics;
use crate::targets::REGISTRATION;

/// The open calls and connections of one server, and the phase of its drain; a clone is a handle to the same drain.
///
/// Calls are ended first and sockets [`SOCKET_GRACE`] later, because it takes an open socket to tell a client
/// UNAVAILABLE.
///
/// # Cost
///
/// A poll reads one atomic that is written twice in a server's life. A call without a request body that
/// never waits costs two atomic additions more; one with a body has its state in an allocation of its own. A
/// call or connection that waits registers its waker with itself (an `AtomicWaker` of its own, never a shared list),
/// and is found through an [`OpenSet`], which it enters and leaves once.
#[derive(Clone)]
pub(super) struct DrainState(Arc<Inner>);

/// How far a drain has come. It only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Everything is transparent.
    Serving,
    /// Calls in flight may finish, and new ones begin (a client may not know of the drain yet), until the limit.
    Draining { until: Instant },
    /// The limit passed: calls are ended and refused, while sockets are open for the answers.
    Ended,
    /// The sockets are closed too.
    Closed,
}

impl DrainState {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            passed: AtomicU8::new(LIMIT_AHEAD),
            countdown: OnceLock::new(),
            places: Places::default(),
            calls: OpenSet::default(),
            sockets: OpenSet::default(),
            metrics: DrainMetrics::new(),
        }))
    }

    /// A call begins; it ends with [`close_call`](Self::close_call).
    #[inline]
    pub(super) fn open_call(&self) -> Counted {
        self.0.metrics.calls.on_opened();
        self.0.calls.opened()
    }

    #[inline]
    pub(super) fn close_call(&self, counted: Counted) {
        // First, since one that is not among the calls any more is not cut, and has to count as finished.
        let is_draining = metrics::ENABLED && self.has_begun() && !self.has_ended();
        self.0.calls.closed(counted);
        self.0.metrics.calls.on_closed(is_draining);
    }

    /// A call came behind the limit.
    pub(super) fn on_refused(&self) {
        self.0.metrics.on_refused();
    }

    /// A connection is accepted; it ends with [`close_socket`](Self::close_socket).
    pub(super) fn open_socket(&self) -> Counted {
        self.0.metrics.connections.on_opened();
        self.0.sockets.opened()
    }

    pub(super) fn close_socket(&self, counted: Counted) {
        let is_draining = metrics::ENABLED && self.has_begun() && !self.is_closed();
        self.0.sockets.closed(counted);
        self.0.metrics.connections.on_closed(is_draining);
    }

    fn has_begun(&self) -> bool {
        self.0.countdown.get().is_some()
    }

    /// How many calls there are whose request or response has not ended yet.
    pub(super) fn in_flight(&self) -> usize {
        self.0.calls.len()
    }

    /// Starts the countdown to the end of all calls. Only the first one counts, whatever the limits of later ones. What
    /// it logs names the limit and the address.
    ///
    /// The countdown is a task, which ends by itself after its work, or as soon as no handle is left.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(super) fn begin(&self, limit: Duration, address: Option<&str>) {
        // First, so that a panic leaves the drain as it was.
        let runtime = Handle::current();
        let mut first = None;
        self.0.countdown.get_or_init(|| {
            let (held, released) = oneshot::channel();
            let until = Instant::now() + limit.min(LONGEST_LIMIT);
            first = Some((until, released));
            Countdown { until, _held: held }
        });
        if let Some((until, released)) = first {
            self.0.metrics.on_begun();
            let task = CountdownTask { drain: Arc::downgrade(&self.0) };
            // The signal's future may be polled in any span; the countdown belongs to none of them.
            let span = tracing::info_span!(target: REGISTRATION, parent: None, "drain", ?limit, address);
            span.in_scope(|| self.0.places.warn_of_missing());
            runtime.spawn(task.run(until, released).instrument(span));
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match (self.0.passed.load(Ordering::Acquire), self.0.countdown.get()) {
            (LIMIT_AHEAD, None) => Phase::Serving,
            (LIMIT_AHEAD, Some(countdown)) => Phase::Draining { until: countdown.until },
            (CALLS_ENDED, _) => Phase::Ended,
            _ => Phase::Closed,
        }
    }

    /// Whether calls are ended and refused. Cheap enough for every poll.
    #[inline]
    pub(super) fn has_ended(&self) -> bool {
        self.0.passed.load(Ordering::Acquire) >= CALLS_ENDED
    }

    /// Whether sockets are closed as well. Cheap enough for every poll.
    pub(super) fn is_closed(&self) -> bool {
        self.0.passed.load(Ordering::Acquire) >= SOCKETS_CLOSED
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn places(&self) -> &Places {
        &self.0.places
    }

    #[inline]
    pub(super) fn calls(&self) -> &OpenSet {
        &self.0.calls
    }

    pub(super) fn sockets(&self) -> &OpenSet {
        &self.0.sockets
    }
}

impl fmt::Debug for DrainState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrainState")
            .field("phase", &self.phase())
            .field("calls", &self.0.calls.len())
            .field("sockets", &self.0.sockets.len())
            .finish()
    }
}

struct Inner {
    /// `LIMIT_AHEAD`, `CALLS_ENDED` or `SOCKETS_CLOSED`.
    passed: AtomicU8,
    /// Set when the drain begins.
    countdown: OnceLock<Countdown>,
    places: Places,
    calls: OpenSet,
    sockets: OpenSet,
    metrics: DrainMetrics,
}

impl Inner {
    async fn end_calls(&self) {
        // First the mark, then the wake-ups: a woken task must find the mark.
        self.passed.store(CALLS_ENDED, Ordering::Release);
        let calls = self.calls.len();
        self.metrics.calls.on_cut(calls);
        self.calls.end_all().await;
        if calls > 0 {
            tracing::warn!(target: REGISTRATION, calls, "calls ended at the drain limit");
        }
    }

    async fn close_sockets(&self) {
        self.passed.store(SOCKETS_CLOSED, Ordering::Release);
        let sockets = self.sockets.len();
        self.metrics.connections.on_cut(sockets);
        self.sockets.end_all().await;
        if sockets > 0 {
            tracing::info!(target: REGISTRATION, sockets, "connections closed after the drain limit");
        }
    }
}

struct Countdown {
    until: Instant,
    /// Dropped with the last handle, which ends the task.
    _held: oneshot::Sender<Infallible>,
}

/// The task behind [`DrainState::begin`]. It holds no handle while it waits: the drain would live until its limit.
struct CountdownTask {
    drain: Weak<Inner>,
}

impl CountdownTask {
    async fn run(self, until: Instant, mut released: oneshot::Receiver<Infallible>) {
        tokio::select! {
            _ = &mut released => return,
            () = time::sleep_until(until) => {}
        }
        let Some(inner) = self.drain.upgrade() else { return };
        inner.end_calls().await;
        drop(inner);

        tokio::select! {
            _ = &mut released => return,
            () = time::sleep(SOCKET_GRACE) => {}
        }
        let Some(inner) = self.drain.upgrade() else { return };
        inner.close_sockets().await;
    }
}

impl Drop for CountdownTask {
    /// A runtime that ends drops its tasks, and the calls and connections of the drain may be on another one. Where
    /// nothing is open the limit is not missed: so ends each process that keeps a handle for its statistics.
    fn drop(&mut self) {
        let Some(inner) = self.drain.upgrade() else { return };
        let (calls, connections) = (inner.calls.len(), inner.sockets.len());
        if inner.passed.load(Ordering::Acquire) != SOCKETS_CLOSED && calls + connections > 0 {
            inner.metrics.on_lost();
            tracing::warn!(
                target: REGISTRATION,
                calls,
                connections,
                "drain limit lost with the runtime that counted down to it"
            );
        }
    }
}

const LIMIT_AHEAD: u8 = 0;
const CALLS_ENDED: u8 = 1;
const SOCKETS_CLOSED: u8 = 2;

/// From the end of the calls to that of the sockets: a round trip across the world, for the answers to arrive and for
/// well-behaved clients to close their connections themselves.
pub(super) const SOCKET_GRACE: Duration = Duration::from_millis(250);

/// Longer than any server drains, short enough to be added to any `Instant`.
const LONGEST_LIMIT: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicBool;

    use tokio::runtime::Runtime;

    use super::super::open_set::{End, Slot};
    use super::*;

    #[derive(Default)]
    struct Open {
        over: AtomicBool,
    }

    impl Open {
        fn enter(set: &OpenSet) -> (Arc<Self>, Counted, Slot) {
            let open = Arc::new(Self::default());
            (Arc::clone(&open), set.opened(), set.enter(open))
        }

        fn is_over(&self) -> bool {
            self.over.load(Ordering::SeqCst)
        }
    }

    impl End for Open {
        fn end(&self) {
            assert!(!self.over.swap(true, Ordering::SeqCst), "nothing is ended twice");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_end_at_the_limit_and_sockets_a_grace_later() {
        let drain = DrainState::new();
        let (call, counted, slot) = Open::enter(drain.calls());
        let (socket, ..) = Open::enter(drain.sockets());
        assert_eq!(drain.phase(), Phase::Serving, "nothing has begun");

        let start = Instant::now();
        drain.begin(Duration::from_secs(30), None);
        let until = start + Duration::from_secs(30);
        assert_eq!(drain.phase(), Phase::Draining { until }, "it has begun");

        time::sleep(Duration::from_millis(29_999)).await;
        assert!(!drain.has_ended() && !call.is_over(), "the limit is ahead");
        time::sleep(Duration::from_millis(2)).await;
        assert_eq!(drain.phase(), Phase::Ended, "the limit passed");
        assert!(call.is_over(), "a call is over at the limit");
        assert!(!drain.is_closed() && !socket.is_over(), "its answer needs a socket");

        time::sleep(SOCKET_GRACE).await;
        assert_eq!(drain.phase(), Phase::Closed, "the grace passed");
        assert!(socket.is_over(), "a socket is over after the grace");
        assert_eq!(drain.in_flight(), 1, "ending is not leaving");
        drain.calls().leave(slot);
        drain.calls().closed(counted);
        assert_eq!(drain.in_flight(), 0, "leaving is");
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_first_begin_counts() {
        let drain = DrainState::new();
        drain.begin(Duration::from_secs(2), None);
        let begun = drain.phase();
        drain.begin(Duration::ZERO, None);
        drain.begin(Duration::from_secs(9), None);
        assert_eq!(drain.phase(), begun, "a later begin changes nothing");
        time::sleep(Duration::from_millis(1_999)).await;
        assert!(!drain.has_ended(), "a shorter limit came too late");
        time::sleep(Duration::from_millis(2)).await;
        assert!(drain.has_ended(), "a longer limit came too late");
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_is_too_long_and_none_too_short() {
        let endless = DrainState::new();
        endless.begin(Duration::MAX, None);
        let at_once = DrainState::new();
        at_once.begin(Duration::ZERO, None);
        time::sleep(Duration::from_millis(1)).await;
        assert!(!endless.has_ended(), "an endless limit is far ahead");
        assert!(at_once.has_ended(), "no time is no time");
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_with_the_last_handle() {
        let drain = DrainState::new();
        let other = drain.clone();
        drain.begin(Duration::from_secs(3600), None);
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        drop(drain);
        time::sleep(Duration::from_secs(1)).await;
        assert_eq!(tasks(), 1, "a handle is left");
        drop(other);
        time::sleep(Duration::from_secs(1)).await;
        assert_eq!(tasks(), 0, "no handle is left");
    }

    #[test]
    fn a_begin_outside_of_a_runtime_panics_and_changes_nothing() {
        let drain = DrainState::new();
        catch_unwind(AssertUnwindSafe(|| drain.begin(Duration::ZERO, None))).expect_err("there is no runtime");
        assert_eq!(drain.phase(), Phase::Serving, "no countdown was set that no task counts");
        runtime().block_on(async {
            drain.begin(Duration::ZERO, None);
            time::sleep(Duration::from_millis(1)).await;
        });
        assert_eq!(drain.phase(), Phase::Ended, "a later begin works");
    }

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_call_that_enters_while_calls_are_ended_is_ended_or_sees_it() {
        for _ in 0..200 {
            let drain = DrainState::new();
            let racers: Vec<_> = (0..4)
                .map(|_| {
                    let drain = drain.clone();
                    tokio::spawn(async move {
                        let mut entered = Vec::new();
                        while entered.len() < 100_000 {
                            let (open, counted, slot) = Open::enter(drain.calls());
                            if drain.has_ended() {
                                drain.calls().leave(slot);
                                drain.calls().closed(counted);
                                break;
                            }
                            entered.push(open);
                            tokio::task::yield_now().await;
                        }
                        entered
                    })
                })
                .collect();
            tokio::task::yield_now().await;
            drain.begin(Duration::ZERO, None);
            let mut entered = Vec::new();
            for racer in racers {
                entered.extend(racer.await.expect("a racer does not panic"));
            }
            // The walk may be under way in another thread; it is over when the next phase is.
            while !drain.is_closed() && !entered.iter().all(|open| open.is_over()) {
                tokio::task::yield_now().await;
            }
            assert!(entered.iter().all(|open| open.is_over()), "no call slipped through");
            assert_eq!(drain.in_flight(), entered.len(), "all are still counted");
        }
    }
}
