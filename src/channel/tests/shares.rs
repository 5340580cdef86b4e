//! Slow start, the own zone and a subset on bad days: restarts, and an etcd that loses all keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use super::peers::{OnConnect, Peer};
use super::rig::{Rig, SECOND, WINDOW, in_zone, live, member, rest, suspect};
use crate::channel::Connectivity;
use crate::policy::{Candidate, Picker, Policy, WeightedRoundRobin};
use crate::snapshot::MemberState;

async fn wait_known(rig: &Rig, count: usize) {
    rig.until("they are known", |all| all.len() == count).await;
    rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_back_before_its_new_key_is_seen_starts_slowly_too() {
    let rig = Rig::slowly(WeightedRoundRobin::new());
    let [steady, restarted] = rig.network.peers(1);
    rig.serve(&[&steady, &restarted]).await;
    sleep(WINDOW + SECOND).await;
    restarted.kill();
    rig.until_peer(&restarted, "it is gone", |status| status.state() == Connectivity::TransientFailure).await;
    restarted.on_connect(OnConnect::Accept);
    rig.wait_ready(&restarted).await;
    rig.set_instances([live(&steady), member(&restarted, 2, MemberState::Live)]);
    rest().await;
    // 100 : 10, and a cycle of 11.
    assert_eq!(rig.answers_of(&restarted, 110).await, 10, "a tenth at first");
    sleep(45 * SECOND + SECOND / 2).await;
    // 100 : 55, and a cycle of 31.
    assert_eq!(rig.answers_of(&restarted, 310).await, 110, "half way");
    sleep(45 * SECOND).await;
    assert_eq!(rig.answers_of(&restarted, 100).await, 50, "all of it after the window");
}

#[tokio::test(start_paused = true)]
async fn one_that_only_reconnects_keeps_its_share() {
    let rig = Rig::slowly(WeightedRoundRobin::new());
    let [steady, cut] = rig.network.peers(1);
    rig.serve(&[&steady, &cut]).await;
    sleep(WINDOW + SECOND).await;
    cut.cut();
    cut.attempted().reaches(2).await;
    rig.wait_ready(&cut).await;
    rest().await;
    assert_eq!(rig.answers_of(&cut, 100).await, 50, "a new connection to the same process");
}

/// Counts how often it is asked for a picker.
#[derive(Debug)]
struct Counting<P> {
    policy: P,
    pickers: Arc<AtomicUsize>,
}

impl<P: Policy> Policy for Counting<P> {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        self.pickers.fetch_add(1, Ordering::Relaxed);
        self.policy.picker(candidates)
    }

    fn inner(&self) -> Option<&dyn Policy> {
        Some(&self.policy)
    }
}

/// How many pickers a channel makes within the window after its instances are READY.
async fn pickers_in_the_window(policy: impl Policy) -> usize {
    let pickers = Arc::<AtomicUsize>::default();
    let policy = Counting { policy, pickers: pickers.clone() };
    let rig = Rig::with(|builder| builder.policy(policy).slow_start(WINDOW));
    let peers: [Peer; 3] = rig.network.peers(1);
    rig.serve(&peers.each_ref()).await;
    rest().await;
    let before = pickers.load(Ordering::Relaxed);
    sleep(2 * WINDOW).await;
    pickers.load(Ordering::Relaxed) - before
}

#[tokio::test(start_paused = true)]
async fn a_window_costs_ninety_pickers() {
    assert_eq!(pickers_in_the_window(WeightedRoundRobin::new()).await, 90, "one a percent, and none afterwards");
}

#[tokio::test(start_paused = true)]
async fn while_all_keys_go_a_subset_goes_on_and_dials_no_other_instance() {
    let rig = Rig::with(|builder| builder.subset_as(3, "client"));
    let peers: [Peer; 10] = rig.network.peers(1);
    let dialled = || peers.iter().map(|peer| peer.attempted().get()).sum::<usize>();
    rig.set_instances(peers.iter().map(live));
    wait_known(&rig, 10).await;
    assert_eq!(dialled(), 3);
    // One after the other, as leases end.
    for gone in 1..=10 {
        let (gone, there) = peers.split_at(gone);
        rig.set_instances(gone.iter().map(suspect).chain(there.iter().map(live)));
        rest().await;
        assert_eq!(dialled(), 3, "{} are gone", gone.len());
    }
    for _ in 0..60 {
        rig.answer().await.expect("the subset still serves");
        sleep(SECOND).await;
    }
    assert_eq!(dialled(), 3, "the herd stays at home");
    let lost = peers.iter().find(|peer| peer.open() > 0).expect("three are connected");
    lost.cut();
    lost.wait_open(0).await;
    sleep(60 * SECOND).await;
    rig.answer().await.expect("two still serve");
    assert_eq!(dialled(), 3, "an instance without a connection is gone, and is not replaced");
    rig.set_instances(peers.iter().map(live));
    sleep(SECOND).await;
    rig.answer().await.expect("the subset still serves");
    assert_eq!((dialled(), lost.open()), (4, 1), "it is the same subset");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_comes_back_only_to_go_again_keeps_its_replacement() {
    let rig = Rig::with(|builder| builder.subset_as(1, "client"));
    let peers: [Peer; 2] = rig.network.peers(1);
    rig.set_instances(peers.iter().map(live));
    rig.answer().await.expect("one is used");
    let (chosen, replacement) = if peers[0].open() > 0 { (&peers[0], &peers[1]) } else { (&peers[1], &peers[0]) };
    chosen.kill();
    replacement.wait_open(1).await;
    let before = chosen.attempted().get();
    chosen.on_connect(OnConnect::HangUp);
    sleep(120 * SECOND).await;
    assert!(chosen.attempted().get() > before + 5, "it came back and went again");
    assert_eq!(replacement.attempted().get(), 1, "the replacement stayed");
    chosen.on_connect(OnConnect::Accept);
    replacement.wait_open(0).await;
    assert_eq!(rig.answer().await.expect("one is used"), chosen.address());
}

#[tokio::test(start_paused = true)]
async fn a_zone_whose_instances_start_slowly_gets_its_calls_back_as_they_grow() {
    let rig = Rig::with(|builder| {
        builder.policy(WeightedRoundRobin::new()).prefer_zone("zone", "a").slow_start(Duration::from_secs(90))
    });
    let [near, back, far, farther] = rig.network.peers(1);
    let all = [(&near, "a"), (&back, "a"), (&far, "b"), (&farther, "b")];
    rig.set_instances(all.map(|(peer, zone)| in_zone(peer, zone, MemberState::Live)));
    wait_known(&rig, 4).await;
    rig.until("all are READY", |all| all.iter().all(|one| one.state() == Connectivity::Ready)).await;
    assert_eq!(rig.answers_of(&near, 100).await, 50, "all are new alike: calls stay in their zone");
    sleep(91 * SECOND).await;
    back.kill();
    rig.until_peer(&back, "it is gone", |status| status.state() == Connectivity::TransientFailure).await;
    back.on_connect(OnConnect::Accept);
    rig.until_peer(&back, "it is back", |status| status.state() == Connectivity::Ready).await;
    // 110 of a fair share of 200 is 55 %, of which 70 % would be enough.
    let mut stay = 0;
    for _ in 0..2_000 {
        let by = rig.answer().await.expect("no call fails");
        stay += usize::from(by == near.address() || by == back.address());
    }
    assert!((1_480..1_660).contains(&stay), "of 2,000 calls {stay} stay");
    sleep(91 * SECOND).await;
    assert_eq!(rig.answers_of(&back, 200).await, 100, "it is what it was");
}

#[tokio::test(start_paused = true)]
async fn while_all_keys_are_gone_calls_stay_in_their_zone() {
    let rig = Rig::with(|builder| builder.policy(WeightedRoundRobin::new()).prefer_zone("zone", "a"));
    let [near, far] = rig.network.peers(1);
    for state in [MemberState::Live, MemberState::Suspect, MemberState::Live] {
        rig.set_instances([in_zone(&near, "a", state), in_zone(&far, "b", state)]);
        rig.until("both are READY", |all| all.len() == 2 && all.iter().all(|one| one.state() == Connectivity::Ready))
            .await;
        rest().await;
        assert_eq!(rig.answers_of(&near, 100).await, 100, "while they are {state:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_subset_follows_an_instance_to_another_zone() {
    let rig = Rig::with(|builder| builder.subset_as(2, "client").prefer_zone("zone", "a"));
    let peers: [Peer; 4] = rig.network.peers(1);
    let list = |own: [usize; 2]| {
        let zone = |index: usize| if own.contains(&index) { "a" } else { "b" };
        rig.set_instances(peers.iter().enumerate().map(|(index, peer)| in_zone(peer, zone(index), MemberState::Live)));
    };
    list([0, 1]);
    wait_known(&rig, 4).await;
    for own in [[0, 1], [1, 2], [2, 3]] {
        list(own);
        for (index, peer) in peers.iter().enumerate() {
            peer.wait_open(usize::from(own.contains(&index))).await;
        }
    }
}
