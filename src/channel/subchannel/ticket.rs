//! What tells one wish to connect, attempt and connection of an instance from the next.

use std::sync::atomic::{AtomicU64, Ordering};

/// Given to a wish to connect, and kept by the attempt and the connection that come of it; another one for each
/// back-off. Unique in the process, so that news of an earlier attempt, or of an earlier instance at the address, is
/// recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl Ticket {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}
