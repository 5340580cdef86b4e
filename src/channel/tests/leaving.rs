//! From one list of instances to the next: which instances take no more calls, and what stays of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::Code;

use super::peers::{OnConnect, Peer, Reply};
use super::rig::{Rig, SECOND, draining, ends, live, member, rest, suspect, weighing};
use crate::channel::{Connectivity, InstanceStatus};
use crate::policy::{Candidate, LeastRequest, Picker, Policy, WeightedRoundRobin};
use crate::snapshot::MemberState;

#[tokio::test(start_paused = true)]
async fn a_draining_instance_is_called_only_while_nothing_else_is_ready() {
    let rig = Rig::new();
    let [leaving, staying] = rig.network.peers(1);
    rig.serve(&[&leaving, &staying]).await;
    rig.set_instances([draining(&leaving), live(&staying)]);
    rig.until_peer(&leaving, "it is draining", InstanceStatus::is_draining).await;
    assert_eq!(rig.answers_of(&staying, 100).await, 100, "the other takes all calls");
    staying.kill();
    rig.until_peer(&staying, "it is gone", |status| status.state() != Connectivity::Ready).await;
    assert_eq!(rig.answers_of(&leaving, 100).await, 100, "it is better than nothing");
    assert_eq!(leaving.attempted().get(), 1, "it kept its connection");
}

#[tokio::test(start_paused = true)]
async fn a_removed_instance_is_not_called_and_its_streams_finish() {
    let rig = Rig::new();
    let [removed, staying] = rig.network.peers(1);
    rig.serve(&[&removed]).await;
    removed.reply(Reply::Hold);
    let held = rig.call();
    removed.calls().reaches(1).await;
    rig.serve(&[&staying]).await;
    assert_eq!(rig.answers_of(&staying, 100).await, 100, "only one is left");
    sleep(29 * SECOND).await;
    assert!(!held.is_finished(), "the stream goes on");
    removed.release();
    assert_eq!(ends(held).await.expect("it finishes"), removed.address());
    removed.wait_open(0).await;
    assert_eq!(removed.attempted().get(), 1, "it was not dialled again");
}

#[tokio::test(start_paused = true)]
async fn streams_of_a_removed_instance_are_cut_at_their_limit() {
    let rig = Rig::with(|builder| builder.removed_stream_limit(5 * SECOND));
    let [removed, staying] = rig.network.peers(1);
    rig.serve(&[&removed]).await;
    removed.reply(Reply::Hold);
    let held = rig.call();
    removed.calls().reaches(1).await;
    let start = Instant::now();
    rig.serve(&[&staying]).await;
    assert_eq!(ends(held).await.expect_err("it was cut").code(), Code::Unavailable);
    assert!(start.elapsed() >= 5 * SECOND && start.elapsed() < 6 * SECOND, "cut after {:?}", start.elapsed());
    removed.wait_open(0).await;
}

#[tokio::test(start_paused = true)]
async fn the_limit_holds_for_streams_of_an_earlier_connection_too() {
    let rig = Rig::with(|builder| builder.removed_stream_limit(5 * SECOND));
    let [removed, staying] = rig.network.peers(1);
    rig.serve(&[&removed]).await;
    removed.reply(Reply::Hold);
    let held = rig.call();
    removed.calls().reaches(1).await;
    removed.go_away();
    removed.wait_open(2).await;
    let start = Instant::now();
    rig.serve(&[&staying]).await;
    assert_eq!(ends(held).await.expect_err("it was cut").code(), Code::Unavailable);
    assert!(start.elapsed() >= 5 * SECOND && start.elapsed() < 6 * SECOND, "cut after {:?}", start.elapsed());
    removed.wait_open(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_removed_instance_that_returns_starts_fresh() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    peer.delay(SECOND);
    rig.answer().await.expect("an answer");
    assert!(rig.status(&peer).latency().is_some(), "it was measured");
    rig.set_instances([]);
    rig.until("it is gone", <[_]>::is_empty).await;
    rig.serve(&[&peer]).await;
    assert_eq!(rig.status(&peer).latency(), None, "nothing is known of it");
    assert_eq!(peer.attempted().get(), 2, "on a new connection");
    peer.wait_open(1).await;
}

#[tokio::test(start_paused = true)]
async fn an_updated_instance_keeps_its_connection_and_what_is_known_of_it() {
    let rig = Rig::with(|builder| builder.policy(WeightedRoundRobin::new()));
    let [one, other] = rig.network.peers(1);
    rig.serve(&[&one, &other]).await;
    rig.answers_of(&one, 2).await;
    let latency = rig.status(&one).latency();
    assert!(latency.is_some(), "it was measured");
    rig.set_instances([weighing(&one, 30), live(&other)]);
    rig.until_peer(&one, "it weighs more", |status| status.instance().weight == 30).await;
    assert_eq!(rig.status(&one).latency(), latency, "it is still known");
    assert_eq!(rig.answers_of(&one, 400).await, 300, "the new weight counts, exactly over one cycle");
    assert_eq!((one.attempted().get(), other.attempted().get()), (1, 1), "none was dialled again");
}

#[tokio::test(start_paused = true)]
async fn a_new_lease_ends_the_wait_of_an_instance_that_failed() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    peer.on_connect(OnConnect::Refuse);
    rig.set_instances([live(&peer)]);
    sleep(120 * SECOND).await;
    // Right after an attempt: a wait has just begun.
    peer.attempted().reaches(peer.attempted().get() + 1).await;
    rest().await;
    peer.on_connect(OnConnect::Accept);
    let start = Instant::now();
    rig.set_instances([member(&peer, 2, MemberState::Live)]);
    rig.channel.ready().await.expect("the channel lives");
    assert!(start.elapsed() < SECOND / 100, "it was dialled at once, not after {:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_new_lease_keeps_a_connection_that_is_ready() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    rig.set_instances([member(&peer, 2, MemberState::Live)]);
    rest().await;
    rig.answer().await.expect("it goes on");
    assert_eq!(peer.attempted().get(), 1, "the connection stays");
}

#[tokio::test(start_paused = true)]
async fn an_instance_in_question_is_kept_while_it_is_connected() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    rig.set_instances([suspect(&peer)]);
    rest().await;
    for _ in 0..10 {
        rig.answer().await.expect("it still answers");
    }
    peer.cut();
    rig.until_peer(&peer, "it is given up", |status| status.state() == Connectivity::Idle).await;
    sleep(60 * SECOND).await;
    assert_eq!(peer.attempted().get(), 1, "it is not dialled");
    let status = rig.answer().await.expect_err("no instance is left");
    assert!(status.message().contains("no instance is registered"), "{:?}", status.message());
    rig.serve(&[&peer]).await;
    rig.answer().await.expect("it is back with its key");
}

#[tokio::test(start_paused = true)]
async fn an_instance_in_question_without_a_connection_is_dropped() {
    for before in [OnConnect::Refuse, OnConnect::Mute] {
        let rig = Rig::new();
        let peer = rig.network.peer(1);
        peer.on_connect(before);
        rig.set_instances([live(&peer)]);
        rest().await;
        rig.set_instances([suspect(&peer)]);
        rig.until_peer(&peer, "it is given up", |status| status.state() == Connectivity::Idle).await;
        let attempts = peer.attempted().get();
        peer.on_connect(OnConnect::Accept);
        sleep(60 * SECOND).await;
        assert_eq!(peer.attempted().get(), attempts, "it is not dialled after {before:?}");
        assert_eq!(rig.state(&peer), Connectivity::Idle, "also what was under way is not wanted");
    }
}

#[tokio::test(start_paused = true)]
async fn a_draining_instance_whose_connection_ended_is_not_dialled_again() {
    let rig = Rig::new();
    let [leaving, staying] = rig.network.peers(1);
    rig.serve(&[&leaving, &staying]).await;
    rig.set_instances([draining(&leaving), live(&staying)]);
    rig.until_peer(&leaving, "it is draining", InstanceStatus::is_draining).await;
    leaving.cut();
    rig.until_peer(&leaving, "it is given up", |status| status.state() == Connectivity::Idle).await;
    sleep(60 * SECOND).await;
    assert_eq!(leaving.attempted().get(), 1, "it said that it leaves");
    rig.serve(&[&leaving, &staying]).await;
}

#[tokio::test(start_paused = true)]
async fn changes_are_applied_while_the_channel_is_idle_with_one_rebuild_a_list() {
    let rebuilds = Arc::<AtomicUsize>::default();
    let rig = Rig::with(|builder| builder.policy(Counting { rebuilds: rebuilds.clone() }));
    let peers: [Peer; 10] = rig.network.peers(1);
    rig.serve(&peers.each_ref()).await;
    rest().await;
    let before = rebuilds.load(Ordering::Relaxed);
    rig.set_instances(peers.iter().map(|peer| weighing(peer, 7)));
    rig.until("all weigh 7", |all| all.iter().all(|status| status.instance().weight == 7)).await;
    rest().await;
    assert_eq!(rebuilds.load(Ordering::Relaxed), before + 1, "ten changes, one rebuild");
    rig.set_instances(peers[..5].iter().map(live));
    rig.until("five are left", |all| all.len() == 5).await;
    rest().await;
    assert_eq!(rebuilds.load(Ordering::Relaxed), before + 2, "ten changes, one rebuild");
    for peer in &peers[5..] {
        peer.wait_open(0).await;
    }
}

/// Counts how often it is asked for a picker.
#[derive(Debug)]
struct Counting {
    rebuilds: Arc<AtomicUsize>,
}

impl Policy for Counting {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        self.rebuilds.fetch_add(1, Ordering::Relaxed);
        LeastRequest::new().picker(candidates)
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_instance_that_is_removed_is_forgotten() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    peer.on_connect(OnConnect::Refuse);
    rig.set_instances([live(&peer)]);
    rig.until_peer(&peer, "it failed", |status| status.state() == Connectivity::TransientFailure).await;
    rig.set_instances([]);
    rig.until("it is gone", <[_]>::is_empty).await;
    let attempts = peer.attempted().get();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(peer.attempted().get(), attempts, "it is not dialled");
}
