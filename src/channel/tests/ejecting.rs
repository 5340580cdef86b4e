//! Instances that fail are left out for a while, and return by probe.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tonic::Code;

use super::peers::{OnConnect, Peer, Reply};
use super::rig::{Call, Rig, SECOND, ends, is_ejected, rest, wait_recovered};
use crate::channel::{Connectivity, InstanceStatus};
use crate::outlier::{FailurePercentage, OutlierDetection, StatusOrigin, SuccessRate};
use crate::policy::{Candidate, PickArgs, Picker, Policy, WeightedRoundRobin};

/// A channel over one instance that may be ejected, which the defaults would not do: every call is for it.
async fn alone(tune: impl FnOnce(OutlierDetection) -> OutlierDetection) -> (Rig, Peer) {
    let detection = tune(OutlierDetection::new().max_ejected_percent(100));
    let rig = Rig::with(|builder| builder.outlier_detection(detection));
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    (rig, peer)
}

/// A channel whose calls go to the first of two instances while that has room, and the second one always answers.
async fn beside() -> (Rig, Peer) {
    let rig = Rig::with(|builder| builder.policy(Lowest));
    let [peer, other] = rig.network.peers(1);
    rig.serve(&[&peer, &other]).await;
    (rig, peer)
}

/// The candidate with the lowest address.
#[derive(Debug)]
struct Lowest;

impl Policy for Lowest {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        let address = |index: &usize| &candidates[*index].instance().address;
        Box::new(At((0..candidates.len()).min_by_key(address).unwrap_or_default()))
    }
}

struct At(usize);

impl Picker for At {
    fn pick(&self, _: &[Candidate], _: &PickArgs<'_>) -> Option<usize> {
        Some(self.0)
    }
}

/// Makes that many calls that are answered with a code.
async fn fail(rig: &Rig, peer: &Peer, code: Code, calls: usize) {
    peer.reply(Reply::Fail(code));
    for _ in 0..calls {
        let status = rig.answer().await.expect_err("the peer fails");
        assert_eq!(status.code(), code, "{status:?}");
    }
    peer.reply(Reply::Answer);
    rest().await;
}

/// Calls that the peer holds.
async fn hold(rig: &Rig, peer: &Peer, calls: usize, limit: Duration) -> Vec<Call> {
    peer.reply(Reply::Hold);
    let before = peer.calls().get();
    let held = (0..calls).map(|_| rig.call_within(limit)).collect();
    peer.calls().reaches(before + calls).await;
    peer.reply(Reply::Answer);
    held
}

/// Breaks that many connections in a row, each under ten calls.
async fn break_connections(rig: &Rig, peer: &Peer, connections: usize) {
    for _ in 0..connections {
        rig.channel.ready().await.expect("the channel lives");
        let held = hold(rig, peer, 10, 60 * SECOND).await;
        peer.cut();
        for call in held {
            assert_eq!(ends(call).await.expect_err("it broke").code(), Code::Unavailable);
        }
        rest().await;
    }
}

#[tokio::test(start_paused = true)]
async fn three_failures_in_a_row_eject_and_two_do_not() {
    let rig = Rig::new();
    let peers = rig.network.peers::<3>(1);
    rig.serve(&peers.each_ref()).await;
    let [bad, others @ ..] = &peers;
    bad.reply(Reply::Fail(Code::Unavailable));
    let mut failed = 0;
    for _ in 0..500 {
        failed += usize::from(rig.answer().await.is_err());
        rest().await;
        assert_eq!(is_ejected(&rig, bad), failed >= 3, "after {failed} failures");
    }
    assert_eq!((failed, bad.calls().get()), (3, 3), "it is not called any more");
    assert!(others.iter().all(|peer| !is_ejected(&rig, peer)), "the others stay");
    assert_eq!(rig.state(bad), Connectivity::Ready, "its connection stands");
}

#[tokio::test(start_paused = true)]
async fn a_success_ends_the_row() {
    let (rig, peer) = alone(|detection| detection).await;
    for _ in 0..5 {
        fail(&rig, &peer, Code::Unavailable, 2).await;
        rig.answer().await.expect("an answer");
    }
    assert!(!is_ejected(&rig, &peer), "never were there three in a row");
    fail(&rig, &peer, Code::Unavailable, 3).await;
    assert!(is_ejected(&rig, &peer), "now there were");
}

#[tokio::test(start_paused = true)]
async fn answers_that_say_no_are_answers() {
    let (rig, peer) = alone(|detection| detection).await;
    for code in [Code::NotFound, Code::Internal, Code::Unknown, Code::ResourceExhausted, Code::DeadlineExceeded] {
        fail(&rig, &peer, code, 5).await;
        assert!(!is_ejected(&rig, &peer), "{code:?} says nothing about the instance");
    }
}

#[tokio::test(start_paused = true)]
async fn what_counts_as_a_failure_can_be_configured() {
    let by_code = |outcome: &crate::outlier::Outcome| outcome.code() == Code::Internal;
    let (rig, peer) = alone(|detection| detection.failure_when(by_code)).await;
    fail(&rig, &peer, Code::Unavailable, 10).await;
    assert!(!is_ejected(&rig, &peer), "UNAVAILABLE does not count any more");
    fail(&rig, &peer, Code::Internal, 3).await;
    assert!(is_ejected(&rig, &peer), "INTERNAL does");
}

#[tokio::test(start_paused = true)]
async fn failures_can_be_classified_by_how_the_call_ended() {
    let broken = |outcome: &crate::outlier::Outcome| outcome.origin() == StatusOrigin::Broken;
    let (rig, peer) = alone(|detection| detection.failure_when(broken)).await;
    fail(&rig, &peer, Code::Unavailable, 5).await;
    for call in hold(&rig, &peer, 5, SECOND).await {
        assert_eq!(ends(call).await.expect_err("it is held").code(), Code::DeadlineExceeded);
    }
    assert!(!is_ejected(&rig, &peer), "neither is a broken connection");
    break_connections(&rig, &peer, 3).await;
    assert!(is_ejected(&rig, &peer), "three of them are");
}

#[tokio::test(start_paused = true)]
async fn ejection_can_be_switched_off() {
    let (rig, peer) = alone(|detection| detection.consecutive_failures(None)).await;
    fail(&rig, &peer, Code::Unavailable, 50).await;
    assert!(!is_ejected(&rig, &peer), "nothing is counted");
}

#[tokio::test(start_paused = true)]
async fn broken_connections_count() {
    let (rig, peer) = alone(|detection| detection).await;
    break_connections(&rig, &peer, 2).await;
    assert!(!is_ejected(&rig, &peer), "two are no row, however many calls were on them");
    break_connections(&rig, &peer, 1).await;
    assert!(is_ejected(&rig, &peer), "three are");
    assert_eq!(rig.state(&peer), Connectivity::Idle, "the probe brings its next connection");
    let status = rig.answer().await.expect_err("no instance is there");
    assert_eq!(status.code(), Code::Unavailable, "calls fail at once");
    wait_recovered(&rig, &peer).await;
    rig.answer().await.expect("an answer");
}

#[tokio::test(start_paused = true)]
async fn missed_deadlines_count_if_nothing_was_answered_meanwhile() {
    let (rig, peer) = alone(|detection| detection).await;
    for silence in 1..=3 {
        for call in hold(&rig, &peer, 5, SECOND / 2).await {
            assert_eq!(ends(call).await.expect_err("it is held").code(), Code::DeadlineExceeded);
        }
        rest().await;
        assert_eq!(is_ejected(&rig, &peer), silence == 3, "five calls in the short silence {silence} are one failure");
    }
    let (rig, peer) = alone(|detection| detection).await;
    for call in hold(&rig, &peer, 2, SECOND).await {
        assert_eq!(ends(call).await.expect_err("it is held").code(), Code::DeadlineExceeded);
    }
    rest().await;
    assert!(is_ejected(&rig, &peer), "a second without any answer is no pause");
}

#[tokio::test(start_paused = true)]
async fn missed_deadlines_do_not_count_if_anything_was_answered_meanwhile() {
    let (rig, peer) = alone(|detection| detection).await;
    let held = hold(&rig, &peer, 10, SECOND).await;
    rig.answer().await.expect("an answer");
    for call in held {
        assert_eq!(ends(call).await.expect_err("it is held").code(), Code::DeadlineExceeded);
    }
    rest().await;
    assert!(!is_ejected(&rig, &peer), "it answers, only not these");
}

#[tokio::test(start_paused = true)]
async fn deadlines_missed_on_an_earlier_connection_do_not_count() {
    let (rig, peer) = alone(|detection| detection).await;
    rig.answer().await.expect("an answer");
    let held = hold(&rig, &peer, 10, SECOND).await;
    peer.go_away();
    peer.attempted().reaches(2).await;
    rig.channel.ready().await.expect("the channel lives");
    rig.answer().await.expect("an answer on the next connection");
    for call in held {
        assert_eq!(ends(call).await.expect_err("it is held").code(), Code::DeadlineExceeded);
    }
    rest().await;
    assert!(!is_ejected(&rig, &peer), "the instance has answered since");
}

#[tokio::test(start_paused = true)]
async fn cancelled_calls_never_count() {
    let (rig, peer) = alone(|detection| detection).await;
    for call in hold(&rig, &peer, 20, 60 * SECOND).await {
        call.abort();
    }
    peer.resets().reaches(20).await;
    rest().await;
    assert!(!is_ejected(&rig, &peer), "it was the callers that gave up");
    fail(&rig, &peer, Code::Unavailable, 2).await;
    assert!(!is_ejected(&rig, &peer), "nor did they begin a row");
}

#[tokio::test(start_paused = true)]
async fn ejections_last_5_s_and_double_after_each_failed_probe_up_to_25_s() {
    let (rig, peer) = alone(|detection| detection).await;
    fail(&rig, &peer, Code::Unavailable, 3).await;
    for seconds in [5, 10, 20, 25, 25] {
        let begin = Instant::now();
        wait_recovered(&rig, &peer).await;
        let lasted = begin.elapsed();
        let expected = seconds * SECOND;
        let slack = Duration::from_millis(10);
        assert!(lasted + slack > expected && lasted < expected + slack, "{lasted:?} instead of {expected:?}");
        fail(&rig, &peer, Code::Unavailable, 1).await;
        assert!(is_ejected(&rig, &peer), "one failure is enough on probation");
    }
    wait_recovered(&rig, &peer).await;
    rig.answer().await.expect("the probe is answered");
    rest().await;
    fail(&rig, &peer, Code::Unavailable, 2).await;
    assert!(!is_ejected(&rig, &peer), "it is in again, and takes three");
}

#[tokio::test(start_paused = true)]
async fn never_more_than_half_are_ejected() {
    let rig = Rig::new();
    let peers = rig.network.peers::<5>(1);
    rig.serve(&peers.each_ref()).await;
    for peer in &peers {
        peer.reply(Reply::Fail(Code::Unavailable));
    }
    let mut most = 0;
    for _ in 0..500 {
        rig.answer().await.expect_err("all fail");
        rest().await;
        most = most.max(peers.iter().filter(|peer| is_ejected(&rig, peer)).count());
    }
    assert_eq!(most, 2, "of five, two may go");
}

#[tokio::test(start_paused = true)]
async fn the_only_instance_stays_by_default() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    fail(&rig, &peer, Code::Unavailable, 50).await;
    assert!(!is_ejected(&rig, &peer), "there is no instance to take its calls");
}

#[tokio::test(start_paused = true)]
async fn an_instance_returns_on_a_new_connection_with_one_call_at_a_time() {
    let (rig, peer) = beside().await;
    fail(&rig, &peer, Code::Unavailable, 3).await;
    wait_recovered(&rig, &peer).await;
    assert_eq!(peer.attempted().get(), 2, "a new connection shows that the process is there");
    peer.wait_open(1).await;
    peer.reply(Reply::Hold);
    let calls: Vec<_> = (0..10).map(|_| rig.call()).collect();
    rest().await;
    assert_eq!(peer.inside(), 1, "one call is risked, the others go elsewhere");
    peer.release();
    rest().await;
    let more: Vec<_> = (0..10).map(|_| rig.call()).collect();
    rest().await;
    assert_eq!(peer.inside(), 10, "its answer lets in any number");
    peer.release();
    for call in calls.into_iter().chain(more) {
        ends(call).await.expect("no call was harmed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_its_caller_gives_up_decides_nothing() {
    let (rig, peer) = beside().await;
    fail(&rig, &peer, Code::Unavailable, 3).await;
    wait_recovered(&rig, &peer).await;
    for call in hold(&rig, &peer, 1, 60 * SECOND).await {
        call.abort();
    }
    peer.resets().reaches(1).await;
    assert!(!is_ejected(&rig, &peer), "nothing is known of it still");
    one_call_decides(&rig, &peer, "the next call is the probe").await;
}

/// Checks that one call at a time goes there, and that its answer lets in the others.
async fn one_call_decides(rig: &Rig, peer: &Peer, what: &str) {
    peer.reply(Reply::Hold);
    for inside in [1, 5] {
        let calls: Vec<_> = (0..5).map(|_| rig.call()).collect();
        rest().await;
        assert_eq!(peer.inside(), inside, "{what}");
        peer.release();
        for call in calls {
            ends(call).await.expect("no call was harmed");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_on_probation_that_cannot_be_connected_stays_out_of_the_way() {
    let rig = Rig::new();
    let [bad, good] = rig.network.peers(1);
    rig.serve(&[&bad, &good]).await;
    bad.reply(Reply::Fail(Code::Unavailable));
    while !is_ejected(&rig, &bad) {
        _ = rig.answer().await;
        rest().await;
    }
    bad.kill();
    bad.reply(Reply::Answer);
    rig.until_peer(&bad, "the probe fails to connect", |status| status.state() == Connectivity::TransientFailure).await;
    assert_eq!(rig.answers_of(&good, 100).await, 100, "no call is risked");
    bad.on_connect(OnConnect::Accept);
    wait_recovered(&rig, &bad).await;
    let some = rig.answers_of(&bad, 100).await;
    assert!((10..90).contains(&some), "it has its share again: {some}");
}

#[tokio::test(start_paused = true)]
async fn calls_on_the_earlier_connection_decide_no_probation() {
    for (late, name) in [(Reply::Answer, "an answer"), (Reply::Hold, "a missed deadline")] {
        let (rig, peer) = beside().await;
        let held = hold(&rig, &peer, 1, 7 * SECOND).await;
        fail(&rig, &peer, Code::Unavailable, 3).await;
        assert!(is_ejected(&rig, &peer), "{name}");
        // The next connection takes its time, and the earlier call ends meanwhile.
        peer.on_connect(OnConnect::Mute);
        peer.attempted().reaches(2).await;
        if late == Reply::Answer {
            peer.release();
        }
        for call in held {
            assert_eq!(ends(call).await.is_ok(), late == Reply::Answer, "{name}");
        }
        peer.on_connect(OnConnect::Accept);
        wait_recovered(&rig, &peer).await;
        assert!(!is_ejected(&rig, &peer), "{name} on the earlier connection does not fail the probe");
        one_call_decides(&rig, &peer, &format!("{name} on the earlier connection does not pass the probe")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_with_the_proof_still_ends_probation() {
    let (rig, peer) = alone(|detection| detection).await;
    fail(&rig, &peer, Code::Unavailable, 3).await;
    wait_recovered(&rig, &peer).await;
    let probe = hold(&rig, &peer, 1, 60 * SECOND).await;
    peer.go_away();
    peer.release();
    for call in probe {
        ends(call).await.expect("an answer");
    }
    peer.attempted().reaches(3).await;
    rest().await;
    rig.answer().await.expect("an answer");
    rest().await;
    peer.reply(Reply::Hold);
    let calls: Vec<_> = (0..5).map(|_| rig.call()).collect();
    rest().await;
    assert_eq!(peer.inside(), 5, "any number of calls at once");
    peer.release();
    for call in calls {
        ends(call).await.expect("no call was harmed");
    }
}

#[tokio::test(start_paused = true)]
async fn while_nothing_else_is_ready_an_ejected_instance_takes_all_calls() {
    let (rig, peer) = alone(|detection| detection).await;
    fail(&rig, &peer, Code::Unavailable, 3).await;
    wait_recovered(&rig, &peer).await;
    fail(&rig, &peer, Code::Unavailable, 1).await;
    assert!(is_ejected(&rig, &peer), "it is out again");
    peer.reply(Reply::Hold);
    let calls: Vec<_> = (0..20).map(|_| rig.call()).collect();
    rest().await;
    assert_eq!(peer.inside(), 20, "better than no instance, and not one by one");
    peer.release();
    for call in calls {
        ends(call).await.expect("an answer");
    }
    assert!(is_ejected(&rig, &peer), "which does not end its time");
}

#[tokio::test(start_paused = true)]
async fn intervals_are_taken_back_while_an_instance_stays() {
    let (rig, peer) = alone(|detection| detection).await;
    for seconds in [5, 10] {
        fail(&rig, &peer, Code::Unavailable, 3).await;
        let begin = Instant::now();
        wait_recovered(&rig, &peer).await;
        let expected = seconds * SECOND;
        assert!(begin.elapsed() + Duration::from_millis(10) > expected, "{:?}", begin.elapsed());
        rig.answer().await.expect("an answer");
        rest().await;
    }
    timeout(21 * SECOND, std::future::pending::<()>()).await.expect_err("two intervals pass");
    fail(&rig, &peer, Code::Unavailable, 3).await;
    let begin = Instant::now();
    wait_recovered(&rig, &peer).await;
    assert!(begin.elapsed() < 6 * SECOND, "it is ejected as if for the first time: {:?}", begin.elapsed());
}

/// Six instances, of which the first fails some calls, over one interval and a little more; and which are ejected.
async fn swept(detection: OutlierDetection, failures: usize) -> Vec<u16> {
    let detection = detection.consecutive_failures(None);
    let rig = Rig::with(|builder| builder.outlier_detection(detection).policy(WeightedRoundRobin::new()));
    let peers = rig.network.peers::<6>(1);
    rig.serve(&peers.each_ref()).await;
    for round in 0..100 {
        peers[0].reply(if round < failures { Reply::Fail(Code::Unavailable) } else { Reply::Answer });
        for _ in &peers {
            _ = rig.answer().await;
        }
    }
    timeout(10 * SECOND, std::future::pending::<()>()).await.expect_err("the interval passes");
    rest().await;
    let all = rig.channel.instances();
    all.iter().filter(|status| status.is_ejected()).map(|status| status.instance().address.port()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_failure_rate_above_the_threshold_ejects_at_the_interval() {
    let detection = || OutlierDetection::new().failure_percentage(FailurePercentage::new().threshold(50));
    assert_eq!(swept(detection(), 51).await, [1], "51 of 100 calls failed");
    assert!(swept(detection(), 50).await.is_empty(), "50 of 100 are not more than half");
    assert!(swept(OutlierDetection::new(), 100).await.is_empty(), "it is an option");
}

#[tokio::test(start_paused = true)]
async fn a_success_rate_far_below_the_others_ejects_at_the_interval() {
    let detection = || OutlierDetection::new().success_rate(SuccessRate::new());
    assert_eq!(swept(detection(), 20).await, [1], "the others never failed");
    assert!(swept(detection(), 0).await.is_empty(), "equals are no outliers");
    let few = OutlierDetection::new().success_rate(SuccessRate::new().request_volume(101));
    assert!(swept(few, 100).await.is_empty(), "100 calls are too few to judge");
}

#[tokio::test(start_paused = true)]
async fn an_ejected_instance_without_a_connection_is_connecting_when_dialled() {
    let (rig, peer) = alone(|detection| detection.ejection_time(SECOND)).await;
    fail(&rig, &peer, Code::Unavailable, 3).await;
    peer.on_connect(OnConnect::Mute);
    peer.cut();
    rig.until_peer(&peer, "nothing is tried", |status| status.state() == Connectivity::Idle).await;
    assert!(rig.status(&peer).cause().is_some(), "its status shows why");
    let is_tried = |status: &InstanceStatus| status.state() == Connectivity::Connecting && status.cause().is_none();
    rig.until_peer(&peer, "it is dialled", is_tried).await;
    assert_eq!(rig.channel.state(), Connectivity::Connecting, "and so does the channel");
}
