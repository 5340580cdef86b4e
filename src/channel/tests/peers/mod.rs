//! Peers on the loopback interface that behave, or misbehave on demand: what a channel may meet behind an address.
//!
//! Everything is real TCP, and ends with its handle. Nothing here waits for a duration: [`Count::reaches`] waits for
//! what happened, and a held call is answered when the test says so.
//!
//! - [`Echo`]: a real tonic server; delays, fails, holds calls, freezes, shuts down, is killed.
//! - [`Scripted`]: HTTP/2 frames by hand; refuses streams, sends any GOAWAY, limits streams and changes the limit,
//!   hangs up.
//! - [`Mute`]: accepts, and never writes a byte.
//! - [`Refusing`]: an address where nothing listens.
//! - [`Network`]: the exception, pipes in memory for tests under paused time, with a [`Peer`] behind each address.

mod echo;
mod memory;
mod scripted;
mod socket;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

pub(crate) use self::echo::Echo;
pub(crate) use self::memory::{Network, OnConnect, Peer, Reply};
pub(crate) use self::scripted::{OnCall, Scripted};

/// The generated client, server and messages.
#[path = "../../../../examples/proto/echo.rs"]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
pub(crate) mod proto;

/// How long a test waits for something that must happen: far above what the slowest machine needs.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A number of events that tests read and wait for.
#[derive(Debug, Default)]
pub(crate) struct Count(watch::Sender<usize>);

impl Count {
    pub(crate) fn get(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until there were that many.
    ///
    /// # Panics
    ///
    /// After [`LIMIT`].
    pub(crate) async fn reaches(&self, count: usize) {
        let mut changes = self.0.subscribe();
        let reached = timeout(LIMIT, changes.wait_for(|now| *now >= count)).await;
        assert!(reached.is_ok(), "{} of {count} events in {LIMIT:?}", self.get());
    }

    pub(crate) fn add_one(&self) {
        self.0.send_modify(|count| *count += 1);
    }
}

/// Accepts connections and never writes a byte: not even SETTINGS.
#[derive(Debug)]
pub(crate) struct Mute {
    address: SocketAddr,
    connections: std::sync::Arc<Count>,
    _alive: oneshot::Sender<()>,
}

impl Mute {
    pub(crate) fn start() -> Self {
        let (listener, address) = listen(ANY_PORT);
        let connections = std::sync::Arc::<Count>::default();
        let (alive, dropped) = oneshot::channel();
        let accepted = connections.clone();
        tokio::spawn(async move {
            let accept = async {
                let mut open = Vec::new();
                while let Ok((socket, _)) = listener.accept().await {
                    open.push(socket);
                    accepted.add_one();
                }
            };
            tokio::select! {
                () = accept => {}
                _ = dropped => {}
            }
        });
        Self { address, connections, _alive: alive }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> &Count {
        &self.connections
    }
}

/// An address that refuses connections. It is bound, so that no other process gets the port, and nothing listens.
#[derive(Debug)]
pub(crate) struct Refusing {
    address: SocketAddr,
    _bound: TcpSocket,
}

impl Refusing {
    pub(crate) fn start() -> Self {
        let bound = TcpSocket::new_v4().expect("there is a socket left");
        bound.bind(ANY_PORT).expect("the loopback interface has a free port");
        Self { address: bound.local_addr().expect("a bound socket has an address"), _bound: bound }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

fn listen(at: SocketAddr) -> (TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind(at).expect("the address is free");
    listener.set_nonblocking(true).expect("a socket can be non-blocking");
    let listener = TcpListener::from_std(listener).expect("the test has a runtime");
    let address = listener.local_addr().expect("a listener has an address");
    (listener, address)
}

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

mod smoke;
