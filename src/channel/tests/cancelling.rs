//! A dropped call or response ends at the server, at once, and harms no other call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::{StreamExt, stream};
use tonic::{Code, Status};

use super::client::{call, connected, connected_channel, ends, hangs, over, say, watched, written};
use super::peers::proto::echo_client::EchoClient;
use super::peers::{Count, Echo};
use crate::channel::BalancedChannel;

#[tokio::test]
async fn a_call_dropped_before_its_response_is_cancelled_at_the_server() {
    let echo = Echo::start();
    let client = connected(over([echo.address()])).await;
    echo.hold(true);
    let other = call(&client, say("other"));
    echo.calls().reaches(1).await;
    let dropped = call(&client, say("x"));
    echo.calls().reaches(2).await;
    dropped.abort();
    echo.cancelled().reaches(1).await;
    echo.hold(false);
    assert_eq!(ends(other).await.expect("it is answered").message, "other", "the other call is unharmed");
    assert_eq!((echo.cancelled().get(), echo.connections().get()), (1, 1), "one call ended, no connection");
}

#[tokio::test]
async fn a_response_dropped_after_its_first_message_is_cancelled_at_the_server() {
    let echo = Echo::start();
    echo.keep_streams_open(true);
    let mut client = connected(over([echo.address()])).await;
    let mut replies = client.server_streaming_echo(say("one")).await.expect("an answer").into_inner();
    replies.next().await.expect("a reply").expect("a good one");
    drop(replies);
    echo.cancelled().reaches(1).await;
    client.unary_echo(say("x")).await.expect("the connection is unharmed");
    assert_eq!(echo.connections().get(), 1, "and the same");
}

#[tokio::test]
async fn a_dropped_response_lets_go_of_the_request_stream_that_is_still_open() {
    let echo = Echo::start();
    let dropped = Arc::<Count>::default();
    echo.keep_streams_open(true);
    let mut client = connected(over([echo.address()])).await;
    let messages = watched(stream::iter([say("one")]).chain(stream::pending()), &dropped);
    let mut replies = client.bidirectional_streaming_echo(messages).await.expect("an answer").into_inner();
    replies.next().await.expect("a reply").expect("a good one");
    assert_eq!(dropped.get(), 0, "the request stream is open");
    drop(replies);
    assert_eq!(dropped.get(), 1, "it is let go of at once");
    echo.cancelled().reaches(1).await;
    client.unary_echo(say("x")).await.expect("the connection is unharmed");
    assert_eq!(echo.connections().get(), 1, "and the same");
}

/// Notes the calls in flight when it is dropped.
struct Notes(BalancedChannel, Arc<AtomicU32>);

impl Drop for Notes {
    fn drop(&mut self) {
        self.1.store(self.0.instances()[0].in_flight(), Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_place_comes_back_only_after_the_request_is_let_go() {
    let echo = Echo::start();
    echo.keep_streams_open(true);
    let channel = connected_channel(over([echo.address()])).await;
    let in_flight = Arc::<AtomicU32>::default();
    let notes = Notes(channel.clone(), in_flight.clone());
    let messages = stream::iter([say("one")]).chain(stream::pending()).map(move |message| {
        let _ = &notes;
        message
    });
    let mut client = EchoClient::new(channel.clone());
    let mut replies = client.bidirectional_streaming_echo(messages).await.expect("an answer").into_inner();
    replies.next().await.expect("a reply").expect("a good one");
    drop(replies);
    assert_eq!(in_flight.load(Ordering::Relaxed), 1, "another call would wait for its stream, within h2");
    assert_eq!(channel.instances()[0].in_flight(), 0, "the place is free");
}

#[tokio::test]
async fn a_dropped_call_with_an_open_request_stream_is_cancelled_at_the_server() {
    let echo = Echo::start();
    let dropped = Arc::<Count>::default();
    let client = connected(over([echo.address()])).await;
    // To a handler that reads, a cancelled request stream ends as if all had been sent: this one must not read.
    echo.hold(true);
    let messages = watched(stream::iter([say("one")]).chain(stream::pending()), &dropped);
    let mut streaming = client.clone();
    let open = tokio::spawn(async move { streaming.client_streaming_echo(messages).await });
    echo.calls().reaches(1).await;
    open.abort();
    dropped.reaches(1).await;
    echo.cancelled().reaches(1).await;
    echo.hold(false);
    ends(call(&client, say("x"))).await.expect("the connection is unharmed");
    assert_eq!(echo.connections().get(), 1, "and the same");
}

#[tokio::test]
async fn a_dropped_upload_that_flow_control_blocks_frees_the_connection() {
    let echo = Echo::start();
    let dropped = Arc::<Count>::default();
    let client = connected(over([echo.address()])).await;
    echo.hold(true);
    let messages = watched(stream::repeat_with(|| say("x".repeat(16 * 1024))), &dropped);
    let mut streaming = client.clone();
    let mut blocked = tokio::spawn(async move { streaming.client_streaming_echo(messages).await });
    echo.calls().reaches(1).await;
    assert!(hangs(&mut blocked).await, "it is not read");
    blocked.abort();
    dropped.reaches(1).await;
    echo.cancelled().reaches(1).await;
    echo.hold(false);
    let large = "y".repeat(2 * 1024 * 1024);
    let reply = ends(call(&client, say(&large))).await.expect("the connection's window is free again");
    assert!(reply.message == large, "all of it arrives");
    assert_eq!(echo.connections().get(), 1, "on the same connection");
}

#[tokio::test]
async fn a_dropped_call_whose_one_large_message_is_blocked_is_cancelled_too() {
    let echo = Echo::start();
    let client = connected(over([echo.address()])).await;
    echo.hold(true);
    let mut streaming = client.clone();
    let large = || "z".repeat(3 * 1024 * 1024);
    let messages = stream::iter([say(large())]);
    let mut blocked = tokio::spawn(async move { streaming.client_streaming_echo(messages).await });
    echo.calls().reaches(1).await;
    assert!(hangs(&mut blocked).await, "it is not read");
    blocked.abort();
    echo.cancelled().reaches(1).await;
    echo.hold(false);
    let reply = ends(call(&client, say(large()))).await.expect("the connection's window is free again");
    assert!(reply.message == large(), "all of it arrives");
}

#[tokio::test]
async fn a_server_that_ends_the_response_early_lets_go_of_the_request_stream() {
    let echo = Echo::start();
    let dropped = Arc::<Count>::default();
    let mut client = connected(over([echo.address()])).await;
    echo.fail_with(Status::permission_denied("not you"));
    let messages = watched(stream::iter([say("one")]).chain(stream::pending()), &dropped);
    let status = client.bidirectional_streaming_echo(messages).await.expect_err("the server refuses");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    dropped.reaches(1).await;
}

#[tokio::test]
async fn a_request_stream_that_fails_ends_the_call_with_its_own_status() {
    let echo = Echo::start();
    let client = connected(over([echo.address()])).await;
    let messages = || stream::iter([say("one"), say("x".repeat(1_000))]).chain(stream::pending());

    let mut limited = client.clone().max_encoding_message_size(100);
    let status = limited.client_streaming_echo(messages()).await.expect_err("the second message is too large");
    assert_eq!(status.code(), Code::OutOfRange, "the encoder's own status: {status:?}");
    ends(call(&client, say("x"))).await.expect("the connection is unharmed");
    assert_eq!(echo.connections().get(), 1, "and the same");
}

#[tokio::test]
async fn a_request_stream_that_fails_ends_a_begun_response_with_its_own_status() {
    let echo = Echo::start();
    let client = connected(over([echo.address()])).await;
    let (writer, messages) = written();
    writer.send(say("one")).expect("the call reads");
    let mut limited = client.clone().max_encoding_message_size(100);
    let mut replies = limited.bidirectional_streaming_echo(messages).await.expect("an answer").into_inner();
    replies.next().await.expect("a reply").expect("a good one");
    writer.send(say("x".repeat(1_000))).expect("the call reads");
    let status = replies.next().await.expect("an end").expect_err("the second message is too large");
    assert_eq!(status.code(), Code::OutOfRange, "the encoder's own status: {status:?}");
    echo.cancelled().reaches(1).await;
}
