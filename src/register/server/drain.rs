//! What a server has open, from the first call to the last: counted, given time to finish once the drain began, ended
//! from outside when that time is over.

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{self, Instant};
use tracing::Instrument as _;

/// The calls and connections of one server and how far its drain has come; a clone is a handle to the same.
///
/// Calls are ended first and sockets [`SOCKET_GRACE`] later, because it takes an open socket to tell a client UNAVAILABLE.
///
/// # Cost
///
/// A poll reads one atomic that is written twice in a server's life. What waits registers its waker with itself (an
/// `AtomicWaker` of its own, never a shared list), and is found through a [`Roster`], which it enters and leaves once.
#[derive(Clone)]
pub(crate) struct Drain(Arc<Inner>);

/// How far a drain has come. It only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Everything is transparent.
    Serving,
    /// Calls in flight may finish, and new ones begin (a client may not have heard of it yet), until then.
    Draining { until: Instant },
    /// The limit passed: calls are ended and refused, while sockets are open for the answers.
    Ended,
    /// The sockets are closed too.
    Closed,
}

impl Drain {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            passed: AtomicU8::new(LIMIT_AHEAD),
            countdown: OnceLock::new(),
            calls: Roster::default(),
            sockets: Roster::default(),
        }))
    }

    /// The calls whose request or response has not ended yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.0.calls.len()
    }

    /// Starts the countdown to the end of all calls. Only the first one counts, whatever the limits of later ones.
    ///
    /// Needs a tokio runtime: the countdown is a task. It ends by itself after its work, or as soon as no handle is left.
    pub(crate) fn begin(&self, limit: Duration) {
        let mut first = None;
        self.0.countdown.get_or_init(|| {
            let (held, released) = oneshot::channel();
            let until = Instant::now() + limit.min(NO_LIMIT);
            first = Some((until, released));
            Countdown { until, _held: held }
        });
        if let Some((until, released)) = first {
            let drain = Arc::downgrade(&self.0);
            tokio::spawn(count_down(drain, until, released).in_current_span());
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match (self.0.passed.load(Ordering::Acquire), self.0.countdown.get()) {
            (LIMIT_AHEAD, None) => Phase::Serving,
            (LIMIT_AHEAD, Some(countdown)) => Phase::Draining { until: countdown.until },
            (CALLS_ENDED, _) => Phase::Ended,
            _ => Phase::Closed,
        }
    }

    /// Whether calls are over. Cheap enough for every poll.
    pub(in crate::register) fn ended(&self) -> bool {
        self.0.passed.load(Ordering::Acquire) >= CALLS_ENDED
    }

    /// Whether sockets are over. Cheap enough for every poll.
    pub(in crate::register) fn closed(&self) -> bool {
        self.0.passed.load(Ordering::Acquire) >= SOCKETS_CLOSED
    }

    pub(in crate::register) fn calls(&self) -> &Roster {
        &self.0.calls
    }

    pub(in crate::register) fn sockets(&self) -> &Roster {
        &self.0.sockets
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("phase", &self.phase())
            .field("calls", &self.0.calls.len())
            .field("sockets", &self.0.sockets.len())
            .finish()
    }
}

/// Something open that can be ended by someone who does not own it.
///
/// Whoever waits does so in this order, so that no wake-up is lost: look whether it is over, poll, leave the waker, look again.
pub(in crate::register) trait End: Send + Sync + 'static {
    /// Releases what it holds and wakes whoever waits for it.
    fn end(&self);
}

/// The open things of one kind, spread over shards so that the cores that open and close them do not meet at one lock.
#[derive(Default)]
pub(in crate::register) struct Roster {
    shards: [Shard; SHARDS],
}

/// Where in the roster an open thing is.
#[derive(Debug, Clone, Copy)]
pub(in crate::register) struct Seat {
    shard: usize,
    index: usize,
}

impl Roster {
    /// Takes in what `make` makes for the seat it is given. It stays until [`leave`](Self::leave).
    ///
    /// Look whether it is over *after* this: the walk of [`end_all`](Self::end_all) either meets the newcomer, or was
    /// before it in the shard, and then what was stored before the walk is visible here.
    pub(in crate::register) fn enter<T: End>(&self, make: impl FnOnce(Seat) -> T) -> Arc<T> {
        let shard = shard_of_this_thread();
        let mut seats = self.shards[shard].lock();
        let index = seats.free.pop().unwrap_or(seats.taken.len());
        let newcomer = Arc::new(make(Seat { shard, index }));
        let entry = Some(Arc::clone(&newcomer) as Arc<dyn End>);
        match seats.taken.get_mut(index) {
            Some(seat) => *seat = entry,
            None => seats.taken.push(entry),
        }
        newcomer
    }

    /// Gives the seat back. Each seat once.
    pub(in crate::register) fn leave(&self, seat: Seat) {
        let mut seats = self.shards[seat.shard].lock();
        let left = seats.taken[seat.index].take();
        debug_assert!(left.is_some(), "a seat is left once");
        seats.free.push(seat.index);
        // What is dropped may lock something itself.
        drop(seats);
        drop(left);
    }

    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Ends everything that is open now, with a pause after each shard for whoever was woken; tells how much it was.
    async fn end_all(&self) -> usize {
        let mut count = 0;
        for shard in &self.shards {
            let open: Vec<_> = shard.lock().taken.iter().flatten().cloned().collect();
            if open.is_empty() {
                continue;
            }
            count += open.len();
            for open in open {
                open.end();
            }
            tokio::task::yield_now().await;
        }
        count
    }
}

struct Inner {
    /// `LIMIT_AHEAD`, `CALLS_ENDED` or `SOCKETS_CLOSED`.
    passed: AtomicU8,
    /// There since the drain began.
    countdown: OnceLock<Countdown>,
    calls: Roster,
    sockets: Roster,
}

impl Inner {
    async fn end_calls(&self) {
        // First the mark, then the wake-ups: who is woken must find it.
        self.passed.store(CALLS_ENDED, Ordering::Release);
        let calls = self.calls.end_all().await;
        if calls > 0 {
            tracing::warn!(calls, "calls ended at the drain limit");
        }
    }

    async fn close_sockets(&self) {
        self.passed.store(SOCKETS_CLOSED, Ordering::Release);
        let sockets = self.sockets.end_all().await;
        if sockets > 0 {
            tracing::info!(sockets, "connections closed after the drain limit");
        }
    }
}

struct Countdown {
    until: Instant,
    /// Dropped with the last handle, which the task hears.
    _held: oneshot::Sender<Infallible>,
}

/// The task behind [`Drain::begin`]. It holds no handle while it waits, or it would keep alive what it waits for.
async fn count_down(drain: Weak<Inner>, until: Instant, mut released: oneshot::Receiver<Infallible>) {
    tokio::select! {
        _ = &mut released => return,
        () = time::sleep_until(until) => {}
    }
    let Some(inner) = drain.upgrade() else { return };
    inner.end_calls().await;
    drop(inner);

    tokio::select! {
        _ = &mut released => return,
        () = time::sleep(SOCKET_GRACE) => {}
    }
    let Some(inner) = drain.upgrade() else { return };
    inner.close_sockets().await;
}

/// On cache lines of its own (two, since processors fetch them in pairs): its neighbours are other cores' shards, and the
/// mark that every poll reads.
#[derive(Default)]
#[repr(align(128))]
struct Shard(Mutex<Seats>);

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Seats> {
        // Nothing of ours panics under the lock; a poisoned one would make a panic of each later call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seats are reused, never given back: as many as were ever taken at once.
#[derive(Default)]
struct Seats {
    taken: Vec<Option<Arc<dyn End>>>,
    free: Vec<usize>,
}

impl Seats {
    fn len(&self) -> usize {
        self.taken.len() - self.free.len()
    }
}

fn shard_of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
    }
    SHARD.get().unwrap_or_else(|| {
        let shard = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
        SHARD.set(Some(shard));
        shard
    })
}

const LIMIT_AHEAD: u8 = 0;
const CALLS_ENDED: u8 = 1;
const SOCKETS_CLOSED: u8 = 2;

/// From the end of the calls to that of the sockets: a round trip across the world, for the answers to arrive and for
/// well-behaved clients to close their connections themselves.
pub(in crate::register) const SOCKET_GRACE: Duration = Duration::from_millis(250);

/// As many locks as server cores may meet at; more would only cost memory (128 bytes each).
const SHARDS: usize = 16;

/// Longer than any server drains, short enough to be added to any `Instant`.
const NO_LIMIT: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    struct Open {
        seat: Seat,
        over: AtomicBool,
    }

    impl Open {
        fn new(seat: Seat) -> Self {
            Self { seat, over: AtomicBool::new(false) }
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
        let drain = Drain::new();
        let call = drain.calls().enter(Open::new);
        let socket = drain.sockets().enter(Open::new);
        assert_eq!(drain.phase(), Phase::Serving, "nothing has begun");

        let start = Instant::now();
        drain.begin(Duration::from_secs(30));
        let until = start + Duration::from_secs(30);
        assert_eq!(drain.phase(), Phase::Draining { until }, "it has begun");

        time::sleep(Duration::from_millis(29_999)).await;
        assert!(!drain.ended() && !call.is_over(), "the limit is ahead");
        time::sleep(Duration::from_millis(2)).await;
        assert_eq!(drain.phase(), Phase::Ended, "the limit passed");
        assert!(call.is_over(), "a call is over at the limit");
        assert!(!drain.closed() && !socket.is_over(), "its answer needs a socket");

        time::sleep(SOCKET_GRACE).await;
        assert_eq!(drain.phase(), Phase::Closed, "the grace passed");
        assert!(socket.is_over(), "a socket is over after the grace");
        assert_eq!(drain.in_flight(), 1, "ending is not leaving");
        drain.calls().leave(call.seat);
        assert_eq!(drain.in_flight(), 0, "leaving is");
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_first_begin_counts() {
        let drain = Drain::new();
        drain.begin(Duration::from_secs(2));
        let begun = drain.phase();
        drain.begin(Duration::ZERO);
        drain.begin(Duration::from_secs(9));
        assert_eq!(drain.phase(), begun, "a later begin changes nothing");
        time::sleep(Duration::from_millis(1_999)).await;
        assert!(!drain.ended(), "a shorter limit came too late");
        time::sleep(Duration::from_millis(2)).await;
        assert!(drain.ended(), "a longer limit came too late");
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_is_too_long_and_none_too_short() {
        let endless = Drain::new();
        endless.begin(Duration::MAX);
        let at_once = Drain::new();
        at_once.begin(Duration::ZERO);
        time::sleep(Duration::from_millis(1)).await;
        assert!(!endless.ended(), "an endless limit is far ahead");
        assert!(at_once.ended(), "no time is no time");
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_with_the_last_handle() {
        let drain = Drain::new();
        let other = drain.clone();
        drain.begin(Duration::from_secs(3600));
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        drop(drain);
        time::sleep(Duration::from_secs(1)).await;
        assert_eq!(tasks(), 1, "a handle is left");
        drop(other);
        time::sleep(Duration::from_secs(1)).await;
        assert_eq!(tasks(), 0, "nobody is left to wait for the limit");
    }

    #[test]
    fn a_seat_is_reused() {
        let roster = Roster::default();
        let first = roster.enter(Open::new);
        let second = roster.enter(Open::new);
        assert_eq!(roster.len(), 2, "two are open");
        roster.leave(first.seat);
        assert_eq!(roster.len(), 1, "one left");
        assert_eq!(Arc::strong_count(&first), 1, "the roster let go of it");
        let third = roster.enter(Open::new);
        assert_eq!(third.seat.index, first.seat.index, "its seat was free");
        roster.leave(second.seat);
        roster.leave(third.seat);
        assert_eq!(roster.len(), 0, "all left");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn who_enters_while_calls_are_ended_is_ended_or_sees_it() {
        for _ in 0..200 {
            let drain = Drain::new();
            let racers: Vec<_> = (0..4)
                .map(|_| {
                    let drain = drain.clone();
                    tokio::spawn(async move {
                        let mut entered = Vec::new();
                        while entered.len() < 100_000 {
                            let open = drain.calls().enter(Open::new);
                            if drain.ended() {
                                drain.calls().leave(open.seat);
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
            drain.begin(Duration::ZERO);
            let mut entered = Vec::new();
            for racer in racers {
                entered.extend(racer.await.expect("a racer does not panic"));
            }
            // The walk may be under way in another thread; it is over when the next phase is.
            while !drain.closed() && !entered.iter().all(|open| open.is_over()) {
                tokio::task::yield_now().await;
            }
            assert!(entered.iter().all(|open| open.is_over()), "nobody slipped through");
            assert_eq!(drain.in_flight(), entered.len(), "all are still counted");
        }
    }
}
