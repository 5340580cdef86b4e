//! The services of a registry, each followed while its caller wants it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, SelectAll};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tonic_etcd::snapshot::Snapshot;
use tonic_etcd::{Address, Change, ConfigError, Discover, Instance, Registry, RegistryError, ServiceName};

/// What is new.
pub(crate) enum Update<T> {
    /// These services are registered, or were asked for.
    Listed(Listed),
    /// Services could not be listed, or one that was asked for not be read.
    Trouble(RegistryError),
    /// What came of a service that is followed.
    Of(ServiceName, T),
}

/// The services that there are.
pub(crate) struct Listed {
    /// Those that are followed.
    pub(crate) names: Names,
    /// How many are not followed, since they are too many.
    pub(crate) left_out: usize,
}

/// The names of services, in order.
pub(crate) type Names = BTreeSet<ServiceName>;

/// Follows the services that were asked for, or else all that there are.
pub(crate) struct Services<T> {
    looks: BoxStream<'static, Result<Names, RegistryError>>,
    open: Open<T>,
    updates: SelectAll<BoxStream<'static, (ServiceName, T)>>,
    /// What ends each stream when it is dropped.
    followed: HashMap<ServiceName, oneshot::Sender<()>>,
}

/// A service's name to the stream of what comes of it.
type Open<T> = Box<dyn Fn(&ServiceName) -> Result<BoxStream<'static, T>, ConfigError> + Send>;

impl Services<Arc<Snapshot>> {
    /// By their snapshots: each time the newest, whatever was missed.
    pub(crate) fn snapshots(registry: &Registry, wanted: &[ServiceName]) -> Result<Self, ConfigError> {
        Self::of(registry, wanted, |discover| {
            stream::unfold(discover, async |mut discover| Some((discover.next_snapshot().await, discover))).boxed()
        })
    }
}

impl Services<Change<Address, Instance>> {
    /// By their changes.
    pub(crate) fn changes(registry: &Registry, wanted: &[ServiceName]) -> Result<Self, ConfigError> {
        Self::of(registry, wanted, |discover| discover.filter_map(async |change| change.ok()).boxed())
    }
}

impl<T: 'static> Services<T> {
    fn of(
        registry: &Registry,
        wanted: &[ServiceName],
        of_one: fn(Discover) -> BoxStream<'static, T>,
    ) -> Result<Self, ConfigError> {
        let looks = looks(registry.clone(), wanted.iter().cloned().collect());
        let registry = registry.clone();
        Self::new(looks, Box::new(move |name| Ok(of_one(registry.discover(name)?))), wanted)
    }

    fn new(
        looks: BoxStream<'static, Result<Names, RegistryError>>,
        open: Open<T>,
        wanted: &[ServiceName],
    ) -> Result<Self, ConfigError> {
        let mut services = Self { looks, open, updates: SelectAll::new(), followed: HashMap::new() };
        // Also while etcd is unreachable.
        for name in wanted {
            services.follow(name)?;
        }
        Ok(services)
    }

    /// Waits for what is new.
    ///
    /// # Errors
    ///
    /// The prefix is refused: that never gets better.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was not returned comes again.
    pub(crate) async fn next(&mut self) -> Result<Update<T>, ConfigError> {
        tokio::select! {
            Some((name, update)) = self.updates.next() => Ok(Update::Of(name, update)),
            Some(listed) = self.looks.next() => match listed {
                Ok(listed) => Ok(Update::Listed(self.follow_all(listed)?)),
                Err(RegistryError::Config(error)) => Err(error),
                Err(error) => Ok(Update::Trouble(error)),
            },
        }
    }

    /// What is there of any service without waiting.
    pub(crate) fn next_ready(&mut self) -> Option<(ServiceName, T)> {
        self.updates.next().now_or_never().flatten()
    }

    /// How many services are followed.
    pub(crate) fn len(&self) -> usize {
        self.followed.len()
    }

    /// Follows this one no more, until it is listed again.
    pub(crate) fn forget(&mut self, name: &str) {
        self.followed.remove(name);
    }

    fn follow_all(&mut self, mut names: Names) -> Result<Listed, ConfigError> {
        let listed = names.len();
        for name in &names {
            self.follow(name)?;
        }
        names.retain(|name| self.followed.contains_key(name));
        Ok(Listed { left_out: listed - names.len(), names })
    }

    fn follow(&mut self, name: &ServiceName) -> Result<(), ConfigError> {
        if self.followed.contains_key(name) || self.followed.len() >= MOST_SERVICES {
            return Ok(());
        }
        let (end, ended) = oneshot::channel();
        let updates = (self.open)(name)?.take_until(ended);
        self.followed.insert(name.clone(), end);
        let name = name.clone();
        self.updates.push(updates.map(move |update| (name.clone(), update)).boxed());
        Ok(())
    }
}

/// The names of all services now and again, or those that were asked for, as long as etcd lets them be read.
fn looks(registry: Registry, wanted: Names) -> BoxStream<'static, Result<Names, RegistryError>> {
    let look = async |(registry, wanted, pause): (Registry, Names, Duration)| {
        sleep(pause).await;
        let begin = Instant::now();
        let names = names(&registry, &wanted).await;
        // A registry that takes long to list is not asked more than a tenth of the time.
        let pause = LOOK_INTERVAL.max(begin.elapsed() * 10);
        Some((names, (registry, wanted, pause)))
    };
    stream::unfold((registry, wanted, Duration::ZERO), look).boxed()
}

async fn names(registry: &Registry, wanted: &Names) -> Result<Names, RegistryError> {
    if wanted.is_empty() {
        return Ok(registry.services().await?.into_keys().collect());
    }
    for name in wanted {
        // Nothing else says that etcd is unreachable or refuses: what follows a service waits for better times.
        registry.instances(name).await?;
    }
    Ok(wanted.clone())
}

/// How many services are followed: each is a watch at etcd.
const MOST_SERVICES: usize = 1_000;

/// How often it is looked for new services, or whether those that were asked for can be read.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
