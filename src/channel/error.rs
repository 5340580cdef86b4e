//! Why the channel itself fails a call, or is not ready: a type behind each status that no server sent.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tonic::{Code, Status};

use crate::instance::Address;

/// Why a channel failed a call by itself: the cause of each [`Status`] that no server sent.
///
/// A status that a server sent has none, whatever its code; nor has one that the caller's own request stream failed
/// with. `Display` is in words what the status says, without the name of the service.
///
/// ```
/// use tonic_etcd::ChannelError;
///
/// fn is_worth_a_page(status: &tonic::Status) -> bool {
///     matches!(ChannelError::of(status), Some(ChannelError::NoInstances { .. } | ChannelError::NoneReachable { .. }))
/// }
///
/// assert!(!is_worth_a_page(&tonic::Status::unavailable("the server sent this")));
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChannelError {
    /// The list has no instance, or none that clients may be sent to. UNAVAILABLE. Trying again helps once one is
    /// registered; [`wait_for_ready`](crate::ChannelBuilder::wait_for_ready) waits for that.
    #[non_exhaustive]
    NoInstances {
        /// Where none was found, and what may keep instances from being known.
        reason: String,
    },

    /// No instance can be reached: each refused, broke off, does not serve, or was ejected and has no connection.
    /// UNAVAILABLE. Trying again helps once one can be; the channel goes on trying.
    #[non_exhaustive]
    NoneReachable {
        /// The address of the last one that failed and how it did; `None` where none failed of late.
        last: Option<String>,
    },

    /// There is no list of instances, since the registry does not answer. UNAVAILABLE, after 5 s. From half a second on
    /// it is also the cause of a [`DeadlinePassed`](Self::DeadlinePassed) and of a [`NotReady`]. Trying again helps
    /// once it does.
    #[non_exhaustive]
    ListOverdue {
        /// For how long there is none, and why the registry does not answer, as far as is known.
        reason: String,
    },

    /// As many calls wait for an instance as [`max_waiting`](crate::ChannelBuilder::max_waiting) allows.
    /// `RESOURCE_EXHAUSTED`. The call was not sent. Trying again helps once servers keep up.
    #[non_exhaustive]
    TooManyWaiting {
        /// How many may wait.
        limit: usize,
    },

    /// The deadline of the call passed. `DEADLINE_EXCEEDED`. The call may have been handled, unless it was
    /// [never sent](CallPhase::Picking). Trying again helps with more time, or another instance.
    #[non_exhaustive]
    DeadlinePassed {
        /// What the call waited for.
        phase: CallPhase,
        /// The instance that it was with, while retrying the last one that may have handled it; `None` while picking.
        address: Option<Address>,
        /// Why there was no instance, while picking or retrying, if that is known. `Display` has it, so `source()` has
        /// not.
        cause: Option<Arc<ChannelError>>,
    },

    /// One attempt took longer than [`attempt_timeout`](crate::retry::RetryPolicy::attempt_timeout), and there was no
    /// other. `DEADLINE_EXCEEDED`. The call may have been handled.
    #[non_exhaustive]
    AttemptTimedOut {
        /// The instance.
        address: Address,
    },

    /// The connection broke under the call, or closed before the call was sent and every repetition met the same.
    /// UNAVAILABLE. The call may have been handled. Trying again helps: the channel picks another instance.
    #[non_exhaustive]
    ConnectionBroken {
        /// The instance.
        address: Address,
        /// The error of the connection.
        reason: String,
    },

    /// The server refused the call as one too many, and it could not be made again or was refused again. UNAVAILABLE.
    /// The attempt was not handled; with a retry policy, one before it may have been. Trying again helps once there is
    /// less load.
    #[non_exhaustive]
    Refused {
        /// The instance.
        address: Address,
        /// The error of the call's stream.
        reason: String,
    },

    /// The call's stream was reset: by the server, or since the server broke HTTP/2's rules. The code is that of gRPC's
    /// table: CANCELLED, INTERNAL, `RESOURCE_EXHAUSTED` or `PERMISSION_DENIED`. The call may have been handled, and
    /// trying again may help.
    #[non_exhaustive]
    StreamReset {
        /// The instance.
        address: Address,
        /// The error of the stream.
        reason: String,
    },

    /// The headers or trailers of the response are longer than
    /// [`http2_max_header_list_size`](crate::ChannelBuilder::http2_max_header_list_size). INTERNAL. The call was
    /// handled. Trying again never helps; a higher limit does.
    #[non_exhaustive]
    HeadersTooLong {
        /// The instance.
        address: Address,
        /// Their size, and the limit.
        reason: String,
    },

    /// A message is longer than the service config allows: `maxRequestMessageBytes`, and it was not sent, or
    /// `maxResponseMessageBytes`. `RESOURCE_EXHAUSTED`. Trying again with the same request never helps.
    #[non_exhaustive]
    MessageTooLong {
        /// The instance that a message of the response came from; `None` for one of the request.
        address: Option<Address>,
        /// Its size, and the limit.
        reason: String,
    },

    /// The answer is no gRPC: a proxy's or a web server's page, or a response without a status. The code is that of
    /// gRPC's table of HTTP statuses: UNAVAILABLE, UNIMPLEMENTED, UNKNOWN and others. Trying again helps if the proxy
    /// was restarting.
    #[non_exhaustive]
    NotGrpc {
        /// The instance, or what answers at its address.
        address: Address,
        /// What is wrong with the answer.
        reason: String,
    },

    /// The request cannot be sent: its path is no path, a message is larger than HTTP/2 can carry, or its stream
    /// panicked. INTERNAL or `OUT_OF_RANGE`. Trying again with the same request never helps.
    #[non_exhaustive]
    BadRequest {
        /// What is wrong with it.
        reason: String,
    },

    /// The policy panicked over the request. INTERNAL. The call was not sent. Trying again never helps.
    #[non_exhaustive]
    PolicyPanicked,

    /// The channel ended with the runtime that it was built on. UNAVAILABLE. Trying again never helps: build another
    /// one.
    #[non_exhaustive]
    Closed,
}

/// What a call waited for when its deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallPhase {
    /// An instance that can take the call. It was not sent, or provably reached no handler.
    Picking,
    /// An instance that can take the call again, under a retry policy. An attempt before may have been handled.
    Retrying,
    /// The beginning of the response.
    Attempting,
    /// The rest of the response.
    Responding,
}

impl ChannelError {
    /// The cause of a status that a channel made, also where layers wrapped it in errors of their own. `None` for one
    /// that a server sent.
    #[must_use]
    pub fn of(status: &Status) -> Option<&Self> {
        let mut source = status.source();
        while let Some(error) = source {
            if let Some(cause) = error.downcast_ref::<Self>() {
                return Some(cause);
            }
            source = error.source();
        }
        None
    }

    /// The instance that it is about, if it is about one.
    #[must_use]
    pub fn address(&self) -> Option<&Address> {
        match self {
            Self::DeadlinePassed { address, .. } | Self::MessageTooLong { address, .. } => address.as_ref(),
            Self::AttemptTimedOut { address }
            | Self::ConnectionBroken { address, .. }
            | Self::Refused { address, .. }
            | Self::StreamReset { address, .. }
            | Self::HeadersTooLong { address, .. }
            | Self::NotGrpc { address, .. } => Some(address),
            Self::NoInstances { .. }
            | Self::NoneReachable { .. }
            | Self::ListOverdue { .. }
            | Self::TooManyWaiting { .. }
            | Self::BadRequest { .. }
            | Self::PolicyPanicked
            | Self::Closed => None,
        }
    }

    /// The status of a call that ends with it.
    pub(crate) fn into_status(self, code: Code) -> Status {
        let message = self.to_string();
        status(code, message, Arc::new(self))
    }

    /// The status of a call to `service` that ends with it.
    pub(crate) fn status_of(self: &Arc<Self>, code: Code, service: &str) -> Status {
        status(code, format!("{service}: {self}"), self.clone())
    }

    /// The status of a call to `service` whose deadline passed while it waited for an instance, for that cause, after
    /// the `earlier` one may have handled it.
    pub(crate) fn deadline_passed_picking(
        service: &str,
        earlier: Option<&Address>,
        cause: Option<Arc<Self>>,
    ) -> Status {
        let because = cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
        let after = earlier.map(|address| format!(" again after {address}")).unwrap_or_default();
        let message = format!("{DEADLINE_PASSED} an instance of {service} that can take the call{after}{because}");
        let phase = if earlier.is_some() { CallPhase::Retrying } else { CallPhase::Picking };
        let passed = Self::DeadlinePassed { phase, address: earlier.cloned(), cause };
        status(Code::DeadlineExceeded, message, Arc::new(passed))
    }

    /// The status of a call whose deadline passed while an instance had it.
    pub(crate) fn deadline_passed_at(phase: CallPhase, address: &Address) -> Status {
        Self::DeadlinePassed { phase, address: Some(address.clone()), cause: None }.into_status(Code::DeadlineExceeded)
    }
}

/// The channel ended with the runtime that it was built on.
///
/// Trying again never helps: build another channel.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{service}: {}", ChannelError::Closed)]
pub struct ChannelClosed {
    service: Arc<str>,
}

impl ChannelClosed {
    pub(super) fn new(service: &str) -> Self {
        Self { service: service.into() }
    }
}

/// A channel could send no call within the time that it was given.
///
/// Trying again helps as the [cause](Self::cause) says. `Debug` shows what `Display` does: it is what a `main` prints
/// that returns an error.
#[derive(Clone, PartialEq, Eq, Error)]
#[error("{service}: not ready within {limit:?}: {}", so_far(.cause.as_deref()))]
pub struct NotReady {
    service: Arc<str>,
    limit: Duration,
    cause: Option<Arc<ChannelError>>,
}

impl NotReady {
    pub(super) fn new(service: &str, limit: Duration, cause: Option<Arc<ChannelError>>) -> Self {
        Self { service: service.into(), limit, cause }
    }

    /// What a call would have failed with; `None` while the first attempts to connect are under way.
    #[must_use]
    pub fn cause(&self) -> Option<&ChannelError> {
        self.cause.as_deref()
    }
}

impl fmt::Debug for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn so_far(cause: Option<&ChannelError>) -> String {
    cause.map_or_else(|| "it still connects".to_owned(), ToString::to_string)
}

fn status(code: Code, message: String, cause: Arc<ChannelError>) -> Status {
    let mut status = Status::new(code, message);
    status.set_source(cause);
    status
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoInstances { reason } | Self::ListOverdue { reason } | Self::BadRequest { reason } => {
                f.write_str(reason)
            }
            Self::NoneReachable { last: Some(last) } => {
                write!(f, "no instance can be reached; the last one tried was {last}")
            }
            Self::NoneReachable { last: None } => f.write_str("no instance can be reached: all are ejected"),
            Self::TooManyWaiting { limit } => write!(f, "{limit} calls wait already"),
            Self::DeadlinePassed { phase, address, cause } => {
                f.write_str(DEADLINE_PASSED)?;
                match (phase, address) {
                    (CallPhase::Attempting, Some(address)) => write!(f, " {address} to answer"),
                    (CallPhase::Responding, Some(address)) => write!(f, " the rest of the answer of {address}"),
                    (CallPhase::Retrying, Some(address)) => {
                        write!(f, " an instance that can take the call again after {address}")
                    }
                    _ => f.write_str(" an instance that can take the call"),
                }?;
                cause.as_ref().map_or(Ok(()), |cause| write!(f, ": {cause}"))
            }
            Self::AttemptTimedOut { address } => write!(f, "{DEADLINE_PASSED} {address} to answer one attempt"),
            Self::ConnectionBroken { address, reason }
            | Self::Refused { address, reason }
            | Self::StreamReset { address, reason }
            | Self::HeadersTooLong { address, reason }
            | Self::MessageTooLong { address: Some(address), reason }
            | Self::NotGrpc { address, reason } => write!(f, "{address}: {reason}"),
            Self::MessageTooLong { address: None, reason } => f.write_str(reason),
            Self::PolicyPanicked => f.write_str("the policy panicked"),
            Self::Closed => f.write_str("the channel has ended, as the runtime that it was built on did"),
        }
    }
}

/// Short, and without what `Display` says: tonic shows it behind the message of a status.
impl fmt::Debug for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::NoInstances { .. } => "NoInstances",
            Self::NoneReachable { .. } => "NoneReachable",
            Self::ListOverdue { .. } => "ListOverdue",
            Self::TooManyWaiting { .. } => "TooManyWaiting",
            Self::DeadlinePassed { phase, .. } => return write!(f, "DeadlinePassed({phase:?})"),
            Self::AttemptTimedOut { .. } => "AttemptTimedOut",
            Self::ConnectionBroken { .. } => "ConnectionBroken",
            Self::Refused { .. } => "Refused",
            Self::StreamReset { .. } => "StreamReset",
            Self::HeadersTooLong { .. } => "HeadersTooLong",
            Self::MessageTooLong { .. } => "MessageTooLong",
            Self::NotGrpc { .. } => "NotGrpc",
            Self::BadRequest { .. } => "BadRequest",
            Self::PolicyPanicked => "PolicyPanicked",
            Self::Closed => "Closed",
        };
        f.write_str(name)
    }
}

/// None has a source: `Display` says what there is to say, so that a printed chain of errors has it once.
impl StdError for ChannelError {}

/// What all messages of passed deadlines begin with.
const DEADLINE_PASSED: &str = "the deadline passed while waiting for";
