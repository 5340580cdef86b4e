//! Calls are handed to h2 as far as the socket takes them. The others wait here, where one that is given up leaves
//! nothing behind: what h2 has once, it writes.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::uplink::{BYTES_PER_CALL, Flow};

/// The room for unwritten calls on one connection, and the calls that wait for some.
pub(crate) struct Gate {
    /// How many calls may be handed over before the next turn of the connection's driver. Below one, none.
    room: AtomicI32,
    /// How many more the driver may let in at that turn, if the socket is not found to stand still then.
    reserve: AtomicI32,
    /// Whether all calls are let in, for good.
    is_open: AtomicBool,
    /// The length of the queue, to be read without its lock.
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
}

/// Calls by number, in the order of which they are let in.
#[derive(Default)]
struct Queue {
    waiting: BTreeMap<u64, Waker>,
    next: u64,
    /// Calls below this number are let in.
    admitted: u64,
}

impl Queue {
    /// For good: all numbers are let in.
    fn is_open(&self) -> bool {
        self.admitted == u64::MAX
    }
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            room: AtomicI32::new(ROOM),
            reserve: AtomicI32::new(0),
            is_open: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
        }
    }

    /// Takes room for one call, if there is some: no lock, no queue.
    pub(super) fn enter(&self) -> bool {
        self.room.load(Ordering::Relaxed) > 0 && self.room.fetch_sub(1, Ordering::Relaxed) > 0
    }

    /// Takes the room of a large request, which counts as several calls.
    pub(super) fn charge(&self, bytes: usize) {
        if bytes >= BYTES_PER_CALL {
            let calls = i32::try_from(bytes / BYTES_PER_CALL).unwrap_or(ROOM);
            self.room.fetch_sub(calls.min(ROOM), Ordering::Relaxed);
        }
    }

    /// Waits for room under a number, which is given out by the first call of this. After that the driver has to be
    /// woken: its next turn may have come before.
    pub(super) fn poll_wait(&self, number: &mut Option<u64>, cx: &Context<'_>) -> Poll<()> {
        let mut queue = self.lock();
        let mine = match *number {
            Some(mine) if mine < queue.admitted => return Poll::Ready(()),
            Some(mine) => mine,
            None if queue.is_open() || queue.waiting.is_empty() && self.enter() => return Poll::Ready(()),
            None => {
                queue.next += 1;
                *number.insert(queue.next - 1)
            }
        };
        let before = queue.waiting.insert(mine, cx.waker().clone());
        self.waiting.store(queue.waiting.len(), Ordering::Release);
        drop(queue);
        drop(before);
        Poll::Pending
    }

    /// A call that waited does so no more.
    pub(super) fn leave(&self, number: u64) {
        let mut queue = self.lock();
        let left = queue.waiting.remove(&number);
        self.waiting.store(queue.waiting.len(), Ordering::Release);
        drop(queue);
        drop(left);
    }

    /// Makes room after a turn of the driver. Returns whether calls still wait.
    pub(super) fn on_turn(&self, flow: Flow) -> bool {
        if self.is_open.load(Ordering::Relaxed) {
            return false;
        }
        let (before, reserve) = (self.room.load(Ordering::Relaxed), self.reserve.load(Ordering::Relaxed));
        // Nearly every turn.
        if flow == Flow::Free && (before, reserve) == (ROOM, 0) && !self.has_waiting() {
            return false;
        }
        let all = before.saturating_add(reserve);
        let (mut left, at_once) = match flow {
            Flow::Free => (ROOM, ROOM),
            // The driver of a blocked socket takes a turn only for calls that wait, and looks at the socket then.
            Flow::Busy { calls } => (all.saturating_add(calls).min(ROOM), ROOM_AT_A_SLOW_SOCKET),
            // What large requests took beyond the room comes back only with their bytes.
            Flow::Slow { calls } if all < 0 => (all.saturating_add(calls).min(ROOM), ROOM),
            Flow::Slow { calls } => (calls.clamp(ROOM_AT_A_SLOW_SOCKET, ROOM), ROOM),
            Flow::Stalled if self.has_waiting() => (before.min(0), 0),
            Flow::Stalled => (before.min(ROOM_AT_A_SLOW_SOCKET), ROOM),
        };
        if self.has_waiting() {
            left = self.admit(left);
        }
        // Calls may take room at this moment.
        let room = left.min(at_once);
        self.reserve.store(left - room, Ordering::Relaxed);
        if room != before {
            self.room.fetch_add(room.saturating_sub(before), Ordering::Relaxed);
        }
        self.has_waiting()
    }

    /// Lets all calls in, for good: the connection takes none any more, and tells each of them.
    pub(super) fn open(&self) {
        let mut queue = self.lock();
        queue.admitted = u64::MAX;
        let woken = mem::take(&mut queue.waiting);
        self.waiting.store(0, Ordering::Release);
        self.is_open.store(true, Ordering::Relaxed);
        self.room.store(i32::MAX, Ordering::Relaxed);
        drop(queue);
        woken.into_values().for_each(Waker::wake);
    }

    /// Lets in calls that wait, and returns the room that is left. If calls still wait, there is none.
    fn admit(&self, room: i32) -> i32 {
        let (mut left, mut woken) = (room, Vec::new());
        let mut queue = self.lock();
        while left > 0
            && let Some((number, waker)) = queue.waiting.pop_first()
        {
            // An opened gate stays open.
            queue.admitted = queue.admitted.max(number + 1);
            woken.push(waker);
            left -= 1;
        }
        self.waiting.store(queue.waiting.len(), Ordering::Release);
        drop(queue);
        woken.into_iter().for_each(Waker::wake);
        left
    }

    fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("room", &self.room).field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

/// Between two turns of a driver: far more calls than come in the time of one, and 16 MiB of requests.
const ROOM: i32 = 1024;

/// Less than the twenty calls that an h2 server lets be reset before it has taken them up: after the next one it ends
/// the connection. If all that waited for a socket that stood still were given up, it would see that many.
const ROOM_AT_A_SLOW_SOCKET: i32 = 16;

#[cfg(test)]
mod tests {
    use tokio_test::task::spawn;
    use tokio_test::{assert_pending, assert_ready};

    use super::*;

    fn fill(gate: &Gate) -> usize {
        std::iter::repeat_with(|| gate.enter()).take_while(|entered| *entered).count()
    }

    #[test]
    fn calls_wait_in_order_until_the_socket_takes_bytes() {
        let gate = Gate::new();
        assert_eq!(fill(&gate), 1024);
        let mut numbers = [None; 20];
        for number in &mut numbers {
            assert_pending!(spawn(()).enter(|cx, _| gate.poll_wait(number, cx)));
        }
        assert!(gate.on_turn(Flow::Stalled), "a socket that stands still lets no call in");
        assert_pending!(spawn(()).enter(|cx, _| gate.poll_wait(&mut numbers[0], cx)));
        assert!(gate.on_turn(Flow::Slow { calls: 0 }), "one that takes something lets some in");
        let is_in = numbers.map(|mut number| spawn(()).enter(|cx, _| gate.poll_wait(&mut number, cx)).is_ready());
        assert_eq!(is_in.iter().filter(|is_in| **is_in).count(), 16);
        assert!(is_in.is_sorted_by(|a, b| a >= b), "the oldest first: {is_in:?}");
        assert!(!gate.enter(), "no call overtakes those that wait");
        assert!(!gate.on_turn(Flow::Free), "then there is room for all");
        assert_ready!(spawn(()).enter(|cx, _| gate.poll_wait(&mut numbers[19], cx)));
        assert_eq!(fill(&gate), 1020);
    }

    #[test]
    fn a_call_that_is_given_up_leaves() {
        let gate = Gate::new();
        fill(&gate);
        let mut numbers = [None; 2];
        let mut tasks = [spawn(()), spawn(())];
        for (task, number) in tasks.iter_mut().zip(&mut numbers) {
            assert_pending!(task.enter(|cx, _| gate.poll_wait(number, cx)));
        }
        gate.leave(numbers[0].expect("it waits"));
        assert!(!gate.on_turn(Flow::Slow { calls: 0 }));
        assert_eq!(tasks.map(|task| task.is_woken()), [false, true]);
    }

    #[test]
    fn large_requests_take_the_room_of_many() {
        let gate = Gate::new();
        gate.charge(16 * 1024 * 1000);
        assert_eq!(fill(&gate), 24);
        gate.on_turn(Flow::Free);
        gate.charge(usize::MAX);
        assert!(!gate.enter());
    }

    #[test]
    fn a_busy_socket_gives_back_what_it_takes() {
        let gate = Gate::new();
        for _ in 0..1_000 {
            gate.on_turn(Flow::Busy { calls: 16 });
            assert!((0..16).all(|_| gate.enter()), "as many as are written");
        }
        let mut in_advance = 0;
        while gate.room.load(Ordering::Relaxed) > 0 || gate.reserve.load(Ordering::Relaxed) > 0 {
            gate.on_turn(Flow::Busy { calls: 0 });
            in_advance += fill(&gate);
        }
        assert_eq!(in_advance, 1024 - 16, "and some in advance");
        gate.on_turn(Flow::Busy { calls: 3 });
        assert_eq!(fill(&gate), 3, "and no more");
    }

    #[test]
    fn large_requests_at_a_slow_socket_are_followed_by_none_until_they_are_written() {
        let gate = Gate::new();
        gate.on_turn(Flow::Stalled);
        assert_eq!(fill(&gate), 16);
        for _ in 0..16 {
            gate.charge(16 * 1024 * 100);
        }
        let mut number = None;
        assert_pending!(spawn(()).enter(|cx, _| gate.poll_wait(&mut number, cx)));
        for _ in 0..100 {
            assert!(gate.on_turn(Flow::Slow { calls: 15 }), "it is not written yet");
        }
        assert!(gate.on_turn(Flow::Slow { calls: 100 }), "all of it is");
        assert!(!gate.on_turn(Flow::Slow { calls: 0 }));
        assert_ready!(spawn(()).enter(|cx, _| gate.poll_wait(&mut number, cx)));
    }

    #[test]
    fn a_socket_that_begins_to_stand_still_takes_room_back() {
        let gate = Gate::new();
        gate.on_turn(Flow::Stalled);
        assert_eq!(fill(&gate), 16);
        gate.on_turn(Flow::Stalled);
        assert_eq!(fill(&gate), 0, "nothing was written since");
    }

    #[test]
    fn an_opened_gate_stays_open() {
        let gate = Gate::new();
        fill(&gate);
        let mut number = None;
        assert_pending!(spawn(()).enter(|cx, _| gate.poll_wait(&mut number, cx)));
        gate.open();
        assert_ready!(spawn(()).enter(|cx, _| gate.poll_wait(&mut number, cx)));
        assert!(gate.enter());
        for flow in [Flow::Slow { calls: 0 }, Flow::Stalled] {
            gate.on_turn(flow);
            assert!((0..100).all(|_| gate.enter()), "also while the socket is {flow:?}");
            assert_ready!(spawn(()).enter(|cx, _| gate.poll_wait(&mut None, cx)));
        }
        gate.room.store(0, Ordering::Relaxed);
        assert_ready!(spawn(()).enter(|cx, _| gate.poll_wait(&mut None, cx)));
    }
}
