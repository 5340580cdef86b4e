//! Calls that wait: their turns, and what the published state gives them.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_test::task::spawn;
use tokio_test::{assert_pending, assert_ready};
use tonic::Code;

use super::pick_queue::{LbState, PickQueue};
use super::wait_queue::{Turn, WaitQueue};
use crate::channel::error::ChannelError;
use crate::channel::policy::LeastRequest;
use crate::channel::subchannel::{Connectivity, InstanceStatus, Reports, Subchannel};
use crate::instance::Instance;
use crate::metrics::channel::ChannelMetrics;
use crate::snapshot::{Member, MemberState, Snapshot};

/// Serves with these turns by call, and returns the calls that had one.
fn served(queue: &WaitQueue<char>, turn: impl Fn(char) -> Turn) -> String {
    let mut served = String::new();
    queue.serve(|call| {
        served.push(*call);
        turn(*call)
    });
    served
}

#[test]
fn calls_have_their_turns_in_order_until_one_closes_the_queue() {
    let queue = WaitQueue::new(4);
    assert!(queue.is_empty());
    assert_eq!("abcd".chars().map(|call| queue.join(call)).collect::<Option<Vec<_>>>(), Some(vec![0, 1, 2, 3]));
    assert_eq!((queue.join('e'), queue.is_empty()), (None, false), "it is full");
    let turns = |call| match call {
        'a' => Turn::Passed,
        'b' => Turn::Answered,
        _ => Turn::Closed,
    };
    assert_eq!(served(&queue, turns), "abc");
    assert_eq!(served(&queue, |_| Turn::Passed), "acd", "all that were not answered wait on");
    assert_eq!(queue.join('e'), Some(4), "there is a place again");
    queue.leave(2);
    queue.leave(2);
    assert_eq!(served(&queue, |_| Turn::Answered), "ade");
    assert!(queue.is_empty());
    assert_eq!(served(&queue, |_| Turn::Answered), "");
}

/// A queue for two calls.
fn queue() -> Arc<PickQueue> {
    let policy = Arc::new(LeastRequest::new());
    Arc::new(PickQueue::new("echo".into(), policy, 2, ChannelMetrics::new("echo")))
}

/// No connection in a state, and why.
fn without(connectivity: Connectivity, cause: Option<ChannelError>) -> LbState {
    LbState { connectivity, ready: None, cause: cause.map(Arc::new) }
}

const UNREACHABLE: ChannelError = ChannelError::NoneReachable { last: None };

#[test]
fn calls_wait_while_a_connection_is_on_its_way_and_fail_with_the_cause_of_its_end() {
    let queue = queue();
    let mut call = spawn(queue.pick(Vec::new(), false, None));
    let mut patient = spawn(queue.pick(Vec::new(), true, None));
    assert_pending!(call.poll());
    assert_pending!(patient.poll());
    let status = assert_ready!(spawn(queue.pick(Vec::new(), true, None)).poll()).expect_err("two may wait");
    assert_eq!(
        (status.code(), ChannelError::of(&status)),
        (Code::ResourceExhausted, Some(&ChannelError::TooManyWaiting { limit: 2 }))
    );

    queue.publish(without(Connectivity::Connecting, Some(UNREACHABLE)));
    assert!(!call.is_woken(), "a cause alone does not end the wait");
    queue.publish(without(Connectivity::TransientFailure, Some(UNREACHABLE)));
    let status = assert_ready!(call.poll()).expect_err("it is not patient");
    assert_eq!((status.code(), ChannelError::of(&status)), (Code::Unavailable, Some(&UNREACHABLE)));
    assert!(status.message().contains("echo"), "{status}");
    assert_pending!(patient.poll());
    queue.publish(without(Connectivity::Shutdown, Some(ChannelError::Closed)));
    let status = assert_ready!(patient.poll()).expect_err("nothing comes any more");
    assert_eq!(ChannelError::of(&status), Some(&ChannelError::Closed));
    drop((call, patient));
    assert!(queue.is_idle());
}

#[test]
fn a_list_shows_all_instances_and_the_states_of_those_that_are_used() {
    let member = |port: u16| {
        let instance = Instance::new("echo", SocketAddr::from(([127, 0, 0, 1], port)));
        Member::new(Arc::new(instance), 1, MemberState::Live)
    };
    let reports =
        Reports { outliers: Arc::default(), events: mpsc::unbounded_channel().0, metrics: ChannelMetrics::new("echo") };
    let used: Arc<[_]> = [Subchannel::<()>::new(member(2), reports).0.shared().clone()].into();
    let snapshot = Arc::new(Snapshot::new(1, [1, 2, 3].map(member).into()));
    let queue = queue();
    assert!(queue.set_instances(&snapshot, &used), "others than none");
    let states = |queue: &PickQueue| queue.instances().iter().map(InstanceStatus::state).collect::<Vec<_>>();
    let (idle, connecting) = (Connectivity::Idle, Connectivity::Connecting);
    assert_eq!(states(&queue), [idle, connecting, idle]);
    assert!(!queue.set_instances(&snapshot, &used), "the same");
    let later = Arc::new(Snapshot::new(2, [2, 3].map(member).into()));
    assert!(!queue.set_instances(&later, &used), "another list of the same subchannels");
    assert_eq!(states(&queue), [connecting, idle]);
    assert!(queue.set_instances(&later, &Vec::new().into()), "none of them");
    assert_eq!(states(&queue), [idle, idle]);
    queue.clear_instances();
    assert!(states(&queue).is_empty());
}
