//! Which instances take how much: new ones that start slowly, the own zone, and a subset.

use std::sync::Arc;

use tokio::time::sleep;

use super::peers::{Peer, Reply};
use super::rig::{Rig, SECOND, WINDOW, draining, ends, in_zone, live, member, rest};
use crate::channel::{Connectivity, InstanceStatus};
use crate::instance::Instance;
use crate::policy::{LeastRequest, Policy, WeightedRoundRobin};
use crate::snapshot::{Member, MemberState};
use crate::test_log::Log;

#[tokio::test(start_paused = true)]
async fn a_new_instances_share_grows_from_a_tenth_to_all_over_the_window() {
    let rig = Rig::slowly(WeightedRoundRobin::new());
    let [one, two, new] = rig.network.peers(1);
    rig.serve(&[&one, &two]).await;
    assert_eq!(rig.answers_of(&one, 100).await, 50, "all are new alike");
    sleep(WINDOW).await;
    rig.set_instances([live(&one), live(&two), live(&new)]);
    rig.wait_ready(&new).await;
    // 100 : 100 : 10, and a cycle of 21.
    assert_eq!(rig.answers_of(&new, 210).await, 10, "a tenth at first");
    sleep(45 * SECOND + SECOND / 2).await;
    // 100 : 100 : 55, and a cycle of 51.
    assert_eq!(rig.answers_of(&new, 510).await, 110, "half way");
    sleep(45 * SECOND).await;
    assert_eq!(rig.answers_of(&new, 300).await, 100, "all of it after the window");
}

#[tokio::test(start_paused = true)]
async fn a_new_registration_starts_slowly_again_and_a_reconnect_does_not() {
    let rig = Rig::slowly(WeightedRoundRobin::new());
    let [steady, restarted] = rig.network.peers(1);
    rig.serve(&[&steady, &restarted]).await;
    sleep(WINDOW + SECOND).await;
    restarted.cut();
    restarted.attempted().reaches(2).await;
    rig.wait_ready(&restarted).await;
    assert_eq!(rig.answers_of(&restarted, 100).await, 50, "a new connection to the same process");
    restarted.kill();
    rig.until_peer(&restarted, "it is gone", |status| status.state() != Connectivity::Ready).await;
    restarted.on_connect(super::peers::OnConnect::Accept);
    rig.set_instances([live(&steady), member(&restarted, 2, MemberState::Live)]);
    rig.wait_ready(&restarted).await;
    assert_eq!(rig.answers_of(&restarted, 110).await, 10, "a new process");
}

#[tokio::test(start_paused = true)]
async fn every_policy_by_weight_lets_instances_start_slowly() {
    let policies: [Box<dyn Policy>; 4] = [
        Box::new(LeastRequest::new()),
        Box::new(crate::policy::PeakEwma::new()),
        Box::new(crate::policy::WeightedRandom::new()),
        Box::new(WeightedRoundRobin::new()),
    ];
    for policy in policies {
        let name = format!("{policy:?}");
        let rig = Rig::slowly(policy);
        let [old, new] = rig.network.peers(1);
        rig.serve(&[&old]).await;
        sleep(WINDOW + SECOND).await;
        rig.set_instances([live(&old), live(&new)]);
        rig.wait_ready(&new).await;
        let calls = rig.answers_of(&new, 600).await;
        // Of eleven calls one, in the mean.
        assert!((15..130).contains(&calls), "{name}: {calls} of 600 calls");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_stay_in_the_own_zone_spill_when_it_fails_and_come_back_with_it() {
    let rig = Rig::with(|builder| builder.policy(WeightedRoundRobin::new()).prefer_zone("zone", "a"));
    let [near, also_near, far] = rig.network.peers(1);
    rig.set_instances([
        in_zone(&near, "a", MemberState::Live),
        in_zone(&also_near, "a", MemberState::Live),
        in_zone(&far, "b", MemberState::Live),
    ]);
    rig.until("all are READY", |all| all.iter().all(|status| status.state() == Connectivity::Ready)).await;
    assert_eq!(rig.answers_of(&far, 200).await, 0, "two of three are more than the zone's fair share");
    near.kill();
    rig.until_peer(&near, "it is gone", |status| status.state() != Connectivity::Ready).await;
    // Of a fair share of one and a half, one is 67 %: of calls, 95 % stay.
    let spilt = rig.answers_of(&far, 2_000).await;
    assert!((50..160).contains(&spilt), "{spilt} of 2,000 calls go elsewhere");
    also_near.kill();
    rig.until_peer(&also_near, "it is gone", |status| status.state() != Connectivity::Ready).await;
    assert_eq!(rig.answers_of(&far, 200).await, 200, "no other instance is left");
    for peer in [&near, &also_near] {
        peer.on_connect(super::peers::OnConnect::Accept);
        rig.wait_ready(peer).await;
    }
    assert_eq!(rig.answers_of(&far, 200).await, 0, "everything is back");
}

fn used(peers: &[Peer]) -> Vec<usize> {
    (0..peers.len()).filter(|index| peers[*index].open() > 0).collect()
}

async fn wait_ready_count(rig: &Rig, count: usize) {
    let ready = |status: &&InstanceStatus| status.state() == Connectivity::Ready;
    rig.until("so many are READY", |all| all.iter().filter(ready).count() == count).await;
    rest().await;
}

#[tokio::test(start_paused = true)]
async fn instances_outside_of_the_subset_are_shown_as_they_are_registered() {
    let rig = Rig::with(|builder| builder.subset_as(2, "client"));
    let peers: [Peer; 6] = rig.network.peers(1);
    rig.set_instances(peers.iter().map(live));
    wait_ready_count(&rig, 2).await;
    let chosen = used(&peers);
    let outside = &peers[(0..peers.len()).find(|index| !chosen.contains(index)).expect("four are outside")];
    assert_eq!(rig.state(outside), Connectivity::Idle);

    let is_outside = |peer: &&Peer| peer.address() == outside.address();
    let drained = peers.iter().map(|peer| if is_outside(&peer) { draining(peer) } else { live(peer) });
    rig.set_instances(drained);
    rig.until_peer(outside, "it is draining", InstanceStatus::is_draining).await;
    rig.set_instances(peers.iter().filter(|peer| !is_outside(peer)).map(live));
    rig.until("it has left", |all| all.len() == 5).await;
    rig.set_instances(peers.iter().map(live));
    rig.until_peer(outside, "it is back", |status| !status.is_draining()).await;
    rest().await;
    assert_eq!(used(&peers), chosen, "none of that concerns the subset");
    let attempted: usize = peers.iter().map(|peer| peer.attempted().get()).sum();
    assert_eq!(attempted, 2, "nor was any other dialled");
}

#[tokio::test(start_paused = true)]
async fn only_the_subset_is_connected_and_a_failure_is_replaced_for_its_time() {
    let rig = Rig::with(|builder| builder.policy(LeastRequest::new()).subset_as(3, "client"));
    let peers: [Peer; 10] = rig.network.peers(1);
    rig.set_instances(peers.iter().map(live));
    wait_ready_count(&rig, 3).await;
    let chosen = used(&peers);
    assert_eq!(chosen.len(), 3, "connections are held to the subset only");
    let attempted: usize = peers.iter().map(|peer| peer.attempted().get()).sum();
    assert_eq!(attempted, 3, "no other instance was dialled");

    let failing = &peers[chosen[0]];
    failing.kill();
    rig.until_peer(failing, "it failed", |status| status.state() == Connectivity::TransientFailure).await;
    wait_ready_count(&rig, 3).await;
    let now = used(&peers);
    let replacement: Vec<usize> = now.iter().copied().filter(|index| !chosen.contains(index)).collect();
    assert_eq!(replacement.len(), 1, "one stands in: {chosen:?} became {now:?}");
    let replacement = &peers[replacement[0]];
    replacement.reply(Reply::Hold);
    let held = loop {
        let call = rig.call();
        rest().await;
        if replacement.inside() > 0 {
            break call;
        }
        ends(call).await.expect("the others answer");
    };

    failing.on_connect(super::peers::OnConnect::Accept);
    rig.wait_ready(failing).await;
    rig.until_peer(replacement, "it is let go", |status| status.state() == Connectivity::Idle).await;
    rest().await;
    assert!(!held.is_finished() && replacement.open() == 1, "its call goes on");
    replacement.release();
    assert_eq!(ends(held).await.expect("it finishes"), replacement.address());
    replacement.wait_open(0).await;
    assert_eq!(used(&peers), chosen, "the subset is what it was");
}

#[tokio::test(start_paused = true)]
async fn a_leave_costs_a_subset_one_replacement_and_a_join_at_most_one() {
    let rig = Rig::with(|builder| builder.subset_as(3, "client"));
    let peers: [Peer; 12] = rig.network.peers(1);
    rig.set_instances(peers[..10].iter().map(live));
    wait_ready_count(&rig, 3).await;
    let before = used(&peers);
    let without = |gone: usize| peers[..10].iter().enumerate().filter(move |(index, _)| *index != gone);
    rig.set_instances(without(before[0]).map(|(_, peer)| live(peer)));
    rig.until("one is gone", |all| all.len() == 9).await;
    wait_ready_count(&rig, 3).await;
    peers[before[0]].wait_open(0).await;
    let after = used(&peers);
    assert_eq!(after.iter().filter(|index| before.contains(index)).count(), 2, "{before:?} became {after:?}");
    rig.set_instances(peers.iter().map(live));
    rig.until("all are there", |all| all.len() == 12).await;
    wait_ready_count(&rig, 3).await;
    sleep(SECOND).await;
    let last = used(&peers);
    let new = last.iter().filter(|index| !before.contains(index)).count();
    assert!(last.len() == 3 && new <= 2, "two joined, and one is back: {before:?} became {last:?}");
}

#[tokio::test(start_paused = true)]
async fn a_subset_begins_with_the_own_zone() {
    let rig = Rig::with(|builder| builder.subset_as(3, "client").prefer_zone("zone", "a"));
    let peers: [Peer; 10] = rig.network.peers(1);
    let zone = |index: usize| if index < 3 { "a" } else { "b" };
    rig.set_instances(peers.iter().enumerate().map(|(index, peer)| in_zone(peer, zone(index), MemberState::Live)));
    wait_ready_count(&rig, 3).await;
    assert_eq!(used(&peers), [0, 1, 2]);
    peers[1].kill();
    rig.until_peer(&peers[1], "it failed", |status| status.state() == Connectivity::TransientFailure).await;
    wait_ready_count(&rig, 3).await;
    let now = used(&peers);
    assert!(now.len() == 3 && now[0] == 0 && now[1] == 2 && now[2] > 2, "{now:?}: another zone replaces it");
}

#[tokio::test(start_paused = true)]
async fn a_channel_without_a_subset_warns_once_of_a_thousand_instances() {
    let instance = |port: u16| {
        let instance = Instance::new("echo", std::net::SocketAddr::from(([127, 0, 0, 1], port)));
        Member::new(Arc::new(instance), 1, MemberState::Live)
    };
    for (subset, first, warnings) in [(None, 990, 0), (None, 1_000, 1), (Some(20), 1_000, 0)] {
        let (log, _guard) = Log::capture();
        let rig = Rig::with(|builder| match subset {
            Some(size) => builder.subset(size),
            None => builder,
        });
        for count in first..first + 3 {
            rig.set_instances((1..=count).map(instance));
            rig.until("they are known", |all| all.len() == usize::from(count)).await;
        }
        assert_eq!(log.count("ChannelBuilder::subset"), warnings, "{first} instances, subset of {subset:?}");
    }
}
