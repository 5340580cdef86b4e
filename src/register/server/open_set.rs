//! The open calls or connections of a server: each enters and leaves once, and all of them can be ended from outside.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Something open that can be ended from outside of the task that owns it.
///
/// A poll goes in this order, so that no wake-up is lost: check for the end, poll, register the waker, check again.
pub(super) trait End: Send + Sync + 'static {
    /// Releases what it holds and wakes every task that waits for it.
    fn end(&self);
}

/// Everything open of one kind, spread over shards so that the cores that open and close do not contend for one lock.
#[derive(Default)]
pub(super) struct OpenSet {
    shards: [Shard; SHARDS],
}

/// The place of an open thing in the set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    shard: usize,
    index: usize,
}

impl OpenSet {
    /// Takes in what `make` builds for its slot. It stays until [`leave`](Self::leave).
    ///
    /// Check for the end *after* this: the walk of [`end_all`](Self::end_all) either meets the new entry, or had passed
    /// this shard before, and then what was stored before the walk is visible here.
    pub(super) fn enter<T: End>(&self, make: impl FnOnce(Slot) -> T) -> Arc<T> {
        let shard = shard_of_this_thread();
        let mut slots = self.shards[shard].lock();
        let index = slots.free.pop().unwrap_or(slots.taken.len());
        let open = Arc::new(make(Slot { shard, index }));
        let entry = Some(Arc::clone(&open) as Arc<dyn End>);
        match slots.taken.get_mut(index) {
            Some(slot) => *slot = entry,
            None => slots.taken.push(entry),
        }
        open
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

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Ends everything that is open now, yielding after each shard so that the woken tasks can run. Returns the count.
    pub(super) async fn end_all(&self) -> usize {
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

/// On cache lines of its own (two, since processors fetch them in pairs): the neighbours are other cores' shards, and
/// the mark that every poll reads.
#[derive(Default)]
#[repr(align(128))]
struct Shard(Mutex<Slots>);

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        // Nothing of ours panics under the lock; a poisoned one would make a panic of each later call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Slots are reused, never freed: as many as were ever taken at once.
#[derive(Default)]
struct Slots {
    taken: Vec<Option<Arc<dyn End>>>,
    free: Vec<usize>,
}

impl Slots {
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

/// As many locks as server cores may contend for; more would only cost memory (128 bytes each).
const SHARDS: usize = 16;
const _: () = assert!(size_of::<Shard>() == 128);

#[cfg(test)]
mod tests {
    use super::*;

    struct Open {
        slot: Slot,
    }

    impl Open {
        fn new(slot: Slot) -> Self {
            Self { slot }
        }
    }

    impl End for Open {
        fn end(&self) {}
    }

    #[test]
    fn a_slot_is_reused() {
        let set = OpenSet::default();
        let first = set.enter(Open::new);
        let second = set.enter(Open::new);
        assert_eq!(set.len(), 2, "two are open");
        set.leave(first.slot);
        assert_eq!(set.len(), 1, "one left");
        assert_eq!(Arc::strong_count(&first), 1, "the set let go of it");
        let third = set.enter(Open::new);
        assert_eq!(third.slot.index, first.slot.index, "its slot was free");
        set.leave(second.slot);
        set.leave(third.slot);
        assert_eq!(set.len(), 0, "all left");
    }
}
