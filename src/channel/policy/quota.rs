//! The places for calls on one connection: counted without a lock, and never more than the peer allows.
//!
//! Together with [`Line`](crate::channel::picks::wait_queue::Line) this is what an exhaustive interleaving test in `tests/interleavings.rs` goes
//! through, which is why it names its primitives through `super::sync`.

use crate::channel::sync::{AtomicI32, AtomicU32, Ordering::SeqCst};

/// The places for calls on one connection.
#[derive(Debug)]
pub(crate) struct StreamQuota {
    in_flight: AtomicU32,
    /// How many calls it may have at once; negative once it is closed, so that one comparison refuses both.
    limit: AtomicI32,
}

impl StreamQuota {
    /// StreamQuota for at most `limit` calls at once.
    pub(crate) fn new(limit: u32) -> Self {
        Self { in_flight: AtomicU32::new(0), limit: AtomicI32::new(to_signed(limit)) }
    }

    /// Takes one call's place, and tells whether there was one.
    ///
    /// Never counts beyond the limit, not even for a moment: a count that is taken back would let another caller see no room,
    /// and wait for the release of a call that never was.
    pub(crate) fn acquire(&self) -> bool {
        let one_more = |calls| (to_signed(calls) < self.limit.load(SeqCst)).then(|| calls + 1);
        self.in_flight.fetch_update(SeqCst, SeqCst, one_more).is_ok()
    }

    /// Gives one acquired place back.
    pub(crate) fn release(&self) {
        self.in_flight.fetch_sub(1, SeqCst);
    }

    /// How many are taken.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(SeqCst)
    }

    /// Changes the limit, unless it is closed. A limit of 0 lets no call in until the next change.
    pub(crate) fn set_limit(&self, limit: u32) {
        let unless_closed = |now| (now != CLOSED).then(|| to_signed(limit));
        // The error only says that it is closed, and then nobody is to be let in.
        let _ = self.limit.fetch_update(SeqCst, SeqCst, unless_closed);
    }

    /// Lets no further call in, whatever limit is set later.
    pub(crate) fn close(&self) {
        self.limit.store(CLOSED, SeqCst);
    }

    /// Whether there is no room for another call: full or closed.
    pub(crate) fn is_saturated(&self) -> bool {
        to_signed(self.in_flight()) >= self.limit.load(SeqCst)
    }
}

/// A count as the signed number that limits are compared as. No peer has two thousand million streams.
fn to_signed(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The limit of what is closed for good.
const CLOSED: i32 = -1;
