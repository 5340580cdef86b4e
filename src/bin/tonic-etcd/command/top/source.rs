//! A registry to its services and their snapshots, as they change.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll};
use tokio::sync::oneshot;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic_etcd::snapshot::{Member, Snapshot};
use tonic_etcd::{Discover, Registry, RegistryError};

use super::state::Seen;

/// What changed.
pub(super) enum Update {
    /// The services that have keys.
    Services(BTreeSet<String>),
    /// Services could not be listed, or the one that is followed not be read.
    Trouble(RegistryError),
    /// The instances of a service.
    Instances(String, Vec<Seen>),
}

/// Follows one service, or all that there are.
pub(super) struct Source {
    registry: Registry,
    lists: BoxStream<'static, Result<BTreeSet<String>, RegistryError>>,
    instances: SelectAll<Instances>,
    /// Dropped where a service is not followed any more, which ends its stream.
    followed: HashMap<String, oneshot::Sender<()>>,
}

/// The instances of one service, each time that they change.
type Instances = BoxStream<'static, (String, Vec<Seen>)>;

impl Source {
    pub(super) fn new(registry: &Registry, service: Option<&str>) -> Self {
        let lists = lists(registry.clone(), service.map(str::to_owned));
        Self { registry: registry.clone(), lists, instances: SelectAll::new(), followed: HashMap::new() }
    }

    /// Waits for what changes next.
    ///
    /// # Errors
    ///
    /// A service's name, or the prefix, is refused: that never gets better.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was not returned comes again.
    pub(super) async fn next(&mut self) -> Result<Update, RegistryError> {
        tokio::select! {
            Some((service, instances)) = self.instances.next() => Ok(Update::Instances(service, instances)),
            Some(list) = self.lists.next() => match list {
                Ok(services) => {
                    self.follow(&services)?;
                    Ok(Update::Services(services))
                }
                Err(error @ RegistryError::Config(_)) => Err(error),
                Err(error) => Ok(Update::Trouble(error)),
            },
        }
    }

    /// Follows these, and those before as long as they have instances.
    fn follow(&mut self, services: &BTreeSet<String>) -> Result<(), RegistryError> {
        for service in services {
            if !self.followed.contains_key(service) {
                let (sender, ended) = oneshot::channel();
                let discover = self.registry.discover(service)?;
                self.instances.push(instances(service.clone(), discover, ended));
                self.followed.insert(service.clone(), sender);
            }
        }
        Ok(())
    }

    /// Follows this one no more.
    pub(super) fn forget(&mut self, service: &str) {
        self.followed.remove(service);
    }
}

fn instances(service: String, discover: Discover, ended: oneshot::Receiver<()>) -> Instances {
    let snapshots = stream::unfold(discover, async |mut discover| Some((discover.next_snapshot().await, discover)));
    let instances = snapshots.map(move |snapshot| (service.clone(), seen(&snapshot)));
    instances.take_until(ended).boxed()
}

fn seen(snapshot: &Snapshot) -> Vec<Seen> {
    let seen =
        |member: &Member| Seen { instance: member.instance().clone(), state: member.state(), lease: member.lease() };
    snapshot.iter().map(seen).collect()
}

/// The names of all services, now and again; or that of one, as long as etcd lets it be read.
fn lists(registry: Registry, service: Option<String>) -> BoxStream<'static, Result<BTreeSet<String>, RegistryError>> {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let look = async |(registry, service, mut looks): (Registry, Option<String>, Interval)| {
        looks.tick().await;
        let names = names(&registry, service.as_deref()).await;
        Some((names, (registry, service, looks)))
    };
    stream::unfold((registry, service, looks), look).boxed()
}

async fn names(registry: &Registry, service: Option<&str>) -> Result<BTreeSet<String>, RegistryError> {
    match service {
        // Nothing else says that etcd is down or refuses: the stream of its instances waits for better times.
        Some(service) => registry.instances(service).await.map(|_| BTreeSet::from([service.to_owned()])),
        None => Ok(registry.services().await?.into_keys().map(|name| name.to_string()).collect()),
    }
}

/// How often it looks for new services, or whether the one that is followed can be read.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
