//! The spans of calls and attempts over real sockets: what is in them, whose children they are, and when they end.

#[path = "../../examples/proto/mod.rs"]
mod proto;
mod recorder;
#[path = "../metrics_channel/server.rs"]
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use h2::Reason;
use http::HeaderValue;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::{Code, Request, Status, Streaming};
use tonic_etcd::channel::Connectivity;
use tonic_etcd::retry::RetryPolicy;
use tonic_etcd::{BalancedChannel, ChannelBuilder, Instance};
use tower::Service;
use tracing::level_filters::LevelFilter;
use tracing::{Instrument, Level, info_span};

use self::proto::echo::echo_client::EchoClient;
use self::proto::echo::{EchoReply, EchoRequest};
use self::recorder::{LIMIT, Recorder, Span};
use self::server::{Answer, Command, Server};

/// A channel over these servers, all of which are READY.
async fn ready(servers: &[&Server], options: impl FnOnce(ChannelBuilder) -> ChannelBuilder) -> BalancedChannel {
    let set: Vec<Instance> = servers.iter().map(|server| server.instance()).collect();
    let instances = stream::iter([set]).chain(stream::pending());
    let builder = BalancedChannel::from_instances("echo", instances);
    let channel = options(builder).build().expect("the options are good");
    let mut changes = channel.instance_changes();
    let all_ready = async {
        while let Some(all) = changes.next().await {
            if all.len() == servers.len() && all.iter().all(|status| status.state() == Connectivity::Ready) {
                return;
            }
        }
    };
    timeout(LIMIT, all_ready).await.expect("every server becomes READY");
    channel
}

async fn ready_at(server: &Server) -> BalancedChannel {
    ready(&[server], |builder| builder).await
}

async fn call(channel: &BalancedChannel) -> Result<(), Status> {
    call_with(channel, |_| {}).await
}

async fn call_with(channel: &BalancedChannel, prepare: impl FnOnce(&mut Request<EchoRequest>)) -> Result<(), Status> {
    let mut request = Request::new(EchoRequest { message: "x".to_owned() });
    prepare(&mut request);
    let answer = timeout(LIMIT, EchoClient::new(channel.clone()).unary_echo(request)).await;
    answer.expect("the call ends").map(drop)
}

/// A stream of which one message is here.
async fn begin_stream(channel: BalancedChannel) -> Streaming<EchoReply> {
    let request = EchoRequest { message: "x".to_owned() };
    let begun = timeout(LIMIT, EchoClient::new(channel).server_streaming_echo(request)).await;
    let mut stream = begun.expect("it begins in time").expect("it begins").into_inner();
    stream.message().await.expect("no error").expect("a message");
    stream
}

fn is_open(spans: &[Span], name: &str) -> bool {
    spans.iter().any(|span| span.name == name && !span.is_closed)
}

/// The fields of a span, without the address and the port of an attempt, of which there are two.
fn fields(span: &Span) -> BTreeMap<&str, &str> {
    let own = span.fields.iter().filter(|(name, _)| span.name != "attempt" || !name.starts_with("server."));
    own.map(|(name, value)| (*name, value.as_str())).collect()
}

/// What a span says of an end with this code.
fn ended(code: &str) -> BTreeMap<&str, &str> {
    let mut fields = BTreeMap::from([("rpc.response.status_code", code)]);
    if code != "OK" {
        fields.extend([("error.type", code), ("otel.status_code", "ERROR")]);
    }
    fields
}

/// The only call has ended with one attempt, both with this code. Returns what the call's span says of it.
fn assert_ended(recorder: &Recorder, code: &str) -> Option<String> {
    let ((place, rpc), (_, attempt)) = (recorder.only("rpc"), recorder.only("attempt"));
    assert_eq!(attempt.parent, Some(place), "an attempt is a part of its call");
    for span in [&rpc, &attempt] {
        for name in ["rpc.response.status_code", "error.type", "otel.status_code"] {
            assert_eq!(span.field(name), ended(code).get(name).copied(), "{name} of {}", span.name);
        }
        assert!(span.is_closed, "{} has ended", span.name);
    }
    let said = rpc.field("otel.status_description").map(str::to_owned);
    assert_eq!(attempt.field("otel.status_description").map(str::to_owned), said, "what the attempt says");
    said
}

#[tokio::test]
async fn a_call_is_a_span_within_the_callers_and_its_attempt_is_within_the_call() {
    let server = Server::start();
    let (recorder, _guard) = Recorder::watch(LevelFilter::DEBUG);
    let channel = ready_at(&server).await;
    call(&channel).instrument(info_span!("request")).await.expect("the server answers");

    let (request, outer) = recorder.only("request");
    let (place, rpc) = recorder.only("rpc");
    assert_eq!((rpc.parent, rpc.target, rpc.level), (Some(request), "tonic_etcd::channel", Level::DEBUG));
    let mut expected = ended("OK");
    expected.extend([
        ("otel.name", "echo.Echo/UnaryEcho"),
        ("otel.kind", "client"),
        ("rpc.system.name", "grpc"),
        ("rpc.method", "echo.Echo/UnaryEcho"),
        ("server.address", "instances:///echo"),
    ]);
    assert_eq!(fields(&rpc), expected);

    let (_, attempt) = recorder.only("attempt");
    assert_eq!((attempt.parent, attempt.target, attempt.level), (Some(place), "tonic_etcd::channel", Level::DEBUG));
    let mut expected = ended("OK");
    expected.insert("attempt", "1");
    assert_eq!(fields(&attempt), expected);
    let address = server.instance().address().to_string();
    let at = |span: &Span| Some(format!("{}:{}", span.field("server.address")?, span.field("server.port")?));
    assert_eq!(at(&attempt), Some(address));
    assert!(outer.is_closed && rpc.is_closed && attempt.is_closed, "all of it is over");
}

#[tokio::test]
async fn a_call_belongs_to_the_span_in_which_it_was_made() {
    let server = Server::start();
    let (recorder, _guard) = Recorder::watch(LevelFilter::DEBUG);
    let mut channel = ready_at(&server).await;
    let mut request = http::Request::new(Body::empty());
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = "/echo.Echo/UnaryEcho".parse().expect("a path");
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let made = info_span!("made");
    let call = made.in_scope(|| channel.call(request));
    let response = call.instrument(info_span!("polled")).await.expect("the server answers");
    assert_eq!(recorder.only("rpc").1.parent, Some(recorder.only("made").0));
    drop(response);
    drop(made);
    recorder.until("they are over", |spans| !is_open(spans, "made") && !is_open(spans, "polled")).await;
}

#[tokio::test]
async fn the_status_of_a_server_is_that_of_the_spans() {
    let server = Server::start();
    // A status alone, and one behind a message.
    for answer in [Answer::Status(Code::NotFound), Answer::Ends(Code::NotFound)] {
        let (recorder, _guard) = Recorder::watch(LevelFilter::DEBUG);
        let channel = ready_at(&server).await;
        server.next([answer]);
        call(&channel).await.expect_err("the server fails it");
        assert_eq!(
            assert_ended(&recorder, "NOT_FOUND"),
            None,
            "{answer:?}: the words of a server stay with the caller"
        );
    }
}

#[tokio::test]
async fn each_retry_is_an_attempt_of_its_own() {
    let (one, two) = (Server::start(), Server::start());
    let (recorder, _guard) = Recorder::watch(LevelFilter::DEBUG);
    let retry = RetryPolicy::new([Code::Unavailable]).max_attempts(3);
    let channel = ready(&[&one, &two], |builder| builder.retry(retry)).await;
    for server in [&one, &two] {
        server.next([Answer::Status(Code::Unavailable)]);
    }
    call(&channel).await.expect("the third attempt is answered");

    let (place, rpc) = recorder.only("rpc");
    let attempts = recorder.named("attempt");
    let codes: Vec<_> = attempts.iter().map(|(_, span)| span.field("rpc.response.status_code")).collect();
    assert_eq!(codes, [Some("UNAVAILABLE"), Some("UNAVAILABLE"), Some("OK")]);
    let numbers: Vec<_> = attempts.iter().map(|(_, span)| span.field("attempt")).collect();
    assert_eq!(numbers, [Some("1"), Some("2"), Some("3")]);
    let ports: BTreeSet<_> = attempts[..2].iter().map(|(_, span)| span.field("server.port")).collect();
    let expected = [&one, &two].map(|server| server.instance().address().port().to_string());
    assert_eq!(ports, expected.iter().map(|port| Some(port.as_str())).collect(), "at one server, then at the other");
    assert!(attempts.iter().all(|(_, span)| span.is_closed && span.parent == Some(place)), "{attempts:?}");
    assert_eq!((rpc.field("rpc.response.status_code"), rpc.field("otel.status_code")), (Some("OK"), None));
}

#[tokio::test]
async fn a_refused_attempt_is_told_from_the_one_after_it() {
    let server = Server::start();
    let (recorder, _guard) = Recorder::watch(LevelFilter::DEBUG);
    let channel = ready_at(&server).await;
    server.next([Answer::Refused]);
    call(&channel).await.expect("it is made again");
    let attempts = recorder.named("attempt");
    let [(_, refused), (_, answered)] = &attempts[..] else { panic!("there are two: {attempts:?}") };
    assert_eq!(refused.field("rpc.response.status_code"), Some("UNAVAILABLE"));
    assert!(refused.field("otel.status_description").is_some_and(|said| said.contains("refused")), "{refused:?}");
    assert_eq!(refused.events, ["attempt failed"], "what is logged of it, is in it");
    assert_eq!((answered.field("attempt"), answered.field("rpc.response.status_code")), (Some("2"), Some("OK")));
    assert_eq!(recorder.only("rpc").1.field("rpc.response.status_code"), Some("OK"));
}

#[tokio::test]
async fn a_connection_that_breaks_ends_the_spans_of_its_calls() {
    let server = Server::start();
    server.usually(Answer::Begins);
    for command in [Command::Reset, Command::Close, Command::GoAway(Reason::INTERNAL_ERROR)] {
        let (recorder, _guard) = Recorder::watch(LevelFilter::DEBUG);
        let mut stream = begin_stream(ready_at(&server).await).await;
        server.command(command);
        let ended = timeout(LIMIT, stream.message()).await.expect("the stream ends");
        ended.expect_err("the connection is gone");
        let said = assert_ended(&recorder, "UNAVAILABLE").unwrap_or_default();
        assert!(said.contains(&server.instance().address().to_string()), "{command:?}: {said}");
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_ends_cancelled() {
    let server = Server::start();
    server.usually(Answer::Hangs);
    let (recorder, _guard) = Recorder::watch(LevelFilter::DEBUG);
    let channel = ready_at(&server).await;
    tokio::select! {
        answer = call(&channel) => panic!("the server hangs: {answer:?}"),
        () = recorder.until("the attempt is under way", |spans| is_open(spans, "attempt")) => {}
    }
    assert_eq!(assert_ended(&recorder, "CANCELLED"), None);
}

#[tokio::test]
async fn a_call_that_was_never_polled_ends_without_an_attempt() {
    let server = Server::start();
    let (recorder, _guard) = Recorder::watch(LevelFilter::DEBUG);
    let mut channel = ready_at(&server).await;
    drop(channel.call(http::Request::new(Body::empty())));
    let (_, rpc) = recorder.only("rpc");
    assert_eq!((rpc.field("rpc.response.status_code"), rpc.is_closed), (Some("CANCELLED"), true));
    assert!(recorder.named("attempt").is_empty());
}

#[tokio::test]
async fn a_deadline_ends_the_spans_and_they_say_what_the_call_waited_for() {
    let server = Server::start();
    // Nothing, and a message without an end.
    for (answer, waited_for) in [(Answer::Hangs, "to answer"), (Answer::Begins, "the rest of the answer")] {
        let (recorder, _guard) = Recorder::watch(LevelFilter::DEBUG);
        let channel = ready_at(&server).await;
        server.next([answer]);
        let limit = |request: &mut Request<_>| request.set_timeout(Duration::from_millis(100));
        call_with(&channel, limit).await.expect_err("its time is over");
        let said = assert_ended(&recorder, "DEADLINE_EXCEEDED").unwrap_or_default();
        assert!(said.contains(waited_for), "{answer:?}: {said}");
    }
}

#[tokio::test]
async fn a_stream_keeps_its_spans_until_its_end() {
    let server = Server::start();
    let (recorder, _guard) = Recorder::watch(LevelFilter::DEBUG);
    let channel = ready_at(&server).await;
    let mut stream = begin_stream(channel).await;
    assert!(!recorder.only("rpc").1.is_closed && !recorder.only("attempt").1.is_closed, "it has no end yet");
    assert_eq!(stream.message().await.expect("no error"), None, "its end");
    assert_eq!(assert_ended(&recorder, "OK"), None, "the stream is still there, but it is over");
}

#[tokio::test]
async fn a_stream_that_is_dropped_before_its_end_is_cancelled() {
    let server = Server::start();
    let (recorder, _guard) = Recorder::watch(LevelFilter::DEBUG);
    let channel = ready_at(&server).await;
    server.next([Answer::Begins]);
    let stream = begin_stream(channel).await;
    assert!(!recorder.only("rpc").1.is_closed, "more may come");
    drop(stream);
    assert_eq!(assert_ended(&recorder, "CANCELLED"), None);
}

#[tokio::test]
async fn a_call_that_finds_no_instance_says_why_and_has_no_attempt() {
    let (recorder, _guard) = Recorder::watch(LevelFilter::DEBUG);
    let none = stream::iter([Vec::<Instance>::new()]).chain(stream::pending());
    let channel = BalancedChannel::from_instances("echo", none).build().expect("the options are good");
    call(&channel).await.expect_err("there is no instance");
    let (_, rpc) = recorder.only("rpc");
    assert_eq!((rpc.field("rpc.response.status_code"), rpc.is_closed), (Some("UNAVAILABLE"), true));
    assert!(rpc.field("otel.status_description").is_some_and(|said| said.contains("echo")), "{rpc:?}");
    assert!(recorder.named("attempt").is_empty());
}

#[tokio::test]
async fn a_request_that_fails_ends_the_spans_as_the_call() {
    let server = Server::start();
    server.usually(Answer::Hangs);
    let (recorder, _guard) = Recorder::watch(LevelFilter::DEBUG);
    let mut channel = ready_at(&server).await;
    let mut request = http::Request::new(Body::new(Failing));
    *request.uri_mut() = "/echo.Echo/UnaryEcho".parse().expect("a path");
    channel.call(request).await.expect_err("its body fails");
    assert_ended(&recorder, "DATA_LOSS");
}

/// A request body that fails at once.
struct Failing;

impl http_body::Body for Failing {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
        Poll::Ready(Some(Err(Status::data_loss("the disk is gone"))))
    }
}

#[tokio::test]
async fn there_are_no_spans_below_debug() {
    let server = Server::start();
    let (recorder, _guard) = Recorder::watch(LevelFilter::INFO);
    let channel = ready_at(&server).await;
    server.next([Answer::Status(Code::Internal)]);
    _ = call(&channel).instrument(info_span!("request")).await;
    assert!(recorder.named("rpc").is_empty() && recorder.named("attempt").is_empty());
    assert!(recorder.only("request").1.is_closed);
}

#[tokio::test]
async fn the_tasks_of_a_channel_are_in_no_span_of_a_call_and_nothing_stays_open() {
    let server = Server::start();
    let (recorder, _guard) = Recorder::watch(LevelFilter::DEBUG);
    // The channel is built and connects while a call waits for it.
    let request = info_span!("request");
    let set = stream::iter([vec![server.instance()]]).chain(stream::pending());
    let channel = request.in_scope(|| BalancedChannel::from_instances("echo", set).build().expect("good options"));
    call(&channel).instrument(request).await.expect("the server answers");
    assert!(recorder.only("request").1.is_closed, "the connection stands, and the request is over");
    for name in ["channel", "connect", "connection"] {
        assert_eq!(recorder.only(name).1.parent, None, "{name} is in no span of a caller");
    }
    // Calls of every kind, some of them under way when the channel goes.
    server.next([Answer::Reply, Answer::Status(Code::Internal), Answer::Begins, Answer::Hangs]);
    for _ in 0..2 {
        _ = call(&channel).await;
    }
    let mut calls: Vec<_> = (0..2).map(|_| Box::pin(call(&channel))).collect();
    poll_fn(|cx| {
        for call in &mut calls {
            assert!(call.as_mut().poll(cx).is_pending(), "they are under way");
        }
        Poll::Ready(())
    })
    .await;
    recorder.until("they are", |spans| spans.iter().filter(|span| span.name == "attempt").count() == 5).await;
    drop(calls);
    drop(channel);
    let ours = |span: &&Span| span.target.starts_with("tonic_etcd");
    recorder.until("all is over", |spans| spans.iter().filter(ours).all(|span| span.is_closed)).await;
}
