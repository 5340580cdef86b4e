//! Turns to be dialled become attempts, attempts become transports, and each transport a connection that is driven to
//! its end.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::error::Error;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::Instrument;

#[cfg(feature = "health")]
use super::health::HealthWatch;
use crate::channel::picks::PickQueue;
use crate::channel::policy::load::Load;
use crate::channel::subchannel::{Established, FeedbackEvent, Ticket};
use crate::channel::transport::{
    self, Connection, ConnectionDriver, ConnectionObserver, Ended, Transport, TransportConfig,
};
use crate::error::chain;
use crate::instance::Address;

/// How instances are dialled, and how their connections are kept.
#[derive(Clone)]
pub(crate) struct ConnectConfig {
    pub(crate) transport: Arc<TransportConfig>,
    /// How long the streams of a removed instance may go on.
    pub(crate) drain_limit: Duration,
    /// Whether the policy uses peaks of latency.
    pub(crate) measures_peaks: bool,
    /// The service whose health the instances are asked for.
    #[cfg(feature = "health")]
    pub(crate) health: Option<Arc<str>>,
}

/// Turns and attempts, [`ATTEMPTS_AT_ONCE`] at once at most.
pub(super) struct Dialer {
    config: Arc<TransportConfig>,
    turns: VecDeque<(Address, Ticket)>,
    attempts: JoinSet<Attempt>,
}

/// The end of one attempt to connect.
pub(super) struct Attempt {
    pub(super) address: Address,
    pub(super) ticket: Ticket,
    pub(super) result: Result<Connection, Arc<str>>,
}

impl Dialer {
    pub(super) fn new(config: Arc<TransportConfig>) -> Self {
        Self { config, turns: VecDeque::new(), attempts: JoinSet::new() }
    }

    /// Puts an instance at the end of the queue.
    pub(super) fn queue(&mut self, address: Address, ticket: Ticket) {
        self.turns.push_back((address, ticket));
    }

    /// The next turn, if there is room for an attempt.
    pub(super) fn next_turn(&mut self) -> Option<(Address, Ticket)> {
        if self.attempts.len() < ATTEMPTS_AT_ONCE { self.turns.pop_front() } else { None }
    }

    /// Begins an attempt.
    pub(super) fn dial(&mut self, address: Address, ticket: Ticket) {
        let config = self.config.clone();
        let span = tracing::debug_span!(parent: None, "connect", %address);
        let attempt = async move {
            // A connector is the user's code and may panic: that is the failure of this attempt alone.
            let connected = AssertUnwindSafe(transport::connect(&config, &address)).catch_unwind().await;
            let result = match connected {
                Ok(connected) => connected.map_err(|error| chain(&error).into()),
                Err(_) => Err(format!("{address}: the connector panicked").into()),
            };
            Attempt { address, ticket, result }
        };
        self.attempts.spawn(attempt.instrument(span));
    }

    /// Waits for the end of an attempt; `None` where none is under way.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: an end that was not returned is returned by the next call.
    pub(super) async fn next(&mut self) -> Option<Attempt> {
        // Attempts neither panic nor are they aborted.
        self.attempts.join_next().await?.ok()
    }

    /// The end of an attempt that has ended by now.
    pub(super) fn try_next(&mut self) -> Option<Attempt> {
        self.attempts.try_join_next()?.ok()
    }
}

/// Has a new connection driven, and its server's health watched.
pub(super) fn establish(
    (address, ticket): (&Address, Ticket),
    connection: Connection,
    config: &ConnectConfig,
    queue: &Arc<PickQueue>,
    events: &mpsc::UnboundedSender<FeedbackEvent>,
) -> Established<Transport> {
    let Connection { transport, max_streams, driver } = connection;
    let health = watch_health((address, ticket), &transport, max_streams, config, events);
    let reserved = u32::from(health.is_some());
    let load = Arc::new(Load::new(max_streams - reserved).measuring_peaks(config.measures_peaks));
    let (retire, retired) = oneshot::channel();
    let end = Arc::new(End {
        address: address.clone(),
        ticket,
        load: load.clone(),
        events: events.clone(),
        is_reported: AtomicBool::new(false),
    });
    let observer = Observer { end, queue: queue.clone(), reserved };
    let span = tracing::debug_span!(parent: None, "connection", %address);
    tokio::spawn(drive(driver, observer, retired, config.drain_limit).instrument(span));
    Established { transport, load, retire, health }
}

/// Watches the health of the server behind a connection, unless that allows a single stream.
#[cfg(feature = "health")]
fn watch_health(
    (address, ticket): (&Address, Ticket),
    transport: &Transport,
    max_streams: u32,
    config: &ConnectConfig,
    events: &mpsc::UnboundedSender<FeedbackEvent>,
) -> Option<oneshot::Sender<Infallible>> {
    let service = config.health.clone().filter(|_| max_streams > 1)?;
    let limit = config.transport.connect_timeout;
    Some(HealthWatch::new(service, transport.clone(), (address.clone(), ticket), events.clone(), limit).spawn())
}

#[cfg(not(feature = "health"))]
fn watch_health(
    _: (&Address, Ticket),
    _: &Transport,
    _: u32,
    _: &ConnectConfig,
    _: &mpsc::UnboundedSender<FeedbackEvent>,
) -> Option<oneshot::Sender<Infallible>> {
    None
}

/// Lives as long as the connection: until its last call ended and it can be picked no more, or until the peer or the
/// limit of a removed instance ends it.
async fn drive(driver: ConnectionDriver, observer: Observer, retired: oneshot::Receiver<()>, limit: Duration) {
    let end = CloseOnDrop(observer.end.clone());
    let abort = driver.abort_handle();
    let limit_passed = async {
        match retired.await {
            Ok(()) => tokio::time::sleep(limit).await,
            // The channel itself is gone, and the streams that are left belong to their callers.
            Err(_) => std::future::pending().await,
        }
    };
    let mut running = std::pin::pin!(driver.run(observer));
    let ended = tokio::select! {
        ended = &mut running => ended,
        () = limit_passed => {
            tracing::debug!("streams of a removed instance are cut at their limit");
            abort.abort();
            running.await
        }
    };
    end.0.report(&ended);
}

/// How the end of a connection is reported: once, when it takes no more calls.
struct End {
    address: Address,
    ticket: Ticket,
    load: Arc<Load>,
    events: mpsc::UnboundedSender<FeedbackEvent>,
    is_reported: AtomicBool,
}

impl End {
    /// Lets no more calls in, from this moment on, and tells the balancer.
    fn report(&self, cause: &(dyn Error + 'static)) {
        self.load.quota().close();
        if !self.is_reported.swap(true, Ordering::Relaxed) {
            let cause = format!("{}: {}", self.address, chain(cause)).into();
            // Without a balancer the channel is gone.
            let _ =
                self.events.send(FeedbackEvent::Ended { address: self.address.clone(), ticket: self.ticket, cause });
        }
    }
}

/// However the task of a connection ends, no call may be let in after that.
struct CloseOnDrop(Arc<End>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.report(&TaskEnded);
    }
}

/// The runtime of a connection's task ended, or the task panicked.
#[derive(Debug, thiserror::Error)]
#[error("the task of the connection ended")]
struct TaskEnded;

struct Observer {
    end: Arc<End>,
    queue: Arc<PickQueue>,
    /// The peer's streams that are not for calls: one, where health is watched.
    reserved: u32,
}

impl ConnectionObserver for Observer {
    fn on_stream_limit(&self, limit: u32) {
        self.end.load.quota().set_limit(limit.saturating_sub(self.reserved));
        self.queue.serve();
    }

    fn on_going_away(&self, cause: &Ended) {
        self.end.report(cause);
    }

    fn on_stalled(&self, is_stalled: bool) {
        self.end.load.quota().set_stalled(is_stalled);
        if !is_stalled {
            self.queue.serve();
        }
    }

    fn open_calls(&self) -> u32 {
        self.end.load.in_flight()
    }
}

/// Attempts to connect at once: a set of thousands is connected within seconds without flooding a network or a kernel.
const ATTEMPTS_AT_ONCE: usize = 32;
