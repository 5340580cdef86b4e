//! An address to what listens there: one connection as a gRPC client makes it, and up to two more where that fails.
//!
//! ```text
//! HTTP/2 in plain text, the health check as the first call ---> gRPC, or HTTP/2 without it
//!   \--> broken off, or answered in HTTP/1: a TLS greeting ---> TLS
//!          \--> no answer in TLS: HTTP/1 if that came before, or comes after a request ---> HTTP/1, or something else
//! ```

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic_etcd::Address;
use tower::ServiceExt;

/// What listens at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// A gRPC server, which is healthy or says nothing of it.
    Serves,
    /// A gRPC server that reports `NOT_SERVING`.
    NotServing,
    /// An HTTP/2 server whose answers are not gRPC's.
    NotGrpc(String),
    Http1,
    Tls,
    /// Something else, which begins with these bytes.
    Other(String),
    /// It takes connections and says nothing, or nothing to the call.
    Silent,
    /// It ends connections at once.
    Closes,
    Refused,
    /// No connection comes about.
    Unreachable(String),
    /// The name has no address.
    Unresolved(String),
}

/// Finds out what listens at an address, within `limit` for the first look and the same for the others.
pub(super) async fn dial(address: &Address, limit: Duration) -> Answer {
    let deadline = Instant::now() + limit;
    let stream = match connect(address, deadline).await {
        Ok(stream) => stream,
        Err(answer) => return answer,
    };
    let heard = Arc::default();
    let first = HeardStream { inner: stream, heard: Arc::clone(&heard) };
    let called = timeout_at(deadline, call(address, first)).await;
    if let Ok(Some(answer)) = called {
        return answer;
    }
    let heard = std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner));
    match &heard[..] {
        [] if called.is_err() => Answer::Silent,
        // It speaks HTTP/2, and gives the call no answer or breaks it off.
        [_, _, _, SETTINGS, ..] => Answer::Silent,
        [ALERT, 3, ..] => Answer::Tls,
        heard => other(address, heard, limit).await,
    }
}

/// What it is that does not understand HTTP/2.
async fn other(address: &Address, heard: &[u8], limit: Duration) -> Answer {
    let deadline = Instant::now() + limit;
    if let Some(greeting) = tls_greeting(address)
        && let [HANDSHAKE | ALERT, 3, ..] = exchange(address, &greeting, deadline).await[..]
    {
        return Answer::Tls;
    }
    // Before TLS: web servers tell plain text on a port for TLS in plain HTTP/1 that it is a mistake.
    if heard.starts_with(HTTP1) {
        return Answer::Http1;
    }
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    if exchange(address, request.as_bytes(), deadline).await.starts_with(HTTP1) {
        return Answer::Http1;
    }
    if heard.is_empty() { Answer::Closes } else { Answer::Other(String::from_utf8_lossy(heard).into_owned()) }
}

async fn connect(address: &Address, deadline: Instant) -> Result<TcpStream, Answer> {
    let host = address.host().to_string();
    let resolved = match timeout_at(deadline, lookup_host((host.as_str(), address.port()))).await {
        Ok(Ok(resolved)) => resolved.collect::<Vec<_>>(),
        Ok(Err(error)) => return Err(Answer::Unresolved(error.to_string())),
        Err(_) => return Err(Answer::Unresolved("the resolver does not answer".to_owned())),
    };
    if resolved.is_empty() {
        return Err(Answer::Unresolved("the name has no address".to_owned()));
    }
    match timeout_at(deadline, TcpStream::connect(&resolved[..])).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(Answer::Refused),
        Ok(Err(error)) => Err(Answer::Unreachable(error.to_string())),
        Err(_) => Err(Answer::Unreachable("no answer in time".to_owned())),
    }
}

/// Asks for the server's health; `None` where no HTTP/2 response came.
async fn call(address: &Address, stream: HeardStream) -> Option<Answer> {
    let url = Uri::try_from(format!("http://{address}")).ok()?;
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or(io::Error::from(io::ErrorKind::NotConnected)) }
    });
    let channel: Channel = Endpoint::from(url).connect_with_connector(connector).await.ok()?;
    let body = Body::new(Full::new(Bytes::from_static(&NO_SERVICE_NAMED)));
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .ok()?;
    let response = channel.oneshot(request).await.ok()?;
    let content = response.headers().get("content-type");
    if !content.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc")) {
        return Some(Answer::NotGrpc(format!("it answers {}", response.status())));
    }
    let body = Limited::new(response.into_body(), MOST_OF_A_RESPONSE).collect().await.ok()?.to_bytes();
    Some(if body.ends_with(&NOT_SERVING) { Answer::NotServing } else { Answer::Serves })
}

/// Sends bytes over a connection of their own, and returns the first that come back; none where nothing does.
async fn exchange(address: &Address, bytes: &[u8], deadline: Instant) -> Vec<u8> {
    let exchange = async {
        let mut stream = connect(address, deadline).await.ok()?;
        stream.write_all(bytes).await.ok()?;
        let mut begin = vec![0; MOST_HEARD];
        let length = stream.read(&mut begin).await.ok()?;
        begin.truncate(length);
        Some(begin)
    };
    timeout_at(deadline, exchange).await.ok().flatten().unwrap_or_default()
}

/// The first bytes of a TLS client, which trusts nothing and goes no further.
fn tls_greeting(address: &Address) -> Option<Vec<u8>> {
    let name = ServerName::try_from(address.host().to_string()).ok()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let mut config = versions.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut greeting = Vec::new();
    ClientConnection::new(Arc::new(config), name).ok()?.write_tls(&mut greeting).ok()?;
    Some(greeting)
}

/// A connection that keeps the first bytes that come over it.
struct HeardStream {
    inner: TcpStream,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for HeardStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MOST_HEARD.saturating_sub(heard.len());
        heard.extend(buf.filled()[before..].iter().take(room));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HeardStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A health check of the server as a whole, as a gRPC message: not compressed, of no length.
const NO_SERVICE_NAMED: [u8; 5] = [0; 5];

/// The end of the response that says `NOT_SERVING`: field 1 with the value 2.
const NOT_SERVING: [u8; 2] = [0x08, 0x02];

/// The most of a response that is read: a health check's takes seven bytes.
const MOST_OF_A_RESPONSE: usize = 4096;

/// How much of what a server says first is kept.
const MOST_HEARD: usize = 64;

/// The type of the frame that every HTTP/2 server begins with.
const SETTINGS: u8 = 4;

/// The types of TLS records that answer a greeting.
const ALERT: u8 = 0x15;
const HANDSHAKE: u8 = 0x16;

/// How answers of HTTP/1 begin.
const HTTP1: &[u8] = b"HTTP/1";
