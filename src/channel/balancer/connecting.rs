//! A new transport becomes a connection that is driven to its end, and what its server says becomes feedback.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tracing::Instrument;

#[cfg(feature = "health")]
use super::health::HealthWatch;
use crate::channel::picks::PickQueue;
use crate::channel::policy::load::Load;
use crate::channel::subchannel::{self, EndKind, Established, FeedbackEvent, Ticket};
use crate::channel::transport::{
    Connection, ConnectionDriver, ConnectionObserver, Ended, SHUTDOWN, Transport, TransportConfig,
};
use crate::error::chain;
use crate::instance::Address;
use crate::metrics::channel::ConnectionFigure;
use crate::targets::CHANNEL;

/// How instances are dialled, and how their connections are kept.
#[derive(Clone)]
pub(crate) struct ConnectConfig {
    pub(crate) transport: Arc<TransportConfig>,
    /// How long the streams of a removed instance may go on, if there is a limit.
    pub(crate) removed_stream_limit: Option<Duration>,
    /// Whether the policy uses peaks of latency.
    pub(crate) measures_peaks: bool,
    /// The service whose health the instances are asked for.
    #[cfg(feature = "health")]
    pub(crate) health: Option<Arc<str>>,
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
    let crowded = Arc::<Notify>::default();
    let health = watch_health((address, ticket), &transport, max_streams, config, (events, &crowded));
    let reserved = u32::from(health.is_some());
    let load = Arc::new(Load::new(max_streams - reserved).measuring_peaks(config.measures_peaks));
    let (retire, retired) = oneshot::channel();
    let end = Arc::new(End {
        address: address.clone(),
        ticket,
        load: load.clone(),
        events: events.clone(),
        is_reported: AtomicBool::new(false),
        figure: queue.metrics().connection(),
    });
    let observer = Observer { end, queue: queue.clone(), reserved, crowded };
    let span = tracing::debug_span!(target: CHANNEL, parent: None, "connection", %address);
    tokio::spawn(drive(driver, observer, retired, config.removed_stream_limit).instrument(span));
    Established { transport, load, retire, health }
}

/// Watches the health of the server behind a connection, unless that allows a single stream.
#[cfg(feature = "health")]
fn watch_health(
    (address, ticket): (&Address, Ticket),
    transport: &Transport,
    max_streams: u32,
    config: &ConnectConfig,
    (events, crowded): (&mpsc::UnboundedSender<FeedbackEvent>, &Arc<Notify>),
) -> Option<oneshot::Sender<Infallible>> {
    let service = config.health.clone().filter(|_| max_streams > 1)?;
    let limit = config.transport.terms(Duration::ZERO).limit;
    Some(
        HealthWatch::new(service, transport.clone(), (address.clone(), ticket), events.clone(), limit)
            .spawn(crowded.clone()),
    )
}

#[cfg(not(feature = "health"))]
fn watch_health(
    _: (&Address, Ticket),
    _: &Transport,
    _: u32,
    _: &ConnectConfig,
    _: (&mpsc::UnboundedSender<FeedbackEvent>, &Arc<Notify>),
) -> Option<oneshot::Sender<Infallible>> {
    None
}

/// Lives as long as the connection: until its last call ended and it can be picked no more, or until the peer or the
/// limit of a removed instance ends it.
///
/// No async function: its arguments would have two places in the future, and the driver is most of what a connection
/// takes beside h2's buffers.
fn drive(
    driver: ConnectionDriver,
    observer: Observer,
    retired: oneshot::Receiver<()>,
    limit: Option<Duration>,
) -> impl Future<Output = ()> {
    let end = CloseOnDrop(observer.end.clone());
    let abort = driver.abort_handle();
    let mut running = driver.run(observer);
    async move {
        let limit_passed = async {
            match (retired.await, limit) {
                (Ok(()), Some(limit)) => tokio::time::sleep(limit).await,
                // There is no limit, or the channel itself is gone, and the streams that are left belong to their
                // callers.
                _ => std::future::pending().await,
            }
        };
        let (ended, open_calls) = tokio::select! {
            ended = &mut running => ended,
            () = limit_passed => {
                tracing::debug!(target: CHANNEL, "streams of a removed instance are cut at their limit");
                abort.abort();
                (&mut running).await
            }
        };
        end.0.report(kind_of(&ended, open_calls), &ended, ended.disconnect_error());
    }
}

/// What the end of a connection with so many open calls says about its server.
fn kind_of(ended: &Ended, open_calls: u32) -> EndKind {
    match ended {
        _ if ended.is_planned() || open_calls == 0 => EndKind::Planned,
        Ended::GoneAway(_) => EndKind::Refused,
        _ => EndKind::Broken,
    }
}

/// How the end of a connection is reported: once, when it takes no more calls.
struct End {
    address: Address,
    ticket: Ticket,
    load: Arc<Load>,
    events: mpsc::UnboundedSender<FeedbackEvent>,
    is_reported: AtomicBool,
    /// Counts the connection as open, until its task is over.
    figure: ConnectionFigure,
}

impl End {
    /// Lets no more calls in, from this moment on, and tells the balancer. `error` is the cause as metrics name it.
    fn report(&self, kind: EndKind, cause: &(dyn Error + 'static), error: &'static str) {
        self.load.quota().close();
        if !self.is_reported.swap(true, Ordering::Relaxed) {
            self.figure.on_disconnected(error);
            let end = subchannel::End { kind, cause: format!("{}: {}", self.address, chain(cause)).into() };
            // Without a balancer the channel is gone.
            let _ = self.events.send(FeedbackEvent::Ended { address: self.address.clone(), ticket: self.ticket, end });
        }
    }
}

/// However the task of a connection ends, no call may be let in after that.
struct CloseOnDrop(Arc<End>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.report(EndKind::Refused, &TaskEnded, SHUTDOWN);
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
    /// Ends the watch of health, where the peer leaves room for a single stream.
    crowded: Arc<Notify>,
}

impl ConnectionObserver for Observer {
    fn on_stream_limit(&self, limit: u32) {
        let is_crowded = limit == self.reserved && limit > 0;
        if is_crowded {
            self.crowded.notify_one();
        }
        let for_calls = if is_crowded { limit } else { limit.saturating_sub(self.reserved) };
        self.end.load.quota().set_limit(for_calls);
        self.queue.serve();
    }

    fn on_going_away(&self, cause: &Ended) {
        self.end.report(kind_of(cause, self.open_calls()), cause, cause.disconnect_error());
    }

    fn on_too_many_pings(&self) {
        // Without a balancer the channel is gone.
        let _ = self.end.events.send(FeedbackEvent::TooManyPings { address: self.end.address.clone() });
    }

    fn on_doubt(&self, is_doubted: bool) {
        self.end.load.set_doubted(is_doubted);
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

    fn awaited_calls(&self) -> u32 {
        self.end.load.awaited()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_s_task_is_little_more_than_its_driver() {
        fn size<F>(_: impl Fn(ConnectionDriver, Observer, oneshot::Receiver<()>, Option<Duration>) -> F) -> usize {
            size_of::<F>()
        }
        let (task, driver) = (size(drive), size_of::<ConnectionDriver>());
        assert!(task < driver + 512, "{task} bytes, of which the driver is {driver}");
    }
}
