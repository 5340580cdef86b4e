//! What a newcomer gets wrong between a client and its servers, and what the status or the log of a call says then.

use std::time::Duration;

use http_body_util::BodyExt;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use super::client::{connected, connected_channel, over, say};
use super::peers::Echo;
use super::peers::proto::echo_client::EchoClient;
use crate::channel::{BalancedChannel, ChannelError};
use crate::test_log::Log;

/// A call without messages to this path.
async fn call_path(channel: &mut BalancedChannel, path: &str) -> http::Response<Vec<u8>> {
    let request = http::Request::post(format!("http://ignored{path}")).header("te", "trailers");
    let response = channel.call(request.body(Body::empty()).expect("a request")).await.expect("it is answered");
    let (head, body) = response.into_parts();
    http::Response::from_parts(head, body.collect().await.expect("it ends").to_bytes().to_vec())
}

#[tokio::test]
async fn a_method_that_a_server_does_not_have_is_logged_with_server_and_path() {
    let (log, _guard) = Log::capture();
    let echo = Echo::start();
    let mut channel = connected_channel(over([echo.address()])).await;
    for path in ["/hello.Hello/SayHello", "/hello.Hello/SayHello", "/tonicetcd.echo.v1.Echo/NoSuchMethod"] {
        let response = call_path(&mut channel, path).await;
        let status = Status::from_header_map(response.headers()).expect("it is a status alone");
        assert_eq!((status.code(), status.message()), (Code::Unimplemented, ""), "as the server sent it");
        assert!(ChannelError::of(&status).is_none(), "{status:?}");
    }
    let line = format!("address={} path=\"/hello.Hello/SayHello\"", echo.address());
    let text = log.text();
    assert!(text.contains("WARN") && text.contains(&line), "{text}");
    assert_eq!(log.count("server has no such gRPC service or method"), 1, "once a minute: {text}");
}

#[tokio::test]
async fn a_status_with_a_message_of_its_own_is_not_logged() {
    let (log, _guard) = Log::capture();
    let echo = Echo::start();
    echo.fail_with(Status::unimplemented("not on Sundays"));
    let mut client = connected(over([echo.address()])).await;
    let status = client.unary_echo(say("x")).await.expect_err("it fails");
    assert_eq!(status.message(), "not on Sundays");
    assert_eq!(log.count("no such gRPC service"), 0, "{}", log.text());
}

#[tokio::test]
async fn messages_above_tonics_limit_fail_with_their_size_in_both_directions() {
    let echo = Echo::start();
    let client = connected(over([echo.address()])).await;
    let status = client.clone().unary_echo(say("x".repeat(5 << 20))).await.expect_err("the server refuses it");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let told = "decoded message length too large: found 5242885 bytes, the limit is: 4194304 bytes";
    assert!(status.message().contains(told), "{status:?}");
    let mut strict = client.max_decoding_message_size(8);
    let status = strict.unary_echo(say("x".repeat(9))).await.expect_err("the client refuses it");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(status.message().contains("decoded message length too large"), "{status:?}");
    assert!(status.message().ends_with("the limit is: 8 bytes"), "{status:?}");
}

#[tokio::test]
async fn towers_timeout_around_a_channel_ends_calls_with_its_own_words() {
    let echo = Echo::start();
    echo.hold(true);
    let channel = connected_channel(over([echo.address()])).await;
    let limited = tower::timeout::Timeout::new(channel, Duration::from_millis(50)).map_response(|r| r.map(Body::new));
    let status = EchoClient::new(limited).unary_echo(say("x")).await.expect_err("it is held");
    assert_eq!((status.code(), status.message()), (Code::Unknown, "request timed out"), "{status:?}");
    assert!(ChannelError::of(&status).is_none(), "{status:?}");
}
