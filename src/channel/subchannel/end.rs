//! How a connection ended, as far as that says something about its instance.

use std::sync::Arc;

/// How a connection came to take no more calls.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) kind: EndKind,
    pub(crate) cause: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndKind {
    /// Announced as a matter of course, or while no call was open: nothing failed.
    Planned,
    /// Announced as an error.
    Refused,
    /// Unannounced, with calls open: the server crashed, or the network did.
    Broken,
}
