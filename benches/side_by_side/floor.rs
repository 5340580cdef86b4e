//! The floor: requests go to the less busy of two connections, and nothing else is done for them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, FutureExt};
use http::uri::{Authority, Parts, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::body::Body;
use tower::Service;

/// A power-of-two-choices balancer over bare hyper connections: what any balanced channel costs at least.
///
/// No retry, no deadline, no cancellation, no reconnect, not even a user-agent: only the count of calls in flight,
/// which the pick needs. It ends with the head of the response.
#[derive(Debug, Clone)]
pub(crate) struct Floor {
    peers: Arc<[Peer]>,
}

#[derive(Debug)]
struct Peer {
    authority: Authority,
    send: SendRequest<Body>,
    in_flight: Arc<AtomicU32>,
}

impl Floor {
    /// Connects to all `addresses`.
    ///
    /// # Panics
    ///
    /// If one of them cannot be reached.
    pub(crate) async fn connect(addresses: &[SocketAddr]) -> Self {
        let mut peers = Vec::new();
        for address in addresses {
            let stream = TcpStream::connect(address).await.expect("the server accepts");
            stream.set_nodelay(true).expect("a socket takes options");
            let (send, connection) =
                handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("the server speaks HTTP/2");
            tokio::spawn(connection);
            let authority = address.to_string().parse().expect("an address is an authority");
            peers.push(Peer { authority, send, in_flight: Arc::default() });
        }
        Self { peers: peers.into() }
    }

    fn pick(&self) -> &Peer {
        let first = fastrand::usize(..self.peers.len());
        let Some(others @ 1..) = self.peers.len().checked_sub(1) else { return &self.peers[first] };
        let second = (first + 1 + fastrand::usize(..others)) % self.peers.len();
        let (first, second) = (&self.peers[first], &self.peers[second]);
        let load = |peer: &Peer| peer.in_flight.load(Ordering::Relaxed);
        if load(second) < load(first) { second } else { first }
    }
}

impl Service<Request<Body>> for Floor {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, hyper::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let peer = self.pick();
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = absolute(peer.authority.clone(), path);
        let in_flight = peer.in_flight.clone();
        in_flight.fetch_add(1, Ordering::Relaxed);
        let response = peer.send.clone().send_request(request);
        async move {
            let response = response.await;
            in_flight.fetch_sub(1, Ordering::Relaxed);
            response
        }
        .boxed()
    }
}

fn absolute(authority: Authority, path: Option<PathAndQuery>) -> Uri {
    let mut parts = Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Uri::from_parts(parts).expect("scheme, authority and path make a URI")
}
