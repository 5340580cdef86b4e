//! From a channel's last clone to nothing: no task, no connection, and what readers see of it.

use futures_util::{StreamExt, stream};
use tokio::runtime::{Builder, Handle};
use tokio::time::timeout;

use super::peers::proto::EchoRequest;
use super::peers::proto::echo_client::EchoClient;
use super::peers::{LIMIT, OnConnect, Reply};
use super::rig::{Rig, SECOND, ends, live, rest};
use crate::channel::{BalancedChannel, ChannelError, Connectivity};
use crate::instance::Instance;

#[tokio::test(start_paused = true)]
async fn a_dropped_channel_leaves_no_task_and_no_connection() {
    let before = Handle::current().metrics().num_alive_tasks();
    let rig = Rig::new();
    let [good, refusing, mute] = rig.network.peers(1);
    refusing.on_connect(OnConnect::Refuse);
    mute.on_connect(OnConnect::Mute);
    rig.set_instances([live(&good), live(&refusing), live(&mute)]);
    rig.channel.ready().await.expect("the channel lives");
    rig.answer().await.expect("one works");
    let clone = rig.channel.clone();
    drop(rig);
    rest().await;
    assert_eq!(good.open(), 1, "a clone is left");
    drop(clone);
    good.wait_open(0).await;
    // What is left of the mute peer itself notices now.
    mute.on_connect(OnConnect::Accept);
    mute.wait_open(0).await;
    rest().await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), before, "nothing runs any more");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_channel_whose_instances_fail_leaves_no_task() {
    let before = Handle::current().metrics().num_alive_tasks();
    for on_connect in [OnConnect::Refuse, OnConnect::HangUp] {
        let rig = Rig::new();
        let peer = rig.network.peer(1);
        peer.on_connect(on_connect);
        rig.set_instances([live(&peer)]);
        peer.attempted().reaches(3).await;
        drop(rig);
        rest().await;
        assert_eq!(Handle::current().metrics().num_alive_tasks(), before, "nothing runs any more: {on_connect:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_under_way_outlives_its_channel() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    peer.reply(Reply::Hold);
    let held = rig.call();
    peer.calls().reaches(1).await;
    drop(rig);
    rest().await;
    assert!(!held.is_finished(), "it goes on");
    peer.release();
    ends(held).await.expect("it is answered");
    peer.wait_open(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_that_ends_stays() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    let (channel, network) = rig.without_list();
    peer.cut();
    peer.attempted().reaches(2).await;
    channel.ready_within(LIMIT).await.expect("it is connected again");
    assert_eq!(channel.instances().len(), 1, "it is still known");
    drop((channel, network));
    peer.wait_open(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_changes_sees_the_present_then_each_change_then_the_end() {
    let rig = Rig::new();
    let [one, other] = rig.network.peers(1);
    rig.serve(&[&one, &other]).await;
    let mut changes = rig.channel.instance_changes();
    let now = timeout(LIMIT, changes.next()).await.expect("at once").expect("the channel is there");
    let addresses: Vec<_> = now.iter().map(|status| status.instance().address.port()).collect();
    assert_eq!(addresses, [1, 2], "ordered by address");
    assert!(timeout(60 * SECOND, changes.next()).await.is_err(), "nothing changes");
    let clone = timeout(LIMIT, StreamExt::next(&mut changes.clone())).await.expect("at once");
    assert_eq!(clone.map(|all| all.len()), Some(2), "a clone begins with the present");
    other.kill();
    let then = timeout(LIMIT, changes.next()).await.expect("in time").expect("the channel is there");
    assert_ne!(then[1].state(), Connectivity::Ready, "its connection ended");
    drop(rig);
    let end = async { while changes.next().await.is_some() {} };
    timeout(LIMIT, end).await.expect("it ends with the channel");
    assert!(changes.next().await.is_none(), "for good");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_keeps_the_channel_alive() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    peer.on_connect(OnConnect::Mute);
    rig.set_instances([live(&peer)]);
    let call = rig.call();
    rest().await;
    drop(rig);
    rest().await;
    peer.on_connect(OnConnect::Accept);
    assert_eq!(ends(call).await.expect("it waited"), peer.address());
    peer.wait_open(0).await;
}

#[test]
fn calls_fail_with_the_reason_once_the_channels_runtime_is_gone() {
    let runtime = || Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let (first, second) = (runtime(), runtime());
    let channel = {
        let _entered = first.enter();
        let lists = stream::pending::<Vec<Instance>>();
        BalancedChannel::from_instances("echo", lists).wait_for_ready(true).build().expect("the options are good")
    };
    let call = || {
        let mut client = EchoClient::new(channel.clone());
        second.spawn(async move { client.unary_echo(EchoRequest { message: "x".into() }).await })
    };
    let waiting = call();
    while channel.handle.queue.is_idle() {
        std::thread::yield_now();
    }
    drop(first);
    for call in [waiting, call()] {
        let ended = second.block_on(async { timeout(LIMIT, call).await.expect("it ends").expect("it does not panic") });
        let status = ended.expect_err("there is nothing to send it to");
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert!(status.message().contains("the runtime that it was built on"), "{status:?}");
        assert_eq!(ChannelError::of(&status), Some(&ChannelError::Closed));
    }
    assert_eq!(channel.state(), Connectivity::Shutdown);
    let ended = second.block_on(channel.ready()).expect_err("it never will be");
    assert_eq!(ended.to_string(), "echo: the channel has ended, as the runtime that it was built on did");
    let ended = second.block_on(channel.ready_within(LIMIT)).expect_err("it never will be");
    assert_eq!(ended.cause(), Some(&ChannelError::Closed));
}
