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
//! A registration that is paused or not serving when its lease is granted goes from Claiming to Absent without a key. An
//! operator's weight is an update, too: it leads from Holding, or from a claim that finds it, to Claiming.
//!
//! Any step can be abandoned at any await, which is how leaving interrupts it.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::claims::{ClaimOutcome, Claims, GrantOutcome, Write};
use super::keepalive::{Lease, keep};
use super::leave::leave;
use super::metrics::Loss;
use super::orders::{AnswerPace, Order, Reweigh};
use super::own_key::{Observer, observe};
use super::reports::Reports;
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
    reports: Reports,
    setbacks: Setbacks,
    answers: AnswerPace,
    /// How many grants and claims have failed in a row.
    failures: u32,
    /// Whether the key was claimed under the present lease.
    is_held: bool,
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
        /// The order that the claim answers.
        order: Option<Reweigh>,
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
    Reweigh(Reweigh),
    Touched(Loss),
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
        let reports = Reports::new(status, claims.service().clone());
        Self { claims, retry, desired, reports, setbacks, answers: AnswerPace::default(), failures: 0, is_held: false }
    }

    /// Keeps the instance registered until it is to leave, and then takes it out.
    pub(crate) async fn run(mut self) {
        self.reports.report(RegistrationStatus::Registering);
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
            State::Claiming { lease, at, observer, order } => {
                self.wait(at, false).await;
                self.claim(lease, observer, order).await
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
    fn report_absence(&mut self) {
        match self.desired.absence() {
            Some(absence) if !self.claims.has_key() => self.reports.report(absence),
            None if self.reports.is_absence() => self.reports.report(RegistrationStatus::Registering),
            _ => {}
        }
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

    async fn claim(&mut self, lease: Lease, mut observer: Option<Observer>, order: Option<Reweigh>) -> State {
        let mut instance = self.desired.instance();
        // Others may have followed while this one waited.
        let seen = observer.as_ref().and_then(|observer| observer.own_key.borrow().kv.clone());
        let order = order.map(|order| self.claims.newest(order, seen));
        // A weight that the program set since is the later one.
        let order = order.filter(|order| order.from == instance.weight);
        if let Some(order) = order {
            instance.weight = order.to;
        }
        if self.desired.absence().is_some() {
            return State::Withdrawing { lease, at: Instant::now() };
        }
        self.report_absence();
        let (key, value) = self.claims.entry(&instance, lease.id, false);
        if let Some(observer) = &mut observer {
            // What the claim returns is a revision from after these.
            observer.rollbacks = observer.own_key.borrow().rollbacks;
        }
        let write = Write { key: &key, value: &value, weight: instance.weight, lease: lease.id, order };
        let outcome = match self.claims.claim(write).await {
            Ok(outcome) => outcome,
            Err(error) if error.kind == EtcdErrorKind::NotFound => {
                // With back-off, since it repeats where two clusters are behind one name.
                let pause = self.setbacks.pause();
                let next = self.on_lease_lost(&lease, Loss::LeaseNotFound, pause, observer);
                return self.on_error(&error, next);
            }
            Err(error) => {
                let at = self.setbacks.retry_at(&error, self.is_held);
                return self.on_error(&error, State::Claiming { lease, at, observer, order });
            }
        };
        let same_key = observer.filter(|observer| observer.key == key);
        match outcome {
            ClaimOutcome::Claimed(revision) => {
                self.setbacks.on_registered();
                (self.failures, self.is_held) = (0, true);
                if let Some(order) = order {
                    self.on_reweighed(order, &key);
                }
                self.claims.expect_orders(&instance, lease.id);
                tracing::info!(target: REGISTRATION, key, lease = hex(lease.id), "registered");
                self.reports.report(RegistrationStatus::Registered { key: key.clone(), lease: lease.id });
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
                self.reports.on_conflict(key.clone(), other);
                // A new watch: the old one shows the key from before the other server's claim.
                State::Yielding { lease, observer: self.observe(key) }
            }
            ClaimOutcome::Drained => State::Drained,
            ClaimOutcome::Reweigh(order) => self.answering(lease, same_key, order),
            ClaimOutcome::Withdrawn => claiming(lease, same_key),
            ClaimOutcome::Contended => {
                let at = Instant::now() + self.setbacks.pause();
                let reason = format!("{key} was changed by others each time that it was claimed");
                self.on_failure(reason, State::Claiming { lease, at, observer: same_key, order: None })
            }
        }
    }

    fn observe(&self, key: String) -> Observer {
        let (cluster, service) = (self.claims.registrar.cluster.clone(), self.claims.service().clone());
        observe(cluster, service, key, self.retry.check_interval)
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
                    return self.on_lease_lost(&lease, Loss::LeaseEnded, Duration::ZERO, Some(observer));
                }
                Ok(()) = observer.own_key.changed() => match self.on_key_seen(&mut observer, &mut claim, lease.id) {
                    KeyState::Ours => {}
                    KeyState::Drained => return State::Drained,
                    KeyState::Reweigh(order) => return self.answering(lease, Some(observer), order),
                    // Many keys go at once with their leases: a look costs etcd less than a claim that fails.
                    KeyState::Touched(_) if self.is_lease_dead(&observer, lease.id).await => {
                        return self.on_lease_lost(&lease, Loss::LeaseEnded, Duration::ZERO, Some(observer));
                    }
                    KeyState::Touched(loss) => {
                        tracing::warn!(
                            target: REGISTRATION,
                            key = observer.key,
                            reason = loss.reason(),
                            "registration was lost; it is put back"
                        );
                        self.reports.on_lost(loss);
                        let at = self.setbacks.restore_at(Instant::now());
                        return State::Claiming { lease, at, observer: Some(observer), order: None };
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
            None => KeyState::Touched(Loss::KeyDeleted),
            Some(kv) if kv.lease == lease && kv.value == claim.value => KeyState::Ours,
            Some(kv) => match self.claims.order(kv) {
                Some(Order::Drain) => KeyState::Drained,
                Some(Order::Reweigh(order)) => KeyState::Reweigh(order),
                None => KeyState::Touched(Loss::KeyOverwritten),
            },
        }
    }

    fn answering(&mut self, lease: Lease, observer: Option<Observer>, order: Reweigh) -> State {
        let at = self.answers.answer_at(Instant::now());
        State::Claiming { lease, at, observer, order: Some(order) }
    }

    /// The key holds an operator's weight as our own: it is the instance's, unless the program set another one meanwhile.
    fn on_reweighed(&self, order: Reweigh, key: &str) {
        if self.desired.reweigh(order.from, order.to) {
            tracing::info!(
                target: REGISTRATION,
                key,
                weight = order.to,
                former = order.from,
                "an operator sets the weight of this instance"
            );
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
                    self.reports.report(RegistrationStatus::Conflict { key: observer.key.clone(), lease: owner });
                }
            }
        }
    }

    async fn withdraw(&mut self, lease: Lease) -> State {
        let instance = self.desired.instance();
        if self.desired.absence().is_none() {
            // The key may still exist, or not.
            self.reports.report(RegistrationStatus::Registering);
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
                self.reports.report(RegistrationStatus::Registering);
                // At a limited rate, where health flutters.
                let at = self.setbacks.restore_at(Instant::now());
                return State::Claiming { lease, at, observer: None, order: None };
            };
            self.reports.report(absence);
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

    fn on_lease_lost(&mut self, lease: &Lease, loss: Loss, pause: Duration, observer: Option<Observer>) -> State {
        let reason = loss.reason();
        tracing::warn!(target: REGISTRATION, lease = hex(lease.id), reason, "registration was lost; it is put back");
        self.reports.on_lost(loss);
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
        self.reports.on_failure();
        self.failures = self.failures.saturating_add(1);
        let is_last = self.retry.max_attempts.is_some_and(|limit| self.failures >= limit);
        if is_last { State::Exhausted { reason } } else { next }
    }

    /// Announces the leave, revokes the lease and ends. There is no way back.
    async fn leave(mut self, ending: RegistrationStatus) {
        self.reports.report(RegistrationStatus::Draining);
        let is_out = self.take_out().await;
        self.reports.on_ended(ending, is_out);
    }

    /// Takes out what failed attempts may have left in etcd, and ends.
    async fn give_up(mut self, reason: String) {
        let attempts = self.failures;
        tracing::warn!(
            target: REGISTRATION,
            service = %self.claims.service(),
            attempts,
            reason,
            "registration gave up: as many attempts failed as are allowed"
        );
        let is_out = self.take_out().await;
        self.reports.on_ended(RegistrationStatus::GaveUp { attempts, reason }, is_out);
    }

    /// Returns whether nothing is left in etcd that clients could know of.
    async fn take_out(&mut self) -> bool {
        let instance = self.desired.instance();
        leave(&mut self.claims, &instance).await
    }
}

impl Drop for LeaseTask {
    /// Also if the task was never started, or its runtime ended.
    fn drop(&mut self) {
        if !self.reports.has_ended() {
            let is_out = !self.claims.may_be_known();
            self.reports.on_ended(RegistrationStatus::Gone, is_out);
        }
    }
}

fn claiming(lease: Lease, observer: Option<Observer>) -> State {
    State::Claiming { lease, at: Instant::now(), observer, order: None }
}
