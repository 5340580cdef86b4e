//! The handle of a registration, its builder, and what ties it to a server's shutdown.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::Instrument;

use super::advertise::advertise;
use super::drain::Drain;
use super::holdings::{Holdings, Plan, random};
use super::incoming::Incoming;
use super::layer::RegistrationLayer;
use super::registrar::Registrar;
use super::registrations::Registrations;
use super::status::{RegistrationStatus, StatusChanges};
use super::task::Task;
use super::upkeep::Upkeep;
use super::wishes::{Desired, Health, Wishes};
use crate::error::{ConfigError, Gone};
use crate::etcd::MAX_VALUE;
use crate::format::{Entry, Format};
use crate::instance::{Address, Instance, ServiceName};

/// How long a lease lives without keepalives: an interval of 5 s + an answer within 2 s + a connect of 2 s + an election of
/// 2 s + one retry of 2 s are 13 s, so a lost member never costs the registration.
const DEFAULT_TTL: Duration = Duration::from_secs(15);

/// Kitex's, which finds out about a lost lease by a look every 30 s.
const KITEX_TTL: Duration = Duration::from_secs(60);

/// How long a server goes on serving after its leave was announced, so that clients hear of it: a hundred times what a
/// watch needs. Clients that poll need more.
const DEFAULT_PROPAGATION_PAUSE: Duration = Duration::from_secs(1);

/// Kitex's clients ask etcd every 5 s, and then need a moment.
const KITEX_PROPAGATION_PAUSE: Duration = Duration::from_secs(6);

/// How long calls in flight may take after that. With the deregistration (at most 3 s) and the pause it stays below the
/// 30 s after which Kubernetes kills.
const DEFAULT_DRAIN_LIMIT: Duration = Duration::from_secs(25);

/// Kitex's variable for the TTL in seconds.
const TTL_VARIABLE: &str = "KITEX_ETCD_REGISTRY_LEASE_TTL";

/// The longest TTL: a day. A server that crashed would be listed for as long.
const MAX_TTL: u64 = 86_400;

/// What a registration is made of, before it is one. Made by [`Registry::register`](crate::Registry::register).
#[derive(Debug)]
#[must_use = "nothing is registered before build() and the server's start"]
pub struct RegistrationBuilder {
    registrar: Arc<Registrar>,
    instance: Instance,
    advertise: Option<String>,
    ttl: Option<Duration>,
    default_ttl: Duration,
    propagation_pause: Duration,
    drain_limit: Duration,
    upkeep: Upkeep,
    health: Option<Arc<dyn Health>>,
}

impl RegistrationBuilder {
    pub(crate) fn new(registrar: Arc<Registrar>, instance: Instance) -> Self {
        Self {
            registrar,
            instance,
            advertise: None,
            ttl: None,
            default_ttl: DEFAULT_TTL,
            propagation_pause: DEFAULT_PROPAGATION_PAUSE,
            drain_limit: DEFAULT_DRAIN_LIMIT,
            upkeep: Upkeep::DEFAULT,
            health: None,
        }
    }

    /// The `host:port` to publish instead of the instance's own address, for a server behind a port mapping.
    ///
    /// Without it, `KITEX_IP_TO_REGISTRY` and `KITEX_PORT_TO_REGISTRY` are honoured; without them, it is the instance's
    /// address; and if that is unspecified (`0.0.0.0`, `::`), the first IPv4 address of an interface that is no loopback.
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.advertise = Some(address.into());
        self
    }

    /// How long the registration outlives a crash: 1 s to a day, in whole seconds (rounded up). Defaults to
    /// `KITEX_ETCD_REGISTRY_LEASE_TTL`, else 15 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// How long [`Registration::deregister_on`] goes on serving after the leave was announced. Defaults to 1 s.
    pub fn propagation_pause(mut self, pause: Duration) -> Self {
        self.propagation_pause = pause;
        self
    }

    /// How long calls may take after that, before they are ended with UNAVAILABLE and their connections are closed.
    /// Defaults to 25 s, so that a whole shutdown takes less than the 30 s that Kubernetes grants.
    pub fn drain_limit(mut self, limit: Duration) -> Self {
        self.drain_limit = limit;
        self
    }

    /// The longest first wait after an attempt to register that failed; it doubles up to 2 s, or stays as it is if it is
    /// longer. Each wait is drawn at random below that, so that many servers do not come at once. 1 ms to a day; defaults to
    /// 250 ms. Where etcd answers and refuses, the next attempt comes after 10 s, or 30 s if credentials are the reason.
    ///
    /// Kitex calls this `RetryDelay`.
    pub fn retry_delay(mut self, delay: Duration) -> Self {
        self.upkeep.retry_delay = delay;
        self
    }

    /// How many attempts to register may fail in a row, before the registration ends with
    /// [`RegistrationStatus::GaveUp`] and a warning; the server serves on. Defaults to 0: it never gives up, as a server
    /// that gave up is lost until somebody restarts it.
    ///
    /// An attempt is a grant of the lease or a claim of the key. While a lease lasts nothing is attempted: an etcd that is
    /// away uses nothing up before it is back and has forgotten the lease.
    ///
    /// Kitex calls this `MaxAttemptTimes`.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.upkeep.max_attempts = attempts;
        self
    }

    /// How often the own key is read without any cause, give or take a fifth: 1 s to a day. Defaults to 60 s. A change of
    /// the key is known at once without it, by a watch; this is for what a watch might not tell.
    ///
    /// Kitex calls this `ObserveDelay`, and notices nothing before.
    pub fn check_interval(mut self, interval: Duration) -> Self {
        self.upkeep.check_interval = interval;
        self
    }

    /// Kitex's defaults, where ours differ: a TTL of 60 s, or what `KITEX_ETCD_REGISTRY_LEASE_TTL` says, a propagation pause
    /// of 6 s, for Kitex clients that ask every 5 s, [`retry_delay`](Self::retry_delay) 10 s,
    /// [`max_attempts`](Self::max_attempts) 5 and [`check_interval`](Self::check_interval) 30 s. It replaces these five;
    /// options behind it count.
    ///
    /// [All of Kitex's options](crate::kitex) have a counterpart.
    pub fn kitex(mut self) -> Self {
        self.ttl = None;
        self.default_ttl = KITEX_TTL;
        self.propagation_pause = KITEX_PROPAGATION_PAUSE;
        self.upkeep = Upkeep::KITEX;
        self
    }

    /// Follows the health of `service`, as `reporter` is told of it: the key is in etcd only while that is SERVING. The
    /// name is the one in `grpc.health.v1`, `echo.Echo` for instance, or empty for the whole server, which a new reporter
    /// takes for SERVING.
    ///
    /// Until the service is SERVING for the first time, the registration is held back. When it is not any more (another status,
    /// or it is cleared), the leave is announced and the key is deleted; the lease is kept, and with SERVING the key is put
    /// back, at most once a second ([`RegistrationStatus::NotServing`]). [`Registration::pause`] is independent of it: the key
    /// is there while the service is SERVING *and* the registration is not paused.
    ///
    /// [`Registration::deregister_on`] sets the service and the whole server to `NOT_SERVING` when its signal comes, before
    /// anything else.
    ///
    /// ```no_run
    /// use tonic_etcd::{Instance, Registry};
    /// use tonic_health::ServingStatus;
    /// use tonic_health::server::health_reporter;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let address = "127.0.0.1:50051".parse::<std::net::SocketAddr>()?;
    /// let (reporter, health_server) = health_reporter();
    /// let registry = Registry::builder(["http://127.0.0.1:2379"]).build()?;
    /// let registration =
    ///     registry.register(Instance::new("echo", address)).health(reporter.clone(), "echo.Echo").build()?;
    /// // Server::builder().layer(registration.layer()).add_service(health_server)..
    ///
    /// // Once the caches are warm:
    /// reporter.set_service_status("echo.Echo", ServingStatus::Serving).await;
    /// # drop(health_server);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "health")]
    pub fn health(mut self, reporter: tonic_health::server::HealthReporter, service: impl Into<String>) -> Self {
        self.health = Some(super::health::reported(reporter, service.into()));
        self
    }

    /// Checks everything and makes the registration. Nothing is registered yet, no I/O is done, and no runtime is needed.
    ///
    /// # Errors
    ///
    /// A bad service name, weight, TTL, advertised address or environment variable, or a time out of its range.
    pub fn build(self) -> Result<Registration, ConfigError> {
        let mut instance = self.instance;
        let service: ServiceName = instance.service.parse()?;
        let variable = |name: &str| std::env::var(name).ok();
        let interfaces = || Ok(if_addrs::get_if_addrs()?.into_iter().map(|interface| interface.ip()).collect());
        let advertised = advertise(self.advertise.as_deref(), &instance.address, variable, interfaces)?;
        instance.address = advertised.address;
        instance.check_publishable()?;
        let format = self.registrar.format.clone();
        check_value(&*format, &service, &instance)?;
        let ttl = if let Some(ttl) = self.ttl {
            check_ttl(ttl)?
        } else {
            let variable = std::env::var(TTL_VARIABLE).ok().filter(|value| !value.is_empty());
            variable.map_or(Ok(self.default_ttl), ttl_in)?
        };
        self.upkeep.check()?;
        let plan = Plan {
            service: service.clone(),
            ttl,
            takes_over: advertised.is_bound,
            id: u128::from(random()) << 64 | u128::from(random()),
        };
        let address = instance.address.clone();
        let (desired, wanted) = watch::channel(Desired { instance, paused: false, leave: false });
        let (publisher, status) = watch::channel(RegistrationStatus::Unregistered);
        let wishes = Wishes::new(wanted, self.health.clone());
        let task = Task::new(Holdings::new(self.registrar, plan), self.upkeep, wishes, publisher);
        Ok(Registration {
            shared: Arc::new(Shared {
                address,
                service,
                format,
                desired,
                updates: Mutex::new(()),
                status,
                unstarted: Mutex::new(Some(task)),
                drain: Drain::new(),
                propagation_pause: self.propagation_pause,
                drain_limit: self.drain_limit,
                health: self.health,
            }),
        })
    }
}

fn check_ttl(ttl: Duration) -> Result<Duration, ConfigError> {
    let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    if (1..=MAX_TTL).contains(&seconds) {
        Ok(Duration::from_secs(seconds))
    } else {
        Err(ConfigError::Option { option: "ttl", value: format!("{ttl:?}"), expected: "1 s to 86400 s" })
    }
}

fn ttl_in(value: String) -> Result<Duration, ConfigError> {
    let seconds = value.parse().ok().filter(|seconds| (1..=MAX_TTL).contains(seconds));
    let expected = "whole seconds from 1 to 86400";
    let error = ConfigError::Environment { variable: TTL_VARIABLE, value, expected };
    seconds.map(Duration::from_secs).ok_or(error)
}

/// One instance that is kept in etcd. A cheap handle; clones are the same registration.
///
/// A registration begins when a server with its [`layer`](Self::layer) or its [`incoming`](Self::incoming) starts to
/// serve, or with [`start`](Self::start). It ends with [`deregister`](Self::deregister), [`deregister_on`](Self::deregister_on), or when
/// its last handle is dropped; the layer, the incoming connections and the shutdown future are handles as well.
///
/// # Recovery
///
/// Between the two it is put back for ever, unless [`max_attempts`](RegistrationBuilder::max_attempts) sets a limit,
/// whatever happens: a dead lease, a deleted or overwritten key, an etcd that is
/// away or was wiped. Only a key under another server's live lease is left alone, until that goes
/// ([`RegistrationStatus::Conflict`]).
///
/// The [crate's first page](crate#a-server) shows it around a server.
#[derive(Clone)]
pub struct Registration {
    shared: Arc<Shared>,
}

struct Shared {
    address: Address,
    service: ServiceName,
    format: Arc<dyn Format>,
    desired: watch::Sender<Desired>,
    /// Held by whoever changes the instance.
    updates: Mutex<()>,
    status: watch::Receiver<RegistrationStatus>,
    /// The task until it is started.
    unstarted: Mutex<Option<Task>>,
    drain: Drain,
    propagation_pause: Duration,
    drain_limit: Duration,
    health: Option<Arc<dyn Health>>,
}

impl Registration {
    /// The layer for `Server::builder().layer(..)`.
    ///
    /// It starts the registration when it is applied, which tonic does when it starts to serve, with the listener bound.
    /// From then on it counts calls from their beginning to the end of both of their bodies, and ends those that are left
    /// at the drain limit.
    #[must_use]
    pub fn layer(&self) -> RegistrationLayer {
        self.alone().layer()
    }

    /// Wraps a server's incoming connections, so that those still open after the drain limit are closed: tonic waits for
    /// every connection without a limit, whatever its client does. Sets `TCP_NODELAY` on TCP connections, which tonic does
    /// only where it binds itself: without it small messages can take 40 ms.
    #[must_use]
    pub fn incoming<I>(&self, incoming: I) -> Incoming<I> {
        self.alone().incoming(incoming)
    }

    /// The shutdown future for `serve_with_incoming_shutdown`: waits for `signal`, announces the leave and revokes the
    /// lease (at most 3 s, if etcd is away), serves on for the propagation pause, and then resolves, so that the server
    /// stops accepting and finishes the calls in flight, for at most the drain limit. Health that is followed
    /// (`RegistrationBuilder::health`) turns `NOT_SERVING` first.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the signal, it does nothing. Dropped after it, the deregistration goes on.
    pub fn deregister_on<F>(&self, signal: F) -> impl Future<Output = ()> + Send + use<F>
    where
        F: Future<Output = ()> + Send,
    {
        self.alone().deregister_on(signal)
    }

    /// Starts the registration, for servers without the layer or that apply a layer before they are bound. Does nothing
    /// if it was started before.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(&self) {
        // First, so that a panic leaves the registration as it was.
        let runtime = Handle::current();
        if let Some(task) = self.take_unstarted() {
            let span = tracing::info_span!(parent: None, "registration", address = %self.shared.address);
            runtime.spawn(task.run().instrument(span));
        }
    }

    /// Waits until the key is in etcd under our lease, once the registration was started.
    ///
    /// A server that had rather fail than run unknown calls [`start`](Self::start), waits for this with a time-out, and then
    /// serves.
    ///
    /// # Errors
    ///
    /// [`Gone`], if the registration has ended; [`status`](Self::status) says whether it gave up.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only looks.
    pub async fn registered(&self) -> Result<(), Gone> {
        let mut status = self.shared.status.clone();
        let reached = status
            .wait_for(|status| matches!(status, RegistrationStatus::Registered { .. }) || status.has_ended())
            .await;
        match reached.as_deref() {
            Ok(RegistrationStatus::Registered { .. }) => Ok(()),
            _ => Err(Gone),
        }
    }

    /// Ends the registration for good: announces the leave, revokes the lease, and waits for both, at most 3 s.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the deregistration goes on when the future is dropped.
    pub async fn deregister(&self) {
        // A task that was never started has nothing to take out; dropping it says that it is gone.
        drop(self.take_unstarted());
        self.shared.desired.send_modify(|desired| desired.leave = true);
        let mut status = self.shared.status.clone();
        // An error means that the task is gone as well.
        let _ = status.wait_for(RegistrationStatus::has_ended).await;
    }

    /// Changes weight and tags. The key is updated in place; clients keep their connections.
    ///
    /// # Errors
    ///
    /// A weight of 0, more than 64 tags, or another service name or address: register that as an instance of its own. The
    /// instance then stays as it was.
    pub fn update(&self, change: impl FnOnce(Instance) -> Instance) -> Result<(), ConfigError> {
        // Not under the lock of the channel: the closure may look at the registration, though not update it.
        let _one_at_a_time = self.shared.updates.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.shared.desired.borrow().instance.clone();
        let new = change(old.clone());
        check_update(&old, &new)?;
        check_value(&*self.shared.format, &self.shared.service, &new)?;
        if new != old {
            self.shared.desired.send_modify(|desired| desired.instance = new);
        }
        Ok(())
    }

    /// Takes the instance out of etcd and keeps the lease, until [`resume`](Self::resume). The server serves on. Health that is
    /// followed is another reason for the key to be absent, and changes nothing about this one.
    pub fn pause(&self) {
        self.set_paused(true);
    }

    /// Puts the instance back after [`pause`](Self::pause), at most once a second.
    pub fn resume(&self) {
        self.set_paused(false);
    }

    fn set_paused(&self, paused: bool) {
        self.shared.desired.send_if_modified(|desired| {
            let is_news = desired.paused != paused;
            desired.paused = paused;
            is_news
        });
    }

    /// Where the registration stands now.
    #[must_use]
    pub fn status(&self) -> RegistrationStatus {
        self.shared.status.borrow().clone()
    }

    /// Where the registration stands now, and whenever that changes. It is no handle: it does not keep the registration.
    #[must_use]
    pub fn status_changes(&self) -> StatusChanges {
        StatusChanges::new(self.shared.status.clone())
    }

    /// How many calls the layer counts that have not ended yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.drain.in_flight()
    }

    /// The service's name.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.shared.service
    }

    /// The address that is published.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// Lets the health that is followed say that the server serves no more.
    pub(super) async fn shut_down_health(&self) {
        if let Some(health) = &self.shared.health {
            health.shut_down().await;
        }
    }

    fn alone(&self) -> Registrations {
        Registrations::of_one(self.clone(), self.shared.drain.clone())
    }

    pub(super) fn propagation_pause(&self) -> Duration {
        self.shared.propagation_pause
    }

    pub(super) fn drain_limit(&self) -> Duration {
        self.shared.drain_limit
    }

    fn take_unstarted(&self) -> Option<Task> {
        self.shared.unstarted.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Readers do not look at larger values, nor at keys with more or fewer slashes.
fn check_value(format: &dyn Format, service: &ServiceName, instance: &Instance) -> Result<(), ConfigError> {
    let entry = Entry::new(service, instance, i64::MAX, u128::MAX).draining(true);
    let segment = format.segment(&entry);
    if segment.is_empty() || segment.contains('/') {
        let value = format!("that ends a key in {segment:?}");
        return Err(ConfigError::Option { option: "format", value, expected: "one segment without a slash" });
    }
    let value = format.encode(&entry);
    if value.len() <= MAX_VALUE {
        return Ok(());
    }
    let value = format!("values that make {} bytes in etcd", value.len());
    Err(ConfigError::Option { option: "tag", value, expected: "at most 65536 bytes in all" })
}

fn check_update(old: &Instance, new: &Instance) -> Result<(), ConfigError> {
    if new.service != old.service {
        let value = format!("{:?}", new.service);
        return Err(ConfigError::Option { option: "service", value, expected: "the registered one" });
    }
    if new.address != old.address {
        let value = new.address.to_string();
        return Err(ConfigError::Option { option: "address", value, expected: "the registered one" });
    }
    new.check_publishable()
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("instance", &self.shared.desired.borrow().instance)
            .field("status", &*self.shared.status.borrow())
            .finish_non_exhaustive()
    }
}

/// Resolves with SIGTERM or ctrl-c: what an orchestrator sends and what a person types.
///
/// The signals stay handled: a second one does not end the process by itself, only SIGKILL does.
///
/// Where the handler of one cannot be installed, the other one counts.
pub async fn shutdown_signal() {
    tokio::select! {
        () = interrupt() => {}
        () = terminate() => {}
    }
}

async fn interrupt() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::warn!(%error, "ctrl-c cannot be handled");
        std::future::pending::<()>().await;
    }
}

#[cfg(unix)]
async fn terminate() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
        }
        Err(error) => {
            tracing::warn!(%error, "SIGTERM cannot be handled");
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(not(unix))]
async fn terminate() {
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests;
