//! Calls that were provably not processed go to another instance unseen, and calls that may have been do not.

use futures_util::{StreamExt, stream};
use tonic::Code;

use super::client::{call, connected, ends, over, say, written};
use super::peers::{Echo, OnCall, Scripted};
use crate::channel::BalancedChannel;
use crate::instance::Instance;
use crate::policy::WeightedRoundRobin;

#[tokio::test]
async fn a_refused_call_goes_elsewhere_with_its_body() {
    let (refuser, echo) = (Scripted::refusing_streams(), Echo::start());
    let mut client = connected(over([refuser.address(), echo.address()]).policy(WeightedRoundRobin::new())).await;
    for number in 0..10 {
        let message = number.to_string().repeat(60 * 1024);
        let reply = client.unary_echo(say(&message)).await.expect("the other instance answers").into_inner();
        assert!(reply.message == message, "the body arrives whole");
    }
    assert!(refuser.calls().get() > 0, "some were refused");
    assert_eq!(echo.calls().get(), 10, "each was handled once");
}

#[tokio::test]
async fn a_call_above_the_goaways_last_stream_goes_elsewhere() {
    let (leaver, echo) = (Scripted::going_away_below(), Echo::start());
    let mut client = connected(over([leaver.address(), echo.address()]).policy(WeightedRoundRobin::new())).await;
    for _ in 0..10 {
        let reply = client.unary_echo(say("hi")).await.expect("the other instance answers").into_inner();
        assert_eq!(reply.address, echo.address().to_string(), "by the one that stays");
    }
    assert!(leaver.calls().get() > 0, "some reached the one that leaves");
    assert_eq!(echo.calls().get(), 10, "each was handled once");
}

#[tokio::test]
async fn calls_made_while_a_server_goes_away_all_succeed() {
    let (leaver, echo) = (Echo::start(), Echo::start());
    let client = connected(over([leaver.address(), echo.address()]).policy(WeightedRoundRobin::new())).await;
    leaver.shut_down();
    let calls: Vec<_> = (0..20).map(|_| call(&client, say("x"))).collect();
    for call in calls {
        ends(call).await.expect("it is answered by one of the two");
    }
}

#[tokio::test]
async fn a_stream_that_is_still_written_is_replayed_from_its_beginning() {
    let (refuser, echo) = (Scripted::refusing_streams(), Echo::start());
    let client = connected(over([refuser.address(), echo.address()]).policy(WeightedRoundRobin::new())).await;
    let mut writers = Vec::new();
    let mut calls = Vec::new();
    for _ in 0..2 {
        let (writer, messages) = written();
        for word in ["a", "b"] {
            writer.send(say(word)).expect("the call reads");
        }
        writers.push(writer);
        let mut client = client.clone();
        calls.push(tokio::spawn(async move { client.client_streaming_echo(messages).await }));
    }
    refuser.calls().reaches(1).await;
    echo.calls().reaches(2).await;
    for writer in writers {
        writer.send(say("c")).expect("the call reads on");
    }
    for call in calls {
        let reply = ends(call).await.expect("it is answered").into_inner();
        assert_eq!(reply.message, "a b c", "all messages, in order, once");
    }
}

#[tokio::test]
async fn a_refused_call_whose_body_is_too_large_to_keep_fails_honestly() {
    let (refuser, echo) = (Scripted::refusing_streams(), Echo::start());
    let client = connected(over([refuser.address(), echo.address()]).policy(WeightedRoundRobin::new())).await;
    let large = "x".repeat(100 * 1024);
    let mut failures = Vec::new();
    for _ in 0..2 {
        match ends(call(&client, say(&large))).await {
            Ok(reply) => assert!(reply.message == large, "the body arrives whole"),
            Err(status) => failures.push(status),
        }
    }
    assert_eq!(failures.len(), 1, "the one that met the refuser: {failures:?}");
    assert_eq!(failures[0].code(), Code::Unavailable, "{failures:?}");
}

#[tokio::test]
async fn a_call_that_broke_after_it_was_sent_is_not_replayed() {
    let (breaker, echo) = (Scripted::start(OnCall::Hold, None), Echo::start());
    let client = connected(over([breaker.address(), echo.address()]).policy(WeightedRoundRobin::new())).await;
    let calls: Vec<_> = (0..2).map(|_| call(&client, say("x"))).collect();
    breaker.calls().reaches(1).await;
    echo.calls().reaches(1).await;
    breaker.hang_up();
    let mut failures = Vec::new();
    for call in calls {
        failures.extend(ends(call).await.err());
    }
    assert_eq!(failures.len(), 1, "the one that was with the broken peer: {failures:?}");
    assert_eq!(failures[0].code(), Code::Unavailable, "{failures:?}");
    assert_eq!((breaker.calls().get(), echo.calls().get()), (1, 1), "nothing was sent twice");
}

#[tokio::test]
async fn a_refused_call_does_not_return_to_its_instance_while_another_has_room() {
    let (refuser, echo) = (Scripted::refusing_streams(), Echo::start());
    let set = vec![
        Instance::new("echo", refuser.address()).with_weight(1_000),
        Instance::new("echo", echo.address()).with_weight(1),
    ];
    let builder = BalancedChannel::from_instances("echo", stream::iter([set])).policy(WeightedRoundRobin::new());
    let mut client = connected(builder).await;
    for _ in 0..20 {
        client.unary_echo(say("x")).await.expect("the other instance answers");
    }
    let times = refuser.calls().get();
    assert!((1..=20).contains(&times), "once a call at most: {times}");
}

#[tokio::test]
async fn a_call_that_every_instance_refuses_ends_with_the_refusal() {
    let refuser = Scripted::refusing_streams();
    let mut client = connected(over([refuser.address()])).await;
    let status = client.unary_echo(say("x")).await.expect_err("no instance takes it");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(
        status.message().contains(&refuser.address().to_string()),
        "it names the instance that refused: {status:?}"
    );
    assert_eq!(refuser.calls().get(), 2, "it is made again once: more would multiply the load that servers shed");
}

#[tokio::test]
async fn an_answer_that_has_begun_is_never_replayed() {
    let mut echo = Echo::start();
    echo.keep_streams_open(true);
    let mut client = connected(over([echo.address()])).await;
    let mut replies = client.server_streaming_echo(say("one")).await.expect("an answer").into_inner();
    replies.next().await.expect("a reply").expect("a good one");
    echo.kill().await;
    let status = replies.next().await.expect("an end").expect_err("a broken one");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(echo.calls().get(), 1, "it was sent once");
}

#[tokio::test]
async fn a_connection_that_has_used_up_its_stream_numbers_is_replaced() {
    let echo = Echo::start();
    let mut client = connected(over([echo.address()]).first_stream(0x7fff_fff1).wait_for_ready(true)).await;
    for _ in 0..20 {
        client.unary_echo(say("x")).await.expect("the next connection takes what the last one cannot");
    }
    assert_eq!(echo.calls().get(), 20, "each was handled once");
    assert!((2..=4).contains(&echo.connections().get()), "eight calls a connection: {}", echo.connections().get());
}
