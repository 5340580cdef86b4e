//! Messages that are longer than a service config lets them be: calls end with both numbers, and nothing else does.

use futures_util::stream;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::{Code, Status};

use super::client::{Client, connected, connected_channel, over, say, written};
use super::peers::Echo;
use crate::channel::BalancedChannel;
use crate::outlier::OutlierDetection;

/// A client of a server, whose messages may have 100 bytes, of requests or of responses, and its channel.
async fn limited(echo: &Echo, field: &str) -> (Client, BalancedChannel) {
    let text = format!(r#"{{"methodConfig":[{{"name":[{{"service":"echo.Echo"}}],"{field}":100}}]}}"#);
    // Whatever is not OK would eject the server.
    let outliers = OutlierDetection::grpc().consecutive_failures(1);
    let config = text.parse().expect("it is a good one");
    let channel = connected_channel(over([echo.address()]).service_config(config).outlier_detection(outliers)).await;
    (Client::new(channel.clone()), channel)
}

/// What the channel refused by itself is nothing against the server, to which a short message goes next.
async fn assert_goes_on(mut client: Client, channel: &BalancedChannel) {
    client.unary_echo(say("x")).await.expect("the channel goes on");
    // The answer took both tasks a while, and the balancer heard of every failure before.
    let instances = channel.instances();
    assert!(instances.len() == 1 && !instances[0].is_ejected(), "{instances:?}");
}

const REQUEST: &str = "maxRequestMessageBytes";
const RESPONSE: &str = "maxResponseMessageBytes";

/// A word that makes a request of that many bytes: protobuf writes a byte for the field, and one or two for its length.
fn word(bytes: usize) -> String {
    "x".repeat(bytes - if bytes > 129 { 3 } else { 2 })
}

fn assert_too_long(status: &Status, what: &str) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains(what), "{what}: {status:?}");
}

#[tokio::test]
async fn a_request_that_is_too_long_is_not_sent() {
    let echo = Echo::start();
    let (mut client, channel) = limited(&echo, REQUEST).await;
    client.unary_echo(say(word(100))).await.expect("it is not too long");
    let status = client.unary_echo(say(word(101))).await.expect_err("a byte more");
    let whole = "a message of the request has 101 bytes, more than the 100 of maxRequestMessageBytes in the service \
                 config: not sent";
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, whole));
    assert_eq!(echo.calls().get(), 1, "the server saw the first one alone");
    assert_goes_on(client, &channel).await;
}

#[tokio::test]
async fn a_response_that_is_too_long_fails_its_call_and_nothing_else() {
    let echo = Echo::start();
    let (mut client, channel) = limited(&echo, RESPONSE).await;
    let status = client.unary_echo(say(word(500))).await.expect_err("it is too long");
    assert_too_long(&status, &format!("{}: a message of the response has 5", echo.address()));
    assert_too_long(&status, "bytes, more than the 100 of maxResponseMessageBytes in the service config");
    assert_goes_on(client, &channel).await;
    assert_eq!(echo.connections().get(), 1, "on the connection that it was on");
}

#[tokio::test]
async fn each_message_of_a_request_stream_has_the_limit() {
    let echo = Echo::start();
    let (mut client, channel) = limited(&echo, REQUEST).await;
    let many = || std::iter::repeat_n(say(word(100)), 50);
    let answer = client.client_streaming_echo(stream::iter(many())).await.expect("each is short");
    assert!(answer.into_inner().message.len() > 4_000, "and all together are not");
    let messages = many().chain([say(word(200))]).chain(many());
    let status = client.client_streaming_echo(stream::iter(messages)).await.expect_err("one is too long");
    assert_too_long(&status, "a message of the request has 200 bytes");
    assert_goes_on(client, &channel).await;
}

#[tokio::test]
async fn a_message_that_is_too_long_ends_a_call_whose_response_has_begun() {
    let echo = Echo::start();
    let (mut client, channel) = limited(&echo, REQUEST).await;
    let (writer, messages) = written();
    writer.send(say("x")).expect("the call reads");
    let mut replies = client.bidirectional_streaming_echo(messages).await.expect("it begins").into_inner();
    replies.message().await.expect("it goes on").expect("a reply");
    writer.send(say(word(101))).expect("the call reads");
    let status = replies.message().await.expect_err("it is not sent");
    assert_too_long(&status, "a message of the request has 101 bytes");
    echo.cancelled().reaches(1).await;
    assert_goes_on(client, &channel).await;
}

#[tokio::test]
async fn each_message_of_a_response_stream_has_the_limit() {
    let echo = Echo::start();
    let (mut client, channel) = limited(&echo, RESPONSE).await;
    let words = std::iter::repeat_n("x".repeat(40), 50).chain([word(1_000)]).collect::<Vec<_>>().join(" ");
    let mut replies = client.server_streaming_echo(say(words)).await.expect("it begins").into_inner();
    for _ in 0..50 {
        replies.message().await.expect("a short one").expect("there are more");
    }
    let status = replies.message().await.expect_err("it is too long");
    assert_too_long(&status, "a message of the response has 1");
    assert_goes_on(client, &channel).await;
}

#[tokio::test]
async fn compressed_messages_count_as_they_are_sent() {
    let echo = Echo::start();
    for field in [REQUEST, RESPONSE] {
        let (mut plain, _) = limited(&echo, field).await;
        assert_too_long(&plain.unary_echo(say(word(10_000))).await.expect_err("it is too long"), "more than the 100");
        let (small, _) = limited(&echo, field).await;
        let mut small = small.send_compressed(Gzip).accept_compressed(Gzip);
        let answer = small.unary_echo(say(word(10_000))).await.expect("it is short on the wire");
        assert_eq!(answer.into_inner().message.len(), 9_997, "{field}");
    }
}

#[tokio::test]
async fn other_methods_have_no_limit_and_a_limit_of_0_wants_empty_messages() {
    let echo = Echo::start();
    let text = r#"{"methodConfig":[{"name":[{"service":"echo.Echo","method":"UnaryEcho"}],
        "maxRequestMessageBytes":0}]}"#;
    let channel = over([echo.address()]).service_config(text.parse().expect("it is a good one"));
    let mut client = connected(channel).await;
    client.unary_echo(say("")).await.expect("it is empty");
    let status = client.unary_echo(say("x")).await.expect_err("it is not empty");
    assert_too_long(&status, "has 3 bytes, more than the 0");
    client.client_streaming_echo(stream::iter([say(word(500))])).await.expect("another method");
}
