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

use crate::failure::with_causes;

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
    looks: Looks,
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
        let names: Names = wanted.iter().cloned().collect();
        let looks = if names.is_empty() { listing(registry.clone()) } else { Asked::looks(registry, names) };
        let looks = paced(looks);
        let registry = registry.clone();
        Self::new(looks, Box::new(move |name| Ok(of_one(registry.discover(name)?))), wanted)
    }

    fn new(looks: Looks, open: Open<T>, wanted: &[ServiceName]) -> Result<Self, ConfigError> {
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

type Looks = BoxStream<'static, Result<Names, RegistryError>>;

/// The names of all services: a list each time.
fn listing(registry: Registry) -> Looks {
    let list = async |registry: Registry| {
        let services = registry.services().await;
        Some((services.map(|services| services.into_keys().collect()), registry))
    };
    stream::unfold(registry, list).boxed()
}

/// The services that were asked for, and whether etcd lets them be read: what follows them waits silently where it does
/// not.
struct Asked {
    registry: Registry,
    reads: Reads,
}

impl Asked {
    fn looks(registry: &Registry, names: Names) -> Looks {
        let asked = Self { registry: registry.clone(), reads: Reads::new(names) };
        stream::unfold(asked, async |mut asked| Some((asked.look().await, asked))).boxed()
    }

    /// Those that were read ask etcd no more than whether it serves: that costs the same however large they are.
    async fn look(&mut self) -> Result<Names, RegistryError> {
        let registry = self.registry.clone();
        let read = move |name| {
            let registry = registry.clone();
            async move { registry.instances(&name).await.map(drop) }
        };
        self.reads.all_due(read).await?;
        self.serves().await.map(|()| self.reads.names.clone())
    }

    /// Whether any member serves, which none does without a leader; otherwise why not.
    async fn serves(&self) -> Result<(), RegistryError> {
        let mut failure = None;
        for (_, report) in self.registry.members().await {
            match report {
                Ok(status) if status.leader().is_some() && !status.is_learner() => return Ok(()),
                Ok(_) => {}
                Err(error) => failure = Some(error),
            }
        }
        // A read says what is wrong, and may find that it is over.
        match self.reads.done().next() {
            Some(read) => self.registry.instances(read).await.map(drop),
            None => failure.map_or(Ok(()), Err),
        }
    }
}

/// Which services are still to be read.
struct Reads {
    names: Names,
    due: Names,
    /// When all of them are to be read again: a permission may be taken back.
    again_at: Instant,
    /// Whether the log has that some cannot be read.
    is_reported: bool,
}

impl Reads {
    fn new(names: Names) -> Self {
        Self { due: names.clone(), names, again_at: Instant::now() + READ_INTERVAL, is_reported: false }
    }

    /// Those that were read.
    fn done(&self) -> impl Iterator<Item = &ServiceName> {
        self.names.difference(&self.due)
    }

    /// Reads those that are due.
    ///
    /// # Errors
    ///
    /// None of them can be read. A single one that cannot is logged, and leaves the others alone.
    async fn all_due<R>(&mut self, read: impl Fn(ServiceName) -> R) -> Result<(), RegistryError>
    where
        R: Future<Output = Result<(), RegistryError>>,
    {
        if self.again_at <= Instant::now() {
            (self.again_at, self.due) = (Instant::now() + READ_INTERVAL, self.names.clone());
        }
        let mut failure = None;
        for name in self.due.clone() {
            match read(name.clone()).await {
                Ok(()) => _ = self.due.remove(&name),
                Err(error) => failure = Some((name, error)),
            }
        }
        match failure {
            Some((_, error)) if self.due.len() == self.names.len() => return Err(error),
            Some((service, error)) if !self.is_reported => {
                self.is_reported = true;
                tracing::warn!(%service, error = with_causes(&error), "a service cannot be read");
            }
            Some(_) => {}
            None => self.is_reported = false,
        }
        Ok(())
    }
}

/// These looks, with a pause behind each.
fn paced<N: Send + 'static, E: Send + 'static>(
    looks: BoxStream<'static, Result<N, E>>,
) -> BoxStream<'static, Result<N, E>> {
    let step = async |(mut looks, pause): (BoxStream<'static, Result<N, E>>, Duration)| {
        sleep(pause).await;
        let begin = Instant::now();
        let look = looks.next().await?;
        let pause = pause_after(&look, begin.elapsed());
        Some((look, (looks, pause)))
    };
    stream::unfold((looks, Duration::ZERO), step).boxed()
}

fn pause_after<N, E>(look: &Result<N, E>, took: Duration) -> Duration {
    match look {
        // A registry that takes long to list is not asked more than a tenth of the time, as far as the limit allows.
        Ok(_) => (took * 10).clamp(LOOK_INTERVAL, LONGEST_PAUSE),
        // The time of a failure is that of an outage, whose end is to be seen soon.
        Err(_) => LOOK_INTERVAL,
    }
}

/// How many services are followed: each is a watch at etcd.
const MOST_SERVICES: usize = 1_000;

/// After how long services that were asked for are read again.
const READ_INTERVAL: Duration = Duration::from_secs(60);

/// How often it is looked for new services, or whether etcd serves.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// The longest pause, after looks that take a second or more. The page counts on it (`STALE` in main.js).
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::mpsc;
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::*;

    type Look = Result<Names, RegistryError>;

    /// Services with the sender of their looks. What comes of each is how many were opened before it, again and again.
    fn services() -> (Services<usize>, mpsc::UnboundedSender<Look>) {
        let (sender, looks) = mpsc::unbounded_channel();
        let opened = AtomicUsize::new(0);
        let open = move |_: &ServiceName| Ok(stream::repeat(opened.fetch_add(1, Ordering::Relaxed)).boxed());
        let services = Services::new(UnboundedReceiverStream::new(looks).boxed(), Box::new(open), &[]);
        (services.expect("nothing is refused"), sender)
    }

    fn names(names: &[&str]) -> Names {
        names.iter().map(|name| name.parse().expect("a good name")).collect()
    }

    async fn list(services: &mut Services<usize>, sender: &mpsc::UnboundedSender<Look>, listed: Names) -> Listed {
        sender.send(Ok(listed)).expect("it is looked at");
        loop {
            match services.next().await.expect("nothing is refused") {
                Update::Listed(listed) => return listed,
                Update::Of(..) => {}
                Update::Trouble(error) => panic!("nothing fails: {error}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_forgotten_service_ends_and_is_followed_again_when_it_is_listed() {
        let (mut services, sender) = services();
        assert!(services.next_ready().is_none(), "nothing is followed yet, and nothing waited for");
        list(&mut services, &sender, names(&["echo"])).await;
        assert_eq!(services.next_ready(), Some(("echo".parse().expect("a good name"), 0)));
        list(&mut services, &sender, names(&["echo"])).await;
        assert_eq!(services.next_ready().map(|(_, update)| update), Some(0), "it is followed once");

        services.forget("echo");
        assert_eq!((services.next_ready(), services.len()), (None, 0), "its stream has ended");
        list(&mut services, &sender, names(&["echo"])).await;
        assert_eq!(services.next_ready().map(|(_, update)| update), Some(1), "by a stream of its own");
    }

    #[tokio::test(start_paused = true)]
    async fn services_beyond_the_limit_are_counted_until_there_is_a_place() {
        let (mut services, sender) = services();
        let all: Vec<String> = (0..MOST_SERVICES + 2).map(|n| format!("s{n:04}")).collect();
        let all = names(&all.iter().map(String::as_str).collect::<Vec<_>>());
        let listed = list(&mut services, &sender, all.clone()).await;
        assert_eq!((listed.names.len(), listed.left_out, services.len()), (MOST_SERVICES, 2, MOST_SERVICES));
        services.forget("s0000");
        let rest = all.into_iter().skip(1).collect();
        let listed = list(&mut services, &sender, rest).await;
        assert!(listed.names.contains("s1000") && !listed.names.contains("s1001"), "the first takes the place");
        assert_eq!(listed.left_out, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_prefix_ends_it_and_an_outage_does_not() {
        let (mut services, sender) = services();
        sender.send(Err(outage().await)).expect("it is looked at");
        assert!(matches!(services.next().await, Ok(Update::Trouble(RegistryError::Unavailable { .. }))));
        let nowhere = Registry::builder(["http://127.0.0.1:1"]).prefix("").build().expect("a good registry");
        let refused = nowhere.services().await.expect_err("there is no prefix");
        sender.send(Err(refused)).expect("it is looked at");
        assert!(matches!(services.next().await, Err(ConfigError::Prefix { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_permission_that_is_taken_back_is_noticed_at_the_first_look_after_a_minute() {
        let begin = Instant::now();
        let mut reads = Reads::new(names(&["echo", "hello"]));
        let (count, noticed) = (Cell::new(0), Cell::new(None));
        let read = |_| async {
            count.set(count.get() + 1);
            if begin.elapsed() < READ_INTERVAL / 2 {
                return Ok(());
            }
            noticed.set(noticed.get().or(Some(begin.elapsed())));
            Err(refusal())
        };
        while reads.all_due(&read).await.is_ok() && begin.elapsed() <= READ_INTERVAL * 2 {
            sleep(LOOK_INTERVAL).await;
        }
        assert_eq!(noticed.get(), Some(READ_INTERVAL));
        assert_eq!(count.get(), 4, "two services, read twice: other looks cost no read");
    }

    #[tokio::test(start_paused = true)]
    async fn one_service_that_cannot_be_read_leaves_the_others_alone() {
        let mut reads = Reads::new(names(&["echo", "hello"]));
        let asked = &Cell::new(0);
        let read = |name: ServiceName| async move {
            asked.set(asked.get() + 1);
            if name.as_str() == "echo" { Err(refusal()) } else { Ok(()) }
        };
        for _ in 0..10 {
            reads.all_due(&read).await.expect("one can be read");
        }
        assert!(reads.is_reported && reads.done().eq(&names(&["hello"])));
        assert_eq!(asked.get(), 11, "the one is asked for again each time");
        reads.all_due(|_| async { Ok(()) }).await.expect("both can be read");
        assert!(!reads.is_reported && reads.due.is_empty(), "it would be logged anew");
    }

    fn refusal() -> RegistryError {
        RegistryError::Config("a/b".parse::<ServiceName>().expect_err("a bad name"))
    }

    async fn outage() -> RegistryError {
        let nowhere = Registry::builder(["http://127.0.0.1:1"]).build().expect("a good registry");
        nowhere.services().await.expect_err("nothing listens")
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_grows_with_a_look_that_succeeds_and_not_with_one_that_fails() {
        let looks = [(5_000, Err("down")), (0, Ok(())), (500, Ok(())), (60_000, Ok(())), (0, Ok(()))];
        let take = async |(millis, look): (u64, Result<(), &'static str>)| {
            sleep(Duration::from_millis(millis)).await;
            look
        };
        let mut looks = paced(stream::iter(looks).then(take).boxed());
        let begin = Instant::now();
        let mut ends = Vec::new();
        while looks.next().await.is_some() {
            ends.push(begin.elapsed().as_millis());
        }
        assert_eq!(ends, [5_000, 7_000, 9_500, 74_500, 84_500], "pauses of 2, 2, 5 and 10 s");
    }
}
