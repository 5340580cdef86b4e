//! Which of a drain's places in a server were used, to what the server goes without.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::targets::REGISTRATION;

/// The three places of a server, none of which it misses until its end.
#[derive(Default)]
pub(super) struct Places {
    is_taken: AtomicBool,
    has_layer: AtomicBool,
    has_incoming: AtomicBool,
    has_signal: AtomicBool,
    /// Whether a server that accepts was looked at.
    is_checked: AtomicBool,
}

impl Places {
    /// The layer or the connections are about to go into a server.
    pub(super) fn on_taken(&self) {
        self.is_taken.store(true, Ordering::Relaxed);
    }

    /// The shutdown future is about to go into a server.
    pub(super) fn on_signal_taken(&self) {
        self.on_taken();
        self.has_signal.store(true, Ordering::Relaxed);
    }

    /// Whether any place was taken.
    pub(super) fn is_taken(&self) -> bool {
        self.is_taken.load(Ordering::Relaxed)
    }

    /// The layer was applied, whether or not it started something.
    pub(super) fn on_layer_applied(&self) {
        self.has_layer.store(true, Ordering::Relaxed);
    }

    /// The server waits for connections.
    pub(super) fn on_incoming_polled(&self) {
        self.has_incoming.store(true, Ordering::Relaxed);
    }

    /// A connection came; the first one came then. Once that is a while ago, the server's other places are in use or
    /// forgotten: names the forgotten ones in the log, once.
    pub(super) fn on_accepted(&self, since: Instant) {
        if self.is_checked.load(Ordering::Relaxed) || since.elapsed() < SETTLED {
            return;
        }
        if self.is_checked.swap(true, Ordering::Relaxed) {
            return;
        }
        let [has_layer, has_signal] = [&self.has_layer, &self.has_signal].map(|place| place.load(Ordering::Relaxed));
        if let Some((missing, cost)) = missing_while_serving(has_layer, has_signal) {
            tracing::warn!(target: REGISTRATION, missing, cost, "the server serves without all of its places");
        }
    }

    /// For the begin of the drain: names in the log what is missing, and what that costs.
    pub(super) fn warn_of_missing(&self) {
        let missing = missing(self.has_layer.load(Ordering::Relaxed), self.has_incoming.load(Ordering::Relaxed));
        if let Some((missing, cost)) = missing {
            tracing::warn!(target: REGISTRATION, missing, cost, "drain begins without all of its places in the server");
        }
    }
}

/// What a server that accepts has not used, and what that will cost.
fn missing_while_serving(has_layer: bool, has_signal: bool) -> Option<(&'static str, &'static str)> {
    match (has_layer, has_signal) {
        (true, true) => None,
        (false, true) => Some(("layer()", "calls left at the limit will be cut off without a status")),
        (true, false) => Some(("deregister_on(), or on() of a Drain", NO_SIGNAL)),
        (false, false) => Some(("layer() and deregister_on(), or on() of a Drain", NO_SIGNAL)),
    }
}

const NO_SIGNAL: &str = "it has no graceful shutdown: calls will be cut off, and a registration ends with its lease, unless deregister() is called";

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

/// How long a server may take connections before all of its places are in use: some apply layers to each connection.
const SETTLED: Duration = Duration::from_secs(5);
