//! A real tonic server in the test's process, with switches.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::codec::CompressionEncoding::Gzip;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming, transport};

use super::proto::echo_server::{self, EchoServer};
use super::proto::{EchoReply, EchoRequest};
use super::socket::{Socket, Sockets};
use super::{ANY_PORT, Count, LIMIT, listen};

/// An echo server, whose replies carry its address. Dropping it kills it.
///
/// Unary: the message. Server streaming: a reply a word. Client streaming: the messages, joined by spaces.
/// Bidirectional: a reply a message. The switches hold for calls that begin later, except [`hold`](Self::hold).
#[derive(Debug)]
pub(crate) struct Echo {
    address: SocketAddr,
    answers: Arc<Answers>,
    sockets: Arc<Sockets>,
    shutdown: watch::Sender<bool>,
    task: JoinHandle<Result<(), transport::Error>>,
}

impl Echo {
    /// Listens on a free port when this returns.
    pub(crate) fn start() -> Self {
        Self::serve(Server::builder(), ANY_PORT)
    }

    /// Listens on a known address: an instance that comes back.
    pub(crate) fn start_at(address: SocketAddr) -> Self {
        Self::serve(Server::builder(), address)
    }

    /// Listens on a free port, with that `MAX_CONCURRENT_STREAMS`.
    pub(crate) fn start_allowing(streams: u32) -> Self {
        Self::serve(Server::builder().max_concurrent_streams(streams), ANY_PORT)
    }

    fn serve(mut server: Server, at: SocketAddr) -> Self {
        let (listener, address) = listen(at);
        let answers = Arc::new(Answers::new(address));
        let sockets = Arc::<Sockets>::default();
        let shutdown = watch::Sender::new(false);
        let mut stopped = shutdown.subscribe();
        let service = EchoServer::new(answers.clone()).accept_compressed(Gzip).send_compressed(Gzip);
        let serve = server.add_service(service).serve_with_incoming_shutdown(
            incoming(listener, sockets.clone(), answers.clone()),
            async move {
                _ = stopped.wait_for(|stopped| *stopped).await;
            },
        );
        Self { address, answers, sockets, shutdown, task: tokio::spawn(serve) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets every call take this much longer.
    pub(crate) fn delay(&self, delay: Duration) {
        self.answers.switch(|switches| switches.delay = delay);
    }

    /// Answers every call with this status, or properly again.
    pub(crate) fn fail_with(&self, status: impl Into<Option<Status>>) {
        let status = status.into();
        self.answers.switch(|switches| switches.status = status);
    }

    /// Leaves response streams open after their last message, until the caller ends them.
    pub(crate) fn keep_streams_open(&self, open: bool) {
        self.answers.switch(|switches| switches.keeps_open = open);
    }

    /// Holds every call before it is answered, until this is called with false.
    pub(crate) fn hold(&self, held: bool) {
        self.answers.held.send_replace(held);
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> &Count {
        &self.answers.connections
    }

    /// How many calls reached a handler.
    pub(crate) fn calls(&self) -> &Count {
        &self.answers.calls
    }

    /// How many handlers and response streams were dropped before their end.
    pub(crate) fn cancelled(&self) -> &Count {
        &self.answers.cancelled
    }

    /// What the latest call's request carried.
    pub(crate) fn last_metadata(&self) -> MetadataMap {
        self.answers.last_metadata.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The latest call's `grpc-timeout`, as it was written.
    pub(crate) fn last_timeout(&self) -> Option<String> {
        Some(self.last_metadata().get("grpc-timeout")?.to_str().expect("a timeout is ASCII").to_owned())
    }

    /// Closes the listener and sends GOAWAY; open calls go on. [`stopped`](Self::stopped) waits for the end.
    pub(crate) fn shut_down(&self) {
        self.shutdown.send_replace(true);
    }

    /// Waits until everything has ended after [`shut_down`](Self::shut_down).
    pub(crate) async fn stopped(&mut self) {
        timeout(LIMIT, &mut self.task)
            .await
            .expect("the server stops in time")
            .expect("the server does not panic")
            .expect("the server ends without an error");
    }

    /// Closes the listener and every socket unannounced, as the kernel does for a killed process. The address refuses
    /// connections when this returns.
    pub(crate) async fn kill(&mut self) {
        self.task.abort();
        _ = (&mut self.task).await;
        self.sockets.close();
    }

    /// Stops to read and to write; the kernel goes on to accept. What arrives meanwhile is read after
    /// [`thaw`](Self::thaw).
    pub(crate) fn freeze(&self) {
        self.sockets.freeze(true);
    }

    /// Goes on where [`freeze`](Self::freeze) stopped it.
    pub(crate) fn thaw(&self) {
        self.sockets.freeze(false);
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
        self.sockets.close();
    }
}

fn incoming(
    listener: TcpListener,
    sockets: Arc<Sockets>,
    answers: Arc<Answers>,
) -> impl stream::Stream<Item = std::io::Result<Socket>> {
    stream::unfold((listener, sockets, answers), |(listener, sockets, answers)| async move {
        let socket = listener.accept().await.map(|(stream, _)| {
            _ = stream.set_nodelay(true);
            answers.connections.add_one();
            sockets.take_in(stream)
        });
        Some((socket, (listener, sockets, answers)))
    })
}

/// The service itself.
#[derive(Debug)]
struct Answers {
    address: String,
    switches: Mutex<Switches>,
    held: watch::Sender<bool>,
    connections: Count,
    calls: Count,
    cancelled: Count,
    last_metadata: Mutex<MetadataMap>,
}

#[derive(Debug, Default, Clone)]
struct Switches {
    delay: Duration,
    status: Option<Status>,
    keeps_open: bool,
}

/// A call in its handler, or in its response stream. Dropped before its end, it counts as cancelled.
struct Call {
    answers: Arc<Answers>,
    switches: Switches,
    ended: bool,
}

impl Answers {
    fn new(address: SocketAddr) -> Self {
        Self {
            address: address.to_string(),
            switches: Mutex::default(),
            held: watch::Sender::new(false),
            connections: Count::default(),
            calls: Count::default(),
            cancelled: Count::default(),
            last_metadata: Mutex::default(),
        }
    }

    fn switch(&self, change: impl FnOnce(&mut Switches)) {
        change(&mut self.switches.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn begin<T>(self: &Arc<Self>, request: &Request<T>) -> Call {
        *self.last_metadata.lock().unwrap_or_else(PoisonError::into_inner) = request.metadata().clone();
        let switches = self.switches.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.calls.add_one();
        Call { answers: self.clone(), switches, ended: false }
    }
}

impl Call {
    /// What comes before the answer: the delay, the hold, the failure.
    async fn prepare(&mut self) -> Result<(), Status> {
        sleep(self.switches.delay).await;
        _ = self.answers.held.subscribe().wait_for(|held| !held).await;
        let Some(status) = self.switches.status.take() else { return Ok(()) };
        self.end();
        Err(status)
    }

    fn reply(&self, message: String) -> EchoReply {
        EchoReply { message, address: self.answers.address.clone() }
    }

    fn answer(mut self, message: String) -> Response<EchoReply> {
        self.end();
        Response::new(self.reply(message))
    }

    fn end(&mut self) {
        self.ended = true;
    }

    /// A reply to each message; the call lives in the stream.
    fn stream<S>(self, messages: S) -> Response<BoxStream<'static, Result<EchoReply, Status>>>
    where
        S: stream::Stream<Item = Result<String, Status>> + Unpin + Send + 'static,
    {
        let replies = stream::unfold((self, messages), |(mut call, mut messages)| async move {
            match messages.next().await {
                Some(message) => Some((message.map(|message| call.reply(message)), (call, messages))),
                None if call.switches.keeps_open => std::future::pending().await,
                None => {
                    call.end();
                    None
                }
            }
        });
        Response::new(replies.boxed())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            self.answers.cancelled.add_one();
        }
    }
}

#[tonic::async_trait]
impl echo_server::Echo for Arc<Answers> {
    type ServerStreamingEchoStream = BoxStream<'static, Result<EchoReply, Status>>;
    type BidirectionalStreamingEchoStream = BoxStream<'static, Result<EchoReply, Status>>;

    async fn unary_echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        let mut call = self.begin(&request);
        call.prepare().await?;
        Ok(call.answer(request.into_inner().message))
    }

    async fn server_streaming_echo(
        &self,
        request: Request<EchoRequest>,
    ) -> Result<Response<Self::ServerStreamingEchoStream>, Status> {
        let mut call = self.begin(&request);
        call.prepare().await?;
        let words: Vec<_> = request.into_inner().message.split(' ').map(|word| Ok(word.to_owned())).collect();
        Ok(call.stream(stream::iter(words)))
    }

    async fn client_streaming_echo(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<EchoReply>, Status> {
        let mut call = self.begin(&request);
        call.prepare().await?;
        let messages: Vec<String> = request.into_inner().map_ok(|request| request.message).try_collect().await?;
        Ok(call.answer(messages.join(" ")))
    }

    async fn bidirectional_streaming_echo(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Self::BidirectionalStreamingEchoStream>, Status> {
        let mut call = self.begin(&request);
        call.prepare().await?;
        Ok(call.stream(request.into_inner().map_ok(|request| request.message)))
    }
}
