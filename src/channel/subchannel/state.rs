//! The states of a subchannel, its inputs and its effects.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

#[cfg(feature = "health")]
use super::connection::HealthVerdict;
use super::connection::ReadyConnection;
use super::end::End;
use super::status::Connectivity;
use super::ticket::Ticket;
use crate::channel::outlier::{Compared, DetectionMethod, Tally};
use crate::channel::policy::load::Load;
use crate::snapshot::Member;

/// Where the connection to an instance stands.
pub(super) enum State<T> {
    /// No connection is wanted.
    Idle(Reason),
    /// The instance waits for its turn to be dialled.
    Queued(Ticket),
    /// An attempt is under way.
    Connecting(Ticket),
    /// A connection stands, and the server's SETTINGS came.
    Ready(Ready<T>),
    /// The last attempt failed, or the last connection ended early, and the next attempt waits for its time.
    Backoff(Ticket),
}

impl<T> State<T> {
    /// The one place that derives gRPC's state.
    pub(super) fn connectivity(&self, has_failed: bool) -> Connectivity {
        match self {
            Self::Idle(_) => Connectivity::Idle,
            Self::Ready(ready) if ready.is_serving => Connectivity::Ready,
            _ if has_failed => Connectivity::TransientFailure,
            // A server that has not reported its health yet will soon.
            Self::Queued(_) | Self::Connecting(_) | Self::Ready(_) | Self::Backoff(_) => Connectivity::Connecting,
        }
    }
}

/// Why no connection to an instance is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// It is ejected and has no connection; its probation brings the next one.
    Ejected,
    /// The channel's subset uses other instances.
    Unselected,
    /// It announced its leave, or left the list unannounced, and its connection ended.
    Withdrawn,
}

/// A connection that stands.
pub(super) struct Ready<T> {
    pub(super) connection: Arc<ReadyConnection<T>>,
    pub(super) ticket: Ticket,
    pub(super) since: Instant,
    /// Whether the server serves, as far as its health is watched.
    pub(super) is_serving: bool,
    /// Ends the watch of the server's health when dropped.
    pub(super) _health: Option<oneshot::Sender<Infallible>>,
    /// Gives the streams of the connection a limit.
    pub(super) retire: oneshot::Sender<()>,
}

impl<T> Ready<T> {
    /// Whether the connection is a good one: it answered a call, or stands for `long`.
    pub(super) fn is_proven(&self, long: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= long || self.connection.load().answers() > 0
    }
}

/// A new connection, whose driver runs.
pub(crate) struct Established<T> {
    pub(crate) transport: T,
    pub(crate) load: Arc<Load>,
    /// Sending gives the streams of the connection a limit.
    pub(crate) retire: oneshot::Sender<()>,
    /// Where the server's health is watched: the watch ends when this is dropped, and nothing is known yet.
    pub(crate) health: Option<oneshot::Sender<Infallible>>,
}

/// What happens to a subchannel.
pub(crate) enum Input<T> {
    /// The registry has news of the instance: weight, tags, lease or state.
    Updated(Member),
    /// The channel's subset uses the instance.
    Selected,
    /// The channel's subset does not use the instance.
    Unselected,
    /// It is its turn to be dialled.
    Turn(Ticket),
    /// An attempt has led to a connection.
    Connected(Ticket, Established<T>),
    /// An attempt has failed.
    ConnectFailed(Ticket, Arc<str>),
    /// The back-off is over.
    BackoffOver(Ticket),
    /// The connection takes no more calls.
    Ended(Ticket, End),
    /// The server reported its health.
    #[cfg(feature = "health")]
    Health(Ticket, HealthVerdict),
    /// A missed deadline is the first of a row in this tally, when the others had done that.
    Suspected { tally: Arc<Tally>, others: Compared },
    /// The calls of this tally failed in a row, or one on probation failed.
    Failing { tally: Arc<Tally>, may_eject: bool, others: Compared },
    /// The first response on probation has begun.
    Proved(Arc<Tally>),
    /// Another instance fails, and may not be ejected: one on probation comes in.
    Admitted,
    /// The instance fails more often than the others, as this method found.
    Outlier(DetectionMethod),
    /// The time of an ejection is over, unless it was ended or renewed meanwhile.
    EjectionOver { others: Compared },
    /// The time of a probation is over, unless it was ended meanwhile.
    ProbationOver,
}

/// What the balancer has to do after an input.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// A turn to be dialled is wanted.
    pub(crate) queue: Option<Wish>,
    /// An attempt is to begin now.
    pub(crate) dial: Option<Wish>,
    /// An input is due then.
    pub(crate) wake: Option<(Instant, Wake)>,
    pub(crate) publish: Publish,
    /// Whether it fails and may not be ejected: [`Input::Admitted`] is to follow for the others.
    pub(crate) admits: bool,
    /// Whether the calls of its tally fail: [`Input::Failing`] is to follow.
    pub(crate) failing: bool,
    /// Whether to ask the server behind the connection for a sign of life.
    pub(crate) suspect: bool,
    /// The newest reason why an instance is not READY, for calls that find none.
    pub(crate) failure: Option<Arc<str>>,
}

/// A wish to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) ticket: Ticket,
    pub(crate) turn: Turn,
    /// How long the wait after a failure would be at most, which grows with failures in a row.
    pub(crate) back_off: Duration,
}

/// Which wishes to connect go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The address is new, or its last connection was a good one.
    First,
    /// The address failed.
    Retry,
}

/// What a subchannel is woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// [`Input::BackoffOver`]
    Backoff(Ticket),
    /// [`Input::EjectionOver`]
    Ejection,
    /// [`Input::ProbationOver`]
    Probation,
}

/// What has to be published anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Publish {
    #[default]
    Nothing,
    /// The view of the instance, and why there is no ready set if there is none.
    Status,
    /// The ready set.
    ReadySet,
}

/// How long an instance that failed must stand, unless it answers a call, before it needs no replacement, and how long
/// a connection that ends as planned must have stood to be wanted back at once: several times longer than a server
/// takes that accepts and then ends.
pub(super) const SETTLED: Duration = Duration::from_secs(1);

/// The first wait after a failure to connect, and the longest: gRPC waits 1 s to 120 s, made for the internet; in a
/// data centre a restarted server is wanted back at once, and a dead one is tried often enough every 10 s. A
/// connection that stood for as long as the longest was a good one.
pub(super) const FIRST_BACKOFF: Duration = Duration::from_millis(100);
pub(super) const MAX_BACKOFF: Duration = Duration::from_secs(10);
