//! The watchers of a registry: one task a service, which publishes snapshots for as long as there are listeners.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use super::membership::{Complaints, Layout, Membership};
use crate::error::ConfigError;
use crate::etcd::{Cluster, Range, Source, Update};
use crate::instance::ServiceName;
use crate::snapshot::Snapshot;
use crate::time::sleep_until;

/// A receiver of the snapshots of one service.
#[derive(Debug, Clone)]
pub(crate) struct Listener {
    watchers: Arc<Watchers>,
    service: ServiceName,
    latest: watch::Receiver<Option<Arc<Snapshot>>>,
}

impl Listener {
    /// The latest snapshot; `None` until the watcher's first list came.
    pub(super) fn latest(&mut self) -> Option<Arc<Snapshot>> {
        if self.latest.has_changed().is_err()
            && let Ok(again) = self.watchers.subscribe(&self.service)
        {
            *self = again;
        }
        self.latest.borrow().clone()
    }

    /// Waits until there is a snapshot that was not waited for yet.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: until it returns, nothing counts as waited for.
    pub(super) async fn changed(&mut self) {
        loop {
            if self.latest.changed().await.is_err() {
                // The watcher went down with the runtime of its first listener; this runtime is another.
                self.subscribe_again().await;
            }
            if self.latest.borrow_and_update().is_some() {
                return;
            }
        }
    }

    async fn subscribe_again(&mut self) {
        loop {
            tokio::time::sleep(RESUBSCRIBE_PAUSE).await;
            if let Ok(mut again) = self.watchers.subscribe(&self.service) {
                again.latest.mark_changed();
                *self = again;
                return;
            }
        }
    }
}

type Publisher = watch::Sender<Option<Arc<Snapshot>>>;

/// The watchers of one registry.
#[derive(Debug)]
pub(crate) struct Watchers {
    pub(super) cluster: Arc<Cluster>,
    pub(super) layout: Layout,
    /// Of reads without a watcher.
    pub(super) complaints: Complaints,
    /// A service is in here from its first listener on until its task sees, under this lock, that there is none left.
    running: Mutex<HashMap<ServiceName, Publisher>>,
}

impl Watchers {
    pub(crate) fn new(cluster: Arc<Cluster>, layout: Layout) -> Arc<Self> {
        Arc::new(Self { cluster, layout, complaints: Complaints::default(), running: Mutex::default() })
    }

    /// What every key begins with, for messages.
    pub(crate) fn prefix(&self) -> &str {
        &self.layout.base
    }

    /// Listens to a service; the first listener starts its watcher.
    ///
    /// # Errors
    ///
    /// Outside of a tokio runtime.
    pub(crate) fn subscribe(self: &Arc<Self>, service: &ServiceName) -> Result<Listener, ConfigError> {
        let runtime = Handle::try_current().map_err(|_| ConfigError::NoRuntime { call: "discover" })?;
        let listen = |latest| Listener { watchers: self.clone(), service: service.clone(), latest };
        let mut running = self.running();
        if let Some(publisher) = running.get(service) {
            return Ok(listen(publisher.subscribe()));
        }
        let (publisher, latest) = watch::channel(None);
        running.insert(service.clone(), publisher.clone());
        // A runtime that is going down drops the task at once, and that takes the lock.
        drop(running);
        let span = tracing::info_span!(parent: None, "watch", %service);
        let guard = WatcherGuard { watchers: self.clone(), service: service.clone(), publisher };
        let source = Source::new(self.cluster.clone(), Range::below(self.layout.range(service)), ANTI_ENTROPY);
        let membership = Membership::new(self.layout.clone(), service.clone(), Complaints::default());
        runtime.spawn(run(guard, source, membership).instrument(span));
        Ok(listen(latest))
    }

    fn running(&self) -> MutexGuard<'_, HashMap<ServiceName, Publisher>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a watcher among the running ones; dropping it takes the watcher out, also where a runtime ends under its
/// tasks.
struct WatcherGuard {
    watchers: Arc<Watchers>,
    service: ServiceName,
    publisher: Publisher,
}

impl WatcherGuard {
    /// Takes the watcher out if it has no listener; the next listener starts another one. Returns whether it is out.
    fn retire_if_idle(&self) -> bool {
        let mut running = self.watchers.running();
        let idle = self.publisher.receiver_count() == 0;
        if idle {
            running.remove(&self.service);
        }
        idle
    }

    fn publish(&self, membership: &Membership, revision: i64) {
        let snapshot = membership.snapshot(revision);
        self.publisher.send_if_modified(|published| {
            let changed = published.as_ref().is_none_or(|old| old.members() != snapshot.members());
            if changed {
                tracing::debug!(revision, instances = snapshot.len(), "snapshot published");
                *published = Some(Arc::new(snapshot));
            }
            changed
        });
    }
}

impl Drop for WatcherGuard {
    fn drop(&mut self) {
        let mut running = self.watchers.running();
        if running.get(&self.service).is_some_and(|publisher| publisher.same_channel(&self.publisher)) {
            running.remove(&self.service);
        }
    }
}

async fn run(guard: WatcherGuard, mut source: Source, mut membership: Membership) {
    // How many updates are in the membership and in no snapshot yet: updates that come together are published together.
    let mut unpublished = 0;
    loop {
        let revision = source.revision();
        let mut next = pin!(source.next());
        let update = loop {
            let deadline = membership.deadline();
            tokio::select! {
                biased;
                () = guard.publisher.closed() => {
                    if guard.retire_if_idle() {
                        tracing::debug!("watch stopped: no listener is left");
                        return;
                    }
                }
                update = &mut next, if unpublished < UPDATES_AT_ONCE => break update,
                () = std::future::ready(()), if unpublished > 0 => {
                    guard.publish(&membership, revision);
                    unpublished = 0;
                }
                () = sleep_until(deadline) => {
                    membership.on_deadline(Instant::now());
                    guard.publish(&membership, revision);
                }
            }
        };
        let now = Instant::now();
        unpublished += usize::from(update.revision().is_some());
        match update {
            Update::Page { is_first, kvs } => {
                if is_first {
                    membership.on_list_start();
                }
                for kv in kvs {
                    membership.on_listed_key(&kv, now);
                }
            }
            Update::Listed(_) => membership.on_list_end(now),
            Update::Events(_, events) => membership.on_events(events, now),
        }
    }
}

/// How long a listener waits before it looks for another watcher, so that a runtime that is going down is not kept
/// busy.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_millis(100);

/// How often a list verifies the watch without any cause: cheap insurance against unforeseen faults.
const ANTI_ENTROPY: Duration = Duration::from_secs(300);

/// How many updates that are there at the same moment go into one snapshot: leases that run out together are reported
/// one by one, and a snapshot of thousands for each of thousands would take minutes.
const UPDATES_AT_ONCE: usize = 100;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::discover::DEFAULT_HOLD;
    use crate::etcd::parse_endpoints;
    use crate::format::Kitex;

    /// A listener of what a test publishes by itself, for a registry on an etcd that is unreachable.
    pub(in crate::discover) fn published(latest: watch::Receiver<Option<Arc<Snapshot>>>) -> Listener {
        let service = "echo".parse().expect("a good name");
        Listener { watchers: nowhere(), service, latest }
    }

    fn nowhere() -> Arc<Watchers> {
        let urls = ["http://127.0.0.1:1".to_owned()];
        let endpoints = parse_endpoints(&urls, None, Duration::from_secs(1)).expect("a good URL");
        let layout = Layout { base: "p/".into(), format: Arc::new(Kitex), default_weight: 10, hold: DEFAULT_HOLD };
        Watchers::new(Arc::new(Cluster::new(endpoints, None)), layout)
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    #[test]
    fn a_watcher_that_cannot_be_spawned_leaves_nothing_behind() {
        let watchers = nowhere();
        let service: ServiceName = "echo".parse().expect("a good name");
        let ended = runtime();
        let handle = ended.handle().clone();
        drop(ended);
        let _entered = handle.enter();
        watchers.subscribe(&service).expect("there is a handle of a runtime");
        assert!(watchers.running().is_empty(), "a later listener starts another watcher");
    }

    #[test]
    fn a_watcher_ends_with_its_last_listener() {
        let watchers = nowhere();
        let service: ServiceName = "echo".parse().expect("a good name");
        runtime().block_on(async {
            let one = watchers.subscribe(&service).expect("a runtime");
            let two = watchers.subscribe(&service).expect("a runtime");
            assert_eq!(watchers.running().len(), 1, "both share one");
            drop(one);
            tokio::task::yield_now().await;
            assert_eq!(watchers.running().len(), 1, "one still listens");
            drop(two);
            while !watchers.running().is_empty() {
                tokio::task::yield_now().await;
            }
        });
    }
}
