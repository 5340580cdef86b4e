//! The watchers of a registry: one task a service, which publishes snapshots for as long as someone listens.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use super::membership::{Layout, Membership};
use crate::error::ConfigError;
use crate::etcd::{Cluster, Range, Source, Update};
use crate::instance::ServiceName;
use crate::snapshot::Snapshot;

/// The latest snapshot of a service; `None` until the first list came.
pub(crate) type Snapshots = watch::Receiver<Option<Arc<Snapshot>>>;

/// How often a list verifies the watch without any cause: cheap insurance against what nobody thought of.
const ANTI_ENTROPY: Duration = Duration::from_secs(300);

type Publisher = watch::Sender<Option<Arc<Snapshot>>>;

/// The watchers of one registry.
#[derive(Debug)]
pub(crate) struct Watchers {
    cluster: Arc<Cluster>,
    layout: Layout,
    /// A service is in here from its first listener on until its task saw, under this lock, that there is none left.
    running: Mutex<HashMap<ServiceName, Publisher>>,
}

impl Watchers {
    pub(crate) fn new(cluster: Arc<Cluster>, layout: Layout) -> Arc<Self> {
        Arc::new(Self { cluster, layout, running: Mutex::default() })
    }

    /// Listens to a service; the first listener starts its watcher.
    ///
    /// # Errors
    ///
    /// Outside of a tokio runtime.
    pub(crate) fn subscribe(self: &Arc<Self>, service: &ServiceName) -> Result<Snapshots, ConfigError> {
        let mut running = self.running();
        if let Some(publisher) = running.get(service) {
            return Ok(publisher.subscribe());
        }
        let runtime = Handle::try_current().map_err(|_| ConfigError::NoRuntime { call: "discover" })?;
        let (publisher, snapshots) = watch::channel(None);
        running.insert(service.clone(), publisher.clone());
        let span = tracing::info_span!("watch", %service);
        let place = Place { watchers: self.clone(), service: service.clone(), publisher };
        let source = Source::new(self.cluster.clone(), Range::below(self.layout.range(service)), ANTI_ENTROPY);
        let membership = Membership::new(self.layout.clone(), service.clone());
        runtime.spawn(run(place, source, membership).instrument(span));
        Ok(snapshots)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<ServiceName, Publisher>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watcher's place among the running ones. Dropping it gives the place up, also where a runtime ends under its tasks.
struct Place {
    watchers: Arc<Watchers>,
    service: ServiceName,
    publisher: Publisher,
}

impl Place {
    /// Gives the place up if nobody listens; who comes later starts another watcher.
    fn retire(&self) -> bool {
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

impl Drop for Place {
    fn drop(&mut self) {
        let mut running = self.watchers.running();
        if running.get(&self.service).is_some_and(|publisher| publisher.same_channel(&self.publisher)) {
            running.remove(&self.service);
        }
    }
}

async fn run(place: Place, mut source: Source, mut membership: Membership) {
    loop {
        let revision = source.revision();
        let mut next = pin!(source.next());
        let update = loop {
            let deadline = membership.deadline();
            tokio::select! {
                biased;
                () = place.publisher.closed() => {
                    if place.retire() {
                        tracing::debug!("watch stopped: nobody listens");
                        return;
                    }
                }
                update = &mut next => break update,
                () = at(deadline) => {
                    membership.settle(Instant::now());
                    place.publish(&membership, revision);
                }
            }
        };
        let now = Instant::now();
        let revision = update.revision();
        match update {
            Update::Listed(listing) => membership.replace(listing, now),
            Update::Events(_, events) => membership.apply(events, now),
        }
        place.publish(&membership, revision);
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
