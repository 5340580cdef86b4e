mod attempts;
mod busy;
mod driving;
mod early;
mod h2_assumptions;
mod pinging;
mod places;
mod stalled;
#[cfg(feature = "_tls")]
mod tls;
mod windows;

use std::future::pending;
use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex as StdMutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::{Request, Response, Uri};
use http_body::Frame;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tonic::body::Body;
use tower::service_fn;

use super::connect::{Attempt, ConnectError};
use super::connection::{AbortHandle, ConnectionObserver, Ended, GATHERS_FROM};
use super::names::Names;
use super::{BodySender, Connection, Connector, RequestBody, TransportConfig};
use crate::error::chain;
use crate::instance::{Address, Host};
#[cfg(feature = "_tls")]
use crate::tls::{ClientTls, TlsError};

/// A limit for what happens at once, on any machine.
async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), work).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Streams(u32),
    GoingAway,
    TooManyPings,
}

struct Ear(UnboundedSender<Told>, Arc<AtomicU32>);

impl ConnectionObserver for Ear {
    fn on_stream_limit(&self, limit: u32) {
        let _ = self.0.send(Told::Streams(limit));
    }

    fn on_going_away(&self, _: &Ended) {
        let _ = self.0.send(Told::GoingAway);
    }

    fn on_too_many_pings(&self) {
        let _ = self.0.send(Told::TooManyPings);
    }

    fn on_doubt(&self, _: bool) {}

    fn on_stalled(&self, _: bool) {}

    fn open_calls(&self) -> u32 {
        self.1.load(Ordering::Relaxed)
    }

    fn awaited_calls(&self) -> u32 {
        self.open_calls()
    }
}

/// A connection whose driver runs.
struct Running {
    send: SendRequest<Bytes>,
    abort_handle: AbortHandle,
    told: UnboundedReceiver<Told>,
    /// As many are open as the test says.
    calls: Arc<AtomicU32>,
    driver: JoinHandle<Ended>,
}

fn run(connection: Connection) -> Running {
    let (tell, told) = unbounded_channel();
    let calls = Arc::<AtomicU32>::default();
    let abort_handle = connection.driver.abort_handle();
    let running = connection.driver.run(Ear(tell, calls.clone()));
    let driver = tokio::spawn(async move { running.await.0 });
    Running { send: connection.transport.h2(), abort_handle, told, calls, driver }
}

impl Running {
    /// A call without a body, on a task of its own.
    fn ask(&self) -> JoinHandle<Result<Response<RecvStream>, h2::Error>> {
        let (response, _) = self.send.clone().send_request(request(()), true).expect("the connection takes it");
        tokio::spawn(response)
    }
}

type Call = (Request<h2::RecvStream>, h2::server::SendResponse<Bytes>);

/// An HTTP/2 server for one connection, which hands its calls to the test.
struct Server {
    calls: UnboundedReceiver<Call>,
    goaway: UnboundedSender<()>,
    done: JoinHandle<()>,
}

impl Server {
    /// Serves what `io` becomes; ends with the connection, or at once if it does not come about.
    fn serve<IO>(io: impl Future<Output = io::Result<IO>> + Send + 'static) -> Self
    where
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let (call, calls) = unbounded_channel();
        let (goaway, mut going) = unbounded_channel();
        let done = tokio::spawn(async move {
            let Ok(io) = io.await else { return };
            let Ok(mut connection) = h2::server::Builder::new().max_concurrent_streams(100).handshake(io).await else {
                return;
            };
            loop {
                tokio::select! {
                    Some(()) = going.recv() => connection.graceful_shutdown(),
                    accepted = connection.accept() => match accepted {
                        Some(Ok(accepted)) => drop(call.send(accepted)),
                        _ => return,
                    },
                }
            }
        });
        Self { calls, goaway, done }
    }

    async fn tcp() -> (Self, Address) {
        let (listener, address) = listen().await;
        (Self::serve(async move { Ok(listener.accept().await?.0) }), address)
    }

    async fn call(&mut self) -> Call {
        soon("a call", self.calls.recv()).await.expect("the connection is open")
    }
}

async fn listen() -> (TcpListener, Address) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("it is bound").into();
    (listener, address)
}

fn request<B>(body: B) -> Request<B> {
    Request::post("http://127.0.0.1/echo").body(body).expect("a request")
}

async fn connect(options: &TransportConfig, address: &Address) -> Result<Connection, ConnectError> {
    soon("a connect", super::connect(options, address, options.terms(Duration::ZERO))).await
}

/// Why there is no connection.
async fn refusal(options: &TransportConfig, address: &Address) -> ConnectError {
    connect(options, address).await.err().expect("no connection comes about")
}

fn nowhere() -> Address {
    "127.0.0.1:1".parse().expect("an address")
}

/// Options whose connector gives one end of a pipe, and the other end: no clock but tokio's has a say.
fn piped() -> (TransportConfig, DuplexStream) {
    piped_through(1 << 20)
}

/// [`piped`], with a pipe that holds so many bytes.
fn piped_through(bytes: usize) -> (TransportConfig, DuplexStream) {
    let (near, far) = duplex(bytes);
    let near = StdMutex::new(Some(near));
    let connector = Connector::new(service_fn(move |_: Uri| {
        let near = near.lock().expect("no test panics here").take();
        std::future::ready(near.map(TokioIo::new).ok_or("taken"))
    }));
    (TransportConfig { connector: Some(connector), ..TransportConfig::default() }, far)
}

/// SETTINGS, with a limit of open calls or without.
fn settings(streams: Option<u8>) -> Vec<u8> {
    match streams {
        None => vec![0, 0, 0, 4, 0, 0, 0, 0, 0],
        Some(limit) => vec![0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, limit],
    }
}

const PING: u8 = 6;

fn frame_kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let Some(([l0, l1, l2, kind, ..], rest)) = bytes.split_first_chunk::<9>() {
        kinds.push(*kind);
        let length = usize::from(*l0) << 16 | usize::from(*l1) << 8 | usize::from(*l2);
        bytes = rest.get(length..).unwrap_or_default();
    }
    kinds
}

async fn read_all(mut body: RecvStream) -> Vec<u8> {
    let mut read = Vec::new();
    while let Some(data) = body.data().await {
        read.extend(data.expect("the body is whole"));
    }
    read
}

/// A request body that always has more, and shows whether it is still there.
#[derive(Default)]
struct Endless(Arc<()>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[7; 10_000])))))
    }
}

/// A pipe that counts what is written into it.
struct CountsWrites(DuplexStream, Arc<AtomicU32>);

impl AsyncRead for CountsWrites {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for CountsWrites {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

fn update(stream: u32, by: u32) -> Vec<u8> {
    [&[0, 0, 4, 8, 0], stream.to_be_bytes().as_slice(), by.to_be_bytes().as_slice()].concat()
}

/// What the peer reads, by kind, until there is no more for the moment.
async fn seen(far: &mut DuplexStream, skip: usize) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 65_536];
    while let Ok(Ok(read)) = timeout(Duration::from_millis(5), far.read(&mut buffer)).await {
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..read]);
    }
    let mut frames = Vec::new();
    let mut bytes = bytes.get(skip..).unwrap_or_default();
    while let Some(([l0, l1, l2, kind, flags, s0, s1, s2, s3], rest)) = bytes.split_first_chunk::<9>() {
        let length = usize::from(*l0) << 16 | usize::from(*l1) << 8 | usize::from(*l2);
        frames.push((*kind, *flags, u32::from_be_bytes([*s0, *s1, *s2, *s3]), rest[..length].to_vec()));
        bytes = &rest[length..];
    }
    frames
}
