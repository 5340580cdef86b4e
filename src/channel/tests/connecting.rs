//! From a list of instances to connections: when each is tried, what callers meet meanwhile, and which errors they get.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use super::peers::{LIMIT, OnConnect, Reply};
use super::rig::{LABEL, Rig, SECOND, ends, live, rest};
use crate::channel::{ChannelError, Connectivity, WaitForReady};

#[tokio::test(start_paused = true)]
async fn retries_come_after_waits_that_double_from_100_ms_to_10_s() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    peer.on_connect(OnConnect::Refuse);
    rig.set_instances([live(&peer)]);
    sleep(600 * SECOND).await;
    let gaps = peer.gaps();
    let mut ceiling = Duration::from_millis(100);
    for gap in &gaps {
        assert!(*gap <= ceiling + TICK, "{gap:?} is more than {ceiling:?}");
        ceiling = (ceiling * 2).min(10 * SECOND);
    }
    assert!(gaps.len() < 600, "it is not asked all the time: {} attempts", gaps.len());
    assert!(gaps.iter().any(|gap| *gap > 5 * SECOND), "the waits grow: {gaps:?}");
    assert!(gaps.iter().any(|gap| *gap < 5 * SECOND), "they are spread: {gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answered_call_makes_the_waits_short_again() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    peer.on_connect(OnConnect::Refuse);
    rig.set_instances([live(&peer)]);
    sleep(120 * SECOND).await;
    peer.on_connect(OnConnect::Accept);
    rig.channel.ready().await.expect("the channel lives");
    rig.answer().await.expect("it is back");
    let before = peer.gaps().len();
    let cut = Instant::now();
    peer.kill();
    peer.attempted().reaches(before + 5).await;
    assert!(cut.elapsed() <= Duration::from_millis(100 + 200 + 400) + 4 * TICK, "{:?}", peer.gaps());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_always_hangs_up_is_not_dialled_all_the_time() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    peer.on_connect(OnConnect::HangUp);
    rig.set_instances([live(&peer)]);
    sleep(60 * SECOND).await;
    assert!(peer.attempted().get() < 100, "{} attempts in a minute", peer.attempted().get());
}

#[tokio::test(start_paused = true)]
async fn a_mute_instance_keeps_no_call_waiting() {
    let rig = Rig::new();
    let [mute, good] = rig.network.peers(1);
    mute.on_connect(OnConnect::Mute);
    let start = Instant::now();
    rig.set_instances([live(&mute), live(&good)]);
    for _ in 0..100 {
        assert_eq!(rig.answer().await.expect("one works"), good.address(), "only one can answer");
    }
    assert!(start.elapsed() < SECOND / 10, "no call waited: {:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_ready_when_its_settings_came_and_calls_wait_for_that() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    peer.on_connect(OnConnect::Mute);
    rig.set_instances([live(&peer)]);
    let call = rig.call();
    rest().await;
    assert_eq!(peer.open(), 1, "the connection stands");
    assert_eq!((rig.state(&peer), rig.channel.state()), (Connectivity::Connecting, Connectivity::Connecting));
    assert!(!call.is_finished(), "the call waits");
    peer.on_connect(OnConnect::Accept);
    assert_eq!(ends(call).await.expect("it is answered"), peer.address());
    assert_eq!((rig.state(&peer), rig.channel.state()), (Connectivity::Ready, Connectivity::Ready));
    assert_eq!(peer.attempted().get(), 1, "it was the first attempt");
}

#[tokio::test(start_paused = true)]
async fn settings_that_do_not_come_within_a_second_are_a_failure() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    peer.on_connect(OnConnect::Mute);
    rig.set_instances([live(&peer)]);
    let start = Instant::now();
    let status = ends(rig.call()).await.expect_err("it never answers");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(start.elapsed() >= SECOND && start.elapsed() < 2 * SECOND, "the call waited {:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_goaway_moves_new_calls_at_once_and_leaves_open_ones_alone() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    peer.reply(Reply::Hold);
    let held = rig.call();
    peer.calls().reaches(1).await;
    peer.go_away();
    peer.wait_open(2).await;
    peer.reply(Reply::Answer);
    rig.answer().await.expect("the successor takes calls");
    assert!(!held.is_finished(), "the open call goes on");
    peer.release();
    ends(held).await.expect("and is answered");
    peer.wait_open(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_takes_its_instance_out_at_once() {
    let rig = Rig::new();
    let [dead, good] = rig.network.peers(1);
    rig.serve(&[&dead, &good]).await;
    dead.kill();
    rig.until_peer(&dead, "it is not READY", |status| status.state() != Connectivity::Ready).await;
    assert_eq!(rig.answers_of(&good, 100).await, 100, "the other takes all calls, and none fails");
    dead.on_connect(OnConnect::Accept);
    rig.serve(&[&dead, &good]).await;
    assert!(rig.answers_of(&dead, 100).await > 0, "it is back by itself");
}

#[tokio::test(start_paused = true)]
async fn calls_fail_at_once_while_every_instance_fails_and_say_why() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    peer.on_connect(OnConnect::Refuse);
    rig.set_instances([live(&peer)]);
    let status = ends(rig.call()).await.expect_err("it refuses");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    for part in [LABEL, "127.0.0.1:1", "connection refused"] {
        assert!(status.message().contains(part), "{part:?} is not in {:?}", status.message());
    }
    assert_eq!(rig.state(&peer), Connectivity::TransientFailure);
    assert!(rig.status(&peer).cause().is_some_and(|cause| cause.contains("refused")), "{:?}", rig.status(&peer));
    // The next attempt is under way, but the last one failed.
    peer.on_connect(OnConnect::Mute);
    peer.wait_open(1).await;
    let start = Instant::now();
    assert_eq!(rig.answer().await.expect_err("it fails").code(), Code::Unavailable);
    assert!(start.elapsed() < TICK, "it did not wait");
}

#[tokio::test(start_paused = true)]
async fn calls_fail_at_once_while_no_instance_is_registered() {
    let rig = Rig::new();
    let waiting = rig.call();
    rest().await;
    assert!(!waiting.is_finished(), "the list did not come yet");
    rig.set_instances([]);
    for call in [waiting, rig.call()] {
        let status = ends(call).await.expect_err("there is no instance");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().contains(LABEL), "{:?}", status.message());
        assert!(status.message().contains("no instance is registered"), "{:?}", status.message());
    }
    assert_eq!(rig.channel.state(), Connectivity::TransientFailure);
}

#[tokio::test(start_paused = true)]
async fn calls_wait_five_seconds_for_the_first_list_and_no_longer() {
    let rig = Rig::new();
    let start = Instant::now();
    let status = ends(rig.call()).await.expect_err("there is no list");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(start.elapsed() >= 5 * SECOND && start.elapsed() < 5 * SECOND + TICK, "after {:?}", start.elapsed());
    let late = Instant::now();
    assert!(rig.answer().await.is_err(), "it fails");
    assert!(late.elapsed() < TICK, "at once from now on");
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    rig.answer().await.expect("a late list is a list");
}

#[tokio::test(start_paused = true)]
async fn a_channel_can_wait_for_ready_and_a_call_can_say_otherwise() {
    let rig = Rig::with(|builder| builder.wait_for_ready(true));
    rig.set_instances([]);
    let waiting = rig.call();
    let hasty = rig.call_with(|request| _ = request.extensions_mut().insert(WaitForReady(false)));
    let mortal = rig.call_within(SECOND);
    assert_eq!(ends(hasty).await.expect_err("no instance is there").code(), Code::Unavailable);
    assert_eq!(ends(mortal).await.expect_err("no instance is there").code(), Code::DeadlineExceeded);
    assert!(!waiting.is_finished(), "it waits");
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    ends(waiting).await.expect("it waited for this");
}

#[tokio::test(start_paused = true)]
async fn a_call_can_wait_for_ready_where_its_channel_does_not() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    peer.on_connect(OnConnect::Refuse);
    rig.set_instances([live(&peer)]);
    let patient = rig.call_with(|request| _ = request.extensions_mut().insert(WaitForReady(true)));
    assert!(rig.answer().await.is_err(), "others fail");
    assert!(!patient.is_finished(), "it waits");
    peer.on_connect(OnConnect::Accept);
    ends(patient).await.expect("it waited for this");
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_panics_is_a_failure_of_its_instance_only() {
    let rig = Rig::new();
    let [bad, good, mute] = rig.network.peers(1);
    bad.on_connect(OnConnect::Panic);
    mute.on_connect(OnConnect::Mute);
    rig.set_instances([live(&bad), live(&good), live(&mute)]);
    rig.until_peer(&bad, "it failed", |status| status.state() == Connectivity::TransientFailure).await;
    assert!(rig.status(&bad).cause().is_some_and(|cause| cause.contains("panicked")), "{:?}", rig.status(&bad));
    rig.answer().await.expect("the others go on");
    bad.on_connect(OnConnect::Accept);
    rig.until_peer(&bad, "it is tried again", |status| status.state() == Connectivity::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn ready_waits_for_the_first_instance_that_takes_calls() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    let early = rig.channel.ready_within(SECOND).await.expect_err("there is no list yet");
    let says = "not ready within 1s: there is no list of instances yet: etcd is down";
    assert_eq!(early.to_string(), format!("{LABEL}: {says}"));
    assert!(timeout(60 * SECOND, rig.channel.ready()).await.is_err(), "there is no list");
    let late = rig.channel.ready_within(SECOND).await.expect_err("there is no list");
    assert!(matches!(late.cause(), Some(ChannelError::ListOverdue { .. })), "{late}");
    peer.on_connect(OnConnect::Refuse);
    rig.set_instances([live(&peer)]);
    assert!(timeout(60 * SECOND, rig.channel.ready()).await.is_err(), "it refuses");
    let refused = rig.channel.ready_within(SECOND).await.expect_err("it refuses");
    let status = rig.answer().await.expect_err("it refuses");
    assert_eq!(refused.cause(), ChannelError::of(&status), "what a call fails with");
    assert!(format!("{refused:?}").contains("127.0.0.1:1"), "a main prints the reason: {refused:?}");
    peer.on_connect(OnConnect::Accept);
    rig.channel.ready_within(LIMIT).await.expect("it accepts");
    rig.answer().await.expect("it takes calls");
    let start = Instant::now();
    rig.channel.ready().await.expect("the channel lives");
    assert!(start.elapsed() < TICK, "it is ready already");
}

/// A timer fires up to a millisecond late, and so does what follows from it.
const TICK: Duration = Duration::from_millis(3);

#[tokio::test(start_paused = true)]
async fn the_reason_for_which_a_connection_was_lost_is_seen() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    peer.on_connect(OnConnect::Mute);
    peer.reply(Reply::Hold);
    let call = rig.call();
    peer.calls().reaches(1).await;
    peer.cut();
    let says = |text: &'static str| move |cause: &str| cause.contains(text);
    let (closed, broke) = (says("the server closed the connection"), says("the connection broke"));
    rig.until_peer(&peer, "it says why", |status| status.cause().is_some_and(|cause| closed(cause) || broke(cause)))
        .await;
    ends(call).await.expect_err("it broke");
}
