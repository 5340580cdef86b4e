//! What becomes of a registration, to its handles and to the metrics.

use tokio::sync::watch;
use tokio::time::Instant;

use super::metrics::{Ending, Loss, RegistrationMetrics};
use crate::instance::ServiceName;
use crate::register::status::RegistrationStatus;

/// The status of one registration, and for how long it has not been in etcd.
pub(super) struct Reports {
    status: watch::Sender<RegistrationStatus>,
    absence: Option<Absence>,
    metrics: RegistrationMetrics,
}

/// The time in which a registration is to be in etcd and is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Absence {
    since: Instant,
    cause: Cause,
}

/// Why it is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Start,
    Lost,
    /// It was paused, or not serving.
    Resumed,
    /// Another server held the key meanwhile.
    Conflict,
}

impl Reports {
    /// Of a registration that was not started yet.
    pub(super) fn new(status: watch::Sender<RegistrationStatus>, service: ServiceName) -> Self {
        let mut metrics = RegistrationMetrics::new(service);
        metrics.set_state(state(&status.borrow()));
        Self { status, absence: None, metrics }
    }

    /// Publishes the status, if it changed.
    pub(super) fn report(&mut self, status: RegistrationStatus) {
        let now = Instant::now();
        let Self { absence, metrics, .. } = self;
        self.status.send_if_modified(|reported| {
            let is_news = *reported != status;
            if is_news {
                if let (RegistrationStatus::Registered { .. }, Some(Absence { since, cause })) = (&status, *absence) {
                    metrics.on_registered(cause.label(), now - since);
                }
                *absence = next(*absence, reported, &status, now);
                if state(reported) != state(&status) {
                    metrics.set_state(state(&status));
                }
                *reported = status;
            }
            is_news
        });
    }

    /// Its key or its lease is gone; a registration that was not there is not lost by that.
    pub(super) fn on_lost(&mut self, loss: Loss) {
        if matches!(*self.status.borrow(), RegistrationStatus::Registered { .. }) {
            self.metrics.on_lost(loss);
        }
        self.report(RegistrationStatus::Lost { reason: loss.reason().to_owned() });
    }

    pub(super) fn on_conflict(&mut self, key: String, lease: i64) {
        self.metrics.on_conflict();
        self.report(RegistrationStatus::Conflict { key, lease });
    }

    /// A grant or a claim failed.
    pub(super) fn on_failure(&self) {
        self.metrics.on_failure();
    }

    /// It has ended, and is out of etcd or not.
    pub(super) fn on_ended(&mut self, status: RegistrationStatus, is_out: bool) {
        if let Some(ending) = ending(&status) {
            self.metrics.on_ended(ending);
        }
        if !is_out {
            self.metrics.on_left_behind();
        }
        self.report(status);
    }

    pub(super) fn is_absence(&self) -> bool {
        self.status.borrow().is_absence()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.status.borrow().has_ended()
    }
}

impl Cause {
    fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Lost => "lost",
            Self::Resumed => "resumed",
            Self::Conflict => "conflict",
        }
    }
}

/// The absence with the next status; `None` where it is there, or is not to be.
fn next(
    absence: Option<Absence>,
    before: &RegistrationStatus,
    status: &RegistrationStatus,
    now: Instant,
) -> Option<Absence> {
    let begun = |cause| Some(absence.unwrap_or(Absence { since: now, cause }));
    match status {
        RegistrationStatus::Registering if *before == RegistrationStatus::Unregistered => begun(Cause::Start),
        RegistrationStatus::Registering => begun(Cause::Resumed),
        RegistrationStatus::Lost { .. } => begun(Cause::Lost),
        RegistrationStatus::Conflict { .. } => {
            begun(Cause::Conflict).map(|absence| Absence { cause: Cause::Conflict, ..absence })
        }
        _ => None,
    }
}

/// The label of a status; none for one that has ended.
fn state(status: &RegistrationStatus) -> Option<&'static str> {
    Some(match status {
        RegistrationStatus::Unregistered => "unregistered",
        RegistrationStatus::Registering => "registering",
        RegistrationStatus::Registered { .. } => "registered",
        RegistrationStatus::Lost { .. } => "lost",
        RegistrationStatus::Conflict { .. } => "conflict",
        RegistrationStatus::Paused => "paused",
        RegistrationStatus::NotServing => "not_serving",
        RegistrationStatus::Draining => "draining",
        RegistrationStatus::Gone | RegistrationStatus::Drained | RegistrationStatus::GaveUp { .. } => return None,
    })
}

fn ending(status: &RegistrationStatus) -> Option<Ending> {
    match status {
        RegistrationStatus::Gone => Some(Ending::Left),
        RegistrationStatus::Drained => Some(Ending::Drained),
        RegistrationStatus::GaveUp { .. } => Some(Ending::GaveUp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn lost() -> RegistrationStatus {
        RegistrationStatus::Lost { reason: "gone".into() }
    }

    fn conflict() -> RegistrationStatus {
        RegistrationStatus::Conflict { key: "k".into(), lease: 8 }
    }

    fn registered() -> RegistrationStatus {
        RegistrationStatus::Registered { key: "k".into(), lease: 7 }
    }

    /// The absence after these statuses, each a second after the one before; and since which second.
    fn absence(statuses: &[RegistrationStatus]) -> Option<(Cause, u64)> {
        let (start, mut absence, mut before) = (Instant::now(), None, RegistrationStatus::Unregistered);
        for (second, status) in (0..).zip(statuses) {
            absence = next(absence, &before, status, start + SECOND * second);
            before = status.clone();
        }
        absence.map(|absence| (absence.cause, (absence.since - start).as_secs()))
    }

    #[test]
    fn an_absence_begins_with_the_first_status_without_a_key_and_ends_with_the_key() {
        use RegistrationStatus::{Draining, Paused, Registering};
        assert_eq!(absence(&[]), None, "it was not started");
        assert_eq!(absence(&[Registering]), Some((Cause::Start, 0)));
        assert_eq!(absence(&[Registering, registered()]), None, "it is there");
        assert_eq!(absence(&[Registering, registered(), lost()]), Some((Cause::Lost, 2)));
        assert_eq!(absence(&[Registering, lost(), lost()]), Some((Cause::Start, 0)), "it was not there yet");
        assert_eq!(absence(&[Registering, Paused]), None, "it is not to be there");
        assert_eq!(absence(&[Registering, Paused, Registering]), Some((Cause::Resumed, 2)));
        assert_eq!(absence(&[Registering, registered(), Draining]), None, "it leaves");
    }

    #[test]
    fn the_wait_for_another_server_counts_as_such_from_the_begin_of_the_absence() {
        use RegistrationStatus::Registering;
        assert_eq!(absence(&[Registering, conflict()]), Some((Cause::Conflict, 0)));
        assert_eq!(absence(&[Registering, registered(), lost(), conflict()]), Some((Cause::Conflict, 2)));
    }
}
