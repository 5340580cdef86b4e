//! Each peer does what it is for, as tonic's own channel sees it.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::proto::echo_client::EchoClient;
use super::proto::{EchoReply, EchoRequest};
use super::{Echo, LIMIT, Mute, OnCall, Refusing, Scripted};

async fn connect(address: SocketAddr) -> EchoClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address makes a URL");
    EchoClient::new(endpoint.connect().await.expect("the peer accepts"))
}

fn say(message: &str) -> EchoRequest {
    EchoRequest { message: message.to_owned() }
}

/// A unary call on a task of its own.
fn call(client: &EchoClient<Channel>) -> tokio::task::JoinHandle<Result<EchoReply, Status>> {
    let mut client = client.clone();
    tokio::spawn(async move { client.unary_echo(say("x")).await.map(tonic::Response::into_inner) })
}

async fn ends(call: tokio::task::JoinHandle<Result<EchoReply, Status>>) -> Result<EchoReply, Status> {
    timeout(LIMIT, call).await.expect("the call ends in time").expect("the call does not panic")
}

/// Whether nothing happens although everything else has come to rest: paused time jumps only then.
async fn hangs(call: &mut tokio::task::JoinHandle<Result<EchoReply, Status>>) -> bool {
    tokio::time::pause();
    let hangs = timeout(Duration::from_secs(60), call).await.is_err();
    tokio::time::resume();
    hangs
}

fn h2_error(status: &Status) -> &h2::Error {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref() {
            return error;
        }
        cause = error.source();
    }
    panic!("{status:?} is caused by an h2 error");
}

#[tokio::test]
async fn echo_answers_all_four_kinds_of_call() {
    let echo = Echo::start();
    let address = echo.address().to_string();
    let mut client = connect(echo.address()).await;

    let reply = client.unary_echo(say("hi")).await.expect("an answer").into_inner();
    assert_eq!(
        reply,
        EchoReply { message: "hi".into(), address: address.clone() },
        "the message and the address of the peer"
    );

    let replies = client.server_streaming_echo(say("a b")).await.expect("an answer").into_inner();
    let words: Vec<_> = replies.map_ok(|reply| reply.message).try_collect().await.expect("a stream of replies");
    assert_eq!(words, ["a", "b"], "a reply a word");

    let words = || stream::iter(["a", "b"].map(say));
    let reply = client.client_streaming_echo(words()).await.expect("an answer").into_inner();
    assert_eq!(reply.message, "a b", "one reply to all");

    let replies = client.bidirectional_streaming_echo(words()).await.expect("an answer").into_inner();
    let replies: Vec<_> = replies.map_ok(|reply| reply.message).try_collect().await.expect("a stream of replies");
    assert_eq!(replies, ["a", "b"], "a reply a message");

    assert_eq!(echo.calls().get(), 4, "each call is counted");
    assert_eq!(echo.connections().get(), 1, "they share a connection");
    assert_eq!(echo.cancelled().get(), 0, "none was cancelled");
}

#[tokio::test]
async fn echo_fails_delays_and_reports_the_timeout_it_was_sent() {
    let echo = Echo::start();
    let mut client = connect(echo.address()).await;
    echo.fail_with(Status::resource_exhausted("full"));
    let status = client.unary_echo(say("x")).await.expect_err("it fails on demand");
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "full"), "as configured");
    assert_eq!(echo.cancelled().get(), 0, "a failure is an answer");

    echo.fail_with(None);
    assert_eq!(echo.last_timeout(), None, "the call had no deadline");
    let mut request = Request::new(say("x"));
    request.set_timeout(Duration::from_secs(7));
    client.unary_echo(request).await.expect("it answers again");
    assert_eq!(echo.last_timeout().as_deref(), Some("7000000u"), "as the client wrote it");

    echo.delay(Duration::from_secs(3600));
    let mut slow = call(&client);
    echo.calls().reaches(3).await;
    assert!(hangs(&mut slow).await, "it takes its time");
}

#[tokio::test]
async fn echo_counts_handlers_and_streams_that_were_cancelled() {
    let echo = Echo::start();
    let mut client = connect(echo.address()).await;
    echo.hold(true);
    let held = call(&client);
    echo.calls().reaches(1).await;
    held.abort();
    echo.cancelled().reaches(1).await;

    echo.hold(false);
    echo.keep_streams_open(true);
    let mut replies = client.server_streaming_echo(say("one")).await.expect("an answer").into_inner();
    replies.next().await.expect("a reply").expect("a good one");
    assert!(replies.next().now_or_never().is_none(), "the stream stays open");
    drop(replies);
    echo.cancelled().reaches(2).await;
}

#[tokio::test]
async fn echo_finishes_held_calls_after_its_goaway() {
    let mut echo = Echo::start();
    let client = connect(echo.address()).await;
    echo.hold(true);
    let held = call(&client);
    echo.calls().reaches(1).await;
    echo.shut_down();
    echo.hold(false);
    assert!(ends(held).await.is_ok(), "a held call is answered");
    echo.stopped().await;
    assert!(TcpStream::connect(echo.address()).await.is_err(), "nothing listens any more");
}

#[tokio::test]
async fn a_killed_echo_breaks_its_calls_and_can_come_back() {
    let mut echo = Echo::start();
    let client = connect(echo.address()).await;
    echo.hold(true);
    let held = call(&client);
    echo.calls().reaches(1).await;
    echo.kill().await;
    assert!(TcpStream::connect(echo.address()).await.is_err(), "nothing listens any more");
    assert!(ends(held).await.is_err(), "its connection broke");
    echo.cancelled().reaches(1).await;

    let again = Echo::start_at(echo.address());
    assert!(ends(call(&connect(again.address()).await)).await.is_ok(), "the same address answers again");
}

#[tokio::test]
async fn a_frozen_echo_says_nothing_until_it_thaws() {
    let echo = Echo::start();
    let client = connect(echo.address()).await;
    assert!(ends(call(&client)).await.is_ok(), "it answers");
    echo.freeze();
    let mut frozen = call(&client);
    assert!(hangs(&mut frozen).await, "it is frozen");
    assert_eq!(echo.calls().get(), 1, "the call did not reach a handler");
    echo.thaw();
    assert!(ends(frozen).await.is_ok(), "it answers what came meanwhile");
}

#[tokio::test]
async fn echo_allows_as_many_streams_as_configured() {
    let echo = Echo::start_allowing(2);
    let client = connect(echo.address()).await;
    assert!(ends(call(&client)).await.is_ok(), "its SETTINGS came");
    echo.hold(true);
    let calls: Vec<_> = (0..4).map(|_| call(&client)).collect();
    echo.calls().reaches(3).await;
    let mut last = calls.into_iter().next_back().expect("there are four");
    assert!(hangs(&mut last).await, "calls are held");
    assert_eq!(echo.calls().get(), 3, "two are there, and two wait at the client");
    echo.hold(false);
    assert!(ends(last).await.is_ok(), "they follow when the first are answered");
}

#[tokio::test]
async fn a_dropped_echo_is_gone() {
    let echo = Echo::start();
    let (address, client) = (echo.address(), connect(echo.address()).await);
    echo.hold(true);
    let held = call(&client);
    echo.calls().reaches(1).await;
    drop(echo);
    assert!(ends(held).await.is_err(), "its connection broke");
    assert!(TcpStream::connect(address).await.is_err(), "nothing listens any more");
}

#[tokio::test]
async fn a_mute_peer_accepts_and_never_answers() {
    let mute = Mute::start();
    let client = connect(mute.address()).await;
    mute.connections().reaches(1).await;
    assert!(hangs(&mut call(&client)).await, "it says nothing");
}

#[tokio::test]
async fn a_refusing_address_refuses() {
    let refusing = Refusing::start();
    let error = TcpStream::connect(refusing.address()).await.expect_err("nothing listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "it is refused, not dropped");
}

#[tokio::test]
async fn streams_are_refused_until_they_are_not() {
    let peer = Scripted::refusing_streams();
    let client = connect(peer.address()).await;
    for calls in 1..=3 {
        let status = ends(call(&client)).await.expect_err("it is refused");
        let error = h2_error(&status);
        assert!(error.is_reset() && error.is_remote(), "{error:?} is the peer's reset");
        assert_eq!(error.reason(), Some(h2::Reason::REFUSED_STREAM), "no handler saw the call");
        assert_eq!(peer.calls().get(), calls, "each call is counted");
    }
    peer.on_call(OnCall::Answer);
    let reply = ends(call(&client)).await.expect("it answers now");
    assert_eq!(reply.address, peer.address().to_string(), "it reports its address");
    assert_eq!(peer.connections().get(), 1, "all on one connection");
}

#[tokio::test]
async fn a_goaway_below_the_call_says_that_it_was_not_processed() {
    let peer = Scripted::going_away_below();
    let client = connect(peer.address()).await;
    let status = ends(call(&client)).await.expect_err("the peer goes away");
    let error = h2_error(&status);
    assert!(error.is_go_away() && error.is_remote(), "{error:?} is the peer's GOAWAY");
    assert_eq!(peer.calls().get(), 1, "the call was there");
}

#[tokio::test]
async fn a_goaway_below_the_newest_call_leaves_the_older_ones_alone() {
    let peer = Scripted::start(OnCall::Hold, None);
    let client = connect(peer.address()).await;
    let older = call(&client);
    peer.calls().reaches(1).await;
    let newest = call(&client);
    peer.calls().reaches(2).await;
    peer.go_away_below_newest();
    let status = ends(newest).await.expect_err("it is above the last stream");
    assert!(h2_error(&status).is_go_away(), "and sees the GOAWAY");
    assert_eq!(peer.answer(2), 1, "one call is left");
    assert!(ends(older).await.is_ok(), "it is answered");
}

#[tokio::test]
async fn a_graceful_goaway_leaves_all_calls_alone_and_moves_new_ones() {
    let peer = Scripted::start(OnCall::Hold, None);
    let client = connect(peer.address()).await;
    let calls = [call(&client), call(&client)];
    peer.calls().reaches(2).await;
    peer.go_away_gracefully();
    assert_eq!(peer.answer(2), 2, "both go on");
    for call in calls {
        assert!(ends(call).await.is_ok(), "both are answered");
    }
    peer.on_call(OnCall::Answer);
    assert!(ends(call(&client)).await.is_ok(), "a new call is answered");
    assert_eq!(peer.connections().get(), 2, "on a new connection");
}

#[tokio::test]
async fn four_streams_are_allowed_and_then_as_many_as_the_peer_says() {
    let peer = Scripted::four_streams();
    let client = connect(peer.address()).await;
    peer.on_call(OnCall::Answer);
    assert!(ends(call(&client)).await.is_ok(), "its SETTINGS came");
    peer.on_call(OnCall::Hold);
    let mut calls: Vec<_> = (0..8).map(|_| call(&client)).collect();
    peer.calls().reaches(1 + 4).await;
    assert!(hangs(&mut calls[7]).await, "no call is answered");
    assert_eq!((peer.calls().get(), peer.held()), (1 + 4, 4), "four are there, and four wait at the client");
    peer.change_streams(6);
    peer.calls().reaches(1 + 6).await;
    assert_eq!(peer.answer(2), 2, "the two oldest are answered");
    peer.calls().reaches(1 + 8).await;
    assert_eq!(peer.answer(usize::MAX), 6, "the rest is answered");
    for call in calls {
        assert!(ends(call).await.is_ok(), "all calls are answered in the end");
    }
}

#[tokio::test]
async fn a_dropped_call_is_reset_and_held_no_longer() {
    let peer = Scripted::start(OnCall::Hold, None);
    let client = connect(peer.address()).await;
    let dropped = call(&client);
    peer.calls().reaches(1).await;
    assert_eq!(peer.held(), 1, "the call is held");
    dropped.abort();
    peer.resets().reaches(1).await;
    assert_eq!(peer.held(), 0, "the peer heard of it");
}

#[tokio::test]
async fn a_peer_that_hangs_up_breaks_its_calls_and_serves_the_next_connection() {
    let peer = Scripted::start(OnCall::Hold, None);
    let client = connect(peer.address()).await;
    let broken = call(&client);
    peer.calls().reaches(1).await;
    peer.hang_up();
    assert!(ends(broken).await.is_err(), "the connection ended under it");
    peer.on_call(OnCall::Answer);
    assert!(ends(call(&connect(peer.address()).await)).await.is_ok(), "the next connection works");
}
