//! A peer's `MAX_CONCURRENT_STREAMS` is kept to, and calls without quota wait in order.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tonic::Code;

use super::client::{call, connected, ends, hangs, over, say, say_within};
use super::peers::{Echo, OnCall, Scripted};
use crate::policy::WeightedRoundRobin;

#[tokio::test]
async fn a_fifth_call_waits_until_one_of_four_is_answered() {
    let peer = Scripted::four_streams();
    let client = connected(over([peer.address()])).await;
    let first: Vec<_> = (0..4).map(|_| call(&client, say("x"))).collect();
    peer.calls().reaches(4).await;
    let mut fifth = call(&client, say("x"));
    assert!(hangs(&mut fifth).await, "the fifth waits its turn");
    assert_eq!(peer.calls().get(), 4, "and was not sent");
    peer.answer(1);
    peer.calls().reaches(5).await;
    peer.answer(4);
    for call in first.into_iter().chain([fifth]) {
        ends(call).await.expect("each of the five is answered");
    }
}

#[tokio::test]
async fn waiting_calls_are_served_in_the_order_in_which_they_came() {
    let peer = Scripted::start(OnCall::Hold, 1);
    let client = connected(over([peer.address()])).await;
    let order = Arc::<Mutex<Vec<usize>>>::default();
    let calls: Vec<_> = (0..6)
        .map(|number| {
            let (mut client, order) = (client.clone(), order.clone());
            tokio::spawn(async move {
                client.unary_echo(say("x")).await.expect("it is answered in its turn");
                order.lock().expect("no thread panicked").push(number);
            })
        })
        .collect();
    for sent in 1..=6 {
        peer.calls().reaches(sent).await;
        assert_eq!(peer.answer(1), 1, "one at a time is with the peer");
    }
    for call in calls {
        ends(call).await;
    }
    assert_eq!(*order.lock().expect("no thread panicked"), [0, 1, 2, 3, 4, 5], "first come, first served");
}

#[tokio::test]
async fn a_raised_limit_lets_waiting_calls_in() {
    let peer = Scripted::start(OnCall::Hold, 1);
    let client = connected(over([peer.address()])).await;
    let calls: Vec<_> = (0..6).map(|_| call(&client, say("x"))).collect();
    peer.calls().reaches(1).await;
    peer.change_streams(6);
    peer.calls().reaches(6).await;
    assert_eq!(peer.answer(6), 6, "all are with the peer at once");
    for call in calls {
        ends(call).await.expect("it is answered");
    }
}

#[tokio::test]
async fn one_more_than_may_wait_is_turned_away_and_dropped_waiters_make_room() {
    let peer = Scripted::start(OnCall::Hold, 1);
    let client = connected(over([peer.address()]).max_waiting(2)).await;
    let sent = call(&client, say("x"));
    peer.calls().reaches(1).await;
    let first = call(&client, say("x"));
    let mut second = call(&client, say("x"));
    assert!(hangs(&mut second).await, "two may wait");
    let status = ends(call(&client, say("x"))).await.expect_err("three may not");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");

    first.abort();
    first.await.expect_err("it was aborted");
    let mut third = call(&client, say("x"));
    assert!(hangs(&mut third).await, "its place in the wait queue is free again");
    for sent in 1..=3 {
        peer.calls().reaches(sent).await;
        peer.answer(1);
    }
    for call in [sent, second, third] {
        ends(call).await.expect("it is answered");
    }
    assert_eq!(peer.calls().get(), 3, "the dropped one was never sent");
}

#[tokio::test]
async fn a_deadline_ends_the_wait_for_a_turn() {
    let peer = Scripted::start(OnCall::Hold, 1);
    let client = connected(over([peer.address()])).await;
    let sent = call(&client, say("x"));
    peer.calls().reaches(1).await;
    tokio::time::pause();
    let status = ends(call(&client, say_within(Duration::from_secs(3)))).await.expect_err("its turn never comes");
    tokio::time::resume();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_eq!(peer.calls().get(), 1, "it was not sent");
    peer.answer(1);
    ends(sent).await.expect("the other call is unharmed");
    peer.on_call(OnCall::Answer);
    ends(call(&client, say("x"))).await.expect("the quota is free for the next");
}

#[tokio::test]
async fn a_full_instance_is_passed_over_while_another_has_room() {
    let (full, roomy) = (Scripted::start(OnCall::Hold, 1), Echo::start());
    let client = connected(over([full.address(), roomy.address()]).policy(WeightedRoundRobin::new())).await;
    let calls: Vec<_> = (0..20).map(|_| call(&client, say("x"))).collect();
    roomy.calls().reaches(19).await;
    full.calls().reaches(1).await;
    full.answer(1);
    for call in calls {
        ends(call).await.expect("it is answered");
    }
    assert_eq!((full.calls().get(), roomy.calls().get()), (1, 19), "no call waited while there was room");
}
