//! The connections of an axum server, from its listener through its registration.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::serve::Listener;
use futures_util::StreamExt;
use tokio::net::TcpStream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::server::Connected;
use tonic_etcd::server::{Incoming, IncomingIo};

/// Hands axum the connections that the registration closes at its drain limit: axum waits for each without a limit.
pub(crate) struct Accepting {
    incoming: Incoming<TcpListenerStream>,
    bound: SocketAddr,
}

impl Accepting {
    pub(crate) fn new(incoming: Incoming<TcpListenerStream>, bound: SocketAddr) -> Self {
        Self { incoming, bound }
    }
}

impl Listener for Accepting {
    type Io = IncomingIo<TcpStream>;
    type Addr = Option<SocketAddr>;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.incoming.next().await {
                Some(Ok(io)) => {
                    let peer = io.connect_info().remote_addr();
                    return (io, peer);
                }
                // Too many open files, for instance, which passes.
                Some(Err(error)) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(Some(self.bound))
    }
}
