//! A deadline counts from the call to the end of its response, whatever the call waits for.

use std::time::Duration;

use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::client::{call, connected, ends, hangs, over, say, say_within};
use super::peers::{Echo, Mute, OnCall, Refusing, Scripted};
use crate::channel::deadline::timeout_of;
use crate::channel::{BalancedChannel, WaitForReady};

use super::peers::proto::echo_client::EchoClient;

/// The remaining time that the server was sent.
fn told(echo: &Echo) -> Duration {
    let mut headers = HeaderMap::new();
    let written = echo.last_timeout().expect("the server gets a timeout");
    headers.insert("grpc-timeout", HeaderValue::try_from(written).expect("a header's value"));
    timeout_of(&headers).expect("it is well formed")
}

fn client_of(channel: &BalancedChannel) -> EchoClient<BalancedChannel> {
    EchoClient::new(channel.clone())
}

#[tokio::test]
async fn a_call_without_an_answer_ends_at_its_own_deadline_and_is_reset() {
    let peer = Scripted::start(OnCall::Hold, None);
    let client = connected(over([peer.address()])).await;
    let held = call(&client, say_within(SHORT));
    peer.calls().reaches(1).await;
    tokio::time::pause();
    let status = ends(held).await.expect_err("no answer comes");
    tokio::time::resume();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    peer.resets().reaches(1).await;
    peer.on_call(OnCall::Answer);
    ends(call(&client, say_within(LONG))).await.expect("the connection is unharmed");
    assert_eq!(peer.connections().get(), 1, "and the same");
}

#[tokio::test]
async fn the_shorter_of_the_calls_and_the_channels_deadline_counts() {
    let peer = Scripted::start(OnCall::Hold, None);
    for (own, default) in [(None, SHORT), (Some(LONG), SHORT), (Some(SHORT), LONG)] {
        let client = connected(over([peer.address()]).timeout(default)).await;
        tokio::time::pause();
        let started = Instant::now();
        let request = own.map_or_else(|| tonic::Request::new(say("x")), say_within);
        let status = ends(call(&client, request)).await.expect_err("no answer comes");
        let took = started.elapsed();
        tokio::time::resume();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert!((SHORT..SHORT + SLACK).contains(&took), "own {own:?}, default {default:?}: took {took:?}");
    }
}

#[tokio::test]
async fn the_server_sees_the_channels_deadline_or_the_shorter_of_both() {
    let echo = Echo::start();
    let client = connected(over([echo.address()]).timeout(LONG)).await;
    ends(call(&client, say("x"))).await.expect("it is answered");
    assert!((SHORT..=LONG).contains(&told(&echo)), "the channel's: {:?}", told(&echo));
    ends(call(&client, say_within(SHORT))).await.expect("it is answered");
    assert!(told(&echo) <= SHORT, "the call's own: {:?}", told(&echo));
    ends(call(&client, say_within(LONG * 2))).await.expect("it is answered");
    assert!((SHORT..=LONG).contains(&told(&echo)), "the channel's is shorter: {:?}", told(&echo));
}

#[tokio::test]
async fn a_server_sees_the_timeout_that_waiting_left() {
    let echo = Echo::start_allowing(1);
    let client = connected(over([echo.address()])).await;
    echo.hold(true);
    let first = call(&client, say("x"));
    echo.calls().reaches(1).await;
    let second = call(&client, say_within(Duration::from_secs(100)));
    let mut third = call(&client, say("x"));
    assert!(hangs(&mut third).await, "both wait; a minute passes");
    echo.hold(false);
    for call in [first, second] {
        ends(call).await.expect("it is answered in its turn");
    }
    ends(third).await.expect("it is answered in its turn");
    assert_eq!(echo.last_timeout(), None, "the last call had none");

    echo.hold(true);
    let first = call(&client, say("x"));
    echo.calls().reaches(4).await;
    let mut second = call(&client, say_within(Duration::from_secs(100)));
    assert!(hangs(&mut second).await, "it waits; a minute passes");
    echo.hold(false);
    ends(first).await.expect("it is answered");
    ends(second).await.expect("it is answered in its turn");
    assert!(told(&echo) <= Duration::from_secs(40), "a minute less than at first: {:?}", told(&echo));
}

#[tokio::test]
async fn a_deadline_counts_while_connecting() {
    let mute = Mute::start();
    let channel = over([mute.address()]).connect_timeout(LONG).build().expect("the options are good");
    let waiting = call(&client_of(&channel), say_within(SHORT));
    mute.connections().reaches(1).await;
    tokio::time::pause();
    let status = ends(waiting).await.expect_err("there is no connection");
    tokio::time::resume();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[tokio::test]
async fn calls_that_wait_for_ready_wait_to_their_deadline_and_others_fail_now() {
    let refusing = Refusing::start();
    let channel = over([refusing.address()]).build().expect("the options are good");
    let status = ends(call(&client_of(&channel), say("x"))).await.expect_err("nothing listens");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let mut request = say_within(SHORT);
    request.extensions_mut().insert(WaitForReady(true));
    tokio::time::pause();
    let started = Instant::now();
    let status = ends(call(&client_of(&channel), request)).await.expect_err("nothing listens");
    let took = started.elapsed();
    tokio::time::resume();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(took >= SHORT, "it waited: {took:?}");
}

#[tokio::test]
async fn a_slow_response_stream_ends_at_the_deadline_and_is_cancelled() {
    let echo = Echo::start();
    echo.keep_streams_open(true);
    let mut client = connected(over([echo.address()])).await;
    let mut replies = client.server_streaming_echo(say_within(SHORT)).await.expect("an answer").into_inner();
    replies.next().await.expect("a reply").expect("a good one");
    tokio::time::pause();
    let status = replies.next().await.expect("an end").expect_err("the rest never comes");
    tokio::time::resume();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    echo.cancelled().reaches(1).await;
}

#[tokio::test]
async fn a_response_stream_that_is_always_ready_meets_its_deadline_too() {
    let echo = Echo::start();
    let mut client = connected(over([echo.address()])).await;
    let mut request = tonic::Request::new(say("x ".repeat(100_000)));
    request.set_timeout(SHORT);
    let mut replies = client.server_streaming_echo(request).await.expect("an answer").into_inner();
    for _ in 0..3 {
        replies.next().await.expect("a reply").expect("a good one");
    }
    tokio::time::pause();
    tokio::time::advance(SHORT).await;
    let mut last = Ok(());
    while let Some(reply) = replies.next().await {
        last = reply.map(drop);
    }
    tokio::time::resume();
    let status = last.expect_err("the time was over before the stream");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    echo.cancelled().reaches(1).await;
}

#[tokio::test]
async fn a_servers_own_timeout_is_a_missed_deadline_only_for_calls_that_had_one() {
    let echo = Echo::start();
    let client = connected(over([echo.address()])).await;
    echo.fail_with(Status::cancelled("Timeout expired"));
    let status = ends(call(&client, say_within(LONG))).await.expect_err("the server gave up");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    let status = ends(call(&client, say("x"))).await.expect_err("the server gave up");
    assert_eq!(status.code(), Code::Cancelled, "no deadline was missed: {status:?}");
    echo.fail_with(Status::cancelled("by the user"));
    let status = ends(call(&client, say_within(LONG))).await.expect_err("the server gave up");
    assert_eq!(status.code(), Code::Cancelled, "another reason: {status:?}");
}

const SHORT: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(600);
/// What a paused clock, which jumps by its timers' millisecond, may add.
const SLACK: Duration = Duration::from_millis(500);
