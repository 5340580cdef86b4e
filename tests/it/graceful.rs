//! A server without a registration ends soon after its drain limit whatever its clients do, and calls in flight finish.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use serde_json::Value;
use tokio::net::TcpStream;
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

/// From the end of the calls to that of the connections.
const SOCKET_GRACE: Duration = Duration::from_millis(250);

#[tokio::test]
async fn a_stuck_call_holds_a_process_until_its_limit_and_another_finishes() {
    let limit = DRAIN_LIMIT.as_secs().to_string();
    let mut server = Process::start(example("graceful_server").arg(&limit));
    let listening = server.expect_event("listening", LIMIT).await;
    let channel = connect(&listening).await;
    hello(&channel).await;
    let (_never, question) = oneshot::channel();
    let stuck = ask(&channel, question);
    let (name, question) = oneshot::channel();
    let in_flight = ask(&channel, question);
    holds(&mut server, 2).await;

    let since = Instant::now();
    server.signal(Signal::TERM);
    let draining = server.expect_event("draining", LIMIT).await;
    assert_eq!(draining["in_flight"], 2, "the call that was answered does not count");
    name.send("late".to_owned()).expect("the call waits for its name");
    let reply = in_flight.await.expect("the call does not panic").expect("the limit is ahead");
    assert_eq!(reply, "Hello, late!", "the usual answer");
    assert!(since.elapsed() < DRAIN_LIMIT, "it came before the limit");

    let status = stuck.await.expect("the call does not panic").expect_err("it never asked");
    assert_eq!(status.code(), Code::Unavailable, "it may be tried elsewhere: {status}");
    assert!(since.elapsed() >= DRAIN_LIMIT, "it had time until the limit");
    server.expect_event("stopped", LIMIT).await;
    assert!(server.wait(LIMIT).await.success(), "it ends in order");
    assert!(
        since.elapsed() < DRAIN_LIMIT + SOCKET_GRACE + Duration::from_secs(2),
        "it ended after {:?}",
        since.elapsed()
    );
}

#[tokio::test]
async fn peers_that_say_nothing_or_take_nothing_do_not_hold_a_process() {
    let limit = DRAIN_LIMIT.as_secs().to_string();
    let mut server = Process::start(example("graceful_server").arg(&limit));
    let listening = server.expect_event("listening", LIMIT).await;
    let silent = TcpStream::connect(address(&listening)).await.expect("it listens");
    // The window of its streams is shut: the reply stays at the server, and even its end behind it.
    let deaf = endpoint(&listening).initial_stream_window_size(0).connect().await.expect("it listens");
    let untaken = tokio::spawn(async move {
        let request = HelloRequest { name: "you".to_owned() };
        HelloClient::new(deaf).say_hello(request).await.map(drop)
    });
    holds(&mut server, 1).await;

    let since = Instant::now();
    server.signal(Signal::TERM);
    server.expect_event("stopped", LIMIT).await;
    assert!(server.wait(LIMIT).await.success(), "it ends in order");
    let lasted = since.elapsed();
    assert!(lasted >= DRAIN_LIMIT, "they had time until the limit: {lasted:?}");
    assert!(lasted < DRAIN_LIMIT + SOCKET_GRACE + Duration::from_secs(2), "it ended after {lasted:?}");
    untaken.await.expect("the call does not panic").expect_err("it took no reply");
    drop(silent);
}

#[tokio::test]
async fn a_process_without_calls_ends_at_once() {
    let mut server = Process::start(&mut example("graceful_server"));
    let listening = server.expect_event("listening", LIMIT).await;
    let channel = connect(&listening).await;
    hello(&channel).await;
    let since = Instant::now();
    server.signal(Signal::TERM);
    assert!(server.wait(LIMIT).await.success(), "it ends in order");
    assert!(since.elapsed() < Duration::from_secs(2), "it waited for nothing: {:?}", since.elapsed());
}

/// The address in the line that says where a server listens.
fn address(listening: &Value) -> &str {
    listening["address"].as_str().expect("an address")
}

fn endpoint(listening: &Value) -> Endpoint {
    Endpoint::from_shared(format!("http://{}", address(listening))).expect("a good address")
}

async fn connect(listening: &Value) -> Channel {
    endpoint(listening).connect().await.expect("it listens")
}

/// Waits until the server counts so many calls.
async fn holds(server: &mut Process, calls: u64) {
    let is_it = |line: &Value| line["event"] == "in_flight" && line["calls"] == calls;
    server.expect(&format!("{calls} calls in flight"), LIMIT, is_it).await;
}

async fn hello(channel: &Channel) {
    let request = HelloRequest { name: "you".to_owned() };
    let reply = HelloClient::new(channel.clone()).say_hello(request).await.expect("it serves").into_inner();
    assert_eq!(reply.message, "Hello, you!");
}

/// A call whose request comes when `name` does.
fn ask(channel: &Channel, name: oneshot::Receiver<String>) -> JoinHandle<Result<String, Status>> {
    let mut grpc = Grpc::new(channel.clone());
    tokio::spawn(async move {
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let path = PathAndQuery::from_static("/hello.Hello/SayHello");
        let codec = ProstCodec::<HelloRequest, HelloReply>::default();
        let request = stream::once(name).filter_map(async |name| name.ok().map(|name| HelloRequest { name }));
        let reply = grpc.client_streaming(Request::new(request), path, codec).await?;
        Ok(reply.into_inner().message)
    })
}
