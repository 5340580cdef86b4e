//! A server ends soon after its drain limit whatever its clients do, and each call gets the answer it can still get.

use std::future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::transport::server::{TcpConnectInfo, TcpIncoming};
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status, Streaming};

use tonic_etcd::{Instance, Registration, Registry};

use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::server::proto::echo::echo_server::{Echo, EchoServer};
use crate::support::server::proto::echo::{EchoReply, EchoRequest};

#[tokio::test]
async fn a_fast_call_finishes_after_the_signal_and_ends_the_drain_early() {
    let mut server = Running::start(Duration::from_secs(60));
    let mut client = server.client().await;
    let call = tokio::spawn(async move { client.unary_echo(message("slow")).await });
    server.until_in_flight(1).await;
    server.stop();
    let reply = call.await.expect("the call does not panic");
    let reply = reply.expect("the limit is far ahead").into_inner();
    assert_eq!(reply.message, "slow", "the answer is the usual one");
    server.returns().await;
}

#[tokio::test]
async fn calls_that_never_end_are_answered_unavailable() {
    let mut server = Running::start(LIMIT);
    let mut client = server.client().await;

    let mut unary = client.clone();
    let unary = tokio::spawn(async move { unary.unary_echo(message("never")).await.map(drop) });
    let mut asking = client.clone();
    let asking = tokio::spawn(async move {
        let requests = stream::iter([message("one")]).chain(stream::pending());
        asking.client_streaming_echo(requests).await.map(drop)
    });
    let mut replies = client.server_streaming_echo(message("once")).await.expect("the stream begins").into_inner();
    let first = replies.message().await.expect("a reply").expect("no end");
    assert_eq!(first.message, "once", "what it was asked to say");

    server.until_in_flight(3).await;
    server.stop();
    for call in [unary, asking] {
        let status = call.await.expect("the call does not panic");
        assert_ended(&status.expect_err("its handler never answers"));
    }
    assert_ended(&replies.message().await.expect_err("it never ends"));
    server.returns().await;
}

#[tokio::test]
async fn a_detached_task_that_keeps_the_request_stream_does_not_keep_the_server() {
    for kept in ["unread", "read"] {
        let mut server = Running::start(LIMIT);
        let mut client = server.client().await;
        let requests = stream::iter([message(kept)]).chain(stream::pending());
        let mut replies = client.bidirectional_streaming_echo(requests).await.expect("the stream begins").into_inner();
        server.until_in_flight(1).await;
        server.stop();
        assert_ended(&replies.message().await.expect_err("it never ends"));
        if kept == "read" {
            let read = server.read.recv().await.expect("the task reads on");
            assert_ended(&read.expect_err("the client sent one message only"));
        }
        server.returns().await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_take_its_replies_does_not_keep_the_server() {
    let mut server = Running::start(LIMIT);
    let mut client = server.client().await;
    let replies = client.server_streaming_echo(message("endless")).await;
    let _untaken = replies.expect("the stream begins");
    server.until_in_flight(1).await;
    tokio::time::sleep(FILLED).await;
    server.stop();
    server.returns().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_its_socket_does_not_keep_the_server() {
    let mut server = Running::start(LIMIT);
    let mut peer = server.peer().await;
    peer.write_all(&http2::call_with_a_huge_window("/echo.Echo/ServerStreamingEcho", "endless"))
        .await
        .expect("the server reads");
    server.until_in_flight(1).await;
    tokio::time::sleep(FILLED).await;
    server.stop();
    server.returns().await;
    drop(peer);
}

#[tokio::test]
async fn peers_that_say_nothing_do_not_keep_the_server() {
    let mut server = Running::start(LIMIT);
    let mut silent = server.peer().await;
    let mut halted = server.peer().await;
    halted.write_all(&http2::PREFACE[..10]).await.expect("the server reads");
    let mut idle = server.peer().await;
    idle.write_all(http2::PREFACE).await.expect("the server reads");
    idle.write_all(&http2::SETTINGS).await.expect("the server reads");
    // The server's SETTINGS show that it accepted the last connection; the first two came before.
    idle.read_exact(&mut [0; 9]).await.expect("the server answers");

    server.stop();
    server.returns().await;
    for peer in [&mut silent, &mut halted, &mut idle] {
        let mut rest = Vec::new();
        // Reset or closed, by what was on its way.
        let _ = tokio::time::timeout(PATIENCE, peer.read_to_end(&mut rest)).await.expect("the connection is closed");
    }
}

#[tokio::test]
async fn all_of_them_together_do_not_keep_the_server() {
    let mut server = Running::start(LIMIT);
    let mut client = server.client().await;
    let mut calls = Vec::new();
    for _ in 0..50 {
        let mut client = client.clone();
        calls.push(tokio::spawn(async move { client.unary_echo(message("never")).await.map(drop) }));
    }
    let replies = client.server_streaming_echo(message("endless")).await;
    let _untaken = replies.expect("the stream begins");
    let requests = stream::iter([message("unread")]).chain(stream::pending());
    let replies = client.bidirectional_streaming_echo(requests).await;
    let _kept = replies.expect("the stream begins");
    let _silent = server.peer().await;
    server.until_in_flight(52).await;
    server.stop();
    for call in calls {
        let status = call.await.expect("the call does not panic");
        assert_ended(&status.expect_err("its handler never answers"));
    }
    server.returns().await;
}

#[tokio::test]
async fn a_handler_sees_the_address_of_its_peer() {
    let server = Running::start(LIMIT);
    let reply = server.client().await.unary_echo(message("peer")).await;
    assert_eq!(reply.expect("an answer").into_inner().message, "127.0.0.1", "as without our connection around its own");
}

const LIMIT: Duration = Duration::from_millis(300);

/// From the signal to the end of `serve`: the drain limit, 250 ms for the sockets, the 3 s that a registration may take
/// to find out that etcd is unreachable, and a slow machine.
const PATIENCE: Duration = Duration::from_secs(8);

/// Enough for an endless stream to fill each window and buffer on its way; less makes a test easier, not wrong.
const FILLED: Duration = Duration::from_millis(50);

/// A server without a reachable etcd, which changes nothing for its calls.
struct Running {
    address: SocketAddr,
    registration: Registration,
    signal: Option<oneshot::Sender<()>>,
    stopped: Option<Instant>,
    serving: JoinHandle<()>,
    /// What detached tasks read after the first message.
    read: mpsc::UnboundedReceiver<Result<Option<EchoRequest>, Status>>,
}

impl Running {
    fn start(limit: Duration) -> Self {
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        let address = incoming.local_addr().expect("it is bound");
        let registration = Registry::builder(["http://127.0.0.1:1"])
            .build()
            .expect("a good URL")
            .registration(Instance::new("drain", address))
            .propagation_pause(Duration::ZERO)
            .drain_limit(limit)
            .build()
            .expect("a good instance");
        let (signal, signalled) = oneshot::channel::<()>();
        let (report, read) = mpsc::unbounded_channel();
        let serve = Server::builder()
            .layer(registration.layer())
            .add_service(EchoServer::new(Handlers { report }))
            .serve_with_incoming_shutdown(
                registration.incoming(incoming),
                registration.deregister_on(async { signalled.await.unwrap_or_default() }),
            );
        Self {
            address,
            registration,
            signal: Some(signal),
            stopped: None,
            serving: tokio::spawn(async { serve.await.expect("it serves") }),
            read,
        }
    }

    async fn client(&self) -> EchoClient<Channel> {
        EchoClient::connect(format!("http://{}", self.address)).await.expect("the server listens")
    }

    async fn peer(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the server listens")
    }

    fn stop(&mut self) {
        self.stopped = Some(Instant::now());
        let signal = self.signal.take().expect("it is stopped once");
        signal.send(()).expect("it is serving");
    }

    async fn until_in_flight(&self, calls: usize) {
        let reached = async {
            while self.registration.in_flight() != calls {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached)
            .await
            .unwrap_or_else(|_| panic!("{calls} calls in flight, not {}", self.registration.in_flight()));
    }

    async fn returns(mut self) {
        let stopped = self.stopped.expect("it was stopped");
        let left = PATIENCE.saturating_sub(stopped.elapsed());
        tokio::time::timeout(left, &mut self.serving)
            .await
            .expect("serve returns soon after the drain limit")
            .expect("serve does not panic");
        self.until_in_flight(0).await;
    }
}

/// Each call does what its message names.
struct Handlers {
    report: mpsc::UnboundedSender<Result<Option<EchoRequest>, Status>>,
}

type Replies = Pin<Box<dyn Stream<Item = Result<EchoReply, Status>> + Send>>;

#[tonic::async_trait]
impl Echo for Handlers {
    type ServerStreamingEchoStream = Replies;
    type BidirectionalStreamingEchoStream = Replies;

    async fn unary_echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        let peer = request.extensions().get::<TcpConnectInfo>().cloned();
        let text = request.into_inner().message;
        match text.as_str() {
            "slow" => tokio::time::sleep(Duration::from_millis(200)).await,
            "never" => future::pending().await,
            _ => {}
        }
        if text == "peer" {
            let peer = peer.and_then(|peer| peer.remote_addr());
            return Ok(Response::new(reply(peer.map_or_else(String::new, |peer| peer.ip().to_string()))));
        }
        Ok(Response::new(reply(text)))
    }

    async fn server_streaming_echo(&self, request: Request<EchoRequest>) -> Result<Response<Replies>, Status> {
        let text = request.into_inner().message;
        Ok(Response::new(if text == "endless" {
            stream::repeat_with(|| Ok(reply("x".repeat(16 * 1024)))).boxed()
        } else {
            stream::iter([Ok(reply(text))]).chain(stream::pending()).boxed()
        }))
    }

    async fn client_streaming_echo(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<EchoReply>, Status> {
        let mut requests = request.into_inner();
        let mut last = String::new();
        while let Some(request) = requests.message().await? {
            last = request.message;
        }
        Ok(Response::new(reply(last)))
    }

    async fn bidirectional_streaming_echo(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap_or_default();
        let report = self.report.clone();
        tokio::spawn(async move {
            if first.message == "read" {
                // Only some tests keep the receiver.
                let _ = report.send(requests.message().await);
            }
            let _kept = requests;
            future::pending::<()>().await;
        });
        Ok(Response::new(stream::pending().boxed()))
    }
}

fn message(text: &str) -> EchoRequest {
    EchoRequest { message: text.to_owned() }
}

fn reply(text: String) -> EchoReply {
    EchoReply { message: text, address: String::new() }
}

/// Ended by the layer, not by a connection that broke.
fn assert_ended(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("drain limit"), "{status:?} says why");
}

/// The few bytes of HTTP/2 that a peer needs which is worse than any library lets it be.
mod http2 {
    pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    /// An empty SETTINGS frame.
    pub(crate) const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

    /// A connection with one gRPC call whose replies flow control never stops.
    pub(crate) fn call_with_a_huge_window(path: &str, text: &str) -> Vec<u8> {
        const INITIAL_WINDOW_SIZE: u8 = 4;
        let window = 0x7fff_ffff_u32.to_be_bytes();
        let more = 0x7000_0000_u32.to_be_bytes();

        let mut settings = vec![0, INITIAL_WINDOW_SIZE];
        settings.extend(window);

        let mut headers = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "peer"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ] {
            // HPACK: a literal with a new name, not indexed, not Huffman coded.
            headers.push(0);
            headers.push(short(name));
            headers.extend(name.as_bytes());
            headers.push(short(value));
            headers.extend(value.as_bytes());
        }

        // A gRPC message, not compressed, of one protobuf field: number 1, length-delimited.
        let mut message = vec![0, 0, 0, 0, short(text) + 2, 0x0a, short(text)];
        message.extend(text.as_bytes());

        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(4, 0, 0, &settings));
        bytes.extend(frame(8, 0, 0, &more));
        bytes.extend(frame(1, END_HEADERS, 1, &headers));
        bytes.extend(frame(0, END_STREAM, 1, &message));
        bytes
    }

    const END_STREAM: u8 = 0x1;
    const END_HEADERS: u8 = 0x4;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("a short payload");
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
        frame.extend(payload);
        frame
    }

    fn short(text: &str) -> u8 {
        u8::try_from(text.len()).ok().filter(|&length| length < 120).expect("a short text")
    }
}
