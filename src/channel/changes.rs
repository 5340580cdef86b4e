//! Published states become what people watch: all instances, each time that something about them changes.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::stream::{self, Stream, StreamExt};
use tokio::sync::watch;

use super::picks::PickQueue;
use super::subchannel::InstanceStatus;

/// The instances of a channel each time that something about them changes.
///
/// Changes of membership, connectivity, ejection, weights and tags count; in-flight counts and latencies are as they
/// are at the moment. A slow reader misses intermediate states, never the last one. Ends when the channel's last clone
/// is dropped. A clone begins with the present state.
#[must_use = "streams do nothing unless polled"]
pub struct InstanceChanges {
    queue: Arc<PickQueue>,
    /// For clones.
    changed: watch::Receiver<()>,
    each: Pin<Box<dyn Stream<Item = ()> + Send + Sync>>,
}

impl InstanceChanges {
    pub(super) fn new(queue: Arc<PickQueue>, changed: watch::Receiver<()>) -> Self {
        let mut seen = changed.clone();
        seen.mark_changed();
        let each = stream::unfold(seen, |mut seen| async move {
            seen.changed().await.ok()?;
            Some(((), seen))
        });
        Self { queue, changed, each: Box::pin(each.fuse()) }
    }

    /// Waits for a change and returns all instances, ordered by address. The first call returns at once.
    /// `None` after the channel's last clone was dropped.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a change that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Option<Vec<InstanceStatus>> {
        StreamExt::next(self).await
    }
}

impl Stream for InstanceChanges {
    type Item = Vec<InstanceStatus>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let change = ready!(self.each.as_mut().poll_next(cx));
        Poll::Ready(change.map(|()| self.queue.instances()))
    }
}

impl Clone for InstanceChanges {
    fn clone(&self) -> Self {
        Self::new(self.queue.clone(), self.changed.clone())
    }
}

impl fmt::Debug for InstanceChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstanceChanges").finish_non_exhaustive()
    }
}
