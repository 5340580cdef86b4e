//! The status of a registration, for people and programs.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use thiserror::Error;
use tokio::sync::watch;

use crate::error::chain;

/// The status of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistrationStatus {
    /// The registration was not started yet.
    Unregistered,
    /// The lease or the claim of the key is under way, for as long as it takes: at the start, or on the way back from
    /// [`Paused`](Self::Paused) or [`NotServing`](Self::NotServing).
    Registering,
    /// The key is in etcd under our lease.
    #[non_exhaustive]
    Registered {
        /// The whole key.
        key: String,
        /// The lease's id; etcdctl shows it in hexadecimal.
        lease: i64,
    },
    /// The key or its lease is gone, or the key was overwritten. It is being put back.
    #[non_exhaustive]
    Lost {
        /// What happened.
        reason: String,
    },
    /// Another server holds the key under a lease that is alive. The key is claimed as soon as it is free.
    #[non_exhaustive]
    Conflict {
        /// The whole key.
        key: String,
        /// The other server's lease.
        lease: i64,
    },
    /// The key was taken out by [`Registration::pause`](crate::Registration::pause); the lease is kept.
    Paused,
    /// The key is held back, or was taken out, because the followed health is not SERVING; the lease is kept. A
    /// registration that is paused as well is [`Paused`](Self::Paused).
    NotServing,
    /// The registration is leaving: the leave is announced and the lease is revoked.
    Draining,
    /// The registration has left for good.
    Gone,
    /// The registration has left for good, because an operator put the draining mark on its key
    /// ([`Registry::drain`](crate::Registry::drain)). The server serves on.
    Drained,
    /// As many attempts in a row failed as [`max_attempts`](crate::RegistrationBuilder::max_attempts) allows; the
    /// registration has ended for good, and is not in etcd.
    #[non_exhaustive]
    GaveUp {
        /// How many attempts failed in a row.
        attempts: u32,
        /// How the last one failed.
        reason: String,
    },
}

impl RegistrationStatus {
    /// Whether the registration has ended for good: it left, was drained, or gave up.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self, Self::Gone | Self::Drained | Self::GaveUp { .. })
    }

    /// Whether the key is absent as desired.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::Paused | Self::NotServing)
    }
}

impl fmt::Display for RegistrationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unregistered => f.write_str("unregistered"),
            Self::Registering => f.write_str("registering"),
            Self::Registered { key, lease } => write!(f, "registered as {key} under lease {lease:x}"),
            Self::Lost { reason } => write!(f, "lost: {reason}"),
            Self::Conflict { key, lease } => write!(f, "conflict: {key} is held under lease {lease:x}"),
            Self::Paused => f.write_str("paused"),
            Self::NotServing => f.write_str("not serving"),
            Self::Draining => f.write_str("draining"),
            Self::Gone => f.write_str("gone"),
            Self::Drained => f.write_str("drained by an operator"),
            Self::GaveUp { attempts, reason } => write!(f, "gave up after {attempts} failed attempts: {reason}"),
        }
    }
}

/// A registration is not in etcd within the time that it was given.
///
/// `Debug` shows what `Display` does: it is what a `main` prints that returns an error.
#[derive(Error)]
#[non_exhaustive]
pub enum StartError {
    /// It is not in etcd yet. Trying again helps once what keeps it is mended.
    #[error("{service} is not registered within {limit:?}: {status}{}", after(": ", .last_error.as_deref()))]
    #[non_exhaustive]
    TimedOut {
        /// The service.
        service: String,
        /// The time that it was given.
        limit: Duration,
        /// How far it is: registering, paused, held back by its health, or in conflict with another server.
        status: RegistrationStatus,
        /// How the last attempt failed, in words, while it is registering.
        last_error: Option<String>,
    },

    /// It has ended. Trying again does not help.
    #[error("the registration of {service} has ended: {status}")]
    #[non_exhaustive]
    Ended {
        /// The service.
        service: String,
        /// How it ended.
        status: RegistrationStatus,
    },
}

/// A registration ended for good: it was deregistered, its last handle was dropped, it gave up, or an operator drained
/// it.
///
/// Trying again does not help; build a new registration. `Debug` shows what `Display` does.
#[derive(Clone, PartialEq, Eq, Error)]
#[error("the registration has ended: {status}")]
pub struct RegistrationEnded {
    status: RegistrationStatus,
}

impl RegistrationEnded {
    pub(super) fn new(status: RegistrationStatus) -> Self {
        Self { status }
    }

    /// How it ended.
    #[must_use]
    pub fn status(&self) -> &RegistrationStatus {
        &self.status
    }
}

impl fmt::Debug for RegistrationEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn after(separator: &str, text: Option<&str>) -> String {
    text.map(|text| format!("{separator}{text}")).unwrap_or_default()
}

impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self))
    }
}

/// The statuses of a registration: the present one first, then each newer one. A status that changed again before the
/// stream was polled is left out. The stream ends after the status with which the registration
/// [has ended](RegistrationStatus::has_ended).
#[must_use = "a stream does nothing unless it is polled"]
pub struct StatusChanges {
    changes: BoxStream<'static, RegistrationStatus>,
}

impl StatusChanges {
    pub(super) fn new(mut status: watch::Receiver<RegistrationStatus>) -> Self {
        status.mark_changed();
        let changes = stream::unfold(Some(status), |status| async {
            let mut status = status?;
            let now = match status.changed().await {
                Ok(()) => status.borrow_and_update().clone(),
                Err(_) => return None,
            };
            let rest = (!now.has_ended()).then_some(status);
            Some((now, rest))
        });
        Self { changes: changes.boxed() }
    }
}

impl Stream for StatusChanges {
    type Item = RegistrationStatus;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RegistrationStatus>> {
        self.changes.poll_next_unpin(cx)
    }
}

impl fmt::Debug for StatusChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusChanges").finish_non_exhaustive()
    }
}
