//! The services of a registry, each followed while its caller wants it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, BoxStream, SelectAll};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tonic_etcd::snapshot::Snapshot;
use tonic_etcd::{Address, Change, Discover, Instance, Registry, RegistryError};

/// What is new.
pub(crate) enum Update<T> {
    /// These services are registered, or were asked for.
    Listed(Listed),
    /// Services could not be listed, or one that was asked for not be read.
    Trouble(RegistryError),
    /// What came of a service that is followed.
    Of(Arc<str>, T),
}

/// The services that there are.
pub(crate) struct Listed {
    /// Those that are followed.
    pub(crate) names: BTreeSet<String>,
    /// How many are not followed, since they are too many.
    pub(crate) left_out: usize,
}

/// Follows the services that were asked for, or else all that there are.
pub(crate) struct Services<T> {
    registry: Registry,
    looks: BoxStream<'static, Result<BTreeSet<String>, RegistryError>>,
    open: fn(Discover) -> BoxStream<'static, T>,
    told: SelectAll<BoxStream<'static, (Arc<str>, T)>>,
    /// What ends each stream when it is dropped.
    followed: HashMap<Arc<str>, oneshot::Sender<()>>,
}

impl Services<Arc<Snapshot>> {
    /// By their snapshots: each time the newest, whatever was missed.
    pub(crate) fn snapshots(registry: &Registry, wanted: &[String]) -> Result<Self, RegistryError> {
        Self::new(registry, wanted, |discover| {
            stream::unfold(discover, async |mut discover| Some((discover.next_snapshot().await, discover))).boxed()
        })
    }
}

impl Services<Change<Address, Instance>> {
    /// By their changes.
    pub(crate) fn changes(registry: &Registry, wanted: &[String]) -> Result<Self, RegistryError> {
        Self::new(registry, wanted, |discover| discover.filter_map(async |change| change.ok()).boxed())
    }
}

impl<T: 'static> Services<T> {
    fn new(
        registry: &Registry,
        wanted: &[String],
        open: fn(Discover) -> BoxStream<'static, T>,
    ) -> Result<Self, RegistryError> {
        let looks = looks(registry.clone(), wanted.iter().cloned().collect());
        let mut services =
            Self { registry: registry.clone(), looks, open, told: SelectAll::new(), followed: HashMap::new() };
        // Also while etcd is away.
        for name in wanted {
            services.follow(name)?;
        }
        Ok(services)
    }

    /// Waits for what is new.
    ///
    /// # Errors
    ///
    /// A service's name, or the prefix, is refused: that never gets better.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was not returned comes again.
    pub(crate) async fn next(&mut self) -> Result<Update<T>, RegistryError> {
        tokio::select! {
            Some((name, told)) = self.told.next() => Ok(Update::Of(name, told)),
            Some(listed) = self.looks.next() => match listed {
                Ok(listed) => Ok(Update::Listed(self.follow_all(listed)?)),
                Err(error @ RegistryError::Config(_)) => Err(error),
                Err(error) => Ok(Update::Trouble(error)),
            },
        }
    }

    /// What is there of any service without waiting.
    pub(crate) fn next_told(&mut self) -> Option<(Arc<str>, T)> {
        self.told.next().now_or_never().flatten()
    }

    /// How many services are followed.
    pub(crate) fn len(&self) -> usize {
        self.followed.len()
    }

    /// Follows this one no more, until it is listed again.
    pub(crate) fn forget(&mut self, name: &str) {
        self.followed.remove(name);
    }

    fn follow_all(&mut self, mut names: BTreeSet<String>) -> Result<Listed, RegistryError> {
        let listed = names.len();
        for name in &names {
            self.follow(name)?;
        }
        names.retain(|name| self.followed.contains_key(name.as_str()));
        Ok(Listed { left_out: listed - names.len(), names })
    }

    fn follow(&mut self, name: &str) -> Result<(), RegistryError> {
        if self.followed.contains_key(name) || self.followed.len() >= MOST_SERVICES {
            return Ok(());
        }
        let (end, ended) = oneshot::channel();
        let told = (self.open)(self.registry.discover(name)?).take_until(ended);
        let name: Arc<str> = name.into();
        self.followed.insert(name.clone(), end);
        self.told.push(told.map(move |told| (name.clone(), told)).boxed());
        Ok(())
    }
}

/// The names of all services now and again, or those that were asked for, as long as etcd lets them be read.
fn looks(registry: Registry, wanted: BTreeSet<String>) -> BoxStream<'static, Result<BTreeSet<String>, RegistryError>> {
    let look = async |(registry, wanted, pause): (Registry, BTreeSet<String>, Duration)| {
        sleep(pause).await;
        let begin = Instant::now();
        let names = names(&registry, &wanted).await;
        // A registry that takes long to list is not asked more than a tenth of the time.
        let pause = LOOK_INTERVAL.max(begin.elapsed() * 10);
        Some((names, (registry, wanted, pause)))
    };
    stream::unfold((registry, wanted, Duration::ZERO), look).boxed()
}

async fn names(registry: &Registry, wanted: &BTreeSet<String>) -> Result<BTreeSet<String>, RegistryError> {
    if wanted.is_empty() {
        return Ok(registry.services().await?.into_keys().map(String::from).collect());
    }
    for name in wanted {
        // Nothing else says that etcd is away or refuses: what follows a service waits for better times.
        registry.instances(name).await?;
    }
    Ok(wanted.clone())
}

/// How many services are followed: each is a watch at etcd.
const MOST_SERVICES: usize = 1_000;

/// How often it is looked for new services, or whether those that were asked for can be read.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
