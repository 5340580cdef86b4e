//! A balanced channel is a channel to generated clients: every kind of call, and the layers around them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tonic::codec::CompressionEncoding::Gzip;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};
use tower::{Layer, ServiceBuilder};

use super::client::{connected, connected_channel, over, say, written};
use super::peers::Echo;
use super::peers::proto::echo_client::EchoClient;
use crate::instance::Instance;
use crate::policy::WeightedRoundRobin;

#[tokio::test]
async fn every_kind_of_call_is_answered() {
    let echo = Echo::start();
    let mut client = connected(over([echo.address()])).await;

    let reply = client.unary_echo(say("hi")).await.expect("an answer").into_inner();
    assert_eq!((reply.message, reply.address), ("hi".into(), echo.address().to_string()), "unary");

    let replies = client.server_streaming_echo(say("a b")).await.expect("an answer").into_inner();
    let words: Vec<_> = replies.map_ok(|reply| reply.message).try_collect().await.expect("a whole stream");
    assert_eq!(words, ["a", "b"], "server streaming");

    let words = || stream::iter(["a", "b"].map(say));
    let reply = client.client_streaming_echo(words()).await.expect("an answer").into_inner();
    assert_eq!(reply.message, "a b", "client streaming");

    let replies = client.bidirectional_streaming_echo(words()).await.expect("an answer").into_inner();
    let words: Vec<_> = replies.map_ok(|reply| reply.message).try_collect().await.expect("a whole stream");
    assert_eq!(words, ["a", "b"], "bidirectional streaming");
    assert_eq!((echo.cancelled().get(), echo.connections().get()), (0, 1), "nothing was cancelled or reconnected");
}

#[tokio::test]
async fn a_bidirectional_stream_answers_each_message_before_the_next_is_written() {
    let echo = Echo::start();
    let mut client = connected(over([echo.address()])).await;
    let (writer, messages) = written();
    writer.send(say("first")).expect("the call reads");
    let mut replies = client.bidirectional_streaming_echo(messages).await.expect("an answer").into_inner();
    for next in ["second", "third"] {
        replies.next().await.expect("a reply").expect("a good one");
        writer.send(say(next)).expect("the call reads on");
    }
    assert_eq!(replies.next().await.expect("a reply").expect("a good one").message, "third", "in turn");
    drop(writer);
    assert!(replies.next().await.is_none(), "the end of one ends the other");
}

#[tokio::test]
async fn interceptors_work_and_metadata_arrives() {
    let echo = Echo::start();
    let channel = connected_channel(over([echo.address()]).user_agent("tester/1")).await;
    let mut client = EchoClient::with_interceptor(channel, |mut request: Request<()>| {
        request.metadata_mut().insert("x-token", MetadataValue::from_static("secret"));
        Ok::<_, Status>(request)
    });
    let mut request = Request::new(say("x"));
    request.metadata_mut().insert("x-own", MetadataValue::from_static("mine"));
    request.metadata_mut().insert_bin("x-own-bin", MetadataValue::from_bytes(&[0, 255]));
    client.unary_echo(request).await.expect("an answer");
    let arrived = echo.last_metadata();
    assert_eq!(arrived.get("x-token").expect("it arrives"), "secret", "the interceptor's");
    assert_eq!(arrived.get("x-own").expect("it arrives"), "mine", "the call's");
    let binary = arrived.get_bin("x-own-bin").expect("it arrives").to_bytes().expect("it is base64");
    assert_eq!(binary.as_ref(), [0, 255], "binary as well");
    let agent = arrived.get("user-agent").expect("calls name their agent").to_str().expect("it is ASCII");
    assert!(agent.starts_with("tester/1 ") && agent.contains("tonic-etcd/"), "the agent is the channel's: {agent}");
}

#[tokio::test]
async fn tower_layers_go_around_it() {
    let echo = Echo::start();
    let channel = connected_channel(over([echo.address()])).await;
    let limited = ServiceBuilder::new().concurrency_limit(2).service(channel.clone());
    EchoClient::new(limited).unary_echo(say("x")).await.expect("through a concurrency limit");
    let buffered = tower::buffer::BufferLayer::new(8).layer(channel);
    EchoClient::new(buffered).unary_echo(say("x")).await.expect("through a buffer");
    assert_eq!(echo.calls().get(), 2, "both arrived");
}

#[tokio::test]
async fn compressed_messages_go_both_ways() {
    let echo = Echo::start();
    let client = connected(over([echo.address()])).await;
    let mut client = client.send_compressed(Gzip).accept_compressed(Gzip);
    let message = "gzip ".repeat(10_000);
    let response = client.unary_echo(say(&message)).await.expect("an answer");
    assert_eq!(response.metadata().get("grpc-encoding").expect("the answer has it"), "gzip", "compressed back");
    assert_eq!(echo.last_metadata().get("grpc-encoding").expect("the call has it"), "gzip", "compressed there");
    assert!(response.into_inner().message == message, "and nothing is lost");
}

#[tokio::test]
async fn message_size_limits_hold_and_harm_nothing_else() {
    let echo = Echo::start();
    let client = connected(over([echo.address()])).await;
    let status = client.clone().max_decoding_message_size(100).unary_echo(say("x".repeat(1_000))).await;
    assert_eq!(status.expect_err("the answer is too large").code(), Code::OutOfRange, "to decode");
    let status = client.clone().max_encoding_message_size(100).unary_echo(say("x".repeat(1_000))).await;
    assert_eq!(status.expect_err("the request is too large").code(), Code::OutOfRange, "to encode");
    client.clone().unary_echo(say("x")).await.expect("other calls go on");
    assert_eq!(echo.connections().get(), 1, "on the same connection");
}

#[tokio::test]
async fn large_messages_go_both_ways() {
    let echo = Echo::start();
    let mut client = connected(over([echo.address()])).await;
    let message = "large".repeat(700_000);
    let reply = client.unary_echo(say(&message)).await.expect("an answer").into_inner();
    assert!(reply.message == message, "all 3.5 MB");
}

#[tokio::test]
async fn the_response_names_the_picked_instance() {
    let (one, other) = (Echo::start(), Echo::start());
    let builder = over([one.address(), other.address()]).policy(WeightedRoundRobin::new());
    let mut client = connected(builder).await;
    for _ in 0..4 {
        let response = client.unary_echo(say("x")).await.expect("an answer");
        let chosen = response.extensions().get::<Arc<Instance>>().expect("the instance is in the extensions").clone();
        assert_eq!(chosen.address.to_string(), response.into_inner().address, "it is the one that answered");
    }
    assert_eq!((one.calls().get(), other.calls().get()), (2, 2), "both had their turns");
}

#[tokio::test]
async fn a_servers_status_passes_with_its_details_and_metadata() {
    let echo = Echo::start();
    let mut client = connected(over([echo.address()])).await;
    let mut status = Status::with_details(Code::FailedPrecondition, "nicht so: ü", b"details".as_slice().into());
    status.metadata_mut().insert("x-why", MetadataValue::from_static("because"));
    echo.fail_with(status);
    let status = client.unary_echo(say("x")).await.expect_err("the server refuses");
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "nicht so: ü"), "its words");
    assert_eq!(status.details(), b"details", "its details");
    assert_eq!(status.metadata().get("x-why").expect("it arrives"), "because", "its metadata");
    assert_eq!(echo.calls().get(), 1, "and was not asked again");
}

#[tokio::test]
async fn a_call_that_is_over_leaves_nothing_in_flight() {
    let echo = Echo::start();
    let channel = connected_channel(over([echo.address()])).await;
    let mut client = EchoClient::new(channel.clone());
    echo.keep_streams_open(true);
    let mut replies = client.server_streaming_echo(say("one")).await.expect("an answer").into_inner();
    replies.next().await.expect("a reply").expect("a good one");
    assert_eq!(channel.instances()[0].in_flight(), 1, "an open stream counts");
    drop(replies);
    assert_eq!(channel.instances()[0].in_flight(), 0, "a dropped one does not");
    client.unary_echo(say("x")).await.expect("an answer");
    assert_eq!(channel.instances()[0].in_flight(), 0, "nor one that was answered");
    assert!(channel.instances()[0].latency().is_some_and(|latency| latency > Duration::ZERO), "its time was taken");
}
