//! The connectivity of an instance and of the channel, as people and programs see it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::instance::Instance;
use crate::snapshot::{Member, MemberState};

/// gRPC's connectivity states, of a channel or of its connection to one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Connectivity {
    /// Nothing is tried: the instance left the list unannounced or drains, and its connection ended; it is ejected and
    /// has lost its connection; or the channel's subset uses others.
    Idle,
    /// The first attempt, or the first after a connection that had answered or after an ejection, is under way or waits
    /// for its turn.
    #[default]
    Connecting,
    /// Calls can be sent. For an instance: its connection stands and the server's SETTINGS came.
    Ready,
    /// The last attempt failed; it is tried again in the background. Calls fail at once.
    TransientFailure,
    /// The channel has ended with the runtime that built it, and connects to nothing any more: all calls fail, also
    /// those that [wait for ready](crate::channel::WaitForReady). No instance is ever in this state.
    Shutdown,
}

/// As gRPC writes it: `TRANSIENT_FAILURE` for example.
impl fmt::Display for Connectivity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Idle => "IDLE",
            Self::Connecting => "CONNECTING",
            Self::Ready => "READY",
            Self::TransientFailure => "TRANSIENT_FAILURE",
            Self::Shutdown => "SHUTDOWN",
        })
    }
}

/// Where one instance of a [`BalancedChannel`](crate::BalancedChannel) stood at one moment.
#[derive(Debug, Clone)]
pub struct InstanceStatus {
    pub(super) instance: Arc<Instance>,
    pub(super) connectivity: Connectivity,
    pub(super) in_flight: u32,
    pub(super) latency: Option<Duration>,
    pub(super) is_ejected: bool,
    pub(super) is_draining: bool,
    pub(super) failure: Option<Arc<str>>,
}

impl InstanceStatus {
    /// Of an instance that the channel's subset has not used so far.
    pub(crate) fn unused(member: &Member) -> Self {
        Self {
            instance: member.shared_instance().clone(),
            connectivity: Connectivity::Idle,
            in_flight: 0,
            latency: None,
            is_ejected: false,
            is_draining: member.state() == MemberState::Draining,
            failure: None,
        }
    }

    /// The instance as it is registered.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Where the connection to it stands.
    #[must_use]
    pub fn state(&self) -> Connectivity {
        self.connectivity
    }

    /// The calls on its present connection, from the pick until the end of the response's body.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The moving average of the time from the pick to the head of the response; `None` before the first.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        self.latency
    }

    /// Whether it is left out because its calls failed.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.is_ejected
    }

    /// Whether it announced that it leaves.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// Why it is not READY: the error of the last attempt, or of the connection that was lost.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connectivity_reads_as_grpc_writes_it() {
        assert_eq!(format!("{:<18}|", Connectivity::TransientFailure), "TRANSIENT_FAILURE |");
        let others = [Connectivity::Idle, Connectivity::Connecting, Connectivity::Ready, Connectivity::Shutdown];
        assert_eq!(others.map(|state| state.to_string()), ["IDLE", "CONNECTING", "READY", "SHUTDOWN"]);
    }
}
