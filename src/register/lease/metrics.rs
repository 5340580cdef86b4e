//! What happens to registrations and their leases, to the metrics.

use std::time::Duration;

use crate::instance::ServiceName;
use crate::metrics::registration::{
    CONFLICTS, DURATION, ENDED, FAILURES, KEEPALIVE_DURATION, KEEPALIVES, LEFT_BEHIND, LOST, REGISTERED, REGISTRATIONS,
    RENEWALS,
};
use crate::metrics::{Counter, Histogram, Share};

/// Of one registration.
#[derive(Debug)]
pub(super) struct RegistrationMetrics {
    service: ServiceName,
    /// In the gauge of its state.
    state: Option<Share>,
    registered: Counter,
    conflicts: Counter,
    failures: Counter,
    left_behind: Counter,
    lost: [Counter; Loss::ALL.len()],
    endings: [Counter; Ending::ALL.len()],
}

/// Why a registration is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    LeaseEnded,
    LeaseNotFound,
    KeyDeleted,
    KeyOverwritten,
}

impl Loss {
    const ALL: [Self; 4] = [Self::LeaseEnded, Self::LeaseNotFound, Self::KeyDeleted, Self::KeyOverwritten];

    /// Text for statuses and the log.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::LeaseEnded => "the lease expired or was revoked",
            Self::LeaseNotFound => "the lease is gone",
            Self::KeyDeleted => "the key was deleted",
            Self::KeyOverwritten => "the key was overwritten",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::LeaseEnded => "lease_ended",
            Self::LeaseNotFound => "lease_not_found",
            Self::KeyDeleted => "key_deleted",
            Self::KeyOverwritten => "key_overwritten",
        }
    }
}

/// How a registration ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Left,
    Drained,
    GaveUp,
}

impl Ending {
    const ALL: [Self; 3] = [Self::Left, Self::Drained, Self::GaveUp];

    fn label(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Drained => "drained",
            Self::GaveUp => "gave_up",
        }
    }
}

impl RegistrationMetrics {
    pub(super) fn new(service: ServiceName) -> Self {
        let name = service.as_str();
        Self {
            state: None,
            registered: REGISTERED.with(&[name]),
            conflicts: CONFLICTS.with(&[name]),
            failures: FAILURES.with(&[name]),
            left_behind: LEFT_BEHIND.with(&[name]),
            lost: Loss::ALL.map(|loss| LOST.with(&[name, loss.label()])),
            endings: Ending::ALL.map(|ending| ENDED.with(&[name, ending.label()])),
            service,
        }
    }

    /// The registration is in this state from now on; in none where it has ended.
    pub(super) fn set_state(&mut self, state: Option<&str>) {
        // The new share first, so that a sum over states never misses a registration.
        self.state = state.map(|state| Share::new(REGISTRATIONS.with(&[self.service.as_str(), state]), 1.0));
    }

    pub(super) fn on_registered(&self, cause: &str, took: Duration) {
        self.registered.add(1);
        let duration: Histogram = DURATION.with(&[self.service.as_str(), cause]);
        duration.record(took.as_secs_f64());
    }

    pub(super) fn on_lost(&self, loss: Loss) {
        self.lost[loss as usize].add(1);
    }

    pub(super) fn on_conflict(&self) {
        self.conflicts.add(1);
    }

    /// A grant or a claim failed.
    pub(super) fn on_failure(&self) {
        self.failures.add(1);
    }

    pub(super) fn on_ended(&self, ending: Ending) {
        self.endings[ending as usize].add(1);
    }

    /// etcd did not take it out.
    pub(super) fn on_left_behind(&self) {
        self.left_behind.add(1);
    }
}

/// Of the leases of one registry.
#[derive(Debug, Clone)]
pub(super) struct KeepaliveMetrics {
    sent: Counter,
    duration: Histogram,
    renewed: Counter,
    dead: Counter,
    unanswered: Counter,
}

impl KeepaliveMetrics {
    pub(super) fn new() -> Self {
        let [renewed, dead, unanswered] = ["renewed", "dead", "unanswered"].map(|outcome| RENEWALS.with(&[outcome]));
        Self { sent: KEEPALIVES.with(&[]), duration: KEEPALIVE_DURATION.with(&[]), renewed, dead, unanswered }
    }

    /// A keepalive goes out to a member.
    pub(super) fn on_sent(&self) {
        self.sent.add(1);
    }

    /// A member answered one after this time.
    pub(super) fn on_answer(&self, took: Duration) {
        self.duration.record(took.as_secs_f64());
    }

    /// A renewal was answered, by whichever member.
    pub(super) fn on_renewed(&self) {
        self.renewed.add(1);
    }

    /// A renewal brought to light that the lease is dead.
    pub(super) fn on_dead(&self) {
        self.dead.add(1);
    }

    /// The next renewal was due before this one was answered.
    pub(super) fn on_unanswered(&self) {
        self.unanswered.add(1);
    }
}
