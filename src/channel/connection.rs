//! A connection from its server's SETTINGS to its end, and the reason for that.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::client::conn::http2::SendRequest;
use thiserror::Error;

use super::executor::watched;
use super::socket::Wire;

/// A connection whose server has sent its SETTINGS.
pub(super) struct Connection<B> {
    pub(super) send: SendRequest<B>,
    /// How many calls the peer lets be open at once, `u32::MAX` without a limit.
    pub(super) streams: u32,
    pub(super) driver: ConnectionDriver,
}

/// Moves a connection on. Dropped, it closes the socket and ends the calls on it.
pub(super) struct ConnectionDriver {
    /// Until it takes no more calls.
    hyper: Option<Dispatch>,
    failure: Option<hyper::Error>,
    /// The limit of open calls that was told last.
    told: Option<u32>,
    cutter: Cutter,
    _cut: CutOnDrop,
}

/// hyper's dispatch of new calls: it ends when there can be no more.
pub(super) type Dispatch = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// Hears what a connection's server says about all of it.
pub(super) trait Watcher: Send + Sync + 'static {
    /// The peer changed its limit of open calls.
    fn streams(&self, limit: u32);

    /// It takes no new calls, and ends with those it has. Told once: at once when the server says GOAWAY, which is what
    /// `said` tells, and at the end of the connection at the latest.
    fn going_away(&self, said: bool);
}

impl ConnectionDriver {
    pub(super) fn new(hyper: Dispatch, wire: Arc<Wire>) -> Self {
        let cutter = Cutter { wire };
        Self { hyper: Some(hyper), failure: None, told: None, _cut: CutOnDrop(cutter.clone()), cutter }
    }

    /// What closes the socket from outside.
    pub(super) fn cutter(&self) -> Cutter {
        self.cutter.clone()
    }

    /// Drives the connection until its socket is closed, and tells why that was.
    ///
    /// It goes on after the last `SendRequest` was dropped, and after a GOAWAY, until the calls on it are done.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the socket and ends the calls on it.
    pub(super) async fn run(mut self, watcher: impl Watcher) -> Ended {
        let mut going = false;
        poll_fn(|cx| {
            let closed = self.poll_closed(cx);
            let streams = self.wire().streams();
            if let Some(limit) = streams
                && streams != self.told
            {
                self.told = streams;
                watcher.streams(limit);
            }
            let said = self.wire().goaway().is_some();
            if !going && (said || self.hyper.is_none()) {
                going = true;
                watcher.going_away(said);
            }
            closed
        })
        .await;
        self.ended()
    }

    /// Drives the connection until the server's first SETTINGS.
    pub(super) async fn settings(&mut self) -> Result<u32, Ended> {
        poll_fn(|cx| {
            let closed = self.poll_closed(cx);
            let streams = self.wire().streams();
            match streams {
                Some(limit) => {
                    self.told = streams;
                    Poll::Ready(Ok(limit))
                }
                None => closed.map(|()| Err(self.ended())),
            }
        })
        .await
    }

    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.wire().follow(cx);
        if let Some(hyper) = &mut self.hyper
            && let (Poll::Ready(result), _) = watched(|| hyper.as_mut().poll(cx))
        {
            self.failure = result.err();
            // Without it hyper ends the connection as soon as no calls are open.
            self.hyper = None;
        }
        if self.hyper.is_none() && self.wire().is_closed() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// The first reason of all that show at the end of a connection.
    fn ended(&mut self) -> Ended {
        let (cut, at_end, goaway) = (self.wire().is_cut(), self.wire().is_at_end(), self.wire().goaway());
        match (self.failure.take(), goaway) {
            _ if cut => Ended::Cut,
            (Some(failure), _) if failure.is_timeout() => Ended::Silent,
            (_, Some(reason)) => Ended::GoneAway(reason),
            _ if at_end => Ended::Closed,
            (Some(failure), None) => Ended::Broken(failure),
            (None, None) => Ended::Unused,
        }
    }

    fn wire(&self) -> &Wire {
        &self.cutter.wire
    }
}

/// Closes a connection's socket from outside.
#[derive(Debug, Clone)]
pub(super) struct Cutter {
    wire: Arc<Wire>,
}

impl Cutter {
    /// Closes the socket now and ends the calls on it. Once is enough.
    pub(super) fn cut(&self) {
        self.wire.cut();
    }
}

struct CutOnDrop(Cutter);

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        self.0.cut();
    }
}

/// Why a connection ended. As text with [`chain`](crate::error::chain): a broken one has its cause as the source.
#[derive(Debug, Error)]
pub(super) enum Ended {
    #[error("the connection was cut")]
    Cut,
    #[error("the server did not answer a keepalive ping")]
    Silent,
    #[error("the server said GOAWAY ({0})")]
    GoneAway(h2::Reason),
    #[error("the server closed the connection")]
    Closed,
    #[error("the connection broke")]
    Broken(#[source] hyper::Error),
    #[error("the connection was not needed any more")]
    Unused,
}
