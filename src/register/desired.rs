//! The desired state of a registration: what its handles ask for, and whether its server is healthy.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt};
use tokio::sync::watch;
use tracing::Instrument;

use super::status::RegistrationStatus;
use crate::instance::Instance;

/// What the handles of a registration ask for.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) instance: Instance,
    pub(super) paused: bool,
    pub(super) leave: bool,
}

/// The health of a server, as the server itself reports it.
pub(super) trait HealthSource: fmt::Debug + Send + Sync {
    /// Whether the server serves: now, and after each change. The stream never ends.
    fn serving(&self) -> BoxStream<'static, bool>;

    /// Lets the server report that it serves no more.
    fn shut_down(&self) -> BoxFuture<'_, ()>;
}

/// The key is present while the registration is not paused and the server serves. A pause and bad health are
/// independent reasons for its absence.
pub(super) struct DesiredState {
    spec: watch::Receiver<Spec>,
    /// Where handles set it, for as long as there are handles.
    handles: Weak<watch::Sender<Spec>>,
    serving: Serving,
}

/// Whether the server serves.
enum Serving {
    /// No health is followed.
    Always,
    /// The health is to be followed once the registration starts.
    Unfollowed(Arc<dyn HealthSource>),
    /// The latest report.
    Followed(watch::Receiver<bool>),
}

impl DesiredState {
    pub(super) fn new(spec: &Arc<watch::Sender<Spec>>, health: Option<Arc<dyn HealthSource>>) -> Self {
        let handles = Arc::downgrade(spec);
        Self { spec: spec.subscribe(), handles, serving: health.map_or(Serving::Always, Serving::Unfollowed) }
    }

    /// Begins to follow the health, if there is any. Needs a tokio runtime.
    pub(super) fn follow_health(&mut self) {
        if let Serving::Unfollowed(health) = &self.serving {
            self.serving = Serving::Followed(follow(health.serving()));
        }
    }

    /// The instance to be written.
    pub(super) fn instance(&self) -> Instance {
        self.spec.borrow().instance.clone()
    }

    /// Replaces this weight of the instance by another one, for later updates as well; returns false where a handle has
    /// set another one already.
    pub(super) fn reweigh(&self, from: u16, to: u16) -> bool {
        let Some(handles) = self.handles.upgrade() else { return false };
        handles.send_if_modified(|spec| {
            let is_present = spec.instance.weight == from;
            if is_present {
                spec.instance.weight = to;
            }
            is_present
        })
    }

    /// Why the key is to be absent; `None` if it is to be present.
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

    /// Waits for a change of what the handles ask for, or of the health.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a change is only consumed by the call that returns it.
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
            // The last handle was dropped, which `end` reports.
            else => std::future::pending().await,
        }
    }

    /// Resolves when a handle asks for the end of the registration, or none is left.
    pub(super) fn end(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut spec = self.spec.clone();
        async move {
            // An error means that the last handle was dropped.
            let _ = spec.wait_for(|spec| spec.leave).await;
        }
    }
}

/// Publishes the server's reports until the receiver is dropped. Before its first report the server counts as not
/// serving.
fn follow(mut reports: BoxStream<'static, bool>) -> watch::Receiver<bool> {
    let (publisher, serving) = watch::channel(false);
    let follower = async move {
        loop {
            tokio::select! {
                () = publisher.closed() => return,
                Some(is_serving) = reports.next() => {
                    publisher.send_if_modified(|latest| std::mem::replace(latest, is_serving) != is_serving);
                }
            }
        }
    };
    tokio::spawn(follower.in_current_span());
    serving
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operators_weight_replaces_the_one_that_it_was_set_over_and_no_other() {
        let instance = Instance::parse("echo", "10.0.0.1:80").expect("a good address");
        let spec = Arc::new(watch::Sender::new(Spec { instance, paused: false, leave: false }));
        let desired = DesiredState::new(&spec, None);
        assert!(desired.reweigh(10, 7), "it had 10");
        assert_eq!(desired.instance().weight(), 7);
        spec.send_modify(|spec| spec.instance.weight = 20);
        assert!(!desired.reweigh(7, 3), "the program has set another one meanwhile");
        assert_eq!(desired.instance().weight(), 20);
        drop(spec);
        assert!(!desired.reweigh(20, 3), "and without handles there is nothing to keep");
    }
}
