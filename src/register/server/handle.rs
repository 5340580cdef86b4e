//! What a layer and a stream of connections know of their server: what starts with it, and its drain.

use std::fmt;
use std::sync::Arc;

use super::state::DrainState;

/// A cheap handle; clones belong to the same server.
///
/// It keeps alive what starts with the server, a registration for example: while the server accepts, that lasts.
#[derive(Clone)]
pub(super) struct ServerHandle {
    start: Option<Arc<dyn Fn() + Send + Sync>>,
    drain: DrainState,
}

impl ServerHandle {
    /// A server with which nothing else starts.
    pub(super) fn new() -> Self {
        Self { start: None, drain: DrainState::new() }
    }

    /// A handle with the same drain that runs `start` when the server starts to serve. It may run more than once.
    pub(super) fn with_start(&self, start: impl Fn() + Send + Sync + 'static) -> Self {
        Self { start: Some(Arc::new(start)), drain: self.drain.clone() }
    }

    /// Starts what is to start with the server.
    pub(super) fn start(&self) {
        if let Some(start) = &self.start {
            start();
        }
    }

    pub(super) fn drain(&self) -> &DrainState {
        &self.drain
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle").field("drain", &self.drain).finish_non_exhaustive()
    }
}
