//! Calls that fail and are made again as configured: how often, when, where, and when not.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::{Code, Request, Status};
use tower::Service;

use super::peers::proto::EchoRequest;
use super::peers::proto::echo_client::EchoClient;
use super::peers::{Echo, OnConnect, Peer, Reply};
use super::rig::{Rig, SECOND, ends, rest};
use crate::channel::{BalancedChannel, ChannelBuilder, Connectivity, ServiceConfig};
use crate::instance::Instance;
use crate::policy::PickFirst;
use crate::retry::{RetryBudget, RetryPolicy, RetryThrottling};

/// The method that the rig calls.
const METHOD: &str = "echo.Echo/UnaryEcho";

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn on_unavailable() -> RetryPolicy {
    RetryPolicy::new([Code::Unavailable]).backoff(millis(100), millis(1_000), 2.0)
}

/// A channel that retries and ejects no instance.
fn retrying(policy: RetryPolicy) -> Rig {
    with(|builder| builder.retry(policy))
}

fn with(options: impl FnOnce(ChannelBuilder) -> ChannelBuilder) -> Rig {
    Rig::with(|builder| options(builder.outlier_detection(None)))
}

fn calls(peers: &[&Peer]) -> usize {
    peers.iter().map(|peer| peer.calls().get()).sum()
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_is_followed_by_one_on_an_untried_instance() {
    let rig = retrying(on_unavailable().max_attempts(4));
    let [one, two, three, good] = rig.network.peers(1);
    for bad in [&one, &two, &three] {
        bad.reply(Reply::Fail(Code::Unavailable));
    }
    rig.serve(&[&one, &two, &three, &good]).await;
    // Of four attempts one is on the good one, whatever the policy says.
    assert_eq!(rig.answers_of(&good, 200).await, 200);
}

#[tokio::test(start_paused = true)]
async fn attempts_end_at_their_limit_and_the_last_failure_is_the_calls() {
    let rig = retrying(on_unavailable().max_attempts(4));
    let peer = rig.network.peer(1);
    peer.reply(Reply::Fail(Code::Unavailable));
    rig.serve(&[&peer]).await;
    let begin = Instant::now();
    let status = rig.answer().await.expect_err("every attempt fails");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(peer.calls().get(), 4);
    let waited = begin.elapsed();
    // 100, 200 and 400 ms, each up to a fifth shorter or longer.
    assert!((millis(560)..=millis(850)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn other_codes_and_other_methods_are_not_retried() {
    for (name, code, attempts) in [
        (METHOD, Code::Internal, 1),
        (METHOD, Code::Unavailable, 3),
        ("echo.Echo", Code::Unavailable, 3),
        ("echo.Echo/Other", Code::Unavailable, 1),
        ("echo.Other", Code::Unavailable, 1),
    ] {
        let rig = with(|builder| builder.retry_for(name, on_unavailable()));
        let peer = rig.network.peer(1);
        peer.reply(Reply::Fail(code));
        rig.serve(&[&peer]).await;
        assert_eq!(rig.answer().await.expect_err("it fails").code(), code);
        assert_eq!(peer.calls().get(), attempts, "{name} with {code:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_too_long_is_cancelled_and_made_elsewhere() {
    let policy = RetryPolicy::new([Code::Unavailable]).attempt_timeout(SECOND);
    let rig = with(|builder| builder.policy(PickFirst::new()).retry(policy));
    let peers: [Peer; 2] = rig.network.peers(1);
    for peer in &peers {
        peer.reply(Reply::Hold);
    }
    rig.serve(&[&peers[0], &peers[1]]).await;
    let begin = Instant::now();
    let call = rig.call();
    while calls(&[&peers[0], &peers[1]]) == 0 {
        rest().await;
    }
    let (slow, other) = if peers[0].calls().get() == 1 { (&peers[0], &peers[1]) } else { (&peers[1], &peers[0]) };
    other.reply(Reply::Answer);
    assert_eq!(ends(call).await.expect("the other one answers"), other.address());
    assert!(begin.elapsed() >= SECOND && begin.elapsed() < 2 * SECOND, "{:?}", begin.elapsed());
    slow.resets().reaches(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_would_outlast_the_deadline_is_not_begun() {
    let policy = RetryPolicy::new([Code::Unavailable]).backoff(10 * SECOND, 10 * SECOND, 1.0);
    let rig = retrying(policy);
    let peer = rig.network.peer(1);
    peer.reply(Reply::Fail(Code::Unavailable));
    rig.serve(&[&peer]).await;
    let begin = Instant::now();
    let status = ends(rig.call_within(SECOND)).await.expect_err("it fails");
    assert_eq!(status.code(), Code::Unavailable, "what the server said is more than that the time is over");
    assert!(begin.elapsed() < millis(100), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_while_it_waits_is_made_no_more() {
    let rig = retrying(on_unavailable());
    let peer = rig.network.peer(1);
    peer.reply(Reply::Fail(Code::Unavailable));
    rig.serve(&[&peer]).await;
    let call = rig.call();
    peer.calls().reaches(1).await;
    rest().await;
    assert_eq!(rig.status(&peer).in_flight(), 0, "it holds no quota while it waits");
    call.abort();
    sleep(10 * SECOND).await;
    assert_eq!(peer.calls().get(), 1);
}

#[tokio::test(start_paused = true)]
async fn while_too_many_calls_fail_nothing_is_tried_twice() {
    let rig = with(|builder| builder.retry(on_unavailable()).retry_budget(RetryThrottling::new(4, 1.0)));
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    peer.reply(Reply::Fail(Code::Unavailable));
    rig.answer().await.expect_err("it fails");
    assert_eq!(peer.calls().get(), 2, "a second attempt leaves half of four tokens, which is not more than half");
    rig.answer().await.expect_err("it fails");
    assert_eq!(peer.calls().get(), 3, "and none for the next call");
    peer.reply(Reply::Answer);
    for _ in 0..4 {
        rig.answer().await.expect("it answers");
    }
    peer.reply(Reply::Fail(Code::Unavailable));
    rig.answer().await.expect_err("it fails");
    assert_eq!(peer.calls().get(), 9, "each success gives one back");
}

#[tokio::test(start_paused = true)]
async fn while_all_calls_fail_retries_are_a_tenth_of_them_and_ten_a_second() {
    let rig = retrying(on_unavailable());
    let peer = rig.network.peer(1);
    peer.reply(Reply::Fail(Code::Unavailable));
    rig.serve(&[&peer]).await;
    let mut calls = Vec::new();
    // A thousand a second, for ten seconds.
    for _ in 0..1_000 {
        calls.extend((0..10).map(|_| rig.call()));
        sleep(millis(10)).await;
    }
    for call in calls {
        assert_eq!(ends(call).await.expect_err("it fails").code(), Code::Unavailable);
    }
    let retries = peer.calls().get() - 10_000;
    // Of 20,000 that the policy alone would make: a tenth of the calls, a hundred in the first ten seconds, and what is
    // left for the moment after them.
    assert!((1_000..=1_200).contains(&retries), "{retries} retries of 10,000 calls");
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_there_unless_it_is_switched_off_or_replaced() {
    let tokens = RetryThrottling::new(10, 1.0);
    for (what, rig, retries) in [
        ("by default, a tenth of 200 and a hundred", retrying(on_unavailable()), 120),
        ("switched off", with(|builder| builder.retry(on_unavailable()).retry_budget(None)), 400),
        ("replaced", with(|builder| builder.retry(on_unavailable()).retry_budget(tokens)), 4),
        ("half of 200", with(|builder| builder.retry(on_unavailable()).retry_budget(RetryBudget::share(50, 0))), 100),
    ] {
        let peer = rig.network.peer(1);
        peer.reply(Reply::Fail(Code::Unavailable));
        rig.serve(&[&peer]).await;
        let calls: Vec<_> = (0..200).map(|_| rig.call()).collect();
        for call in calls {
            ends(call).await.expect_err("it fails");
        }
        assert_eq!(peer.calls().get() - 200, retries, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_finds_no_instance_spends_no_budget() {
    let tokens = RetryThrottling::new(10, 1.0);
    let share = with(|builder| builder.retry(on_unavailable()));
    let throttled = with(|builder| builder.retry(on_unavailable()).retry_budget(tokens));
    for (what, rig, retries) in [("a hundred, and a tenth of 400", share, 140), ("four of ten tokens", throttled, 4)] {
        rig.set_instances([]);
        rest().await;
        let fail = async || {
            let calls: Vec<_> = (0..200).map(|_| rig.call()).collect();
            for call in calls {
                ends(call).await.expect_err("it fails");
            }
        };
        fail().await;
        let peer = rig.network.peer(1);
        peer.reply(Reply::Fail(Code::Unavailable));
        rig.serve(&[&peer]).await;
        fail().await;
        assert_eq!(peer.calls().get() - 200, retries, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_counts_in_the_budget_once_it_is_polled() {
    let rig = retrying(on_unavailable());
    let peer = rig.network.peer(1);
    peer.reply(Reply::Fail(Code::Unavailable));
    rig.serve(&[&peer]).await;
    let mut channel = rig.channel.clone();
    for _ in 0..1_000 {
        let request = http::Request::post("http://ignored/tonicetcd.echo.v1.Echo/UnaryEcho");
        drop(channel.call(request.body(tonic::body::Body::empty()).expect("a request")));
    }
    let calls: Vec<_> = (0..100).map(|_| rig.call()).collect();
    for call in calls {
        ends(call).await.expect_err("it fails");
    }
    assert_eq!(peer.calls().get() - 100, 110, "a tenth of a hundred, and a hundred more");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_too_large_to_be_kept_is_not_made_again() {
    let rig = retrying(on_unavailable());
    let peer = rig.network.peer(1);
    peer.reply(Reply::Fail(Code::Unavailable));
    rig.serve(&[&peer]).await;
    for (size, attempts) in [(60_000, 3), (70_000, 1)] {
        let before = peer.calls().get();
        let mut client = EchoClient::new(rig.channel.clone());
        let answer = client.unary_echo(EchoRequest { message: "x".repeat(size) }).await;
        assert_eq!(answer.expect_err("it fails").code(), Code::Unavailable);
        assert_eq!(peer.calls().get() - before, attempts, "{size} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_comes_back_within_the_attempts_answers_in_the_end() {
    let rig = retrying(RetryPolicy::new([Code::Unavailable]).max_attempts(5).backoff(millis(200), 5 * SECOND, 2.0));
    let peer = rig.network.peer(1);
    peer.reply(Reply::Hold);
    rig.serve(&[&peer]).await;
    let call = rig.call();
    peer.calls().reaches(1).await;
    peer.kill();
    // One more attempt fails meanwhile, and its successor finds the instance connected or another one does.
    sleep(millis(300)).await;
    assert!(!call.is_finished(), "no instance is there, and attempts are left");
    peer.reply(Reply::Answer);
    peer.on_connect(OnConnect::Accept);
    assert_eq!(ends(call).await.expect("it answers"), peer.address());
}

#[tokio::test(start_paused = true)]
async fn a_call_without_another_instance_fails_with_the_last_attempts_status() {
    let rig = retrying(RetryPolicy::new([Code::Aborted]).backoff(SECOND, SECOND, 1.0));
    let peer = rig.network.peer(1);
    peer.reply(Reply::Fail(Code::Aborted));
    rig.serve(&[&peer]).await;
    let call = rig.call();
    peer.calls().reaches(1).await;
    rest().await;
    peer.kill();
    assert_eq!(ends(call).await.expect_err("no instance is there").code(), Code::Aborted);
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_to_an_instance_that_was_tried_is_no_other_instance() {
    let rig = with(|builder| builder.policy(PickFirst::new()).retry(on_unavailable()));
    let peers: [Peer; 2] = rig.network.peers(1);
    rig.serve(&[&peers[0], &peers[1]]).await;
    let first = rig.answer().await.expect("it answers");
    let (tried, other) = if first == peers[0].address() { (&peers[0], &peers[1]) } else { (&peers[1], &peers[0]) };
    tried.reply(Reply::Hold);
    let call = rig.call();
    tried.calls().reaches(2).await;
    tried.reply(Reply::Answer);
    tried.cut();
    assert_eq!(ends(call).await.expect("it answers"), other.address());
    assert_eq!(rig.state(tried), Connectivity::Ready, "it was connected again meanwhile");
}

#[tokio::test(start_paused = true)]
async fn the_channels_own_options_override_a_service_config_in_any_order() {
    let config = r#"{"loadBalancingConfig":[{"round_robin":{}}],"methodConfig":[{"name":[{}],"timeout":"30s"}]}"#;
    let config: ServiceConfig = config.parse().expect("it is a good one");
    for is_first in [true, false] {
        let rig = with(|builder| {
            let own =
                |builder: ChannelBuilder| builder.policy(PickFirst::new()).timeout(SECOND).retry(on_unavailable());
            if is_first {
                own(builder).service_config(config.clone())
            } else {
                own(builder.service_config(config.clone()))
            }
        });
        let [one, two] = rig.network.peers(1);
        rig.serve(&[&one, &two]).await;
        assert!([0, 20].contains(&rig.answers_of(&one, 20).await), "the policy is the channel's");
        one.reply(Reply::Fail(Code::Unavailable));
        two.reply(Reply::Fail(Code::Unavailable));
        let before = calls(&[&one, &two]);
        rig.answer().await.expect_err("it fails");
        assert_eq!(calls(&[&one, &two]) - before, 3, "the retries are the channel's");
        one.reply(Reply::Hold);
        two.reply(Reply::Hold);
        let begin = Instant::now();
        assert_eq!(rig.answer().await.expect_err("its time is over").code(), Code::DeadlineExceeded);
        assert_eq!(begin.elapsed().as_secs(), 1, "the shortest timeout counts");
    }
}

#[tokio::test(start_paused = true)]
async fn a_proxy_s_page_is_a_failure_and_no_response_that_has_begun() {
    let rig = with(|builder| builder.policy(PickFirst::new()).retry(on_unavailable()));
    let [one, two] = rig.network.peers(1);
    one.reply(Reply::Page(503));
    two.reply(Reply::Page(503));
    rig.serve(&[&one, &two]).await;
    let status = rig.answer().await.expect_err("there is no server");
    assert_eq!(status.code(), Code::Unavailable, "the code that it was retried for: {status:?}");
    assert_eq!(calls(&[&one, &two]), 3, "three attempts");
    two.reply(Reply::Answer);
    assert_eq!(rig.answers_of(&two, 20).await, 20);
}

/// A request that its caller cannot bring to an end.
struct Broken;

impl http_body::Body for Broken {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
        std::task::Poll::Ready(Some(Err(Status::unavailable("the file is gone"))))
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_fails_itself_is_not_made_again_whatever_it_fails_with() {
    let mut rig = retrying(on_unavailable());
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    let begin = Instant::now();
    let request = http::Request::post(format!("http://ignored/{METHOD}"));
    let request = request.body(tonic::body::Body::new(Broken)).expect("a request");
    let status = rig.channel.call(request).await.expect_err("it has no body");
    assert!(status.message().contains("the file is gone"), "{status}");
    assert!(begin.elapsed() < millis(50), "nothing was waited for: {:?}", begin.elapsed());
    assert_eq!(peer.calls().get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_config_counts_for_its_methods_until_something_else_is_said() {
    let config = |attempts: u32| {
        let retry = format!(
            r#"{{"maxAttempts":{attempts},"initialBackoff":"0.1s","maxBackoff":"1s","backoffMultiplier":2,
                "retryableStatusCodes":["UNAVAILABLE"]}}"#
        );
        let name = r#"[{"service":"echo.Echo"}]"#;
        let text = format!(
            r#"{{"loadBalancingConfig":[{{"pick_first":{{}}}}],
                "methodConfig":[{{"name":{name},"timeout":"2s","waitForReady":true,"retryPolicy":{retry}}}]}}"#
        );
        text.parse::<ServiceConfig>().expect("it is a good one")
    };
    let rig = with(|builder| builder.service_config(config(4)));
    let [one, two] = rig.network.peers(1);
    one.reply(Reply::Fail(Code::Unavailable));
    two.reply(Reply::Fail(Code::Unavailable));
    rig.serve(&[&one, &two]).await;
    rig.answer().await.expect_err("it fails");
    assert_eq!(calls(&[&one, &two]), 4);
    one.reply(Reply::Hold);
    two.reply(Reply::Hold);
    let begin = Instant::now();
    assert_eq!(rig.answer().await.expect_err("its time is over").code(), Code::DeadlineExceeded);
    assert_eq!(begin.elapsed().as_secs(), 2, "the config's timeout");
    rig.set_instances([]);
    rig.until("no instance is there", <[_]>::is_empty).await;
    let begin = Instant::now();
    assert_eq!(rig.answer().await.expect_err("no instance came").code(), Code::DeadlineExceeded, "it waits");
    assert_eq!(begin.elapsed().as_secs(), 2);

    let rig = with(|builder| builder.service_config(config(4)).retry_for(METHOD, on_unavailable().max_attempts(2)));
    let peer = rig.network.peer(1);
    peer.reply(Reply::Fail(Code::Unavailable));
    rig.serve(&[&peer]).await;
    rig.answer().await.expect_err("it fails");
    assert_eq!(peer.calls().get(), 2, "the exact name counts before the service's");
}

/// A server that fails each call with this status, another one, and a channel that asks the first one first.
async fn failing(status: Status) -> (Echo, Echo, BalancedChannel) {
    let (bad, good) = (Echo::start(), Echo::start());
    bad.fail_with(status);
    // The busier one is asked last.
    let instances = vec![
        Instance::new("echo", bad.address()).with_weight(65_535),
        Instance::new("echo", good.address()).with_weight(1),
    ];
    let builder = BalancedChannel::from_instances("echo", futures_util::stream::iter([instances]));
    let builder = builder.outlier_detection(None).policy(crate::policy::WeightedRoundRobin::new());
    let channel = builder.retry(on_unavailable()).build().expect("the options are good");
    let mut changes = channel.instance_changes();
    let ready = |statuses: &[crate::channel::InstanceStatus]| {
        statuses.len() == 2 && statuses.iter().all(|status| status.state() == crate::channel::Connectivity::Ready)
    };
    while !ready(&changes.next().await.expect("the channel is there")) {}
    (bad, good, channel)
}

async fn call(channel: &BalancedChannel) -> Result<(), Status> {
    let request = Request::new(EchoRequest { message: "x".into() });
    EchoClient::new(channel.clone()).unary_echo(request).await.map(drop)
}

fn with_pushback(value: &'static str) -> Status {
    let mut status = Status::unavailable("come back later");
    status.metadata_mut().insert("grpc-retry-pushback-ms", value.parse().expect("a header's value"));
    status
}

#[tokio::test]
async fn pushback_sets_the_wait_and_the_next_server_sees_the_attempt_count() {
    let (bad, good, channel) = failing(with_pushback("300")).await;
    let begin = Instant::now();
    call(&channel).await.expect("the second attempt succeeds");
    assert_eq!((bad.calls().get(), good.calls().get()), (1, 1));
    assert!(begin.elapsed() >= millis(300), "{:?}", begin.elapsed());
    let previous = |echo: &Echo| echo.last_metadata().get("grpc-previous-rpc-attempts").cloned();
    assert_eq!(previous(&bad), None, "the first attempt");
    assert_eq!(previous(&good).expect("the second attempt says so"), "1");
}

#[tokio::test]
async fn a_server_that_does_not_want_to_be_asked_again_is_obeyed() {
    for never in ["-1", "soon"] {
        let (bad, good, channel) = failing(with_pushback(never)).await;
        assert_eq!(call(&channel).await.expect_err("it is not retried").code(), Code::Unavailable);
        assert_eq!((bad.calls().get(), good.calls().get()), (1, 0), "{never:?}");
    }
}

#[tokio::test]
async fn a_response_that_has_begun_is_the_caller_s_whatever_follows() {
    let (bad, good, channel) = failing(Status::unavailable("later")).await;
    bad.fail_with(None);
    bad.keep_streams_open(true);
    let mut client = EchoClient::new(channel);
    let request = EchoRequest { message: "x".into() };
    let mut stream = client.server_streaming_echo(request).await.expect("it begins").into_inner();
    stream.message().await.expect("a message").expect("it goes on");
    let mut bad = bad;
    bad.kill().await;
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it breaks off"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(good.calls().get(), 0, "no other instance was asked");
}
