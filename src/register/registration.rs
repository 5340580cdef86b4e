//! The handle of a registration, and what ties it to a server's shutdown.

use std::fmt;
use std::future::Future;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::Instrument;

use super::check::{check_update, check_value, warn_of_lost};
use super::desired::{HealthSource, Spec};
use super::lease::LeaseTask;
use super::server::{Drain, DrainLayer, Incoming};
use super::status::{RegistrationEnded, RegistrationStatus, StartError, StatusChanges};
use crate::error::ConfigError;
use crate::format::Format;
use crate::instance::{Address, Instance, ServiceName};
use crate::targets::REGISTRATION;
use crate::trouble::Trouble;

/// One instance that is kept in etcd. A cheap handle; clones are the same registration.
///
/// A registration begins when a server with its [`layer`](Self::layer) or its [`incoming`](Self::incoming) starts to
/// serve, or with [`start`](Self::start). It ends with [`deregister`](Self::deregister),
/// [`deregister_on`](Self::deregister_on), or when its last handle is dropped; the layer, the incoming connections
/// and the shutdown future are handles as well.
///
/// # Recovery
///
/// While the registration lasts, it is put back after any loss: a dead lease, a deleted or overwritten key, an etcd
/// that was unreachable or wiped. It never gives up, unless
/// [`max_attempts`](crate::RegistrationBuilder::max_attempts) sets a limit. Only a key under another server's live
/// lease is left alone, until that lease ends ([`RegistrationStatus::Conflict`]).
///
/// The [crate's first page](crate#a-server) shows it around a server.
#[derive(Clone)]
#[must_use = "a registration begins with its server, or with start()"]
pub struct Registration {
    shared: Arc<Shared>,
}

/// Shared by all handles of a registration.
pub(super) struct Shared {
    pub(super) address: Address,
    pub(super) service: ServiceName,
    pub(super) format: Arc<dyn Format>,
    /// Only handles keep it: the task ends without them.
    pub(super) spec: Arc<watch::Sender<Spec>>,
    /// Held while the instance is changed by a handle, so that updates come one after the other.
    pub(super) updates: Mutex<()>,
    pub(super) status: watch::Receiver<RegistrationStatus>,
    /// How the last attempt to register failed.
    pub(super) trouble: Trouble,
    /// The task, until the start.
    pub(super) unstarted: Mutex<Option<LeaseTask>>,
    /// Whether its key was claimed, so that clients may know it.
    pub(super) was_claimed: Arc<AtomicBool>,
    pub(super) joined: Mutex<Joined>,
    pub(super) propagation_pause: Duration,
    pub(super) health: Option<Arc<dyn HealthSource>>,
}

/// What a registration shares with the others of its server.
pub(super) struct Joined {
    drain: Drain,
    /// Empty for one that is alone.
    members: Vec<Weak<Shared>>,
}

impl Joined {
    pub(super) fn alone(drain: Drain) -> Self {
        Self { drain, members: Vec::new() }
    }
}

impl Registration {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared: Arc::new(shared) }
    }

    /// The layer for `Server::builder().layer(..)`.
    ///
    /// It starts the registration when it is applied, which tonic does when it starts to serve, with the listener
    /// bound. From then on it counts calls until both of their bodies have ended, and ends those that are left at the
    /// drain limit.
    ///
    /// A server of several registrations takes it from their [`RegistrationSet`](crate::RegistrationSet), which starts
    /// all of them; they share one drain.
    #[must_use]
    pub fn layer(&self) -> DrainLayer {
        self.server().layer()
    }

    /// Wraps a server's incoming connections, so that those still open after the drain limit are closed: tonic waits
    /// for every connection without a limit, whatever its client does. Sets `TCP_NODELAY` on TCP connections, which
    /// tonic does only where it binds itself: without it small messages can wait 40 ms for an acknowledgement.
    ///
    /// Starts the registration when it is polled for the first time.
    #[must_use]
    pub fn incoming<I>(&self, incoming: I) -> Incoming<I> {
        self.server().incoming(incoming)
    }

    /// The shutdown future for `serve_with_incoming_shutdown`: waits for `signal`, announces the leave and revokes the
    /// lease (at most 3 s, if etcd is unreachable), serves on for the propagation pause, and then resolves, so that the
    /// server stops accepting and finishes the calls in flight, for at most the drain limit. Followed health
    /// (`RegistrationBuilder::health`) turns `NOT_SERVING` first. One that was never registered is not known to
    /// clients, so there is no pause then. A registration of a [`RegistrationSet`](crate::RegistrationSet) takes the
    /// others with it.
    ///
    /// # Panics
    ///
    /// When the signal comes, if the future is polled outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the signal, the future does nothing. Dropped after the signal, it lets a deregistration that has
    /// begun go on; the time that calls have begins when the future is done, and not where it is dropped before.
    pub fn deregister_on<F>(&self, signal: F) -> impl Future<Output = ()> + Send + use<F>
    where
        F: Future<Output = ()> + Send,
    {
        self.drain().on_signal_taken();
        let this = self.clone();
        async move {
            signal.await;
            // Only now is it known which others are of its server.
            let (registrations, drain) = (this.members(), this.drain());
            Self::leave(&registrations, &drain).await;
            drain.begin();
        }
    }

    /// Starts the registration, for servers without the layer or that apply a layer before they are bound. Does nothing
    /// after the first time.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(&self) {
        // First, so that a panic leaves the registration as it was.
        let runtime = Handle::current();
        if let Some(task) = self.take_unstarted() {
            let span = tracing::info_span!(
                target: REGISTRATION,
                parent: None,
                "registration",
                address = %self.shared.address
            );
            runtime.spawn(task.run().instrument(span));
        }
    }

    /// Starts the registration, if it was not started, and waits until the key is in etcd under our lease: for as long
    /// as etcd is unreachable, another server has the address, or it is paused or held back by its health.
    /// [`start_within`](Self::start_within) has a limit.
    ///
    /// Call it where the server listens already: clients may come from then on. The registration goes on in the runtime
    /// in which this is called.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`RegistrationEnded`], with how it ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the registration goes on.
    pub async fn registered(&self) -> Result<(), RegistrationEnded> {
        self.start();
        let mut status = self.shared.status.clone();
        let reached = status
            .wait_for(|status| matches!(status, RegistrationStatus::Registered { .. }) || status.has_ended())
            .await;
        match reached.as_deref() {
            Ok(RegistrationStatus::Registered { .. }) => Ok(()),
            Ok(ended) => Err(RegistrationEnded::new(ended.clone())),
            Err(_) => Err(RegistrationEnded::new(RegistrationStatus::Gone)),
        }
    }

    /// Starts the registration and waits until the key is in etcd, for a server that is to fail rather than serve
    /// unregistered. After an error the registration goes on being tried, until its last handle is dropped. With a
    /// health that is followed, have that report SERVING before.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(
    /// #     registration: tonic_etcd::Registration, service: tonic::service::Routes,
    /// #     incoming: tonic::transport::server::TcpIncoming,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// registration.start_within(Duration::from_secs(10)).await?;
    /// registration.serve(service, incoming, tonic_etcd::shutdown_signal()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`StartError::TimedOut`], with how the last attempt failed; [`StartError::Ended`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the registration goes on.
    pub async fn start_within(&self, limit: Duration) -> Result<(), StartError> {
        let registered = timeout(limit, self.registered()).await;
        let (service, status) = (self.shared.service.to_string(), self.status());
        match registered {
            Ok(Ok(())) => Ok(()),
            // At the last moment.
            Err(_) if matches!(status, RegistrationStatus::Registered { .. }) => Ok(()),
            Ok(Err(ended)) => Err(StartError::Ended { service, status: ended.status().clone() }),
            Err(_) => {
                let is_tried = matches!(status, RegistrationStatus::Registering | RegistrationStatus::Lost { .. });
                let last_error = is_tried.then(|| self.shared.trouble.get()).flatten();
                Err(StartError::TimedOut { service, limit, status, last_error })
            }
        }
    }

    /// Ends the registration for good: announces the leave, revokes the lease, and waits for both, at most 3 s; 4 s,
    /// with a warning, where the runtime on which it began is not driven any more.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the deregistration goes on when the future is dropped.
    pub async fn deregister(&self) {
        // A task that was never started has nothing to take out; its drop sets the status.
        drop(self.take_unstarted());
        self.shared.spec.send_modify(|spec| spec.leave = true);
        let mut status = self.shared.status.clone();
        // An error means that the task has ended, too.
        let ended = async { drop(status.wait_for(RegistrationStatus::has_ended).await) };
        // Outside of tokio there is no clock.
        if Handle::try_current().is_err() {
            ended.await;
        } else if timeout(LONGEST_WAIT, ended).await.is_err() {
            let address = &self.shared.address;
            tracing::warn!(
                target: REGISTRATION,
                %address,
                "the registration does not end: the runtime on which it began is not driven"
            );
        }
    }

    /// Changes weight and tags. The key is updated in place; clients keep their connections.
    ///
    /// The closure is given the instance as it is to be published: with the weight that an operator set, if one did
    /// since the program last set one ([`Registry::set_weight`](crate::Registry::set_weight)). The last of both counts; to
    /// set the weight that the instance has already is no change.
    ///
    /// The closure may read the registration, but must not update it: that would wait for itself.
    ///
    /// # Errors
    ///
    /// A weight of 0, more than 64 tags, or another service name or address, which needs a registration of its own. The
    /// instance then stays unchanged.
    pub fn update(&self, change: impl FnOnce(Instance) -> Instance) -> Result<(), ConfigError> {
        // Not under the lock of the channel: the closure may read the registration, but not update it.
        let _one_at_a_time = self.shared.updates.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.shared.spec.borrow().instance.clone();
        let new = change(old.clone());
        check_update(&old, &new)?;
        check_value(&*self.shared.format, &self.shared.service, &new)?;
        if new != old {
            warn_of_lost(&*self.shared.format, &self.shared.service, &new, Some(&old));
            self.shared.spec.send_modify(|spec| {
                // An operator's weight may have come meanwhile, which an update of the tags leaves.
                let weight = if new.weight == old.weight { spec.instance.weight } else { new.weight };
                spec.instance = new.with_weight(weight);
            });
        }
        Ok(())
    }

    /// Takes the instance out of etcd and keeps the lease, until [`resume`](Self::resume). The server serves on.
    /// Followed health is an independent reason for the key to be absent.
    pub fn pause(&self) {
        self.set_paused(true);
    }

    /// Puts the instance back after [`pause`](Self::pause), at most once a second.
    pub fn resume(&self) {
        self.set_paused(false);
    }

    fn set_paused(&self, paused: bool) {
        self.shared.spec.send_if_modified(|spec| {
            let is_news = spec.paused != paused;
            spec.paused = paused;
            is_news
        });
    }

    /// The weight that is published, or is to be: the last one that the program or an operator set.
    #[must_use]
    pub fn weight(&self) -> u16 {
        self.shared.spec.borrow().instance.weight
    }

    /// The present status.
    #[must_use]
    pub fn status(&self) -> RegistrationStatus {
        self.shared.status.borrow().clone()
    }

    /// The present status, and each newer one. The stream is not a handle: it does not keep the registration.
    pub fn status_changes(&self) -> StatusChanges {
        StatusChanges::new(self.shared.status.clone())
    }

    /// How many calls the layer counts whose request or response has not ended yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.drain().in_flight()
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

    /// All that comes between the signal and the countdown of the drain, for all registrations of a server at once.
    pub(super) async fn leave(registrations: &[Self], drain: &Drain) {
        for registration in registrations {
            if registration.status() == RegistrationStatus::Unregistered {
                tracing::warn!(
                    target: REGISTRATION,
                    "the server was never registered: start() was not called, nor layer() or incoming() used"
                );
            }
            let (service, address) = (registration.service(), registration.address());
            tracing::info!(target: REGISTRATION, %service, %address, calls = drain.in_flight(), "shutting down");
        }
        join_all(registrations.iter().map(Self::shut_down_health)).await;
        join_all(registrations.iter().map(Self::deregister)).await;
        // No client has to hear of one that it cannot know.
        let known = registrations.iter().filter(|registration| registration.shared.was_claimed.load(Ordering::Relaxed));
        let pause = known.map(Self::propagation_pause).max();
        tokio::time::sleep(pause.unwrap_or_default()).await;
    }

    /// Sets the followed health to `NOT_SERVING`.
    async fn shut_down_health(&self) {
        if let Some(health) = &self.shared.health {
            health.shut_down().await;
        }
    }

    /// The drain, with the start of the registration.
    fn server(&self) -> Drain {
        let registration = self.clone();
        self.drain().with_start(move || registration.members().iter().for_each(Self::start))
    }

    pub(super) fn drain(&self) -> Drain {
        self.joined().drain.clone()
    }

    /// These registrations are of one server, and share its drain.
    pub(super) fn join(all: &[Self], drain: &Drain) {
        for registration in all {
            let members = all.iter().map(|member| Arc::downgrade(&member.shared)).collect();
            *registration.joined() = Joined { drain: drain.clone(), members };
        }
    }

    /// Whether it is of a set of other registrations than these.
    pub(super) fn is_joined_to_others(&self, than: &[Self]) -> bool {
        let members = self.joined().members.clone();
        let is_one_of_them =
            |member: &Weak<Shared>| than.iter().any(|other| ptr::eq(member.as_ptr(), &raw const *other.shared));
        !members.is_empty() && (members.len() != than.len() || !members.iter().all(is_one_of_them))
    }

    /// Ends this registration and all others of its server.
    pub(super) async fn deregister_all(&self) {
        join_all(self.members().iter().map(Self::deregister)).await;
    }

    /// This one and all others of its server.
    fn members(&self) -> Vec<Self> {
        let members = self.joined().members.iter().filter_map(Weak::upgrade).map(|shared| Self { shared }).collect();
        if Vec::is_empty(&members) { vec![self.clone()] } else { members }
    }

    fn joined(&self) -> MutexGuard<'_, Joined> {
        self.shared.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn propagation_pause(&self) -> Duration {
        self.shared.propagation_pause
    }

    fn take_unstarted(&self) -> Option<LeaseTask> {
        self.shared.unstarted.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("instance", &self.shared.spec.borrow().instance)
            .field("status", &*self.shared.status.borrow())
            .finish_non_exhaustive()
    }
}

/// A second more than the task itself takes for a leave, at most.
const LONGEST_WAIT: Duration = Duration::from_secs(4);
