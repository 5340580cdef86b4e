//! What clones of a channel and calls that look for an instance hold: the channel lives as long as one of them.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle as Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::pick_queue::PickQueue;
use crate::channel::config::CallConfig;
use crate::instance::Address;
use crate::targets::CHANNEL;

/// A running channel. Its end tells the balancer to end.
pub(crate) struct Handle {
    pub(crate) queue: Arc<PickQueue>,
    /// Names the channel in the spans of its calls.
    pub(crate) target: Box<str>,
    pub(crate) config: CallConfig,
    /// The runtime that the channel was built on, for the timers of its calls.
    pub(crate) runtime: Runtime,
    /// Told after each change that people can see.
    pub(crate) changed: watch::Receiver<()>,
    pub(crate) _alive: mpsc::Sender<Infallible>,
    /// When a method that a server does not have was logged last.
    pub(crate) unknown_logged: Mutex<Option<Instant>>,
}

impl Handle {
    /// A server does not have a method, and says no more than that. Its status is the caller's as it is, and names no
    /// server; so the log does.
    pub(crate) fn on_unknown_method(&self, address: &Address, path: &str) {
        let now = Instant::now();
        let mut logged = self.unknown_logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|logged| now >= logged + LOG_INTERVAL) {
            *logged = Some(now);
            tracing::warn!(
                target: CHANNEL,
                service = self.queue.label(),
                %address,
                path,
                "server has no such gRPC service or method"
            );
        }
    }
}

/// How often methods that servers do not have are logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
