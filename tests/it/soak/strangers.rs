//! Programs that are no gRPC server, at the address of one.

use http::header::CONTENT_TYPE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// How a stranger answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    /// HTTP/2 with prior knowledge: 200 and a page to everything.
    Http2,
    /// HTTP/1.1: 400 and the end of the connection to everything.
    Http1,
}

/// A web server that took over the port of another server.
pub(super) struct Stranger {
    task: JoinHandle<()>,
}

impl Stranger {
    pub(super) async fn start(address: &str, speaks: Speaks) -> Self {
        let listener = TcpListener::bind(address).await.expect("the port is free");
        Self { task: tokio::spawn(accept(listener, speaks)) }
    }

    /// Ends it with all its connections; the port is free afterwards.
    pub(super) async fn leave(self) {
        self.task.abort();
        _ = self.task.await;
    }
}

async fn accept(listener: TcpListener, speaks: Speaks) {
    // Its connections end with it.
    let mut connections = JoinSet::new();
    while let Ok((io, _)) = listener.accept().await {
        match speaks {
            Speaks::Http2 => connections.spawn(serve_pages(io)),
            Speaks::Http1 => connections.spawn(refuse(io)),
        };
    }
}

async fn serve_pages(io: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(io).await else { return };
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let head = http::Response::builder().header(CONTENT_TYPE, "text/html").body(()).expect("a good head");
        // Fails where the client has given the call up.
        if let Ok(mut body) = respond.send_response(head, false) {
            _ = body.send_data("<html></html>".into(), true);
        }
    }
}

async fn refuse(mut io: TcpStream) {
    let mut preface = [0; 24];
    if io.read_exact(&mut preface).await.is_ok() {
        _ = io.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    }
}
