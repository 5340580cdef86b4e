//! A server without a registration ends soon after its drain limit whatever its clients do, and calls in flight finish.

use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::support::LIMIT;
use crate::support::process::{Process, Signal, example};
use crate::support::server::proto::hello::hello_client::HelloClient;
use crate::support::server::proto::hello::{HelloReply, HelloRequest};

const DRAIN_LIMIT: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_stuck_call_holds_a_process_until_its_limit_and_another_finishes() {
    let limit = DRAIN_LIMIT.as_secs().to_string();
    let mut server = Process::start(example("graceful_server").args(["--drain-limit", &limit]));
    let listening = server.expect_event("listening", LIMIT).await;
    let channel = connect(listening["address"].as_str().expect("an address")).await;
    let (_never, question) = oneshot::channel();
    let stuck = ask(&channel, question).await;
    let (name, question) = oneshot::channel();
    let in_flight = ask(&channel, question).await;
    hello(&channel).await;

    let since = Instant::now();
    server.signal(Signal::TERM);
    let draining = server.expect_event("draining", LIMIT).await;
    // A call that arrived may begin a moment later.
    let calls = draining["in_flight"].as_u64().expect("a count");
    assert!(calls <= 2, "the call that was answered does not count: {calls}");
    name.send("late".to_owned()).expect("the call waits for its name");
    let reply = in_flight.await.expect("the call does not panic").expect("the limit is ahead");
    assert_eq!(reply, "Hello, late!", "the usual answer");
    assert!(since.elapsed() < DRAIN_LIMIT, "it came before the limit");

    let status = stuck.await.expect("the call does not panic").expect_err("it never asked");
    assert_eq!(status.code(), Code::Unavailable, "it may be tried elsewhere: {status}");
    assert!(since.elapsed() >= DRAIN_LIMIT, "it had time until the limit");
    server.expect_event("stopped", LIMIT).await;
    assert!(server.wait(LIMIT).await.success(), "it ends in order");
    assert!(since.elapsed() < DRAIN_LIMIT + Duration::from_secs(2), "it ended after {:?}", since.elapsed());
}

#[tokio::test]
async fn a_process_without_calls_ends_at_once() {
    let mut server = Process::start(&mut example("graceful_server"));
    let listening = server.expect_event("listening", LIMIT).await;
    let channel = connect(listening["address"].as_str().expect("an address")).await;
    hello(&channel).await;
    let since = Instant::now();
    server.signal(Signal::TERM);
    assert!(server.wait(LIMIT).await.success(), "it ends in order");
    assert!(since.elapsed() < Duration::from_secs(2), "it waited for nothing: {:?}", since.elapsed());
}

async fn connect(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a good address");
    endpoint.connect().await.expect("it listens")
}

async fn hello(channel: &Channel) {
    let request = HelloRequest { name: "you".to_owned() };
    let reply = HelloClient::new(channel.clone()).say_hello(request).await.expect("it serves").into_inner();
    assert_eq!(reply.message, "Hello, you!");
}

/// A call whose request comes when `name` does. Returned when it was sent, except for its request: what follows on the
/// channel reaches the server after it.
async fn ask(channel: &Channel, name: oneshot::Receiver<String>) -> JoinHandle<Result<String, Status>> {
    let mut grpc = Grpc::new(channel.clone());
    let (sent, begun) = oneshot::channel();
    let call = tokio::spawn(async move {
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let path = PathAndQuery::from_static("/hello.Hello/SayHello");
        let codec = ProstCodec::<HelloRequest, HelloReply>::default();
        let reply = grpc.client_streaming(Request::new(requests(sent, name)), path, codec).await?;
        Ok(reply.into_inner().message)
    });
    begun.await.expect("the call begins");
    call
}

fn requests(sent: oneshot::Sender<()>, name: oneshot::Receiver<String>) -> impl Stream<Item = HelloRequest> {
    let first = async move {
        // The body is asked for once the head is with the connection.
        let _ = sent.send(());
        name.await.ok()
    };
    stream::once(first).filter_map(async |name| name.map(|name| HelloRequest { name }))
}
