//! Which of a drain's places in a server were used, to what the server goes without.

use std::sync::atomic::{AtomicBool, Ordering};

/// The two places that a server can serve without, unnoticed until its drain limit. Without the third one, the shutdown
/// future, no drain begins.
#[derive(Default)]
pub(super) struct Places {
    has_layer: AtomicBool,
    has_incoming: AtomicBool,
}

impl Places {
    /// The layer was applied, whether or not it started something.
    pub(super) fn on_layer_applied(&self) {
        self.has_layer.store(true, Ordering::Relaxed);
    }

    /// The server waits for connections.
    pub(super) fn on_incoming_polled(&self) {
        self.has_incoming.store(true, Ordering::Relaxed);
    }

    /// For the begin of the drain: names in the log what is missing, and what that costs.
    pub(super) fn warn_of_missing(&self) {
        let missing = missing(self.has_layer.load(Ordering::Relaxed), self.has_incoming.load(Ordering::Relaxed));
        if let Some((missing, cost)) = missing {
            tracing::warn!(missing, cost, "drain begins without all of its places in the server");
        }
    }
}

/// What a server has not used, and what that costs. A server other than tonic's may need no `incoming`.
fn missing(has_layer: bool, has_incoming: bool) -> Option<(&'static str, &'static str)> {
    match (has_layer, has_incoming) {
        (true, true) => None,
        (false, true) => Some(("layer()", "calls left at the limit are cut off without a status")),
        (true, false) => {
            Some(("incoming()", "connections stay open after the limit, unless the server closes them itself"))
        }
        (false, false) => Some((
            "layer() and incoming()",
            "nothing ends at the limit, unless the server ends its calls and connections itself",
        )),
    }
}
