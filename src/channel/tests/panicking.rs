//! Code of users that panics: it costs its own call or its own picker, never the channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::stream;
use tonic::Code;

use super::peers::{Echo, Peer};
use super::rig::{Rig, ends, live, rest};
use crate::channel::{BalancedChannel, ChannelError, Connectivity, WaitForReady};
use crate::instance::Instance;
use crate::policy::{CallHead, Candidate, LeastRequest, PickArgs, Picker, Policy};

/// A policy that panics wherever the test wants it to.
#[derive(Debug, Clone, Default)]
struct Fragile {
    breaks_pickers: Arc<AtomicBool>,
    bad_key: Arc<AtomicBool>,
    dropped_badly: Arc<AtomicBool>,
}

struct FragilePicker {
    inner: Box<dyn Picker>,
    dropped_badly: Arc<AtomicBool>,
}

fn maybe_panic(told: &AtomicBool) {
    assert!(!told.load(Ordering::Relaxed), "a policy with a bug");
}

impl Policy for Fragile {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        maybe_panic(&self.breaks_pickers);
        Box::new(FragilePicker {
            inner: LeastRequest::new().picker(candidates),
            dropped_badly: self.dropped_badly.clone(),
        })
    }

    fn key(&self, _: &CallHead<'_>) -> Option<u64> {
        maybe_panic(&self.bad_key);
        None
    }
}

impl Picker for FragilePicker {
    fn pick(&self, candidates: &[Candidate], call: &PickArgs<'_>) -> Option<usize> {
        self.inner.pick(candidates, call)
    }
}

impl Drop for FragilePicker {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            maybe_panic(&self.dropped_badly);
        }
    }
}

async fn serve(policy: &Fragile) -> (Rig, [Peer; 2]) {
    let rig = Rig::with(|builder| builder.policy(policy.clone()));
    let peers = rig.network.peers::<2>(1);
    rig.serve(&[&peers[0]]).await;
    (rig, peers)
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_panics_for_a_picker_leaves_calls_and_later_sets_alone() {
    let policy = Fragile::default();
    let (rig, peers) = serve(&policy).await;
    policy.breaks_pickers.store(true, Ordering::Relaxed);
    rig.serve(&peers.each_ref()).await;
    for _ in 0..100 {
        rig.answer().await.expect("every instance has room");
    }
    assert!(peers.iter().all(|peer| peer.calls().get() > 10), "calls go anywhere");
    policy.breaks_pickers.store(false, Ordering::Relaxed);
    rig.serve(&[&peers[1]]).await;
    rig.answer().await.expect("the next picker is a good one");
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_always_panics_hangs_no_call_that_waits_for_ready() {
    let policy = Fragile::default();
    policy.breaks_pickers.store(true, Ordering::Relaxed);
    let rig = Rig::with(|builder| builder.policy(policy.clone()));
    let peer = rig.network.peer(1);
    let waiting = rig.call_with(|request| _ = request.extensions_mut().insert(WaitForReady(true)));
    rest().await;
    rig.set_instances([live(&peer)]);
    ends(waiting).await.expect("it is sent to the only instance");
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_panics_over_a_request_costs_that_call_alone() {
    let policy = Fragile::default();
    let (rig, [peer, _]) = serve(&policy).await;
    policy.bad_key.store(true, Ordering::Relaxed);
    let status = rig.answer().await.expect_err("the policy panics");
    assert_eq!(
        (status.code(), status.message()),
        (Code::Internal, "echo under kitex/registry-etcd: the policy panicked")
    );
    assert_eq!(ChannelError::of(&status), Some(&ChannelError::PolicyPanicked));
    assert_eq!(peer.calls().get(), 0, "nothing is sent");
    policy.bad_key.store(false, Ordering::Relaxed);
    rig.answer().await.expect("the next call is a good one");
}

#[tokio::test(start_paused = true)]
async fn a_picker_that_panics_when_it_is_dropped_ends_nothing() {
    let policy = Fragile::default();
    let (rig, peers) = serve(&policy).await;
    policy.dropped_badly.store(true, Ordering::Relaxed);
    rig.serve(&peers.each_ref()).await;
    rig.serve(&[&peers[1]]).await;
    rig.answer().await.expect("the channel goes on");
    policy.dropped_badly.store(false, Ordering::Relaxed);
}

#[tokio::test]
async fn a_list_of_the_users_that_panics_is_final() {
    let echo = Echo::start();
    let instance = Instance::new("echo", echo.address());
    let mut lists = vec![vec![instance]].into_iter();
    let lists = stream::repeat_with(move || lists.next().expect("a list with a bug"));
    let channel = BalancedChannel::from_instances("echo", lists).build().expect("the options are good");
    channel.ready().await.expect("the channel lives");
    assert_eq!(channel.state(), Connectivity::Ready, "the first list stays");
}
