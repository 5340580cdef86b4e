//! The calls that wait for a place: in order, bounded in number, and served by the event that frees a place.
//!
//! | event | served by |
//! | --- | --- |
//! | a call ends and gives its place back | the task that ended it, if calls wait |
//! | a call joins the queue | the call itself, once: a place may have become free while it joined |
//! | a ready set is published, a peer raises its limit | the balancer, the connection's task |
//!
//! No wake-up is lost: a place is given back before the queue is looked at, and a call joins the queue before it looks
//! for a place, all in one total order (`SeqCst`), so that at least one of the two sees the other. An exhaustive
//! interleaving test in `tests/interleavings.rs` holds this file to it, which is why the primitives come from
//! `channel::sync`.

use std::collections::BTreeMap;

use crate::channel::sync::{AtomicUsize, Mutex, MutexGuard, Ordering::SeqCst, PoisonError, in_order};

/// The waiting calls, each with a `W` of its own.
#[derive(Debug)]
pub(crate) struct WaitQueue<W> {
    /// The number of calls, readable without the lock.
    length: AtomicUsize,
    limit: usize,
    queue: Mutex<Queue<W>>,
}

#[derive(Debug)]
struct Queue<W> {
    next: u64,
    waiting: BTreeMap<u64, W>,
}

/// What became of a waiting call's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It was answered, and leaves the queue.
    Answered,
    /// It waits on, but those behind it may be answered.
    Passed,
    /// It waits on, and so do all behind it.
    Closed,
}

impl<W> WaitQueue<W> {
    /// A queue that holds at most `limit` calls.
    pub(crate) fn new(limit: usize) -> Self {
        Self { length: AtomicUsize::new(0), limit, queue: Mutex::new(Queue { next: 0, waiting: BTreeMap::new() }) }
    }

    /// Whether no call waits, so that a new one may take a place without overtaking another.
    pub(crate) fn is_empty(&self) -> bool {
        in_order();
        self.length.load(SeqCst) == 0
    }

    /// Adds a call and returns its number; `None` where the queue is full. The caller serves the queue afterwards.
    pub(crate) fn join(&self, call: W) -> Option<u64> {
        let mut queue = self.lock();
        if queue.waiting.len() >= self.limit {
            return None;
        }
        let number = queue.next;
        queue.next += 1;
        queue.waiting.insert(number, call);
        self.length.store(queue.waiting.len(), SeqCst);
        in_order();
        Some(number)
    }

    /// Removes a call, if it still waits.
    pub(crate) fn leave(&self, number: u64) {
        let mut queue = self.lock();
        let left = queue.waiting.remove(&number);
        self.length.store(queue.waiting.len(), SeqCst);
        drop(queue);
        drop(left);
    }

    /// Gives the waiting calls their turns, in order, until one closes the queue. `turn` must not touch this queue.
    pub(crate) fn serve(&self, mut turn: impl FnMut(&mut W) -> Turn) {
        if self.is_empty() {
            return;
        }
        let mut queue = self.lock();
        let mut from = 0;
        while let Some((&number, call)) = queue.waiting.range_mut(from..).next() {
            match turn(call) {
                Turn::Answered => {
                    queue.waiting.remove(&number);
                }
                Turn::Passed => from = number + 1,
                Turn::Closed => break,
            }
        }
        self.length.store(queue.waiting.len(), SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Queue<W>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
