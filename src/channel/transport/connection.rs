//! A connection from its server's SETTINGS to its end, and the reason for that.
//!
//! One task drives it: reads, writes, keepalive pings, and what the server says about all of it.

use std::future::poll_fn;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use thiserror::Error;

use super::exchange::Transport;
use super::pings::{Interest, Pings, Silent};
use super::socket::{PeerState, Socket};
use super::uplink::{Flow, Uplink};

/// A connection whose server has sent its SETTINGS.
pub(crate) struct Connection {
    pub(crate) transport: Transport,
    /// The peer's limit of open calls, `u32::MAX` without one.
    pub(crate) max_streams: u32,
    pub(crate) driver: ConnectionDriver,
}

/// Moves a connection on. Dropped, it closes the socket and ends the calls on it.
pub(crate) struct ConnectionDriver {
    h2: Box<h2::client::Connection<Socket, Bytes>>,
    pings: Pings,
    /// The limit of open calls that was reported last.
    reported: Option<u32>,
    peer: Arc<PeerState>,
    /// The bytes that had come by the last turn.
    read: usize,
    uplink: Uplink,
    /// What the socket did with the bytes of the last turn.
    flow: Flow,
}

/// Reacts to what a connection's server says about all of it, and knows the calls on it.
pub(crate) trait ConnectionObserver: Send + Sync + Unpin + 'static {
    /// The peer changed its limit of open calls.
    fn on_stream_limit(&self, limit: u32);

    /// The server said GOAWAY: the connection takes no new calls, and ends with those it has, for this reason. Called
    /// once at most, and never for a connection that ends unannounced.
    fn on_going_away(&self, cause: &Ended);

    /// The server said GOAWAY because it was pinged too often. Called once at most, and before
    /// [`on_going_away`](Self::on_going_away) where the whole frame came in one read.
    fn on_too_many_pings(&self);

    /// Whether the peer was asked for a sign of life and has given none yet.
    fn on_doubt(&self, is_doubted: bool);

    /// Whether calls wait for the socket, which stands still: more of them had better go elsewhere.
    fn on_stalled(&self, is_stalled: bool);

    /// The number of calls that are open on the connection.
    fn open_calls(&self) -> u32;

    /// Those of them whose response has not begun.
    fn awaited_calls(&self) -> u32;
}

impl ConnectionDriver {
    pub(super) fn new(h2: Box<h2::client::Connection<Socket, Bytes>>, pings: Pings, peer: Arc<PeerState>) -> Self {
        Self { h2, pings, reported: None, peer, read: 0, uplink: Uplink::default(), flow: Flow::Free }
    }

    /// A handle that closes the socket from outside.
    pub(crate) fn abort_handle(&self) -> AbortHandle {
        AbortHandle { peer: self.peer.clone() }
    }

    /// Drives the connection to its end, and returns why that was and how many calls were open on it then.
    ///
    /// It goes on after the last `SendRequest` was dropped, and after a GOAWAY, until the calls on it are done.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the socket and ends the calls on it.
    pub(crate) fn run<O: ConnectionObserver>(self, observer: O) -> Running<O> {
        let begun = self.peer.begun();
        Running { driver: self, observer, begun, has_gathered: false, told: Told::default() }
    }

    /// Drives the connection until the server's first SETTINGS.
    pub(super) async fn settings(&mut self) -> Result<u32, Ended> {
        poll_fn(|cx| {
            let ended = self.poll_end(false, cx);
            self.reported = self.peer.streams();
            match self.reported {
                Some(limit) => Poll::Ready(Ok(limit)),
                None => ended.map(Err),
            }
        })
        .await
    }

    fn poll_end(&mut self, has_calls: bool, cx: &mut Context<'_>) -> Poll<Ended> {
        self.peer.register(cx);
        if self.peer.is_aborted() {
            return Poll::Ready(Ended::Aborted);
        }
        if let Poll::Ready(result) = Pin::new(&mut self.h2).poll(cx) {
            return Poll::Ready(self.ended(result.err()));
        }
        self.flow = self.peer.flow(&mut self.uplink);
        if self.peer.is_at_end() {
            // The calls have been told. What h2 has still to write goes nowhere.
            return Poll::Ready(self.ended(None));
        }
        let way = self.uplink.way();
        let interest = match (self.peer.take_suspicion(), has_calls || self.peer.is_awaited() || way.is_blocked()) {
            (true, _) => Interest::Suspicion { has_calls },
            (false, true) => Interest::Waiting,
            (false, false) => Interest::Idle,
        };
        let traffic = self.peer.traffic(&mut self.read);
        match self.pings.poll(&mut self.h2, traffic, interest, way, cx) {
            Ok(()) => Poll::Pending,
            Err(Silent) => Poll::Ready(Ended::Silent),
        }
    }

    /// The first reason of all that show at the end of a connection.
    fn ended(&self, failure: Option<h2::Error>) -> Ended {
        match (failure, self.peer.goaway()) {
            (_, Some(reason)) => Ended::GoneAway(reason),
            _ if self.peer.is_at_end() => Ended::Closed,
            (Some(failure), None) => Ended::Broken(failure),
            (None, None) => Ended::Unused,
        }
    }
}

impl Drop for ConnectionDriver {
    fn drop(&mut self) {
        self.peer.open_gate();
    }
}

/// The future of [`ConnectionDriver::run`].
#[must_use = "futures do nothing unless polled"]
pub(crate) struct Running<O> {
    driver: ConnectionDriver,
    observer: O,
    /// The calls that were begun by the last poll.
    begun: u32,
    /// Whether this is the turn after one that was left to gather calls.
    has_gathered: bool,
    told: Told,
}

/// What an observer knows of its connection.
#[derive(Default)]
struct Told {
    stalled: Known,
    doubted: Known,
    going_away: Known,
    too_many_pings: Known,
}

/// Whether something is so, as it was told last.
#[derive(Default)]
struct Known(bool);

impl Known {
    fn changes_to(&mut self, now: bool) -> bool {
        now != mem::replace(&mut self.0, now)
    }
}

impl<O: ConnectionObserver> Future for Running<O> {
    type Output = (Ended, u32);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<(Ended, u32)> {
        let this = &mut *self;
        // Before h2 is polled, which ends the calls of a connection that breaks.
        let calls = this.observer.open_calls();
        if this.gathers(calls) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let ended = this.driver.poll_end(calls > 0, cx);
        this.observe(cx);
        ended.map(|ended| (ended, calls))
    }
}

impl<O: ConnectionObserver> Running<O> {
    /// Whether to come again before anything is done.
    ///
    /// A call that is made wakes this task, which would run next and write that one call. After one turn at the end of
    /// the queue of tasks, the calls that were made meanwhile go out in the same write. What comes from the server
    /// waits only where many calls are due: with few, a wait only delays the read.
    fn gathers(&mut self, calls: u32) -> bool {
        let begun = self.driver.peer.begun();
        let has_new_calls = begun != mem::replace(&mut self.begun, begun);
        let is_due = has_new_calls && calls >= GATHERS_FROM || self.observer.awaited_calls() >= GATHERS_ALL_FROM;
        self.has_gathered = is_due && !self.has_gathered;
        self.has_gathered
    }

    /// Tells what the server, or the socket, says about all of the connection.
    fn observe(&mut self, cx: &mut Context<'_>) {
        let Self { driver, observer, told, .. } = self;
        let is_stalled = driver.peer.on_turn(driver.flow, cx);
        if told.stalled.changes_to(is_stalled) {
            observer.on_stalled(is_stalled);
        }
        let is_doubted = driver.pings.is_asking();
        if told.doubted.changes_to(is_doubted) {
            observer.on_doubt(is_doubted);
        }
        let streams = driver.peer.streams();
        if let Some(limit) = streams
            && streams != driver.reported
        {
            driver.reported = streams;
            observer.on_stream_limit(limit);
        }
        if driver.peer.said_too_many_pings() && told.too_many_pings.changes_to(true) {
            observer.on_too_many_pings();
        }
        if let Some(reason) = driver.peer.goaway()
            && told.going_away.changes_to(true)
        {
            observer.on_going_away(&Ended::GoneAway(reason));
            driver.peer.open_gate();
        }
    }
}

/// Closes a connection's socket from outside.
#[derive(Debug, Clone)]
pub(crate) struct AbortHandle {
    peer: Arc<PeerState>,
}

impl AbortHandle {
    /// Closes the socket now and ends the calls on it. Once is enough.
    pub(crate) fn abort(&self) {
        self.peer.abort();
    }
}

/// Why a connection ended. As text with [`chain`](crate::error::chain): a broken one has its cause as the source.
#[derive(Debug, Error)]
pub(crate) enum Ended {
    #[error("the connection was cut")]
    Aborted,
    #[error("the server did not answer a ping within keep_alive_timeout")]
    Silent,
    #[error("the server said GOAWAY ({0})")]
    GoneAway(h2::Reason),
    #[error("the server closed the connection")]
    Closed,
    #[error("the connection broke")]
    Broken(#[source] h2::Error),
    #[error("the connection was not needed any more")]
    Unused,
}

impl Ended {
    /// Whether it was announced as a matter of course, or is no end that the server brought about.
    pub(crate) fn is_planned(&self) -> bool {
        matches!(self, Self::GoneAway(h2::Reason::NO_ERROR) | Self::Unused | Self::Aborted)
    }

    /// The reason as gRPC's metrics name it (A94): one of few, whatever a server sends.
    pub(crate) fn disconnect_error(&self) -> &'static str {
        let error = match self {
            Self::GoneAway(reason) => return goaway(*reason),
            Self::Aborted | Self::Unused => return SHUTDOWN,
            Self::Silent => return TIMED_OUT,
            Self::Closed => return UNKNOWN,
            Self::Broken(error) => error,
        };
        match error.get_io().map(io::Error::kind) {
            None => UNKNOWN,
            Some(io::ErrorKind::ConnectionReset) => "connection reset",
            Some(io::ErrorKind::ConnectionAborted) => "connection aborted",
            Some(io::ErrorKind::TimedOut) => TIMED_OUT,
            Some(_) => "socket error",
        }
    }
}

fn goaway(reason: h2::Reason) -> &'static str {
    match reason {
        h2::Reason::NO_ERROR => "GOAWAY NO_ERROR",
        h2::Reason::PROTOCOL_ERROR => "GOAWAY PROTOCOL_ERROR",
        h2::Reason::INTERNAL_ERROR => "GOAWAY INTERNAL_ERROR",
        h2::Reason::FLOW_CONTROL_ERROR => "GOAWAY FLOW_CONTROL_ERROR",
        h2::Reason::SETTINGS_TIMEOUT => "GOAWAY SETTINGS_TIMEOUT",
        h2::Reason::STREAM_CLOSED => "GOAWAY STREAM_CLOSED",
        h2::Reason::FRAME_SIZE_ERROR => "GOAWAY FRAME_SIZE_ERROR",
        h2::Reason::REFUSED_STREAM => "GOAWAY REFUSED_STREAM",
        h2::Reason::CANCEL => "GOAWAY CANCEL",
        h2::Reason::COMPRESSION_ERROR => "GOAWAY COMPRESSION_ERROR",
        h2::Reason::CONNECT_ERROR => "GOAWAY CONNECT_ERROR",
        h2::Reason::ENHANCE_YOUR_CALM => "GOAWAY ENHANCE_YOUR_CALM",
        h2::Reason::INADEQUATE_SECURITY => "GOAWAY INADEQUATE_SECURITY",
        h2::Reason::HTTP_1_1_REQUIRED => "GOAWAY HTTP_1_1_REQUIRED",
        // No code of HTTP/2: any number.
        _ => UNKNOWN,
    }
}

/// From how many open calls on a connection a write waits for more of them. With fewer none is likely to come, and a
/// task that goes to the end of the queue wakes another thread for nothing.
pub(crate) const GATHERS_FROM: u32 = 4;

/// From how many awaited calls on a connection a read waits as well: then it brings many answers, and the tasks that
/// they are for do not come back one by one for the lock of the connection.
const GATHERS_ALL_FROM: u32 = 32;

/// The end of a connection that this side wants, as gRPC's metrics name it.
pub(crate) const SHUTDOWN: &str = "subchannel shutdown";

/// Also where keepalive finds a server silent.
const TIMED_OUT: &str = "connection timed out";

/// Also where a server closes its connection without a GOAWAY, which is no error of the socket.
const UNKNOWN: &str = "unknown";
