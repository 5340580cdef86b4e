//! What a balanced channel counts and measures: calls and their attempts, picks, instances and their connections.
//!
//! Names, units and labels are gRPC's own where its proposals A66, A91, A94 and A96 define them. Without the feature
//! every type here has no size, and every call of one is gone in the binary.
//!
//! # Layout
//!
//! | file | |
//! | --- | --- |
//! | `constants` | the metrics |
//! | `on` | the metrics of a channel, its instances and its connections |
//! | `calls` | the metrics of a call, and the handles of its method |
//! | `off` | the same without the feature |

#[cfg(feature = "metrics")]
mod calls;
#[cfg(feature = "metrics")]
mod constants;
#[cfg(not(feature = "metrics"))]
mod off;
#[cfg(feature = "metrics")]
mod on;

#[cfg(feature = "metrics")]
pub(crate) use self::calls::CallMetrics;
#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::{CallMetrics, ChannelMetrics, ConnectionFigure, InstanceFigure, UnusedFigure};
#[cfg(feature = "metrics")]
pub(crate) use self::on::{ChannelMetrics, ConnectionFigure, InstanceFigure, UnusedFigure};

/// Where an instance stands: each is in one of these, so that they add up to all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InstanceState {
    /// It takes calls.
    Ready,
    /// An attempt to connect is under way, or waits for its turn.
    Connecting,
    /// The last attempt failed, or its server says that it does not serve.
    TransientFailure,
    /// Nothing is tried.
    Idle,
    /// It left the list unannounced, and takes calls for as long as its connection stands.
    Suspect,
    /// It announced its leave.
    Draining,
    /// It is left out because its calls failed.
    Ejected,
    /// The channel's subset uses others.
    Unused,
}
