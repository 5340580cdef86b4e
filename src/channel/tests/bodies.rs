//! Requests that are still being sent when something else happens, and responses at their very end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body::{Body as _, Frame};
use prost::Message;
use tokio::time::timeout;
use tonic::Code;
use tonic::body::Body;
use tower::Service;

use super::client::{connected, connected_channel, over, say, watched};
use super::peers::{Count, Echo, LIMIT, OnCall, Reply, Scripted};
use super::rig::Rig;
use crate::channel::Connectivity;
use crate::policy::WeightedRoundRobin;

/// Messages that are always there, each of them a millisecond's work to make, until the test says stop.
fn laborious(stop: &Arc<AtomicBool>) -> impl stream::Stream<Item = super::peers::proto::EchoRequest> + Send + use<> {
    let stop = stop.clone();
    stream::poll_fn(move |_| {
        if stop.load(Ordering::Relaxed) {
            return Poll::Ready(None);
        }
        std::thread::sleep(Duration::from_millis(2));
        Poll::Ready(Some(say("x".repeat(32 * 1024))))
    })
}

fn stops_in(stop: &Arc<AtomicBool>, time: Duration) {
    let stop = stop.clone();
    std::thread::spawn(move || {
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_call_with_an_endless_request_stream_can_be_dropped() {
    let echo = Echo::start();
    let client = connected(over([echo.address()])).await;
    let stop = Arc::<AtomicBool>::default();
    stops_in(&stop, Duration::from_secs(4));
    let messages = laborious(&stop);
    let started = std::time::Instant::now();
    let call = tokio::spawn(async move {
        let mut client = client;
        timeout(Duration::from_millis(300), client.client_streaming_echo(messages)).await.is_err()
    });
    assert!(call.await.expect("no panic"), "tokio's timeout drops it");
    assert!(started.elapsed() < Duration::from_secs(2), "after {:?}, with 300 ms", started.elapsed());
}

fn framed(message: &str) -> Bytes {
    let encoded = say(message).encode_to_vec();
    let length = u32::try_from(encoded.len()).expect("it fits").to_be_bytes();
    [&[0], length.as_slice(), &encoded].concat().into()
}

/// Some frames, and then nothing more or an open end.
struct Frames(Vec<Bytes>, bool);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        match self.0.pop() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None if self.1 => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

fn raw(method: &str, body: Frames) -> http::Request<Body> {
    http::Request::post(format!("http://ignored/tonicetcd.echo.v1.Echo/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(body))
        .expect("a request")
}

#[tokio::test]
async fn a_call_that_was_never_sent_goes_elsewhere_however_large_it_is() {
    for size in [10, 100 * 1024] {
        let (leaver, other) = (Scripted::start(OnCall::Answer, None), Scripted::start(OnCall::Answer, None));
        let mut channel =
            connected_channel(over([leaver.address(), other.address()]).policy(WeightedRoundRobin::new())).await;
        // Both hold their quota, and neither was polled.
        let calls: Vec<_> =
            (0..2).map(|_| channel.call(raw("UnaryEcho", Frames(vec![framed(&"x".repeat(size))], false)))).collect();
        leaver.go_away_gracefully();
        let mut changes = channel.instance_changes();
        let left = async {
            while let Some(all) = changes.next().await {
                if all.iter().any(|status| status.state() != Connectivity::Ready) {
                    return;
                }
            }
        };
        timeout(LIMIT, left).await.expect("it leaves");
        for call in calls {
            let answer = call.await;
            assert!(answer.is_ok(), "{size} bytes, none of which were sent: {:?}", answer.err());
        }
    }
}

#[tokio::test]
async fn after_the_trailers_a_body_is_at_its_end_although_the_request_is_open() {
    // The peer answers whole, and leaves the request alone.
    let peer = Scripted::start(OnCall::Answer, None);
    let mut channel = connected_channel(over([peer.address()])).await;
    let response = channel.call(raw("BidirectionalStreamingEcho", Frames(vec![framed("x")], true))).await;
    let mut body = Box::pin(response.expect("an answer").into_body());
    let mut frames = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        frames.push(frame.map(|frame| frame.is_trailers()));
    }
    assert!(matches!(frames[..], [Ok(false), Ok(true)]), "data, trailers and no more: {frames:?}");
    assert!(body.is_end_stream(), "it says so");
}

#[tokio::test(start_paused = true)]
async fn a_frame_beyond_what_http2_can_count_fails_the_call() {
    let rig = Rig::new();
    let [peer] = rig.network.peers::<1>(1);
    peer.reply(Reply::Hold);
    rig.serve(&[&peer]).await;
    let mut channel = rig.channel.clone();
    let huge = Bytes::from(vec![0_u8; 1 << 31]);
    let call = tokio::spawn(channel.call(raw("ClientStreamingEcho", Frames(vec![huge, framed("x")], true))));
    let ended = timeout(Duration::from_secs(3600), call).await.expect("it does not hang");
    let status = ended.expect("no panic").map(drop).expect_err("it cannot be sent");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
}

/// An HTTP/2 server without gRPC, whose calls the test answers.
async fn served() -> (
    std::net::SocketAddr,
    tokio::sync::mpsc::UnboundedReceiver<(http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>)>,
) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let (tell, calls) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (io, _) = listener.accept().await.expect("a client");
        let mut builder = h2::server::Builder::new();
        builder.initial_window_size(4 << 20).initial_connection_window_size(4 << 20);
        let mut connection = builder.handshake::<_, Bytes>(io).await.expect("HTTP/2");
        while let Some(Ok(call)) = connection.accept().await {
            let _ = tell.send(call);
        }
    });
    (address, calls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_dropped_response_ends_a_request_stream_that_always_has_more() {
    let (address, mut calls) = served().await;
    let dropped = Arc::<Count>::default();
    let mut client = connected(over([address])).await;
    let stop = Arc::<AtomicBool>::default();
    stops_in(&stop, Duration::from_secs(6));
    // The first message alone; the others after the response began, each a little work.
    let pause = stream::once(async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        say("two")
    });
    let messages = stream::iter([say("one")]).chain(pause).chain(laborious(&stop));
    let messages = watched(messages, &dropped);
    let answer = tokio::spawn(async move { client.bidirectional_streaming_echo(messages).await });
    let (request, mut respond) = calls.recv().await.expect("a call");
    let head = http::Response::builder().header("content-type", "application/grpc").body(()).expect("a head");
    let _stream = respond.send_response(head, false).expect("the call is open");
    let ended = tokio::spawn(async move {
        let mut body = request.into_body();
        while let Some(data) = body.data().await {
            let Ok(data) = data else { return };
            let _ = body.flow_control().release_capacity(data.len());
        }
    });
    let replies = answer.await.expect("no panic").expect("an answer");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let started = std::time::Instant::now();
    drop(replies);
    dropped.reaches(1).await;
    let after = started.elapsed();
    ended.await.expect("no panic");
    assert!(after < Duration::from_secs(2), "let go of after {after:?}");
}

#[tokio::test]
async fn a_head_that_is_all_of_the_response_ends_the_request_at_the_server() {
    let (address, mut calls) = served().await;
    let mut channel = connected_channel(over([address])).await;
    let answer = tokio::spawn(channel.call(raw("BidirectionalStreamingEcho", Frames(vec![framed("x")], true))));
    let (request, mut respond) = calls.recv().await.expect("a call");
    let head = http::Response::builder().header("grpc-status", "0").body(()).expect("a head");
    let _stream = respond.send_response(head, true).expect("the call is open");
    let _held = answer.await.expect("no panic").expect("an answer");
    let mut body = request.into_body();
    body.data().await.expect("the message").expect("a good one");
    let end = timeout(Duration::from_secs(2), body.data()).await;
    assert!(end.is_ok(), "the request is still open at the server, and no more will be sent");
}
