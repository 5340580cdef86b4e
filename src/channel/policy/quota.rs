//! How many calls may be open on one connection: counted without a lock, and never more than the peer allows.
//!
//! Together with the wait queue of `picks/` this is what an exhaustive interleaving test in `tests/interleavings.rs`
//! goes through, which is why the primitives come from `channel::sync`.

use crate::channel::sync::{AtomicI32, AtomicU32, Ordering::SeqCst};

/// The calls that may be open on one connection, and those that are.
#[derive(Debug)]
pub(crate) struct StreamQuota {
    in_flight: AtomicU32,
    /// The peer's limit, with the flags [`ONE_AT_A_TIME`] and [`STALLED`]; [`CLOSED`] for good once no call may begin
    /// any more.
    limit: AtomicI32,
}

impl StreamQuota {
    /// At most `limit` calls at once.
    pub(crate) fn new(limit: u32) -> Self {
        Self { in_flight: AtomicU32::new(0), limit: AtomicI32::new(clamped(limit)) }
    }

    /// Takes a place for one call, if there is one.
    ///
    /// Never counts beyond the limit, not even for a moment: a count that is taken back would let another caller see no
    /// room, and wait for the release of a call that never was.
    pub(crate) fn acquire(&self) -> bool {
        let one_more = |calls| (clamped(calls) < effective(self.limit.load(SeqCst))).then(|| calls + 1);
        self.in_flight.fetch_update(SeqCst, SeqCst, one_more).is_ok()
    }

    /// Gives one acquired place back.
    pub(crate) fn release(&self) {
        self.in_flight.fetch_sub(1, SeqCst);
    }

    /// The places that are taken.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(SeqCst)
    }

    /// Changes the peer's limit, unless the quota is closed. A limit of 0 lets no call in until the next change.
    pub(crate) fn set_limit(&self, limit: u32) {
        self.update(|now| clamped(limit) | now & (ONE_AT_A_TIME | STALLED));
    }

    /// Whether one call at a time is let in, whatever the peer's limit is.
    pub(crate) fn set_one_at_a_time(&self, limited: bool) {
        self.update(|now| if limited { now | ONE_AT_A_TIME } else { now & !ONE_AT_A_TIME });
    }

    /// Whether no call is let in for now, since the connection takes no bytes.
    pub(crate) fn set_stalled(&self, is_stalled: bool) {
        self.update(|now| if is_stalled { now | STALLED } else { now & !STALLED });
    }

    /// Lets no further call in, for good.
    pub(crate) fn close(&self) {
        // A swap, as all other changes are: loom orders a plain store less strictly than the language does.
        self.limit.swap(CLOSED, SeqCst);
    }

    /// Whether no further call is let in, for good.
    pub(crate) fn is_closed(&self) -> bool {
        self.limit.load(SeqCst) == CLOSED
    }

    /// Whether there is no room for another call: full or closed.
    pub(crate) fn is_saturated(&self) -> bool {
        clamped(self.in_flight()) >= effective(self.limit.load(SeqCst))
    }

    fn update(&self, change: impl Fn(i32) -> i32) {
        // The error only says that it is closed, which no change undoes.
        let _ = self.limit.fetch_update(SeqCst, SeqCst, |now| (now != CLOSED).then(|| change(now)));
    }
}

/// The limit that counts; negative once closed, so that one comparison refuses both.
fn effective(limit: i32) -> i32 {
    match limit {
        ..STALLED => limit,
        _ if limit & STALLED != 0 => 0,
        _ => (limit & !ONE_AT_A_TIME).min(1),
    }
}

/// A count as the signed number that limits are compared as. No peer has half a thousand million streams.
fn clamped(count: u32) -> i32 {
    i32::try_from(count).map_or(MAX_LIMIT, |count| count.min(MAX_LIMIT))
}

/// The limit of a quota that is closed for good.
const CLOSED: i32 = -1;

/// In a limit: one call at a time.
const ONE_AT_A_TIME: i32 = 1 << 30;

/// In a limit: no call for now.
const STALLED: i32 = 1 << 29;

/// The largest limit that leaves room for the flags.
const MAX_LIMIT: i32 = STALLED - 1;
