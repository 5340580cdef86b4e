//! The task of one registration: from a lease to a claimed key, back again whenever either is lost, and out at the end.
//!
//! ```text
//! Granting --granted--> Claiming --claimed----------> Holding
//!    ^                   ^ |  ^                        | | |
//!    |                   | |  +--touched, or updated---+ | |
//!    |          it goes  | | foreign                     | | paused, or not serving
//!    |                   | v                             | v
//!    |                 Yielding                          | Withdrawing --> Absent --neither any more--> Claiming
//!    |                                                   |
//!    +--------- the lease is dead (from any state) ------+
//!
//! any state --deregister, last handle dropped, or an operator's draining mark--> leave: announce, revoke, end
//! Granting or Claiming --too many failures in a row, where there is a limit--> give up: revoke, end
//! ```
//!
//! A registration that is paused or not serving when its lease is granted goes from Claiming to Absent without a key.
//!
//! Any step can be abandoned at any await, which is how leaving interrupts it.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::claims::{ClaimOutcome, Claims, GrantOutcome};
use super::keepalive::{Lease, keep};
use super::own_key::{Observer, observe};
use super::setbacks::Setbacks;
use crate::error::{EtcdError, EtcdErrorKind, chain};
use crate::etcd::hex;
use crate::register::desired::DesiredState;
use crate::register::retry::RetryConfig;
use crate::register::status::RegistrationStatus;
use crate::targets::REGISTRATION;
use crate::trouble::Trouble;

/// One registration, before its start and while it runs.
pub(crate) struct LeaseTask {
    claims: Claims,
    retry: RetryConfig,
    desired: DesiredState,
    status: watch::Sender<RegistrationStatus>,
    setbacks: Setbacks,
    /// How many grants and claims have failed in a row.
    failures: u32,
    /// Whether the key was claimed under the present lease.
    is_held: bool,
    /// When the key was last put back, or is to be.
    restored: Option<Instant>,
}

enum State {
    /// A lease is to be granted.
    Granting {
        /// Not before then.
        at: Instant,
        /// The id of a grant without an answer.
        unanswered: Option<i64>,
        /// Of the key that is to be claimed again.
        observer: Option<Observer>,
    },
    /// The key is to be claimed.
    Claiming {
        lease: Lease,
        /// Not before then.
        at: Instant,
        observer: Option<Observer>,
    },
    /// The key is ours.
    Holding { lease: Lease, claim: Claim, observer: Observer },
    /// The key is under the live lease of another server.
    Yielding { lease: Lease, observer: Observer },
    /// The key is to be deleted; the lease is kept for the return.
    Withdrawing {
        lease: Lease,
        /// Not before then.
        at: Instant,
    },
    /// The key is absent, as desired.
    Absent { lease: Lease, observer: Observer },
    /// An operator put the draining mark on the key.
    Drained,
    /// The last of the allowed attempts failed.
    Exhausted { reason: String },
}

/// The claimed value, and the newest revision at which the key held it.
struct Claim {
    value: Vec<u8>,
    revision: i64,
}

/// The state of a key that we claimed.
enum KeyState {
    Ours,
    Drained,
    Touched(&'static str),
}

impl LeaseTask {
    pub(crate) fn new(
        claims: Claims,
        retry: RetryConfig,
        desired: DesiredState,
        status: watch::Sender<RegistrationStatus>,
        trouble: Trouble,
    ) -> Self {
        let setbacks = Setbacks::new(retry.retry_delay, trouble);
        Self { claims, retry, desired, status, setbacks, failures: 0, is_held: false, restored: None }
    }

    /// Keeps the instance registered until it is to leave, and then takes it out.
    pub(crate) async fn run(mut self) {
        self.report(RegistrationStatus::Registering);
        self.setbacks.on_start(Instant::now());
        self.desired.follow_health();
        let mut end = pin!(self.desired.end());
        let mut state = State::Granting { at: Instant::now(), unanswered: None, observer: None };
        let ending = loop {
            state = tokio::select! {
                biased;
                () = &mut end => break RegistrationStatus::Gone,
                state = self.step(state) => state,
            };
            match state {
                State::Drained => {
                    tracing::info!(target: REGISTRATION, "an operator drains this instance");
                    break RegistrationStatus::Drained;
                }
                State::Exhausted { reason } => return self.give_up(reason).await,
                _ => {}
            }
        };
        self.leave(ending).await;
    }

    async fn step(&mut self, state: State) -> State {
        match state {
            State::Granting { at, unanswered, observer } => {
                sleep_until(at).await;
                self.grant(unanswered, observer).await
            }
            State::Claiming { lease, at, observer } => {
                self.wait(at, false).await;
                self.claim(lease, observer).await
            }
            State::Holding { lease, claim, observer } => self.hold(lease, claim, observer).await,
            State::Yielding { lease, observer } => self.give_way(lease, observer).await,
            State::Withdrawing { lease, at } => {
                self.wait(at, true).await;
                self.withdraw(lease).await
            }
            State::Absent { lease, observer } => self.stay_absent(lease, observer).await,
            State::Drained | State::Exhausted { .. } => state,
        }
    }

    /// Waits until `at`, or until the desired absence of the key differs from `absent`. A change that came during the
    /// last attempt counts as well.
    async fn wait(&mut self, at: Instant, absent: bool) {
        let turned = async {
            while self.desired.absence().is_some() == absent {
                self.desired.changed().await;
            }
        };
        tokio::select! {
            () = sleep_until(at) => {}
            () = turned => {}
        }
    }

    /// Reports why a registration has no key, or that it is on its way again.
    fn report_absence(&self) {
        match self.desired.absence() {
            Some(absence) if !self.claims.has_key() => self.report(absence),
            None if self.status.borrow().is_absence() => self.report(RegistrationStatus::Registering),
            _ => {}
        }
    }

    /// Publishes the status, if it changed.
    fn report(&self, status: RegistrationStatus) {
        self.status.send_if_modified(|reported| {
            let is_news = *reported != status;
            *reported = status;
            is_news
        });
    }

    async fn grant(&mut self, unanswered: Option<i64>, observer: Option<Observer>) -> State {
        self.report_absence();
        let id = unanswered.unwrap_or_else(|| self.claims.new_lease());
        let (ttl, renew_at) = match self.claims.grant(id).await {
            Ok(GrantOutcome::New(ttl)) => (ttl, None),
            Ok(GrantOutcome::Existing(ttl)) => (ttl, Some(Instant::now())),
            Ok(GrantOutcome::Dead) => {
                self.claims.on_lease_dead(id);
                return State::Granting { at: Instant::now(), unanswered: None, observer };
            }
            Err(error) => {
                let at = self.setbacks.retry_at(&error, self.is_held);
                return self.on_error(&error, State::Granting { at, unanswered: Some(id), observer });
            }
        };
        tracing::debug!(target: REGISTRATION, lease = hex(id), ?ttl, "lease granted");
        claiming(keep(self.claims.registrar.keepalives.clone(), id, ttl, renew_at), observer)
    }

    async fn claim(&mut self, lease: Lease, mut observer: Option<Observer>) -> State {
        let instance = self.desired.instance();
        if self.desired.absence().is_some() {
            return State::Withdrawing { lease, at: Instant::now() };
        }
        self.report_absence();
        let (key, value) = self.claims.entry(&instance, lease.id, false);
        if let Some(observer) = &mut observer {
            // What the claim returns is a revision from after these.
            observer.rollbacks = observer.own_key.borrow().rollbacks;
        }
        let outcome = match self.claims.claim(&key, &value, lease.id).await {
            Ok(outcome) => outcome,
            Err(error) if error.kind == EtcdErrorKind::NotFound => {
                // With back-off, since it repeats where two clusters are behind one name.
                let pause = self.setbacks.pause();
                let next = self.on_lease_lost(&lease, "the lease is gone", pause, observer);
                return self.on_error(&error, next);
            }
            Err(error) => {
                let at = self.setbacks.retry_at(&error, self.is_held);
                return self.on_error(&error, State::Claiming { lease, at, observer });
            }
        };
        let same_key = observer.filter(|observer| observer.key == key);
        match outcome {
            ClaimOutcome::Claimed(revision) => {
                self.setbacks.on_registered();
                (self.failures, self.is_held) = (0, true);
                self.claims.expect_drain(&instance, lease.id);
                tracing::info!(target: REGISTRATION, key, lease = hex(lease.id), "registered");
                self.report(RegistrationStatus::Registered { key: key.clone(), lease: lease.id });
                let observer = same_key.unwrap_or_else(|| self.observe(key));
                State::Holding { lease, claim: Claim { value, revision }, observer }
            }
            ClaimOutcome::Foreign(other) => {
                self.failures = 0;
                self.setbacks.on_settled();
                tracing::warn!(
                    target: REGISTRATION,
                    key,
                    lease = hex(other),
                    "address is registered by another server that is alive"
                );
                self.report(RegistrationStatus::Conflict { key: key.clone(), lease: other });
                // A new watch: the old one shows the key from before the other server's claim.
                State::Yielding { lease, observer: self.observe(key) }
            }
            ClaimOutcome::Drained => State::Drained,
            ClaimOutcome::Contended => {
                let at = Instant::now() + self.setbacks.pause();
                let reason = format!("{key} was changed by others each time that it was claimed");
                self.on_failure(reason, State::Claiming { lease, at, observer: same_key })
            }
        }
    }

    fn observe(&self, key: String) -> Observer {
        observe(self.claims.registrar.cluster.clone(), key, self.retry.check_interval)
    }

    async fn hold(&mut self, mut lease: Lease, mut claim: Claim, mut observer: Observer) -> State {
        loop {
            tokio::select! {
                () = self.desired.changed() => {
                    if self.desired.absence().is_some() {
                        return State::Withdrawing { lease, at: Instant::now() };
                    }
                    let instance = self.desired.instance();
                    let (key, value) = self.claims.entry(&instance, lease.id, false);
                    if key != observer.key || value != claim.value {
                        return claiming(lease, Some(observer));
                    }
                }
                () = lease.died() => {
                    return self.on_lease_lost(&lease, LEASE_ENDED, Duration::ZERO, Some(observer));
                }
                Ok(()) = observer.own_key.changed() => match self.on_key_seen(&mut observer, &mut claim, lease.id) {
                    KeyState::Ours => {}
                    KeyState::Drained => return State::Drained,
                    // Many keys go at once with their leases: a look costs etcd less than a claim that fails.
                    KeyState::Touched(_) if self.is_lease_dead(&observer, lease.id).await => {
                        return self.on_lease_lost(&lease, LEASE_ENDED, Duration::ZERO, Some(observer));
                    }
                    KeyState::Touched(reason) => {
                        tracing::warn!(
                            target: REGISTRATION,
                            key = observer.key,
                            reason,
                            "registration was lost; it is put back"
                        );
                        self.report(RegistrationStatus::Lost { reason: reason.into() });
                        return State::Claiming { lease, at: self.restore_at(), observer: Some(observer) };
                    }
                }
            }
        }
    }

    fn on_key_seen(&self, observer: &mut Observer, claim: &mut Claim, lease: i64) -> KeyState {
        let seen = observer.own_key.borrow_and_update();
        // A revision older than our own write proves nothing, except after a rollback.
        if seen.rollbacks == observer.rollbacks && seen.revision < claim.revision {
            return KeyState::Ours;
        }
        observer.rollbacks = seen.rollbacks;
        claim.revision = seen.revision;
        match &seen.kv {
            None => KeyState::Touched("the key was deleted"),
            Some(kv) if kv.lease == lease && kv.value == claim.value => KeyState::Ours,
            Some(kv) if self.claims.is_drained(kv) => KeyState::Drained,
            Some(_) => KeyState::Touched("the key was overwritten"),
        }
    }

    /// Whether the key went with its lease; false if that cannot be told.
    async fn is_lease_dead(&self, observer: &Observer, lease: i64) -> bool {
        observer.own_key.borrow().kv.is_none() && self.claims.is_alive(lease).await.is_ok_and(|is_alive| !is_alive)
    }

    async fn give_way(&mut self, mut lease: Lease, mut observer: Observer) -> State {
        loop {
            tokio::select! {
                () = self.desired.changed() => {
                    if self.desired.absence().is_some() {
                        return State::Withdrawing { lease, at: Instant::now() };
                    }
                }
                () = lease.died() => return self.regrant(&lease, Duration::ZERO, Some(observer)),
                Ok(()) = observer.own_key.changed() => {
                    let owner = observer.own_key.borrow_and_update().kv.as_ref().map_or(0, |kv| kv.lease);
                    if owner == 0 || self.claims.is_own_lease(owner) {
                        return claiming(lease, Some(observer));
                    }
                    self.report(RegistrationStatus::Conflict { key: observer.key.clone(), lease: owner });
                }
            }
        }
    }

    async fn withdraw(&mut self, lease: Lease) -> State {
        let instance = self.desired.instance();
        if self.desired.absence().is_none() {
            // The key may still exist, or not.
            self.report(RegistrationStatus::Registering);
            return claiming(lease, None);
        }
        match self.claims.withdraw(&instance).await {
            Ok(()) => {
                let (key, _) = self.claims.entry(&instance, lease.id, false);
                State::Absent { lease, observer: self.observe(key) }
            }
            Err(error) => State::Withdrawing { lease, at: self.setbacks.retry_at(&error, self.is_held) },
        }
    }

    async fn stay_absent(&mut self, mut lease: Lease, mut observer: Observer) -> State {
        loop {
            let Some(absence) = self.desired.absence() else {
                self.report(RegistrationStatus::Registering);
                // At a limited rate, where health flutters.
                return State::Claiming { lease, at: self.restore_at(), observer: None };
            };
            self.report(absence);
            tokio::select! {
                () = self.desired.changed() => {}
                () = lease.died() => return self.regrant(&lease, Duration::ZERO, Some(observer)),
                Ok(()) = observer.own_key.changed() => {
                    // An abandoned claim can still arrive.
                    let seen = observer.own_key.borrow_and_update().kv.clone();
                    if let Some(kv) = seen.filter(|kv| self.claims.is_own_lease(kv.lease)) {
                        self.claims.on_key_seen(observer.key, kv.lease, kv.mod_revision);
                        return State::Withdrawing { lease, at: Instant::now() };
                    }
                }
            }
        }
    }

    fn on_lease_lost(&mut self, lease: &Lease, reason: &str, pause: Duration, observer: Option<Observer>) -> State {
        tracing::warn!(target: REGISTRATION, lease = hex(lease.id), reason, "registration was lost; it is put back");
        self.report(RegistrationStatus::Lost { reason: reason.to_owned() });
        self.regrant(lease, pause, observer)
    }

    fn regrant(&mut self, lease: &Lease, pause: Duration, observer: Option<Observer>) -> State {
        self.claims.on_lease_dead(lease.id);
        self.is_held = false;
        let turn = self.claims.registrar.pace().turn(Instant::now());
        State::Granting { at: turn + pause, unanswered: None, observer }
    }

    fn on_error(&mut self, error: &EtcdError, next: State) -> State {
        match error.kind {
            // Nothing was attempted, or all members are busy or not ready yet: no reason to give up for good.
            EtcdErrorKind::Withheld | EtcdErrorKind::LoginPending | EtcdErrorKind::Incapable => next,
            // The key is registered, only with an older value: that is no failure to register.
            _ if self.is_held => next,
            _ => self.on_failure(chain(error), next),
        }
    }

    /// Counts a failed attempt, and goes on with `next` unless it was the last one allowed.
    fn on_failure(&mut self, reason: String, next: State) -> State {
        self.failures = self.failures.saturating_add(1);
        let is_last = self.retry.max_attempts.is_some_and(|limit| self.failures >= limit);
        if is_last { State::Exhausted { reason } } else { next }
    }

    /// Announces the leave, revokes the lease and ends. There is no way back.
    async fn leave(mut self, ending: RegistrationStatus) {
        self.report(RegistrationStatus::Draining);
        self.take_out().await;
        self.report(ending);
    }

    /// Takes out what failed attempts may have left in etcd, and ends.
    async fn give_up(mut self, reason: String) {
        let (service, attempts) = (self.claims.service(), self.failures);
        tracing::warn!(
            target: REGISTRATION,
            %service,
            attempts,
            reason,
            "registration gave up: as many attempts failed as are allowed"
        );
        self.take_out().await;
        self.report(RegistrationStatus::GaveUp { attempts, reason });
    }

    async fn take_out(&mut self) {
        let instance = self.desired.instance();
        let service = self.claims.service().clone();
        let was_registered = self.claims.was_registered();
        // Nothing that clients could know of is worth a wait: a lease without a key ends by itself.
        let limit = if self.claims.may_be_known() { LEAVE_LIMIT } else { REVOKE_LIMIT };
        let address = &instance.address;
        match timeout(limit, self.claims.take_out(&instance)).await {
            Ok(true) if was_registered => tracing::info!(target: REGISTRATION, %service, %address, "deregistered"),
            Ok(_) | Err(_) if !self.claims.may_be_known() => {
                tracing::info!(target: REGISTRATION, %service, %address, "left; it was never registered");
            }
            Ok(true) => tracing::info!(target: REGISTRATION, %service, %address, "left before it was registered"),
            Ok(false) => {
                tracing::warn!(target: REGISTRATION, %service, "etcd refused the deregistration; the lease will expire");
            }
            Err(_) => {
                let leases = self.claims.left_over();
                tracing::warn!(
                    target: REGISTRATION,
                    %service,
                    ?leases,
                    "etcd did not take the deregistration in time; the leases will expire"
                );
            }
        }
    }

    /// When a key that was touched or withdrawn may be put back.
    fn restore_at(&mut self) -> Instant {
        let now = Instant::now();
        let at = match self.restored {
            // The planned time is still ahead.
            Some(planned) if planned > now => planned,
            Some(restored) => now.max(restored + RESTORE_INTERVAL),
            None => now,
        };
        self.restored = Some(at);
        at
    }
}

impl Drop for LeaseTask {
    /// Also if the task was never started, or its runtime ended.
    fn drop(&mut self) {
        if !self.status.borrow().has_ended() {
            self.report(RegistrationStatus::Gone);
        }
    }
}

fn claiming(lease: Lease, observer: Option<Observer>) -> State {
    State::Claiming { lease, at: Instant::now(), observer }
}

/// Why a registration was lost whose lease is dead.
const LEASE_ENDED: &str = "the lease expired or was revoked";

/// The least time between two returns of a key that is removed again and again, or whose health flutters.
const RESTORE_INTERVAL: Duration = Duration::from_secs(1);

/// The longest that a leave may take while etcd is unreachable: a process must end.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);

/// The longest that the revocation of a lease may take that no key was claimed under: a few round trips.
const REVOKE_LIMIT: Duration = Duration::from_millis(250);
