//! Calls go in, and each goes to one of the instances of a service: the balanced channel. It knows instances, not the
//! registry that they come from.

// A room imports only from rooms below it.
//
// | floor | room | what flows through it |
// | --- | --- | --- |
// | 9 | `builder` | options -> a running channel |
// | 8 | this file | a request -> a response |
// | 7 | `changes` | ready sets -> what people watch |
// | 7 | `call` | one request -> attempts -> one response; knows no balancer |
// | 7 | `balancer` | snapshots and feedback -> ready sets; knows no call |
// | 6 | `picks` | where both meet: the published ready set, a pick for each call, the wait queue |
// | 5 | `subchannel` | one instance: its state machine, its connection, its feedback |
// | 5 | `service_config` | JSON -> policies, retries, options of methods |
// | 4 | `policy` | candidates -> an index |
// | 4 | `outlier` | outcomes -> ejections |
// | 4 | `config` | options of calls |
// | 4 | `transport` | an address -> an HTTP/2 connection -> its end; names h2 alone |
// | 3 | `deadline`, `error`, `sync` | timeouts; why calls fail; primitives that loom replaces |

mod balancer;
mod builder;
mod call;
mod changes;
pub(crate) mod config;
mod deadline;
mod error;
pub(crate) mod outlier;
pub(crate) mod picks;
pub(crate) mod policy;
mod service_config;
mod subchannel;
mod sync;
mod transport;

#[cfg(test)]
mod tests;

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

use self::deadline::{Deadline, within};
use self::picks::Handle;

pub(crate) use self::balancer::Listing;
pub use self::builder::ChannelBuilder;
pub use self::call::{ResponseBody, ResponseFuture, WaitForReady};
pub use self::changes::InstanceChanges;
pub use self::error::{CallPhase, ChannelClosed, ChannelError, NotReady};
pub use self::service_config::{ServiceConfig, ServiceConfigError};
pub use self::subchannel::{Connectivity, InstanceStatus};

/// A gRPC channel that balances over the instances of a service, for any generated client.
///
/// It holds a connection to every instance, or to a [subset](ChannelBuilder::subset) of them, and sends each call to
/// one that is READY, picked by a [`Policy`](crate::policy::Policy). Clones are cheap and share everything; the channel
/// closes when the last is dropped, and its connections with the last of their calls.
///
/// - **Instances that come and go** are followed at once, also while the channel is idle. One that announced its leave
///   gets calls only while nothing else is READY. Streams to a removed one may finish, within a
///   [limit](ChannelBuilder::removed_stream_limit).
/// - **An instance that does not answer** is not chosen: one that refuses connections or never completes the HTTP/2
///   handshake was never READY, a connection that breaks or says GOAWAY is left at once, and three failures in a row
///   [eject](crate::outlier::OutlierDetection) an instance that still takes calls.
/// - **A call that provably reached no handler** goes to another instance, with its body if that is at most 64 KiB.
///   Any other failure is the caller's to judge.
/// - **Without any READY instance** calls wait while a first attempt is under way, and fail with UNAVAILABLE at once
///   when the set is empty or every instance failed, unless they [wait for ready](WaitForReady).
/// - **Deadlines** ([`tonic::Request::set_timeout`], or the channel's [default](ChannelBuilder::timeout)) count from
///   the call until the end of the response, waiting and connecting included. A missed one is `DEADLINE_EXCEEDED`.
/// - **Why a call failed** is typed where the channel decided it: [`ChannelError::of`]. A status that a server sent is
///   passed on as it is.
/// - **Dropping** a call or its response cancels it at the server at once.
/// - **The chosen instance** is in the response's extensions, as an `Arc<Instance>`.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = tonic_etcd::Registry::builder(["http://127.0.0.1:2379"]).build()?;
/// let channel = registry.channel("echo").build()?;
/// // let mut client = EchoClient::new(channel.clone());
/// channel.ready().await?;
/// for status in channel.instances() {
///     println!("{} is {}", status.instance().address(), status.state());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a channel closes when its last clone is dropped"]
pub struct BalancedChannel {
    handle: Arc<Handle>,
}

impl BalancedChannel {
    fn new(handle: Handle) -> Self {
        Self { handle: Arc::new(handle) }
    }

    /// The channel's connectivity: READY while there is an instance to send calls to.
    #[must_use]
    pub fn state(&self) -> Connectivity {
        self.handle.queue.connectivity()
    }

    /// Waits until a call could be sent, for however long that takes; [`ready_within`](Self::ready_within) has a limit.
    ///
    /// # Errors
    ///
    /// The channel has ended with the runtime that built it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only looks.
    pub async fn ready(&self) -> Result<(), ChannelClosed> {
        let mut changed = self.handle.changed.clone();
        loop {
            changed.mark_unchanged();
            match self.state() {
                Connectivity::Ready => return Ok(()),
                Connectivity::Shutdown => break,
                _ if changed.changed().await.is_err() => break,
                _ => {}
            }
        }
        Err(ChannelClosed::new(self.handle.queue.label()))
    }

    /// Waits until a call could be sent, for at most `limit`: for programs that want to fail at their start.
    ///
    /// # Errors
    ///
    /// What a call would fail with: no instance is registered, for example, or none can be reached, and why.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only looks.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = tonic_etcd::Registry::builder(["http://127.0.0.1:2379"]).build()?;
    /// let channel = registry.channel("echo").build()?;
    /// channel.ready_within(std::time::Duration::from_secs(10)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ready_within(&self, limit: Duration) -> Result<(), NotReady> {
        let Handle { queue, runtime, .. } = &*self.handle;
        let mut deadline = Deadline::new(Some(limit), None, Instant::now());
        match within(&mut deadline, runtime, pin!(self.ready())).await {
            Some(Ok(())) => Ok(()),
            // It may have become READY in the last moment, which no error's cause could explain.
            None if self.state() == Connectivity::Ready => Ok(()),
            Some(Err(_)) | None => Err(NotReady::new(queue.label(), limit, queue.state().cause.clone())),
        }
    }

    /// All instances as they are now, ordered by address: state, calls in flight, latency, ejection.
    #[must_use]
    pub fn instances(&self) -> Vec<InstanceStatus> {
        self.handle.queue.instances()
    }

    /// All instances each time that something about them changes.
    pub fn instance_changes(&self) -> InstanceChanges {
        InstanceChanges::new(self.handle.queue.clone(), self.handle.changed.clone())
    }
}

impl tower::Service<http::Request<Body>> for BalancedChannel {
    type Response = http::Response<ResponseBody>;
    type Error = Status;
    type Future = ResponseFuture;

    /// Always ready: a call waits for its pick by itself, under its own deadline.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> ResponseFuture {
        ResponseFuture::new(self.handle.clone(), request)
    }
}

impl fmt::Debug for BalancedChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = self.handle.queue.label();
        f.debug_struct("BalancedChannel").field("service", &label).field("state", &self.state()).finish_non_exhaustive()
    }
}
