//! What proves that an instance is well or fails, and what proves nothing: streams that last, connections that end as
//! planned, foreign answers, deadlines of the caller.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};
use tower::Service;

use super::peers::proto::EchoRequest;
use super::peers::proto::echo_client::EchoClient;
use super::peers::{Peer, Reply};
use super::rig::{Rig, SECOND, ends, is_ejected, rest, wait_recovered};
use crate::channel::Connectivity;
use crate::policy::{PickFirst, WeightedRoundRobin};
use crate::retry::RetryPolicy;

/// Two READY instances.
async fn two(rig: &Rig) -> [Peer; 2] {
    let peers = rig.network.peers(1);
    rig.serve(&peers.each_ref()).await;
    peers
}

/// Makes calls until this one is ejected, which answers again afterwards.
async fn eject(rig: &Rig, peer: &Peer) {
    peer.reply(Reply::Fail(Code::Unavailable));
    while !is_ejected(rig, peer) {
        _ = rig.answer().await;
        rest().await;
    }
    peer.reply(Reply::Answer);
}

/// A server stream on a task of its own, which ends with how many messages came, or why it failed.
fn open_stream(rig: &Rig) -> JoinHandle<Result<usize, Status>> {
    let mut client = EchoClient::new(rig.channel.clone());
    tokio::spawn(async move {
        let mut replies = client.server_streaming_echo(EchoRequest { message: "x".into() }).await?.into_inner();
        let mut messages = 0;
        while let Some(reply) = replies.next().await {
            reply?;
            messages += 1;
        }
        Ok(messages)
    })
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stays_open_ends_a_probation() {
    let rig = Rig::with(|builder| builder.policy(WeightedRoundRobin::new()));
    let [a, b] = two(&rig).await;
    eject(&rig, &a).await;
    wait_recovered(&rig, &a).await;
    // The first call that it gets.
    a.reply(Reply::Stream);
    let before = a.calls().get();
    let mut streams = Vec::new();
    while a.calls().get() == before {
        streams.push(open_stream(&rig));
        rest().await;
    }
    a.reply(Reply::Answer);
    let share = rig.answers_of(&a, 100).await;
    assert!((20..=80).contains(&share), "it has its share again: {share} of 100");
    b.kill();
    rest().await;
    let calls: Vec<_> = (0..100).map(|_| rig.call_within(SECOND)).collect();
    for call in calls {
        ends(call).await.expect("the instance with the stream takes all calls");
    }
    a.release();
    assert_eq!(ends_of(streams.pop().expect("its stream")).await.expect("it ends well"), 1);
}

async fn ends_of(call: JoinHandle<Result<usize, Status>>) -> Result<usize, Status> {
    timeout(60 * SECOND, call).await.expect("it ends").expect("no panic")
}

#[tokio::test(start_paused = true)]
async fn a_standby_that_got_no_call_since_it_returned_takes_over() {
    let rig = Rig::with(|builder| builder.policy(PickFirst::new()));
    let [a, b] = two(&rig).await;
    eject(&rig, &a).await;
    wait_recovered(&rig, &a).await;
    assert_eq!(rig.answers_of(&b, 20).await, 20, "the channel stays with the other one");
    b.reply(Reply::Fail(Code::Unavailable));
    let mut failed = 0;
    for _ in 0..1_000 {
        failed += usize::from(rig.answer().await.is_err());
        sleep(Duration::from_millis(20)).await;
    }
    assert!(failed <= 5, "{failed} of 1,000 calls failed though one instance was well");
}

#[tokio::test(start_paused = true)]
async fn where_one_more_ejection_is_not_allowed_one_on_probation_comes_in() {
    let rig = Rig::with(|builder| builder.policy(WeightedRoundRobin::new()));
    let peers = rig.network.peers::<4>(1);
    rig.serve(&peers.each_ref()).await;
    let [a, b, c, d] = &peers;
    eject(&rig, a).await;
    wait_recovered(&rig, a).await;
    // The probe of the first is under way, two are out, and the last one fails: nothing else may be ejected.
    a.reply(Reply::Stream);
    a.delay(3 * SECOND);
    let stream = open_stream(&rig);
    let mut streams = vec![stream];
    while a.inside() == 0 {
        streams.push(open_stream(&rig));
        rest().await;
    }
    a.reply(Reply::Answer);
    a.delay(Duration::ZERO);
    for peer in [b, c, d] {
        peer.reply(Reply::Fail(Code::Unavailable));
    }
    let mut failed = 0;
    for _ in 0..100 {
        failed += usize::from(rig.answer().await.is_err());
        rest().await;
    }
    assert_eq!([b, c, d].iter().filter(|peer| is_ejected(&rig, peer)).count(), 2, "half may be out");
    assert!(a.calls().get() > 30, "the one on probation takes its share: {} calls", a.calls().get());
    assert!(failed < 70, "{failed} of 100");
}

#[tokio::test(start_paused = true)]
async fn the_planned_end_of_a_connection_under_streams_ejects_nothing() {
    let rig = Rig::with(|builder| builder.policy(WeightedRoundRobin::new()));
    let [a, _b] = two(&rig).await;
    for age in 1..=3 {
        let mut streams = Vec::new();
        a.reply(Reply::Stream);
        while a.inside() < 3 {
            streams.push(open_stream(&rig));
            rest().await;
        }
        a.reply(Reply::Answer);
        let attempts = a.attempted().get();
        a.go_away();
        a.attempted().reaches(attempts + 1).await;
        rig.wait_ready(&a).await;
        // The grace is over: the earlier connection is closed under its streams, and the new one with it.
        a.cut();
        rest().await;
        assert!(!is_ejected(&rig, &a), "age {age}");
        rig.wait_ready(&a).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_under_many_calls_is_one_failure() {
    let rig = Rig::with(|builder| builder.policy(WeightedRoundRobin::new()));
    let peers = two(&rig).await;
    for (peer, breaks) in peers.iter().flat_map(|peer| [(peer, 1), (peer, 2)]) {
        peer.reply(Reply::Hold);
        let mut held = Vec::new();
        while peer.inside() < 5 {
            held.push(rig.call_within(60 * SECOND));
            rest().await;
        }
        peer.cut();
        peer.reply(Reply::Answer);
        rest().await;
        assert!(!is_ejected(&rig, peer), "{breaks} connections broke, with five calls each");
        rig.wait_ready(peer).await;
    }
}

#[tokio::test(start_paused = true)]
async fn connections_that_a_server_closes_while_idle_cost_no_call() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    let (mut failing, mut calls) = (0, 0);
    let begin = Instant::now();
    while begin.elapsed() < 150 * SECOND {
        // Closed four seconds after it began to idle, and the next call comes three to nine seconds later.
        for second in 0..fastrand::u64(7..=13) {
            sleep(SECOND).await;
            if second % 4 == 3 {
                peer.cut();
                rest().await;
            }
            failing += usize::from(rig.channel.state() == Connectivity::TransientFailure);
        }
        rig.answer().await.expect("no call fails");
        calls += 1;
    }
    assert_eq!(failing, 0, "nothing failed, in {calls} calls");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_closes_each_connection_at_once_is_not_dialled_in_a_loop() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    peer.on_connect(super::peers::OnConnect::HangUp);
    peer.cut();
    sleep(60 * SECOND).await;
    let attempts = peer.attempted().get();
    assert!(attempts < 30, "{attempts} attempts in a minute");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_no_grpc_server_is_ejected() {
    for (reply, says) in [
        (Reply::Page(200), "the answer is no gRPC: HTTP status 200 OK, content-type \"text/html\""),
        (Reply::HeadAlone, "the response ended without a grpc-status"),
        (Reply::WithoutStatus, "the response ended without a grpc-status"),
    ] {
        let rig = Rig::with(|builder| builder.policy(WeightedRoundRobin::new()));
        let peers = rig.network.peers::<3>(1);
        rig.serve(&peers.each_ref()).await;
        let stranger = &peers[1];
        stranger.reply(reply);
        let mut failed = 0;
        for _ in 0..1_000 {
            if let Err(status) = rig.answer().await {
                failed += 1;
                assert_eq!(status.code(), Code::Unknown, "{reply:?}");
                assert_eq!(status.message(), format!("{}: {says}", stranger.address()));
            }
        }
        assert_eq!(failed, 3, "{reply:?}: three failures in a row eject it");
    }
}

#[tokio::test(start_paused = true)]
async fn callers_and_retries_see_the_same_code_for_an_http_status() {
    for (http, code) in [
        (400, Code::Internal),
        (401, Code::Unauthenticated),
        (403, Code::PermissionDenied),
        (404, Code::Unimplemented),
        (429, Code::Unavailable),
        (500, Code::Unknown),
        (503, Code::Unavailable),
    ] {
        let retries = |code| RetryPolicy::new([code]).max_attempts(3);
        let others = if code == Code::Unknown { Code::Internal } else { Code::Unknown };
        for (retried, attempts) in [(code, 3), (others, 1)] {
            let rig = Rig::with(|builder| builder.retry(retries(retried)));
            let peer = rig.network.peer(1);
            peer.reply(Reply::Page(http));
            rig.serve(&[&peer]).await;
            let status = rig.answer().await.expect_err("a page");
            assert_eq!(status.code(), code, "HTTP {http}: {status:?}");
            assert!(status.message().contains("text/html") && status.message().contains("127.0.0.1:1"), "{status:?}");
            assert_eq!(peer.calls().get(), attempts, "HTTP {http}, retried for {retried:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_its_server_resets_at_the_deadline_missed_it() {
    let rig = Rig::new();
    let [a, b] = two(&rig).await;
    a.reply(Reply::Cancel);
    a.delay(300 * MILLISECOND);
    let (mut missed, mut answered) = (0, 0);
    while missed < 3 {
        sleep(100 * MILLISECOND).await;
        match ends(rig.call_within(300 * MILLISECOND)).await {
            Ok(_) => answered += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::DeadlineExceeded, "never CANCELLED: {status:?}");
                missed += 1;
            }
        }
    }
    rest().await;
    assert!(is_ejected(&rig, &a), "three in a row while the other one gave {answered} answers");
    assert!(!is_ejected(&rig, &b));
    // Where the call has time left, the server gave it up.
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    peer.reply(Reply::Cancel);
    let status = ends(rig.call_within(SECOND)).await.expect_err("it is reset");
    assert_eq!(status.code(), Code::Cancelled, "{status:?}");
}

const MILLISECOND: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn equal_instances_that_are_slower_than_the_deadline_all_stay() {
    let rig = Rig::new();
    let peers = rig.network.peers::<3>(1);
    rig.serve(&peers.each_ref()).await;
    for peer in &peers {
        peer.delay(500 * MILLISECOND);
    }
    for _ in 0..600 {
        drop(rig.call_within(100 * MILLISECOND));
        sleep(50 * MILLISECOND).await;
        for peer in &peers {
            assert!(!is_ejected(&rig, peer), "all are as slow");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_three_that_is_slower_than_the_deadline_is_ejected() {
    let rig = Rig::new();
    let peers = rig.network.peers::<3>(1);
    rig.serve(&peers.each_ref()).await;
    peers[1].delay(500 * MILLISECOND);
    let mut calls = 0;
    while !is_ejected(&rig, &peers[1]) {
        drop(rig.call_within(100 * MILLISECOND));
        sleep(50 * MILLISECOND).await;
        calls += 1;
        assert!(calls < 200, "its calls miss their deadlines, those of the others do not");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_the_caller_uses_up_says_nothing_about_the_instance() {
    let rig = Rig::with(|builder| builder.policy(PickFirst::new()));
    let [a, _b] = two(&rig).await;
    for _ in 0..10 {
        let first = stream::iter([EchoRequest { message: "x".into() }]);
        let mut request = tonic::Request::new(first.chain(stream::pending()));
        request.set_timeout(SECOND);
        let mut client = EchoClient::new(rig.channel.clone());
        let status = client.client_streaming_echo(request).await.expect_err("it never ends");
        assert_eq!(status.code(), Code::DeadlineExceeded);
        rest().await;
        assert!(!is_ejected(&rig, &a), "it was the caller's turn");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_not_polled_holds_no_place() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    let unpolled: Vec<_> = (0..1_000)
        .map(|_| {
            let request = http::Request::builder().uri("/echo.Echo/UnaryEcho").body(tonic::body::Body::empty());
            rig.channel.clone().call(request.expect("a request"))
        })
        .collect();
    assert_eq!(rig.status(&peer).in_flight(), 0);
    drop(unpolled);
}

#[tokio::test(start_paused = true)]
async fn never_more_than_half_are_out_however_long_all_fail() {
    let rig = Rig::with(|builder| builder.policy(WeightedRoundRobin::new()));
    let peers = rig.network.peers::<4>(1);
    rig.serve(&peers.each_ref()).await;
    for peer in &peers {
        peer.reply(Reply::Fail(Code::Unavailable));
    }
    for _ in 0..3_000 {
        rig.answer().await.expect_err("all fail");
        sleep(20 * MILLISECOND).await;
        let out = peers.iter().filter(|peer| is_ejected(&rig, peer)).count();
        assert!(out <= 2, "{out} of four");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_instance_is_ejected_beside_streams_that_end_at_their_deadlines() {
    let rig = Rig::with(|builder| builder.policy(WeightedRoundRobin::new()));
    let [hung, well] = two(&rig).await;
    hung.reply(Reply::Hold);
    well.reply(Reply::Stream);
    for round in 0..100 {
        let mut request = tonic::Request::new(EchoRequest { message: "x".into() });
        request.set_timeout(SECOND);
        let mut client = EchoClient::new(rig.channel.clone());
        if let Ok(replies) = client.server_streaming_echo(request).await {
            drop(replies.into_inner().collect::<Vec<_>>().await);
        }
        if is_ejected(&rig, &hung) {
            assert!(round >= 3);
            return;
        }
    }
    panic!("the streams of the other one began, and count as answered: {:?}", rig.channel.instances());
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_one_instance_under_many_calls_ejects_nothing() {
    let rig = Rig::with(|builder| builder.policy(WeightedRoundRobin::new()));
    let [a, b] = two(&rig).await;
    a.reply(Reply::Hold);
    let calls: Vec<_> = (0..40).map(|_| rig.call_within(100 * MILLISECOND)).collect();
    let mut missed = 0;
    for call in calls {
        missed += usize::from(ends(call).await.is_err());
    }
    rest().await;
    assert!(missed >= 10, "{missed} were in flight there");
    assert!(!is_ejected(&rig, &a) && !is_ejected(&rig, &b), "it was one silence");
}
