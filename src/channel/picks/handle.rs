//! What clones of a channel and calls that look for an instance hold: the channel lives as long as one of them.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::runtime::Handle as Runtime;
use tokio::sync::{mpsc, watch};

use super::pick_queue::PickQueue;
use crate::channel::config::CallConfig;

/// A running channel. Its end tells the balancer to end.
pub(crate) struct Handle {
    pub(crate) queue: Arc<PickQueue>,
    pub(crate) config: CallConfig,
    /// The runtime that the channel was built on, for the timers of its calls.
    pub(crate) runtime: Runtime,
    /// Told after each change that people can see.
    pub(crate) changed: watch::Receiver<()>,
    pub(crate) _alive: mpsc::Sender<Infallible>,
}
