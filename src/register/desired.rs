//! What is wanted of a registration: what its handles say, and what its server says of its own health.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt};
use tokio::sync::watch;
use tracing::Instrument;

use super::status::RegistrationStatus;
use crate::instance::Instance;

/// What the handles want.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) instance: Instance,
    pub(super) paused: bool,
    pub(super) leave: bool,
}

/// What a server says of its own health.
pub(super) trait HealthSource: fmt::Debug + Send + Sync {
    /// Whether it serves: now, and whenever that changes. Never ends.
    fn serving(&self) -> BoxStream<'static, bool>;

    /// Lets it say that it serves no more.
    fn shut_down(&self) -> BoxFuture<'_, ()>;
}

/// All that a registration's task goes by. A pause and bad health are two reasons for the key to be absent: it is there
/// while neither holds.
pub(super) struct DesiredState {
    spec: watch::Receiver<Spec>,
    serving: Serving,
}

/// Whether the server serves.
enum Serving {
    /// Nobody is asked: always.
    Always,
    /// It is to be asked.
    Unfollowed(Arc<dyn HealthSource>),
    /// It said so, or not, the last time.
    Followed(watch::Receiver<bool>),
}

impl DesiredState {
    pub(super) fn new(spec: watch::Receiver<Spec>, health: Option<Arc<dyn HealthSource>>) -> Self {
        Self { spec, serving: health.map_or(Serving::Always, Serving::Unfollowed) }
    }

    /// Begins to follow the health, if any. Needs a tokio runtime.
    pub(super) fn follow_health(&mut self) {
        if let Serving::Unfollowed(health) = &self.serving {
            self.serving = Serving::Followed(follow(health.serving()));
        }
    }

    /// The instance as it is to be written.
    pub(super) fn instance(&self) -> Instance {
        self.spec.borrow().instance.clone()
    }

    /// Why the key is to be absent, if it is.
    pub(super) fn absence(&self) -> Option<RegistrationStatus> {
        let is_serving = match &self.serving {
            Serving::Always => true,
            Serving::Unfollowed(_) => false,
            Serving::Followed(serving) => *serving.borrow(),
        };
        if self.spec.borrow().paused {
            Some(RegistrationStatus::Paused)
        } else if is_serving {
            None
        } else {
            Some(RegistrationStatus::NotServing)
        }
    }

    /// Waits for news of any of it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was not returned counts as not seen.
    pub(super) async fn changed(&mut self) {
        let serving = async {
            match &mut self.serving {
                Serving::Followed(serving) => serving.changed().await.is_ok(),
                Serving::Always | Serving::Unfollowed(_) => false,
            }
        };
        tokio::select! {
            Ok(()) = self.spec.changed() => {}
            true = serving => {}
            // The last handle is gone, which ends the task elsewhere.
            else => std::future::pending().await,
        }
    }

    /// Resolves when a handle wants the registration to end, or none is left.
    pub(super) fn end(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut spec = self.spec.clone();
        async move {
            // An error means that the last handle is gone.
            let _ = spec.wait_for(|spec| spec.leave).await;
        }
    }
}

/// Passes on what the server says for as long as the receiver lives. Until it says something, it does not serve.
fn follow(mut said: BoxStream<'static, bool>) -> watch::Receiver<bool> {
    let (publisher, serving) = watch::channel(false);
    let follower = async move {
        loop {
            tokio::select! {
                () = publisher.closed() => return,
                Some(is_serving) = said.next() => {
                    publisher.send_if_modified(|said| std::mem::replace(said, is_serving) != is_serving);
                }
            }
        }
    };
    tokio::spawn(follower.in_current_span());
    serving
}
