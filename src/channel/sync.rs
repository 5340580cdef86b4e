//! The primitives of quota and wait queue, in one place so that their interleaving test can put others here.

pub(crate) use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError};

/// Stands between an access that others have to see and one that has to see theirs.
///
/// Both are `SeqCst` everywhere and so in one total order already, which costs nothing more here. loom takes `SeqCst`
/// for less than that, and puts a fence in this place.
#[inline]
pub(crate) fn in_order() {}
