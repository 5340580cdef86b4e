//! Published states become what people watch: all instances, each time that something about them changes.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::picks::PickQueue;
use super::subchannel::InstanceStatus;

/// The instances of a channel each time that something about them changes.
///
/// Changes of membership, connectivity, ejection, weights and tags count; in-flight counts and latencies are as they
/// are at the moment. A slow reader misses intermediate states, never the last one. Ends when the channel's last clone
/// is dropped.
pub struct InstanceChanges {
    queue: Arc<PickQueue>,
    changed: watch::Receiver<()>,
}

impl InstanceChanges {
    pub(super) fn new(queue: Arc<PickQueue>, mut changed: watch::Receiver<()>) -> Self {
        changed.mark_changed();
        Self { queue, changed }
    }

    /// Waits for a change and returns all instances, ordered by address. The first call returns at once.
    /// `None` after the channel's last clone was dropped.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a change that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Option<Vec<InstanceStatus>> {
        self.changed.changed().await.ok()?;
        Some(self.queue.instances())
    }
}

impl fmt::Debug for InstanceChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstanceChanges").finish_non_exhaustive()
    }
}
