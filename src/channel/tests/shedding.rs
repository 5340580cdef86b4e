//! Instances that shed load or fail at once attract no calls by that.

use std::time::Duration;

use tokio::time::sleep;
use tonic::Code;

use super::peers::{OnCall, Reply, Scripted};
use super::rig::{Rig, ends};
use crate::policy::{LeastRequest, PeakEwma, Policy, WeightedRandom, WeightedRoundRobin};

/// How many of a hundred calls an instance gets that answers like this at once, while two others answer after 20 ms;
/// at 200 calls a second.
async fn share_of_one_that(reply: Reply, policy: impl Policy) -> usize {
    let rig = Rig::with(|builder| builder.policy(policy).outlier_detection(None));
    let peers = rig.network.peers::<3>(1);
    for peer in &peers {
        peer.delay(Duration::from_millis(20));
    }
    rig.serve(&peers.each_ref()).await;
    let mut calls = Vec::new();
    // The first ones teach what is usual.
    for call in 0..CALLS + WARM_UP {
        if call == WARM_UP {
            peers[1].delay(Duration::ZERO);
            peers[1].reply(reply);
        }
        calls.push(rig.call());
        sleep(Duration::from_millis(5)).await;
    }
    let before = peers[1].calls().get();
    let mut failed = 0;
    for call in calls {
        failed += usize::from(ends(call).await.is_err());
    }
    assert!(failed <= before, "the others answer all");
    failed * 100 / CALLS
}

const CALLS: usize = 600;
const WARM_UP: usize = 60;

#[tokio::test(start_paused = true)]
async fn one_that_sheds_gets_at_most_its_fair_share_under_every_policy() {
    for reply in [Reply::Fail(Code::ResourceExhausted), Reply::PushBack(Code::Unavailable)] {
        let shares = [
            share_of_one_that(reply, LeastRequest::new()).await,
            share_of_one_that(reply, PeakEwma::new()).await,
            share_of_one_that(reply, WeightedRoundRobin::new()).await,
            share_of_one_that(reply, WeightedRandom::new()).await,
        ];
        // A third of the 57 and 64 of a hundred that one which fails at once gets by looking idle.
        assert!(shares.iter().all(|share| *share <= 19), "{reply:?}: {shares:?} of a hundred calls");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_at_once_gets_about_its_fair_share() {
    for code in [Code::Internal, Code::Unimplemented, Code::Unknown] {
        let reply = Reply::Fail(code);
        let shares =
            [share_of_one_that(reply, LeastRequest::new()).await, share_of_one_that(reply, PeakEwma::new()).await];
        assert!(shares.iter().all(|share| *share <= 38), "{code:?}: {shares:?} of a hundred calls");
    }
}

#[tokio::test(start_paused = true)]
async fn while_all_shed_calls_still_go() {
    let rig = Rig::new();
    let peers = rig.network.peers::<2>(1);
    for peer in &peers {
        peer.reply(Reply::Fail(Code::ResourceExhausted));
    }
    rig.serve(&peers.each_ref()).await;
    for _ in 0..50 {
        let status = rig.answer().await.expect_err("it sheds");
        assert_eq!(status.code(), Code::ResourceExhausted, "the server's own word: {status:?}");
    }
    assert!(peers.iter().all(|peer| peer.calls().get() >= 10), "both are asked");
}

#[tokio::test]
async fn one_that_refuses_streams_is_spared() {
    use super::client::{connected, over, say};
    let (refuser, echo) = (Scripted::start(OnCall::Refuse, None), super::peers::Echo::start());
    let mut client = connected(over([refuser.address(), echo.address()]).policy(WeightedRoundRobin::new())).await;
    for _ in 0..200 {
        client.unary_echo(say("x")).await.expect("the other one answers");
    }
    let tried = refuser.calls().get();
    assert!(tried <= 60, "{tried} of 200 calls were refused first");
}
