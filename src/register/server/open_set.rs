//! The open calls or connections of a server, so that all of them can be ended from outside.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Something open that can be ended from outside of the task that owns it.
///
/// A poll goes in this order, so that no wake-up is lost: check for the end, poll, register the waker, enter the set,
/// check again.
pub(super) trait End: Send + Sync + 'static {
    /// Releases what it holds and wakes every task that waits for it.
    fn end(&self);
}

/// What is open of one kind: how much, and those of it that the end must reach. Spread over shards so that the cores
/// that open and close do not contend for one cache line or one lock.
#[derive(Default)]
pub(super) struct OpenSet {
    shards: [Shard; SHARDS],
}

/// Where an open thing is counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    shard: usize,
}

/// The place of an open thing in the set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    shard: usize,
    index: usize,
}

impl OpenSet {
    /// Counts one more. What is about to wait [enters](Self::enter) as well.
    #[inline]
    pub(super) fn opened(&self) -> Counted {
        let shard = shard_of_this_thread();
        self.shards[shard].count.fetch_add(1, Ordering::Relaxed);
        Counted { shard }
    }

    /// Counts one less. Once for each that opened.
    #[inline]
    pub(super) fn closed(&self, counted: Counted) {
        self.shards[counted.shard].count.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many are open. What is open all the time that this takes is counted.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.count.load(Ordering::Relaxed)).sum()
    }

    /// Takes `open` in until [`leave`](Self::leave): [`end_all`](Self::end_all) reaches it.
    ///
    /// Check for the end *after* this: the walk of `end_all` either meets the new entry, or had passed this shard
    /// before, and then what was stored before the walk is visible here.
    pub(super) fn enter(&self, open: Arc<dyn End>) -> Slot {
        let shard = shard_of_this_thread();
        let mut slots = self.shards[shard].lock();
        let index = slots.free.pop().unwrap_or(slots.taken.len());
        match slots.taken.get_mut(index) {
            Some(slot) => *slot = Some(open),
            None => slots.taken.push(Some(open)),
        }
        Slot { shard, index }
    }

    /// Gives the slot back. Each slot once.
    pub(super) fn leave(&self, slot: Slot) {
        let mut slots = self.shards[slot.shard].lock();
        let left = slots.taken[slot.index].take();
        debug_assert!(left.is_some(), "a slot is given back once");
        slots.free.push(slot.index);
        // The entry's drop may take locks of its own.
        drop(slots);
        drop(left);
    }

    /// Ends everything that has entered, yielding after each shard so that the woken tasks can run.
    pub(super) async fn end_all(&self) {
        for shard in &self.shards {
            let entered: Vec<_> = shard.lock().taken.iter().flatten().cloned().collect();
            if entered.is_empty() {
                continue;
            }
            for open in entered {
                open.end();
            }
            tokio::task::yield_now().await;
        }
    }
}

/// On cache lines of its own (two, since processors fetch them in pairs): the neighbours are other cores' shards, and
/// the mark that every poll reads.
#[derive(Default)]
#[repr(align(128))]
struct Shard {
    /// What threads of this shard have opened, and no thread has closed.
    count: AtomicUsize,
    slots: Mutex<Slots>,
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        // Nothing of ours panics under the lock; a poisoned one would make a panic of each later call.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Slots are reused, never freed: as many as were ever taken at once.
#[derive(Default)]
struct Slots {
    taken: Vec<Option<Arc<dyn End>>>,
    free: Vec<usize>,
}

#[inline]
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

/// As many as server cores may contend; more would only cost memory (128 bytes each).
const SHARDS: usize = 16;
const _: () = assert!(size_of::<Shard>() == 128);

#[cfg(test)]
mod tests {
    use super::*;

    struct Open;

    impl End for Open {
        fn end(&self) {}
    }

    #[test]
    fn a_slot_is_reused() {
        let set = OpenSet::default();
        let open = Arc::new(Open);
        let first = set.enter(open.clone());
        let second = set.enter(Arc::new(Open));
        set.leave(first);
        assert_eq!(Arc::strong_count(&open), 1, "the set let go of it");
        let third = set.enter(Arc::new(Open));
        assert_eq!(third.index, first.index, "its slot was free");
        assert_ne!(third.index, second.index, "the other one was not");
    }

    #[test]
    fn what_one_thread_opens_another_may_close() {
        let set = OpenSet::default();
        let (first, second) = (set.opened(), set.opened());
        std::thread::scope(|scope| scope.spawn(|| set.closed(first)).join()).expect("it does not panic");
        assert_eq!(set.len(), 1, "one is left");
        set.closed(second);
        assert_eq!(set.len(), 0, "none is left");
    }
}
