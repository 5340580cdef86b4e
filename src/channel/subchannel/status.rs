//! What people and tests see of a channel: its instances, where each stands, and when that changes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::channel::picks::pick_queue::Shared;
use crate::instance::Instance;

/// gRPC's connectivity states, of a channel or of its connection to one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
#[non_exhaustive]
pub enum Connectivity {
    /// Nothing is tried: an instance that left the list without a word and whose connection ended, or one that is ejected
    /// and has lost its connection.
    Idle,
    /// The first attempt, or the first after a connection that had answered, is under way or waits for its turn.
    #[default]
    Connecting,
    /// Calls can be sent. For an instance: its connection stands and the server's SETTINGS came.
    Ready,
    /// The last attempt failed; it is tried again in the background. Calls fail at once.
    TransientFailure,
}

impl Connectivity {
    pub(crate) fn from_u8(state: u8) -> Self {
        match state {
            0 => Self::Idle,
            1 => Self::Connecting,
            2 => Self::Ready,
            _ => Self::TransientFailure,
        }
    }
}

/// Where one instance of a [`BalancedChannel`](crate::BalancedChannel) stood at one moment.
#[derive(Debug, Clone)]
pub struct InstanceStatus {
    instance: Arc<Instance>,
    state: Connectivity,
    in_flight: u32,
    latency: Option<Duration>,
    ejected: bool,
    draining: bool,
    cause: Option<Arc<str>>,
}

impl InstanceStatus {
    pub(crate) fn new(
        instance: Arc<Instance>,
        state: Connectivity,
        in_flight: u32,
        latency: Option<Duration>,
        ejected: bool,
        draining: bool,
        cause: Option<Arc<str>>,
    ) -> Self {
        Self { instance, state, in_flight, latency, ejected, draining, cause }
    }

    /// The instance as it is registered.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Where the connection to it stands.
    #[must_use]
    pub fn state(&self) -> Connectivity {
        self.state
    }

    /// The calls on its present connection, from the choice until the end of the response's body.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The moving average of the time from the choice to the head of the response; `None` before the first.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        self.latency
    }

    /// Whether it is left out because its calls failed.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.ejected
    }

    /// Whether it announced that it leaves.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Why it is not READY, as the last attempt told.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }
}

/// The instances of a channel each time that something about them changes.
///
/// Changes of membership, connectivity, ejection, weights and tags count; in-flight counts and latencies are as they are
/// at the moment. A reader that is slow misses intermediate states, never the last one. Ends when the channel's last clone is
/// dropped.
pub struct InstanceChanges {
    shared: Arc<Shared>,
    changed: watch::Receiver<()>,
}

impl InstanceChanges {
    pub(crate) fn new(shared: Arc<Shared>, mut changed: watch::Receiver<()>) -> Self {
        changed.mark_changed();
        Self { shared, changed }
    }

    /// Waits for a change and tells all instances, ordered by address. The first call returns at once.
    /// `None` after the channel's last clone was dropped.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a change that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Option<Vec<InstanceStatus>> {
        self.changed.changed().await.ok()?;
        Some(self.shared.instances())
    }
}

impl fmt::Debug for InstanceChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstanceChanges").finish_non_exhaustive()
    }
}
