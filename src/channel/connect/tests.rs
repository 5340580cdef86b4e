use std::future::pending;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::{Request, Response};
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tonic::body::Body;
use tower::service_fn;

use super::*;
use crate::channel::connection::{Cutter, GATHERS_FROM, Watcher};
use crate::channel::upload::{Rest, Upload};

/// A limit for what happens at once, on any machine.
async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), work).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Streams(u32),
    GoingAway,
}

struct Ear(UnboundedSender<Told>, Arc<AtomicU32>);

impl Watcher for Ear {
    fn streams(&self, limit: u32) {
        let _ = self.0.send(Told::Streams(limit));
    }

    fn going_away(&self, _: bool) {
        let _ = self.0.send(Told::GoingAway);
    }

    fn calls(&self) -> u32 {
        self.1.load(Ordering::Relaxed)
    }
}

/// A connection whose driver runs.
struct Running {
    send: SendRequest<Bytes>,
    cutter: Cutter,
    told: UnboundedReceiver<Told>,
    /// As many are open as the test says.
    calls: Arc<AtomicU32>,
    driver: JoinHandle<Ended>,
}

fn run(connection: Connection) -> Running {
    let (tell, told) = unbounded_channel();
    let calls = Arc::<AtomicU32>::default();
    let cutter = connection.driver.cutter();
    let driver = tokio::spawn(connection.driver.run(Ear(tell, calls.clone())));
    Running { send: connection.send, cutter, told, calls, driver }
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

async fn connect(options: &Options, address: &Address) -> Result<Connection, ConnectError> {
    soon("a connect", options.connect(address)).await
}

/// Why there is no connection.
async fn refusal(options: &Options, address: &Address) -> ConnectError {
    connect(options, address).await.err().expect("no connection comes about")
}

fn nowhere() -> Address {
    "127.0.0.1:1".parse().expect("an address")
}

/// Options whose connector gives one end of a pipe, and the other end: no clock but tokio's has a say.
fn piped() -> (Options, DuplexStream) {
    let (near, far) = duplex(1 << 20);
    let near = StdMutex::new(Some(near));
    let connector = Connector::new(service_fn(move |_: Uri| {
        let near = near.lock().expect("no test panics here").take();
        std::future::ready(near.map(TokioIo::new).ok_or("taken"))
    }));
    (Options { connector: Some(connector), ..Options::default() }, far)
}

/// SETTINGS, with a limit of open calls or without.
fn settings(streams: Option<u8>) -> Vec<u8> {
    match streams {
        None => vec![0, 0, 0, 4, 0, 0, 0, 0, 0],
        Some(limit) => vec![0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, limit],
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_accepts_and_says_nothing_is_given_up_after_the_connect_timeout() {
    let (options, _far) = piped();
    let started = Instant::now();
    let error = refusal(&options, &nowhere()).await;
    assert_eq!(error.to_string(), "127.0.0.1:1: no HTTP/2 SETTINGS from the server within 1s");
    assert_eq!(started.elapsed(), Duration::from_secs(1), "the timeout is for the whole attempt");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_given_up_closes_its_socket() {
    let (options, mut far) = piped();
    let _ = refusal(&options, &nowhere()).await;
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.expect("the far end reads");
    assert!(read.starts_with(b"PRI * HTTP/2.0"), "the peer has seen our preface, and then the end");
}

#[tokio::test]
async fn a_refused_connect_says_so() {
    let (listener, address) = listen().await;
    drop(listener);
    let error = refusal(&Options::default(), &address).await;
    assert_eq!(chain(&error), format!("{address}: connection refused"));
}

#[tokio::test]
async fn a_peer_that_does_not_speak_http2_is_refused_at_once() {
    let (options, mut far) = piped();
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("the pipe is open");
    let error = chain(&refusal(&options, &nowhere()).await);
    assert!(error.starts_with("127.0.0.1:1: no HTTP/2 connection"), "{error}");
    assert!(error.contains("does not speak HTTP/2"), "{error}");
}

#[tokio::test]
async fn a_peer_that_hangs_up_before_its_settings_is_no_connection() {
    let (options, far) = piped();
    drop(far);
    let error = chain(&refusal(&options, &nowhere()).await);
    assert!(error.starts_with("127.0.0.1:1: no HTTP/2 connection: "), "{error}");
}

#[tokio::test]
async fn names_are_resolved_and_every_address_is_tried() {
    let (_server, address) = Server::tcp().await;
    // Where localhost is ::1 first, nothing listens there.
    let named = Address::new(Host::Name("localhost".into()), address.port());
    let connection = connect(&Options::default(), &named).await.expect("it is resolved and connected");
    assert_eq!(connection.streams, 100, "the server's SETTINGS were read");
}

#[tokio::test]
async fn a_mute_address_leaves_time_for_the_next_one() {
    let (mute, mute_address) = listen().await;
    let (_server, address) = Server::tcp().await;
    let options = Options::default();
    let attempt = Attempt { options: &options, address: &address, started: Instant::now() };
    let dialled = [&mute_address, &address].map(|address| match address.host() {
        Host::Ip(ip) => SocketAddr::new(*ip, address.port()),
        Host::Name(_) => unreachable!("both are IP addresses"),
    });
    let connection = soon("a connect", attempt.dial_in_turn(&dialled)).await;
    assert!(connection.is_ok(), "the second address answers: {:?}", connection.err());
    drop(mute);
}

#[tokio::test]
async fn a_limit_of_open_calls_is_seen_and_so_is_each_change() {
    let (options, mut far) = piped();
    far.write_all(&settings(Some(4))).await.expect("the pipe is open");
    let connection = connect(&options, &nowhere()).await.expect("SETTINGS came");
    assert_eq!(connection.streams, 4);
    let mut running = run(connection);
    for piece in settings(Some(7)).chunks(2) {
        far.write_all(piece).await.expect("the pipe is open");
        tokio::task::yield_now().await;
    }
    assert_eq!(soon("a change", running.told.recv()).await, Some(Told::Streams(7)));
    far.write_all(&settings(None)).await.expect("the pipe is open");
    far.write_all(&settings(Some(9))).await.expect("the pipe is open");
    assert_eq!(soon("a change", running.told.recv()).await, Some(Told::Streams(9)), "what is not stated stays");
}

#[tokio::test]
async fn without_a_limit_any_number_of_calls_may_be_open() {
    let (options, mut far) = piped();
    far.write_all(&settings(None)).await.expect("the pipe is open");
    assert_eq!(connect(&options, &nowhere()).await.expect("SETTINGS came").streams, u32::MAX);
}

#[tokio::test]
async fn a_goaway_is_told_at_once_and_open_calls_are_finished() {
    let (mut server, address) = Server::tcp().await;
    let mut running = run(connect(&Options::default(), &address).await.expect("connected"));
    let answer = running.ask();
    let (_, mut respond) = server.call().await;
    server.goaway.send(()).expect("the server runs");
    assert_eq!(soon("the news", running.told.recv()).await, Some(Told::GoingAway), "with a call open");
    respond.send_response(Response::new(()), true).expect("the call is open");
    assert!(soon("the answer", answer).await.expect("no panic").is_ok(), "the open call is answered");
    let ended = soon("the end", running.driver).await.expect("no panic");
    assert!(matches!(ended, Ended::GoneAway(h2::Reason::NO_ERROR)), "{ended}");
    assert_eq!(running.told.recv().await, None, "it is told once");
}

#[tokio::test]
async fn a_cut_closes_the_socket_and_ends_open_calls() {
    let (mut server, address) = Server::tcp().await;
    let running = run(connect(&Options::default(), &address).await.expect("connected"));
    let answer = running.ask();
    let _call = server.call().await;
    running.cutter.cut();
    running.cutter.cut();
    assert!(soon("the answer", answer).await.expect("no panic").is_err(), "the open call fails");
    let ended = soon("the end", running.driver).await.expect("no panic");
    assert!(matches!(ended, Ended::Cut), "{ended}");
    soon("the server's end", server.done).await.expect("no panic");
}

#[tokio::test]
async fn a_cut_ends_a_connection_whose_peer_does_not_read() {
    let (near, mut far) = duplex(256);
    let near = StdMutex::new(Some(near));
    let connector = Connector::new(service_fn(move |_: Uri| {
        let near = near.lock().expect("no test panics here").take();
        std::future::ready(near.map(TokioIo::new).ok_or("taken"))
    }));
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let options = Options { connector: Some(connector), ..Options::default() };
    let connection = soon("a connect", options.connect(&nowhere())).await.expect("SETTINGS came");
    let mut running = run(connection);
    let (answer, mut stream) = running.send.send_request(request(()), false).expect("the connection takes it");
    let answer = tokio::spawn(answer);
    stream.send_data(vec![7; 100_000].into(), true).expect("the call is open");
    running.cutter.cut();
    let ended = soon("the end", running.driver).await.expect("no panic");
    assert!(matches!(ended, Ended::Cut), "{ended}");
    assert!(soon("the answer", answer).await.expect("no panic").is_err(), "the open call fails");
}

#[tokio::test]
async fn a_dropped_driver_leaves_no_socket_and_no_task() {
    let (mut server, address) = Server::tcp().await;
    let metrics = tokio::runtime::Handle::current().metrics();
    let running = run(connect(&Options::default(), &address).await.expect("connected"));
    let answer = running.ask();
    let _call = server.call().await;
    running.driver.abort();
    soon("the server's end", server.done).await.expect("no panic");
    assert!(soon("the answer", answer).await.expect("no panic").is_err(), "the open call fails");
    soon("the end of all tasks", async {
        while metrics.num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_is_not_needed_any_more_ends_after_its_last_call() {
    let (mut server, address) = Server::tcp().await;
    let mut running = run(connect(&Options::default(), &address).await.expect("connected"));
    let answer = running.ask();
    let (_, mut respond) = server.call().await;
    drop(running.send);
    let mut body = respond.send_response(Response::new(()), false).expect("the call is open");
    let response = soon("the answer", answer).await.expect("no panic").expect("it is answered");
    body.send_data("late".into(), true).expect("the call is open");
    let data = soon("the body", read_all(response.into_body())).await;
    assert_eq!(data, b"late", "a call in flight is finished");
    let ended = soon("the end", running.driver).await.expect("no panic");
    assert!(matches!(ended, Ended::Unused), "{ended}");
    assert_eq!(running.told.recv().await, Some(Told::GoingAway), "it takes no new calls");
    soon("the server's end", server.done).await.expect("no panic");
}

#[tokio::test]
async fn a_server_that_closes_the_connection_is_named_as_the_reason() {
    let (options, mut far) = piped();
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    drop(far);
    let ended = soon("the end", running.driver).await.expect("no panic");
    assert!(matches!(ended, Ended::Closed), "{ended}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_freezes_with_a_call_open_is_noticed_by_keepalive() {
    let (options, mut far) = piped();
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    let started = Instant::now();
    running.calls.store(1, Ordering::Relaxed);
    let answer = running.ask();
    let ended = running.driver.await.expect("no panic");
    assert!(matches!(ended, Ended::Silent), "{ended}");
    let noticed = KEEP_ALIVE_INTERVAL + KEEP_ALIVE_TIMEOUT;
    assert!(started.elapsed().abs_diff(noticed) < Duration::from_secs(1), "after {:?}", started.elapsed());
    assert!(answer.await.expect("no panic").is_err(), "the open call fails");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_not_pinged() {
    let (options, mut far) = piped();
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    let idle = timeout(Duration::from_secs(24 * 60 * 60), running.driver).await;
    assert!(idle.is_err(), "nothing ends it in a day");
    drop(running.send);
    let mut sent = Vec::new();
    soon("the end", far.read_to_end(&mut sent)).await.expect("the far end reads");
    let mut kinds = frame_kinds(&sent["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()..]);
    kinds.retain(|kind| *kind == PING);
    assert!(kinds.is_empty(), "no ping was sent");
}

#[tokio::test]
async fn the_rest_of_a_request_that_waits_for_room_is_reset_at_the_server_at_once() {
    let (mut server, address) = Server::tcp().await;
    let mut running = run(connect(&Options::default(), &address).await.expect("connected"));
    let body = Endless::default();
    let held = body.0.clone();
    let (answer, stream) = running.send.send_request(request(()), false).expect("the connection takes it");
    let rest = Rest::of(Upload::new(Body::new(body)), stream);
    // The request stream is kept and never read.
    let (unread, mut respond) = server.call().await;
    let mut response = respond.send_response(Response::new(()), false).expect("the call is open");
    let answer = soon("the answer", answer).await.expect("it is answered");
    assert!(Arc::strong_count(&held) > 1, "the upload waits for room");
    drop((rest, answer));
    assert_eq!(Arc::strong_count(&held), 1, "the caller's body is dropped");
    let reason = soon("the reset", poll_fn(|cx| response.poll_reset(cx))).await.expect("the connection is open");
    assert_eq!(reason, h2::Reason::CANCEL);
    drop(unread);
    let next = running.ask();
    let (_, mut respond) = server.call().await;
    respond.send_response(Response::new(()), true).expect("the call is open");
    assert!(soon("the next answer", next).await.expect("no panic").is_ok(), "other calls go on");
}

#[tokio::test]
async fn calls_made_together_go_out_in_one_write() {
    let (near, mut far) = duplex(1 << 20);
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let writes = Arc::<AtomicU32>::default();
    let near = StdMutex::new(Some(CountsWrites(near, writes.clone())));
    let connector = Connector::new(service_fn(move |_: Uri| {
        let near = near.lock().expect("no test panics here").take();
        std::future::ready(near.map(TokioIo::new).ok_or("taken"))
    }));
    let options = Options { connector: Some(connector), ..Options::default() };
    let running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    tokio::task::yield_now().await;
    running.calls.store(GATHERS_FROM, Ordering::Relaxed);
    let before = writes.load(Ordering::Relaxed);
    let send = running.send.clone();
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let mut send = send.clone();
            tokio::spawn(async move { send.send_request(request(()), true).map(drop) })
        })
        .collect();
    for call in calls {
        call.await.expect("no panic").expect("the connection takes it");
    }
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(writes.load(Ordering::Relaxed) - before, 1, "eight heads in one write");
}

#[tokio::test]
async fn a_unix_socket_is_reached_through_a_connector_that_cannot_be_cloned() {
    struct Unix {
        path: std::path::PathBuf,
        _not_clone: Box<dyn std::any::Any + Send>,
    }
    impl tower::Service<Uri> for Unix {
        type Response = TokioIo<tokio::net::UnixStream>;
        type Error = io::Error;
        type Future = BoxFuture<'static, io::Result<Self::Response>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, uri: Uri) -> Self::Future {
            assert_eq!(uri, "http://127.0.0.1:1/", "it is told the address");
            let path = self.path.clone();
            Box::pin(async move { Ok(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) })
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("echo.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    let _server = Server::serve(async move { Ok(listener.accept().await?.0) });
    let connector = Connector::new(Unix { path, _not_clone: Box::new(()) });
    let options = Options { connector: Some(connector), ..Options::default() };
    assert_eq!(connect(&options, &nowhere()).await.expect("connected").streams, 100);
}

#[tokio::test]
async fn an_error_of_a_connector_is_the_cause() {
    let connector = Connector::new(service_fn(|_: Uri| async {
        pending::<()>().await;
        Ok::<TokioIo<DuplexStream>, BoxError>(TokioIo::new(duplex(1).0))
    }));
    let timed = Options { connector: Some(connector), connect_timeout: Duration::from_millis(1), ..Options::default() };
    assert_eq!(refusal(&timed, &nowhere()).await.to_string(), "127.0.0.1:1: not connected within 1ms");
    let connector =
        Connector::new(service_fn(|_: Uri| async { Err::<TokioIo<DuplexStream>, _>(io::Error::other("no route")) }));
    let failing = Options { connector: Some(connector), ..Options::default() };
    let error = refusal(&failing, &nowhere()).await;
    assert_eq!(chain(&error), "127.0.0.1:1: cannot connect: no route");
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    assert!(Options::default().check().is_ok(), "the defaults are fine");
    let no_time = Options { connect_timeout: Duration::ZERO, ..Options::default() };
    let endless = Options { http2_keep_alive_interval: Some(Duration::MAX), ..Options::default() };
    let wide = Options { initial_connection_window_size: Some(1 << 31), ..Options::default() };
    for (options, name) in
        [(no_time, "connect_timeout"), (endless, "http2_keep_alive_interval"), (wide, "initial_connection_window_size")]
    {
        let error = options.check().expect_err("it is out of range").to_string();
        assert!(error.contains(name), "{error} names {name}");
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

/// A request body that always has more, and tells whether it is still there.
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

#[tokio::test(start_paused = true)]
async fn an_adaptive_window_is_measured_only_by_data() {
    let (options, mut far) = piped();
    let options = Options { http2_adaptive_window: Some(true), ..options };
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let mut running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    running.calls.store(1, Ordering::Relaxed);
    let (_answer, mut stream) = running.send.send_request(request(()), false).expect("the connection takes it");
    let mut skip = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
    let mut pings = Vec::new();
    // An upload: the peer only ever takes it in. It answers pings.
    for second in 0..100 {
        let _ = stream.send_data(vec![7; 1_000].into(), false);
        let frames = seen(&mut far, std::mem::take(&mut skip)).await;
        for (kind, flags, _, payload) in frames {
            if kind == PING && flags == 0 {
                pings.push(second);
                far.write_all(&[&[0, 0, 8, PING, 1, 0, 0, 0, 0], payload.as_slice()].concat()).await.expect("open");
            }
        }
        far.write_all(&update(0, 1_000)).await.expect("open");
        far.write_all(&update(1, 1_000)).await.expect("open");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(pings.len() <= 2, "grpc-go closes a connection at the third ping without data between them: {pings:?}");
}

#[tokio::test(start_paused = true)]
async fn late_answers_to_calls_given_up_do_not_end_the_connection() {
    let (options, mut far) = piped();
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    let _ = seen(&mut far, 24).await;
    let mut streams = Vec::new();
    for _ in 0..12 {
        let calls: Vec<_> = (0..100)
            .map(|_| running.send.clone().send_request(request(()), true).expect("the connection takes it"))
            .collect();
        let frames = seen(&mut far, 0).await;
        streams.extend(frames.iter().filter(|(kind, ..)| *kind == 1).map(|(.., stream, _)| *stream));
        // A hundred calls run out of time at once. Their answers are under way.
        drop(calls);
        let _ = seen(&mut far, 0).await;
    }
    assert_eq!(streams.len(), 1_200);
    for stream in streams {
        let _ = far.write_all(&[&[0, 0, 1, 1, 5], stream.to_be_bytes().as_slice(), &[0x88]].concat()).await;
    }
    let _ = seen(&mut far, 0).await;
    let ended = timeout(Duration::from_secs(1), running.driver).await;
    assert!(ended.is_err(), "it ended: {}", chain(&ended.expect("it ended").expect("no panic")));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_lags_behind_small_messages_does_not_end_the_connection() {
    for (adaptive, messages) in [(None, 20_000), (Some(true), 2_000)] {
        let (options, mut far) = piped();
        let options = Options { http2_adaptive_window: adaptive, ..options };
        far.write_all(&settings(None)).await.expect("the pipe is open");
        let mut running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
        let (answer, _stream) = running.send.send_request(request(()), true).expect("the connection takes it");
        let _ = seen(&mut far, 24).await;
        far.write_all(&[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88]).await.expect("open");
        let _unread = answer.await.expect("an answer").into_body();
        for _ in 0..messages {
            far.write_all(&[&[0, 0, 20, 0, 0, 0, 0, 0, 1], [7_u8; 20].as_slice()].concat()).await.expect("open");
        }
        let _ = seen(&mut far, 0).await;
        let ended = timeout(Duration::from_secs(1), running.driver).await;
        assert!(ended.is_err(), "adaptive {adaptive:?}, {messages} messages: it ended with {ended:?}");
    }
}

#[cfg(feature = "_tls")]
mod tls {
    use super::*;
    use crate::tls::ClientTls;
    use crate::tls::testing::{Authority, acceptor, authority, issue};

    /// A server with a certificate for `name`; with `clients`, only for clients whose certificate that signed.
    async fn serve(
        authority: &Authority,
        name: &str,
        alpn: &[&[u8]],
        clients: Option<&Authority>,
    ) -> (Server, Address) {
        let acceptor = acceptor(authority, name, alpn, clients);
        let (listener, address) = listen().await;
        (Server::serve(async move { acceptor.accept(listener.accept().await?.0).await }), address)
    }

    fn options(tls: &ClientTls) -> Options {
        Options { tls: Some(TlsClient::new(tls).expect("it has roots")), ..Options::default() }
    }

    fn trusting(authority: &Authority) -> ClientTls {
        ClientTls::new().ca_pem(authority.pem()).expect("a root")
    }

    #[tokio::test]
    async fn the_address_s_host_is_verified_without_a_configured_name() {
        let root = authority();
        let (_by_ip, address) = serve(&root, "127.0.0.1", &[b"h2"], None).await;
        let connection = connect(&options(&trusting(&root)), &address).await.expect("the IP address is verified");
        assert_eq!(connection.streams, 100);
        let (_by_name, address) = serve(&root, "localhost", &[b"h2"], None).await;
        let named = Address::new(Host::Name("localhost".into()), address.port());
        assert!(connect(&options(&trusting(&root)), &named).await.is_ok(), "the DNS name is verified");
    }

    #[tokio::test]
    async fn a_configured_name_is_verified_instead_of_the_address() {
        let root = authority();
        let tls = trusting(&root).server_name("echo.internal").expect("a name");
        let (_right, address) = serve(&root, "echo.internal", &[b"h2"], None).await;
        assert!(connect(&options(&tls), &address).await.is_ok(), "the certificate is for that name");
        let (_wrong, address) = serve(&root, "127.0.0.1", &[b"h2"], None).await;
        let error = chain(&refusal(&options(&tls), &address).await);
        assert!(error.starts_with(&format!("{address}: no TLS session: the TLS handshake failed: ")), "{error}");
        assert!(error.contains("not valid for"), "{error}");
    }

    #[tokio::test]
    async fn a_certificate_of_another_authority_is_refused() {
        let (_server, address) = serve(&authority(), "127.0.0.1", &[b"h2"], None).await;
        let error = chain(&refusal(&options(&trusting(&authority())), &address).await);
        assert!(error.contains("invalid peer certificate"), "{error}");
    }

    #[tokio::test]
    async fn a_server_without_http2_is_refused() {
        let root = authority();
        let (_none, address) = serve(&root, "127.0.0.1", &[], None).await;
        let error = refusal(&options(&trusting(&root)), &address).await;
        assert!(matches!(error, ConnectError::Tls { source: TlsError::NoHttp2, .. }), "{}", chain(&error));
        let (_http1, address) = serve(&root, "127.0.0.1", &[b"http/1.1"], None).await;
        let error = refusal(&options(&trusting(&root)), &address).await;
        assert!(matches!(error, ConnectError::Tls { .. }), "{}", chain(&error));
    }

    #[tokio::test]
    async fn a_server_that_asks_for_a_certificate_gets_ours_and_refuses_without() {
        let (root, clients) = (authority(), authority());
        let (_strict, address) = serve(&root, "127.0.0.1", &[b"h2"], Some(&clients)).await;
        let (cert, key) = issue(&clients, "client");
        let known = trusting(&root).identity_pem(cert, key).expect("an identity");
        assert!(connect(&options(&known), &address).await.is_ok(), "our certificate is accepted");
        let (_strict, address) = serve(&root, "127.0.0.1", &[b"h2"], Some(&clients)).await;
        let error = chain(&refusal(&options(&trusting(&root)), &address).await);
        assert!(error.starts_with(&address.to_string()), "{error}");
    }

    #[tokio::test]
    async fn nothing_falls_back_to_plaintext_on_either_side() {
        let root = authority();
        let (_plain, address) = Server::tcp().await;
        let error = refusal(&options(&trusting(&root)), &address).await;
        assert!(matches!(error, ConnectError::Tls { source: TlsError::Handshake(_), .. }), "{}", chain(&error));
        let (_secure, address) = serve(&root, "127.0.0.1", &[b"h2"], None).await;
        let error = refusal(&Options::default(), &address).await;
        assert!(matches!(error, ConnectError::Http2 { .. }), "{}", chain(&error));
    }
}
