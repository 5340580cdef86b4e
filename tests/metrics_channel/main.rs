//! The figures of a channel, as Prometheus sees them: calls of every ending, attempts, picks, instances, connections
//! and ejections over real sockets.

mod figures;
#[path = "../../examples/proto/mod.rs"]
mod proto;
mod server;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use h2::Reason;
use http::HeaderValue;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::body::Body;
use tonic::{Code, GrpcMethod, Request, Status};
use tonic_etcd::outlier::OutlierDetection;
use tonic_etcd::policy::{CallHead, Candidate, LeastRequest, Picker, Policy};
use tonic_etcd::retry::{RetryPolicy, RetryThrottling};
use tonic_etcd::{BalancedChannel, ChannelBuilder, Instance, Registry};
use tower::Service;

use self::figures::{Figures, LIMIT, is};
use self::proto::echo::EchoRequest;
use self::proto::echo::echo_client::EchoClient;
use self::server::{Answer, Command, Server};

/// The options of a channel over these servers.
fn over(service: &str, servers: &[&Server]) -> ChannelBuilder {
    let set: Vec<Instance> = servers.iter().map(|server| server.instance()).collect();
    BalancedChannel::from_instances(service, stream::iter([set]).chain(stream::pending()))
}

/// A channel over these servers, all of which are READY.
async fn ready(service: &str, servers: &[&Server]) -> (BalancedChannel, Figures) {
    built(service, servers, |builder| builder).await
}

async fn built(
    service: &str,
    servers: &[&Server],
    options: impl FnOnce(ChannelBuilder) -> ChannelBuilder,
) -> (BalancedChannel, Figures) {
    let figures = Figures::of(service);
    let channel = options(over(service, servers)).build().expect("the options are good");
    let all = u32::try_from(servers.len()).expect("a few").into();
    figures.until("all are READY", all, |it| it.instances("ready")).await;
    (channel, figures)
}

fn echo() -> EchoRequest {
    EchoRequest { message: "x".to_owned() }
}

async fn call(channel: &BalancedChannel) -> Result<(), Status> {
    let answer = timeout(LIMIT, EchoClient::new(channel.clone()).unary_echo(echo())).await;
    answer.expect("the call ends").map(drop)
}

/// A call that goes on by itself.
fn begin(channel: &BalancedChannel) -> tokio::task::JoinHandle<Result<(), Status>> {
    let mut client = EchoClient::new(channel.clone());
    tokio::spawn(async move { client.unary_echo(echo()).await.map(drop) })
}

/// A call without a generated client.
fn raw(path: &str) -> http::Request<Body> {
    let mut request = http::Request::new(Body::empty());
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = path.parse().expect("a path");
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    request
}

const IN_FLIGHT: &str = "tonic_etcd.channel.calls_in_flight";
const STARTED: &str = "grpc.client.attempt.started";
const ECHO: [(&str, &str); 1] = [("grpc.method", "echo.Echo/UnaryEcho")];

#[tokio::test]
async fn calls_count_by_method_and_status_each_once() {
    let server = Server::start();
    let (channel, figures) = ready("statuses", &[&server]).await;
    for _ in 0..3 {
        call(&channel).await.expect("an answer");
    }
    server.next([Answer::Status(Code::NotFound), Answer::Ends(Code::Aborted), Answer::Ends(Code::DataLoss)]);
    assert_eq!(call(&channel).await.expect_err("a status").code(), Code::NotFound);
    assert_eq!(call(&channel).await.expect_err("a status").code(), Code::Aborted);
    let mut stream =
        EchoClient::new(channel.clone()).server_streaming_echo(echo()).await.expect("it begins").into_inner();
    assert!(stream.message().await.expect("a message").is_some());
    assert!(is(figures.sum(IN_FLIGHT, &[]), 1.0), "a stream is in flight until its end");
    assert_eq!(stream.message().await.expect_err("a status").code(), Code::DataLoss);

    for (status, count) in [("OK", 3.0), ("NOT_FOUND", 1.0), ("ABORTED", 1.0), ("DATA_LOSS", 1.0)] {
        assert!(is(figures.calls(status), count), "calls that ended with {status}: {}", figures.calls(status));
        assert!(is(figures.attempts(status), count), "each had one attempt: {}", figures.attempts(status));
    }
    assert!(is(figures.count("grpc.client.call.duration", &[]), 6.0), "and there are no others");
    assert!(is(figures.count("grpc.client.call.duration", &ECHO), 5.0), "one was a stream");
    assert!(is(figures.sum(STARTED, &[]), 6.0), "each attempt has begun once");
    assert!(is(figures.sum(IN_FLIGHT, &[]), 0.0), "all have ended");
    for name in ["retries", "transparent_retries", "retry_delay"] {
        assert!(is(figures.count(&format!("grpc.client.call.{name}"), &[]), 0.0), "nothing was made again: {name}");
    }
    assert!(is(figures.sum("grpc.subchannel.connection_attempts_succeeded", &[]), 1.0));
    assert!(is(figures.sum("grpc.subchannel.connection_attempts_failed", &[]), 0.0));

    assert!(is(figures.sum("tonic_etcd.channels", &[]), 1.0), "the channel is there");
    drop(channel);
    drop(stream);
    figures.until_all_gauges_are_zero().await;
    figures.until("there is no channel", 0.0, |it| it.sum("tonic_etcd.channels", &[])).await;
    let shutdown = [("grpc.disconnect_error", "subchannel shutdown")];
    assert!(is(figures.sum("grpc.subchannel.disconnections", &shutdown), 1.0), "the channel let go of it");
}

#[tokio::test]
async fn a_call_that_is_dropped_is_cancelled() {
    let server = Server::start();
    let (mut channel, figures) = ready("cancelled", &[&server]).await;

    drop(channel.call(raw("/echo.Echo/UnaryEcho")));
    assert!(is(figures.sum(STARTED, &[]), 0.0), "a call that was never polled has not begun");

    server.next([Answer::Hangs]);
    let waiting = begin(&channel);
    figures.until("it waits for its response", 1.0, |it| it.sum(IN_FLIGHT, &[])).await;
    waiting.abort();
    figures.until("it is over", 0.0, |it| it.sum(IN_FLIGHT, &[])).await;
    assert!(is(figures.calls("CANCELLED"), 1.0) && is(figures.attempts("CANCELLED"), 1.0));

    server.next([Answer::Begins]);
    let mut stream =
        EchoClient::new(channel.clone()).server_streaming_echo(echo()).await.expect("it begins").into_inner();
    assert!(stream.message().await.expect("a message").is_some());
    assert!(is(figures.sum(IN_FLIGHT, &[]), 1.0), "it goes on");
    drop(stream);
    assert!(is(figures.sum(IN_FLIGHT, &[]), 0.0), "it is over");
    assert!(is(figures.calls("CANCELLED"), 2.0) && is(figures.attempts("CANCELLED"), 2.0));
    assert!(is(figures.count("grpc.client.call.duration", &[]), 2.0), "and that is all");
}

#[tokio::test]
async fn a_missed_deadline_is_one_before_and_after_the_head_of_the_response() {
    let server = Server::start();
    let (channel, figures) = ready("deadlines", &[&server]).await;
    let within = |limit| {
        let mut request = Request::new(echo());
        request.set_timeout(limit);
        request
    };
    server.next([Answer::Hangs, Answer::Begins]);
    let mut client = EchoClient::new(channel.clone());
    let missed = client.unary_echo(within(Duration::from_millis(50))).await.expect_err("nothing comes");
    assert_eq!(missed.code(), Code::DeadlineExceeded);
    let stream = client.server_streaming_echo(within(Duration::from_millis(500))).await.expect("it begins");
    let mut stream = stream.into_inner();
    assert!(stream.message().await.expect("a message").is_some());
    assert_eq!(stream.message().await.expect_err("nothing comes").code(), Code::DeadlineExceeded);

    assert!(is(figures.calls("DEADLINE_EXCEEDED"), 2.0) && is(figures.attempts("DEADLINE_EXCEEDED"), 2.0));
    assert!(is(figures.count("grpc.client.call.duration", &[]), 2.0), "and that is all");
    let took = figures.total("grpc.client.call.duration", &[]);
    assert!((0.5..30.0).contains(&took), "they took half a second together: {took}");
}

#[tokio::test]
async fn a_retried_call_is_one_call_of_two_attempts() {
    let server = Server::start();
    let policy = RetryPolicy::new([Code::Unavailable]).backoff(Duration::from_millis(1), Duration::from_millis(1), 1.0);
    let (channel, figures) = built("retried", &[&server], |builder| builder.retry(policy)).await;
    server.next([Answer::Status(Code::Unavailable)]);
    call(&channel).await.expect("the second attempt is answered");

    assert!(is(figures.calls("OK"), 1.0) && is(figures.count("grpc.client.call.duration", &[]), 1.0), "one call");
    assert!(is(figures.attempts("UNAVAILABLE"), 1.0) && is(figures.attempts("OK"), 1.0), "two attempts");
    assert!(is(figures.sum(STARTED, &ECHO), 2.0), "both have begun");
    assert!(is(figures.count("grpc.client.call.retries", &ECHO), 1.0));
    assert!(is(figures.total("grpc.client.call.retries", &ECHO), 1.0));
    assert!(is(figures.count("grpc.client.call.transparent_retries", &ECHO), 0.0));
    assert!(is(figures.count("grpc.client.call.retry_delay", &ECHO), 1.0));
    let delay = figures.total("grpc.client.call.retry_delay", &ECHO);
    assert!(delay > 0.0005, "the pause was a millisecond, give or take a fifth: {delay}");
}

#[tokio::test]
async fn a_call_that_is_dropped_between_two_attempts_has_one_attempt() {
    let server = Server::start();
    let policy = RetryPolicy::new([Code::Unavailable]).backoff(LIMIT * 4, LIMIT * 4, 1.0);
    let (channel, figures) = built("paused", &[&server], |builder| builder.retry(policy)).await;
    server.next([Answer::Status(Code::Unavailable)]);
    let pausing = begin(&channel);
    figures.until("the first attempt failed", 1.0, |it| it.attempts("UNAVAILABLE")).await;
    assert!(is(figures.sum(IN_FLIGHT, &[]), 1.0), "the call goes on");
    pausing.abort();
    figures.until("it is over", 1.0, |it| it.calls("CANCELLED")).await;
    assert!(is(figures.attempts("CANCELLED"), 0.0), "no attempt was under way");
    assert!(is(figures.sum(STARTED, &[]), 1.0), "the second one never began");
    assert!(is(figures.count("grpc.client.call.retries", &[]), 0.0), "so it is no retry");
    assert!(is(figures.count("grpc.client.call.retry_delay", &[]), 1.0), "it waited for one");
}

#[tokio::test]
async fn a_retry_beyond_the_budget_is_counted_as_refused() {
    let server = Server::start();
    server.usually(Answer::Status(Code::Unavailable));
    let (channel, figures) = built("budget", &[&server], |builder| {
        let policy = RetryPolicy::new([Code::Unavailable]);
        builder.retry(policy).retry_budget(RetryThrottling::new(1, 0.1)).outlier_detection(None)
    })
    .await;
    for _ in 0..2 {
        assert_eq!(call(&channel).await.expect_err("a status").code(), Code::Unavailable);
    }
    assert!(is(figures.sum("tonic_etcd.channel.retries_refused", &[]), 2.0));
    assert!(is(figures.attempts("UNAVAILABLE"), 2.0), "each call had one attempt");
}

#[tokio::test]
async fn a_call_that_no_handler_saw_is_made_again_transparently() {
    let server = Server::start();
    let (channel, figures) = ready("transparent", &[&server]).await;
    server.next([Answer::Refused]);
    call(&channel).await.expect("the second attempt is answered");

    assert!(is(figures.calls("OK"), 1.0) && is(figures.count("grpc.client.call.duration", &[]), 1.0), "one call");
    assert!(is(figures.attempts("UNAVAILABLE"), 1.0) && is(figures.attempts("OK"), 1.0), "two attempts");
    assert!(is(figures.sum(STARTED, &ECHO), 2.0), "both have begun");
    assert!(is(figures.total("grpc.client.call.transparent_retries", &ECHO), 1.0));
    assert!(is(figures.count("grpc.client.call.retries", &ECHO), 0.0), "no policy asked for it");
}

#[tokio::test]
async fn a_disconnection_counts_with_its_reason_and_the_connection_comes_back() {
    let server = Server::start();
    let (channel, figures) = ready("disconnected", &[&server]).await;
    let open = |it: &Figures| it.sum("grpc.subchannel.open_connections", &[]);
    let reasons = [
        (Command::Reset, "connection reset", Some("UNAVAILABLE")),
        (Command::Close, "unknown", None),
        (Command::GoAway(Reason::ENHANCE_YOUR_CALM), "GOAWAY ENHANCE_YOUR_CALM", None),
        (Command::GoAway(Reason::NO_ERROR), "GOAWAY NO_ERROR", None),
    ];
    for (at, (command, reason, lost)) in (1_u8..).zip(reasons) {
        let connected = |it: &Figures| it.sum("grpc.subchannel.connection_attempts_succeeded", &[]);
        figures.until("it is connected", f64::from(at), connected).await;
        figures.until("it is READY", 1.0, |it| it.instances("ready")).await;
        // A connection that answered is wanted back at once.
        call(&channel).await.expect("an answer");
        let lost = lost.map(|status| {
            server.next([Answer::Hangs]);
            (begin(&channel), status)
        });
        let in_flight = if lost.is_some() { 1.0 } else { 0.0 };
        figures.until("the server has the call", in_flight, |it| it.sum(IN_FLIGHT, &[])).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        server.command(command);
        let label = [("grpc.disconnect_error", reason)];
        figures.until(reason, 1.0, |it| it.sum("grpc.subchannel.disconnections", &label)).await;
        if let Some((call, status)) = lost {
            assert!(call.await.expect("no panic").is_err(), "its connection broke");
            assert!(is(figures.calls(status), 1.0));
        }
    }
    figures.until("the old ones are closed", 1.0, open).await;
    assert!(is(figures.sum("grpc.subchannel.disconnections", &[]), 4.0), "each has one reason");
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_a_failed_attempt_to_connect() {
    let gone = Server::start();
    let instance = gone.instance();
    drop(gone);
    tokio::task::yield_now().await;
    let figures = Figures::of("unreachable");
    let set = stream::iter([vec![instance]]).chain(stream::pending());
    let channel = BalancedChannel::from_instances("unreachable", set).build().expect("the defaults are good");
    figures.until("it failed", 1.0, |it| it.instances("transient_failure")).await;
    assert!(figures.sum("grpc.subchannel.connection_attempts_failed", &[]) > 0.5);
    assert_eq!(call(&channel).await.expect_err("there is none").code(), Code::Unavailable);
    assert!(is(figures.calls("UNAVAILABLE"), 1.0) && is(figures.attempts("UNAVAILABLE"), 1.0));
    assert!(is(figures.sum("grpc.subchannel.connection_attempts_succeeded", &[]), 0.0));
    drop(channel);
    figures.until_all_gauges_are_zero().await;
}

#[tokio::test]
async fn an_ejection_shows_until_the_instance_is_back_and_one_too_many_is_unenforced() {
    let servers = [Server::start(), Server::start(), Server::start()];
    let all: Vec<&Server> = servers.iter().collect();
    let (channel, figures) = built("ejected", &all, |builder| {
        builder.outlier_detection(OutlierDetection::new().ejection_time(Duration::from_millis(300)))
    })
    .await;
    servers[0].usually(Answer::Status(Code::Unavailable));
    figures
        .until("one is ejected", 1.0, |it| {
            drop(begin(&channel));
            it.instances("ejected")
        })
        .await;
    let rows = [("grpc.lb.outlier_detection.detection_method", "consecutive_failures")];
    assert!(is(figures.sum("grpc.lb.outlier_detection.ejections_enforced", &rows), 1.0));

    servers[1].usually(Answer::Status(Code::Unavailable));
    let overflow = [("grpc.lb.outlier_detection.unenforced_reason", "max_ejection_overflow")];
    let unenforced = |it: &Figures| it.sum("grpc.lb.outlier_detection.ejections_unenforced", &overflow).min(1.0);
    figures
        .until("another one fails and may not be ejected", 1.0, |it| {
            drop(begin(&channel));
            unenforced(it)
        })
        .await;

    servers[0].usually(Answer::Reply);
    servers[1].usually(Answer::Reply);
    figures
        .until("all are back", 3.0, |it| {
            drop(begin(&channel));
            it.instances("ready")
        })
        .await;
    assert!(is(figures.instances("ejected"), 0.0), "none is out");
}

#[tokio::test]
async fn picks_that_wait_are_counted_and_timed() {
    let server = Server::with_streams(1);
    let (channel, figures) = ready("waiting", &[&server]).await;
    let (waiting, waited) = ("tonic_etcd.channel.calls_waiting", "tonic_etcd.channel.picks_waited");
    call(&channel).await.expect("an answer");
    assert!(is(figures.sum(waited, &[]), 0.0), "there was room");

    server.next([Answer::Hangs]);
    let first = begin(&channel);
    figures.until("it has the only place", 1.0, |it| it.sum(IN_FLIGHT, &[])).await;
    let (second, third) = (begin(&channel), begin(&channel));
    figures.until("two wait", 2.0, |it| it.sum(waiting, &[])).await;
    assert!(is(figures.sum(waited, &[]), 2.0));
    assert!(is(figures.count("tonic_etcd.channel.pick_wait", &[]), 0.0), "they still wait");
    third.abort();
    figures.until("one gave up", 1.0, |it| it.sum(waiting, &[])).await;
    first.abort();
    second.await.expect("no panic").expect("an answer");
    assert!(is(figures.sum(waiting, &[]), 0.0));
    assert!(is(figures.count("tonic_etcd.channel.pick_wait", &[]), 2.0), "both are timed");
    assert!(is(figures.calls("OK"), 2.0) && is(figures.calls("CANCELLED"), 2.0));
}

/// A policy that panics on every request.
#[derive(Debug)]
struct Broken;

impl Policy for Broken {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        LeastRequest::new().picker(candidates)
    }

    fn key(&self, _: &CallHead<'_>) -> Option<u64> {
        panic!("a policy with a bug")
    }
}

#[tokio::test]
async fn a_call_whose_policy_panics_ends_with_internal() {
    let server = Server::start();
    let (channel, figures) = built("panicking", &[&server], |builder| builder.policy(Broken)).await;
    assert_eq!(call(&channel).await.expect_err("it panics").code(), Code::Internal);
    assert!(is(figures.calls("INTERNAL"), 1.0) && is(figures.attempts("INTERNAL"), 1.0));
    assert!(is(figures.sum(STARTED, &ECHO), 1.0) && is(figures.sum(IN_FLIGHT, &[]), 0.0));
}

#[tokio::test]
async fn a_channel_of_a_registry_has_its_target_and_every_state_from_the_beginning() {
    let figures = Figures::to("etcd:///echo".to_owned());
    let registry = Registry::builder(["http://127.0.0.1:1"]).build().expect("the options are good");
    let channel = registry.channel("echo").build().expect("the defaults are good");
    let states = figures.values("tonic_etcd.channel.instances", "state");
    assert_eq!(states.len(), 8, "an alert finds each of them: {states:?}");
    assert!(is(figures.instances("ready"), 0.0));
    let unenforced = "grpc.lb.outlier_detection.ejections_unenforced";
    for (name, label, count) in [
        ("grpc.lb.outlier_detection.ejections_enforced", "grpc.lb.outlier_detection.detection_method", 5),
        (unenforced, "grpc.lb.outlier_detection.detection_method", 5),
        (unenforced, "grpc.lb.outlier_detection.unenforced_reason", 2),
        ("grpc.subchannel.disconnections", "grpc.disconnect_error", 7),
        ("grpc.client.call.duration_count", "grpc.status", 2),
    ] {
        let values = figures.values(name, label);
        assert_eq!(values.len(), count, "{name} by {label}: {values:?}");
        assert!(is(figures.sum(name, &[]), 0.0), "an increase from 0 is seen");
    }
    drop(channel);
}

#[tokio::test]
async fn names_that_no_generated_client_gives_and_too_many_are_other() {
    let server = Server::start();
    let (mut channel, figures) = ready("hostile", &[&server]).await;
    for number in 0..250 {
        let path = format!("/evil.Evil/Method{number}");
        drop(channel.call(raw(&path)).await.expect("a response"));
        let name: &'static str = format!("Method{number}").leak();
        let mut request = raw(&path);
        request.extensions_mut().insert(GrpcMethod::new("evil.Evil", name));
        drop(channel.call(request).await.expect("a response"));
    }
    let methods = figures.values(STARTED, "grpc.method");
    assert_eq!(methods.len(), 201, "two hundred are told apart, and the others: {methods:?}");
    assert!(is(figures.sum(STARTED, &[("grpc.method", "other")]), 300.0));
    assert!(is(figures.sum(STARTED, &[]), 500.0), "all are counted");
    assert!(is(figures.sum(STARTED, &[("grpc.method", "evil.Evil/Method0")]), 1.0));
}

#[tokio::test]
async fn instances_that_leave_and_those_that_a_subset_spares_are_counted_as_such() {
    let servers = [Server::start(), Server::start(), Server::start()];
    let instances: Vec<Arc<Instance>> = servers.iter().map(|server| Arc::new(server.instance())).collect();
    let figures = Figures::of("subset");
    let (lists, list) = mpsc::unbounded_channel();
    let set = UnboundedReceiverStream::new(list).chain(stream::pending());
    let channel = BalancedChannel::from_instances("subset", set).subset(1).build().expect("the options are good");
    lists.send(instances.clone()).expect("the channel listens");
    figures.until("one is used", 1.0, |it| it.instances("ready")).await;
    figures.until("the others are not", 2.0, |it| it.instances("unused")).await;
    lists.send(instances[..1].to_vec()).expect("the channel listens");
    figures.until("one is left", 1.0, |it| it.instances("ready")).await;
    figures.until("and no other", 0.0, |it| it.instances("unused")).await;
    lists.send(Vec::new()).expect("the channel listens");
    figures.until_all_gauges_are_zero().await;
    drop(channel);
}

#[test]
fn gauges_go_back_where_the_runtime_of_a_channel_ends() {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (figures, mut call) = runtime.block_on(async {
        let server = Server::start();
        let (mut channel, figures) = ready("runtime", &[&server]).await;
        server.next([Answer::Hangs]);
        (figures, channel.call(raw("/echo.Echo/UnaryEcho")))
    });
    {
        let _entered = runtime.enter();
        let polled = Pin::new(&mut call).poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending(), "nothing comes");
    }
    assert!(is(figures.sum(IN_FLIGHT, &[]), 1.0), "the call is the program's, and goes on");
    assert!(is(figures.instances("ready"), 1.0) && is(figures.sum("tonic_etcd.channels", &[]), 1.0));
    drop(runtime);
    assert!(is(figures.sum("tonic_etcd.channels", &[]), 0.0), "a channel without its runtime has ended");
    assert!(is(figures.sum("tonic_etcd.channel.instances", &[]), 0.0), "no instance is known");
    assert!(is(figures.sum("grpc.subchannel.open_connections", &[]), 0.0), "no connection is open");
    drop(call);
    assert!(is(figures.sum(IN_FLIGHT, &[]), 0.0));
    assert!(is(figures.calls("CANCELLED"), 1.0));
}
