//! Connections to requests: so many at once, each with limits to what it may send and how long it may take.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::route::Site;
use super::stall::StallLimit;

/// Serves until `end`, and returns when every page has heard of it, or soon after.
pub(crate) async fn serve(listener: TcpListener, site: Arc<Site>, end: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            (stream, place) = accept(&listener, &places) => {
                connections.spawn(connection(stream, site.clone(), end.clone(), place));
            }
            Some(_) = connections.join_next() => {}
            () = end.cancelled() => break,
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    // What is left after that goes with the program.
    let _ = timeout(END_LIMIT, ended).await;
}

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let place = places.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            // Too many open files, for instance, which passes.
            Err(error) => {
                tracing::warn!(%error, "a browser cannot connect");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, site: Arc<Site>, end: CancellationToken, _place: Option<OwnedSemaphorePermit>) {
    // Events are small, and waited for.
    let _ = stream.set_nodelay(true);
    // What the system keeps for a page that does not read is bounded, too.
    let _ = socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER);
    let io = TokioIo::new(StallLimit::new(stream, STALL_LIMIT));
    let service = service_fn(|request| {
        let site = site.clone();
        let end = end.clone();
        async move { Ok::<_, std::convert::Infallible>(site.answer(request, end).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = end.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a browser's connection failed");
    }
}

/// Connections at once; others wait in the listener's queue. Each browser has up to six.
const MAX_CONNECTIONS: usize = 256;
/// For the head of a request, from the end of the last answer on.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a connection that wait, either way.
const MAX_BUFFER: usize = 64 << 10;
const SEND_BUFFER: usize = 256 << 10;
/// For a browser that does not read what was sent, or next to nothing of it: its page opens a new stream when it does
/// again.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// For the last event of every stream.
const END_LIMIT: Duration = Duration::from_secs(1);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
