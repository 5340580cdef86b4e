//! A connection that came up: its load in the picker, and the task that drives it to its end.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::uri::{Authority, Scheme};
use tokio::sync::oneshot;
use tracing::Instrument;

#[cfg(feature = "health")]
use crate::channel::balancer::health::{Direct, Health, HealthWatch};
use crate::channel::picks::pick_queue::Shared;
use crate::channel::policy::candidate::Load;
use crate::channel::subchannel::Entry;
use crate::channel::subchannel::shared::Report;
use crate::channel::transport::connect::TransportConfig;
use crate::channel::transport::connection::{Connection, ConnectionDriver, Watcher};
use crate::channel::transport::socket::PeerState;
use crate::error::chain;

/// How instances are dialled, and what is said on their connections.
#[derive(Clone)]
pub(crate) struct Dial {
    pub(crate) options: Arc<TransportConfig>,
    /// What requests name instead of the instance's address.
    pub(crate) origin: Option<(Scheme, Authority)>,
    /// How long the streams of a removed instance may go on.
    pub(crate) drain_limit: Duration,
    /// Which service's health the instances are asked for.
    #[cfg(feature = "health")]
    pub(crate) health: Option<Arc<str>>,
}

/// What a connection is to the calls on it.
pub(crate) struct Link {
    pub(crate) send: SendRequest<Bytes>,
    pub(crate) peer: Arc<PeerState>,
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
    pub(crate) report: Report,
    /// The peer's `MAX_CONCURRENT_STREAMS`; its load allows less while the instance is on probation.
    pub(crate) peer_limit: AtomicU32,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// Gives a new connection its load, and its task.
///
/// # Errors
///
/// An address that cannot stand in a request.
pub(crate) fn load(
    entry: &mut Entry,
    connection: Connection,
    generation: u64,
    shared: &Arc<Shared>,
    dial: &Dial,
) -> Result<(), http::uri::InvalidUri> {
    let Connection { send, streams, driver, peer } = connection;
    let is_watched = dial.is_watched() && streams > 1;
    let streams = streams - u32::from(is_watched);
    let (scheme, authority) = match &dial.origin {
        Some(origin) => origin.clone(),
        None => (dial.options.scheme(), entry.address().to_string().parse()?),
    };
    let report = Report::new(entry.address().clone(), generation, entry.record.clone(), shared.events.clone());
    let link = Link { send, peer, scheme, authority, report, peer_limit: AtomicU32::new(streams) };
    let limit = if entry.ejection.is_on_probation() { streams.min(ON_PROBATION) } else { streams };
    let load = Load::new(limit, Some(Box::new(link)));
    if shared.settings.policy.measures_peaks() {
        load.measure_peaks();
    }
    let (retire, retired) = oneshot::channel();
    let watch = Watch { load: Arc::downgrade(&load), shared: shared.clone(), is_watched };
    let span = tracing::debug_span!("connection", address = %entry.address());
    tokio::spawn(drive(driver, watch, retired, dial.drain_limit).instrument(span));
    #[cfg(feature = "health")]
    let health = match (&dial.health, load.link()) {
        (Some(service), Some(link)) if is_watched => HealthWatch {
            service: service.clone(),
            connection: Direct {
                send: link.send.clone(),
                scheme: link.scheme.clone(),
                authority: link.authority.clone(),
            },
            address: entry.address().clone(),
            generation,
            events: shared.events.clone(),
            limit: dial.options.connect_timeout,
            told: None,
        }
        .spawn(),
        _ => Health::Unchecked,
    };
    entry.take_seat(
        load,
        generation,
        retire,
        #[cfg(feature = "health")]
        health,
    );
    Ok(())
}

impl Dial {
    /// Whether each connection has a stream that asks for its server's health. One that allows a single stream has none.
    #[cfg(feature = "health")]
    fn is_watched(&self) -> bool {
        self.health.is_some()
    }

    #[cfg(not(feature = "health"))]
    #[expect(clippy::unused_self, reason = "with the feature it depends on the options")]
    fn is_watched(&self) -> bool {
        false
    }
}

/// Calls at once to an instance on probation.
const ON_PROBATION: u32 = 1;

/// Lives as long as the connection: until its last call ended and nobody can choose it any more, or until the peer or the
/// limit of a removed instance ends it.
async fn drive(driver: ConnectionDriver, watch: Watch, retired: oneshot::Receiver<()>, limit: Duration) {
    let load = watch.load.clone();
    let _close = CloseOnDrop(load.clone());
    let abort_handle = driver.abort_handle();
    let over = async {
        // Without a word the channel itself is gone, and the streams that are left belong to their callers.
        match retired.await {
            Ok(()) => tokio::time::sleep(limit).await,
            Err(_) => std::future::pending().await,
        }
    };
    let mut running = std::pin::pin!(driver.run(watch));
    let ended = tokio::select! {
        ended = &mut running => ended,
        () = over => {
            tracing::debug!("streams of a removed instance are cut at their limit");
            abort_handle.cut();
            running.await
        }
    };
    close(&load, &chain(&ended));
}

/// Whatever ends the task that drives a connection, its load must not stay.
struct CloseOnDrop(Weak<Load>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        close(&self.0, "the task of the connection ended");
    }
}

/// What the connection tells while it lives.
struct Watch {
    load: Weak<Load>,
    shared: Arc<Shared>,
    /// Whether one of the peer's streams is taken by the question for its health.
    is_watched: bool,
}

impl Watcher for Watch {
    fn streams(&self, limit: u32) {
        let Some(load) = self.load.upgrade() else { return };
        let Some(link) = load.link() else { return };
        let limit = limit.saturating_sub(u32::from(self.is_watched));
        link.peer_limit.store(limit, Ordering::Relaxed);
        let on_probation = link.report.is_on_probation();
        load.set_limit(if on_probation { limit.min(ON_PROBATION) } else { limit });
        // Proved meanwhile: the control task may have opened the load just before it was narrowed.
        if on_probation && !link.report.is_on_probation() {
            load.set_limit(limit);
        }
        self.shared.serve();
    }

    fn going_away(&self, said: bool) {
        close(&self.load, if said { "the server is going away" } else { "the connection ended" });
    }

    fn calls(&self) -> u32 {
        self.load.upgrade().map_or(0, |load| load.in_flight())
    }
}

/// Takes no more calls, from this moment on, and says so to the control task.
fn close(load: &Weak<Load>, cause: &str) {
    let Some(load) = load.upgrade() else { return };
    load.close();
    if let Some(link) = load.link() {
        link.report.ended(format!("{}: {cause}", link.report.address()).into());
    }
}
