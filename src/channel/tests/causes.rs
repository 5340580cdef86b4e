//! Each status that a channel makes has a typed cause, and none that a server sent.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use tokio::time::sleep;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use super::client::{call, connected, connected_channel, over, say, say_within};
use super::peers::proto::echo_client::EchoClient;
use super::peers::{Echo, OnCall, OnConnect, Peer, Reply, Scripted};
use super::rig::{LABEL, Rig, SECOND, ends, live, rest};
use crate::channel::{CallPhase, ChannelError, WaitForReady};
use crate::instance::Address;
use crate::retry::RetryPolicy;

/// A channel to one peer that replies like that, and the status of a call within ten seconds.
async fn status_of(reply: Reply) -> (Status, Address) {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    peer.reply(reply);
    (ends(rig.call_within(10 * SECOND)).await.expect_err("it is no answer"), peer.address().into())
}

#[track_caller]
fn cause(status: &Status) -> &ChannelError {
    ChannelError::of(status).unwrap_or_else(|| panic!("{status:?} has no cause"))
}

/// Asserts that a status has this code, this cause, and in its message what the cause says.
#[track_caller]
fn assert_cause(status: &Status, code: Code, is: impl FnOnce(&ChannelError) -> bool) {
    let cause = cause(status);
    assert!(status.code() == code && is(cause), "{status:?}");
    assert!(status.message().ends_with(&cause.to_string()), "{:?} is not {cause}", status.message());
}

/// Why there was no instance for a call by its deadline.
fn cause_of_deadline(passed: &ChannelError) -> Option<&ChannelError> {
    match passed {
        ChannelError::DeadlinePassed { cause, .. } => cause.as_deref(),
        other => panic!("{other:?}"),
    }
}

fn over_one(rig: &Rig) -> Peer {
    let peer = rig.network.peer(1);
    rig.set_instances([live(&peer)]);
    peer
}

#[tokio::test(start_paused = true)]
async fn an_empty_list_and_one_that_does_not_come_are_told_apart() {
    let rig = Rig::new();
    let waiting = rig.call();
    let status = ends(waiting).await.expect_err("the list does not come");
    assert_cause(
        &status,
        Code::Unavailable,
        |cause| matches!(cause, ChannelError::ListOverdue { reason } if reason.contains("etcd is down")),
    );
    rig.set_instances([]);
    rest().await;
    let status = rig.answer().await.expect_err("the list is empty");
    assert_cause(
        &status,
        Code::Unavailable,
        |cause| matches!(cause, ChannelError::NoInstances { reason } if reason.contains("no instance is registered")),
    );
    assert!(status.message().starts_with(LABEL), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn where_none_can_be_reached_the_last_failure_is_told() {
    let rig = Rig::new();
    over_one(&rig).on_connect(OnConnect::Refuse);
    let status = rig.answer().await.expect_err("it refuses");
    assert_cause(
        &status,
        Code::Unavailable,
        |cause| matches!(cause, ChannelError::NoneReachable { last: Some(last) } if last.contains("127.0.0.1:1")),
    );
    assert!(cause(&status).address().is_none(), "it is about all of them");
}

#[tokio::test(start_paused = true)]
async fn one_more_than_may_wait_is_told_how_many_may() {
    let rig = Rig::with(|builder| builder.max_waiting(1));
    let _waiting = rig.call();
    rest().await;
    let status = rig.answer().await.expect_err("one may wait");
    assert_cause(&status, Code::ResourceExhausted, |cause| matches!(cause, ChannelError::TooManyWaiting { limit: 1 }));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_while_picking_has_the_cause_of_that() {
    let rig = Rig::new();
    rig.set_instances([]);
    rest().await;
    let waiting = rig.call_with(|request| {
        request.set_timeout(SECOND);
        request.extensions_mut().insert(WaitForReady(true));
    });
    let status = ends(waiting).await.expect_err("no instance comes");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    let passed = cause(&status);
    assert!(
        matches!(passed, ChannelError::DeadlinePassed { phase: CallPhase::Picking, address: None, .. }),
        "{passed:?}"
    );
    let because = cause_of_deadline(passed);
    assert!(matches!(because, Some(ChannelError::NoInstances { .. })), "{because:?}");
    let because = because.map(ToString::to_string).unwrap_or_default();
    assert!(passed.to_string().ends_with(&because), "its message has it: {passed}");
    assert!(passed.source().is_none(), "so a chain of errors does not print it again");

    let rig = Rig::new();
    let status = ends(rig.call_within(SECOND)).await.expect_err("the list does not come");
    let because = cause_of_deadline(cause(&status));
    assert!(matches!(because, Some(ChannelError::ListOverdue { .. })), "{because:?}");
    assert!(
        status.message().ends_with("can take the call: there is no list of instances yet: etcd is down"),
        "{status:?}"
    );

    let rig = Rig::new();
    over_one(&rig).on_connect(OnConnect::Mute);
    let status = ends(rig.call_within(SECOND / 2)).await.expect_err("it connects");
    let passed = cause(&status);
    assert!(matches!(passed, ChannelError::DeadlinePassed { phase: CallPhase::Picking, .. }), "{passed:?}");
    assert!(cause_of_deadline(passed).is_none(), "an attempt is under way, and nothing failed: {passed}");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_before_a_retry_does_not_say_that_the_call_was_never_sent() {
    for was_answered in [false, true] {
        let retries = RetryPolicy::new([Code::Unavailable]).backoff(SECOND, SECOND, 1.0);
        let rig = Rig::with(|builder| builder.retry(retries).wait_for_ready(true).outlier_detection(None));
        let peer = rig.network.peer(1);
        rig.serve(&[&peer]).await;
        peer.reply(if was_answered { Reply::Fail(Code::Unavailable) } else { Reply::Hold });
        let call = rig.call_within(10 * SECOND);
        peer.calls().reaches(1).await;
        rig.set_instances([]);
        if !was_answered {
            peer.cut();
        }
        let status = ends(call).await.expect_err("no other instance comes");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        let passed = cause(&status);
        assert!(
            matches!(passed, ChannelError::DeadlinePassed { phase: CallPhase::Retrying, .. })
                && passed.address() == Some(&peer.address().into()),
            "it may have been handled: {passed:?}"
        );
        let after = format!("that can take the call again after {}: no instance", peer.address());
        assert!(status.message().contains(&after) && passed.to_string().contains(&after), "{status:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_at_an_instance_names_it_and_the_phase() {
    let (status, address) = status_of(Reply::Hold).await;
    assert_cause(&status, Code::DeadlineExceeded, |cause| {
        matches!(cause, ChannelError::DeadlinePassed { phase: CallPhase::Attempting, .. })
            && cause.address() == Some(&address)
    });

    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    peer.reply(Reply::Stream);
    let mut replies = EchoClient::new(rig.channel.clone())
        .server_streaming_echo(say_within(SECOND))
        .await
        .expect("it begins")
        .into_inner();
    replies.next().await.expect("a reply").expect("a good one");
    let status = replies.next().await.expect("an end").expect_err("the rest never comes");
    assert_cause(&status, Code::DeadlineExceeded, |cause| {
        matches!(cause, ChannelError::DeadlinePassed { phase: CallPhase::Responding, .. })
            && cause.address() == Some(&peer.address().into())
    });
}

#[tokio::test]
async fn a_deadline_that_the_server_sees_first_is_one_all_the_same() {
    let echo = Echo::start();
    let client = connected(over([echo.address()])).await;
    echo.fail_with(Status::cancelled("Timeout expired"));
    let status = super::client::ends(call(&client, say_within(600 * SECOND))).await.expect_err("the server gave up");
    assert_cause(&status, Code::DeadlineExceeded, |cause| matches!(cause, ChannelError::DeadlinePassed { .. }));
    let status = super::client::ends(call(&client, say("x"))).await.expect_err("the server gave up");
    assert!(ChannelError::of(&status).is_none(), "without a deadline it is the server's own: {status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_the_server_sees_first_ends_a_response_that_had_begun() {
    let (status, address) = status_of(Reply::TimedOut).await;
    assert_cause(&status, Code::DeadlineExceeded, |cause| {
        matches!(cause, ChannelError::DeadlinePassed { phase: CallPhase::Responding, .. })
            && cause.address() == Some(&address)
    });
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_too_long_names_its_instance() {
    let retries = RetryPolicy::new([Code::DeadlineExceeded]).max_attempts(2).attempt_timeout(SECOND);
    let rig = Rig::with(|builder| builder.retry(retries));
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    peer.reply(Reply::Hold);
    let status = rig.answer().await.expect_err("neither attempt is answered");
    assert_cause(&status, Code::DeadlineExceeded, |cause| {
        matches!(cause, ChannelError::AttemptTimedOut { .. }) && cause.address() == Some(&peer.address().into())
    });
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_and_a_reset_stream_are_told_apart() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    peer.reply(Reply::Hold);
    let held = rig.call();
    peer.calls().reaches(1).await;
    peer.cut();
    let status = ends(held).await.expect_err("its connection is gone");
    assert_cause(&status, Code::Unavailable, |cause| {
        matches!(cause, ChannelError::ConnectionBroken { .. }) && cause.address() == Some(&peer.address().into())
    });
    let (status, address) = status_of(Reply::Cancel).await;
    assert_cause(&status, Code::Cancelled, |cause| {
        matches!(cause, ChannelError::StreamReset { .. }) && cause.address() == Some(&address)
    });
}

#[tokio::test]
async fn a_call_that_every_server_refuses_as_one_too_many_was_refused() {
    let peers = [(); 2].map(|()| Scripted::refusing_streams());
    let client = connected(over([peers[0].address(), peers[1].address()])).await;
    let status = super::client::ends(call(&client, say("x"))).await.expect_err("both refuse");
    assert_cause(&status, Code::Unavailable, |cause| {
        matches!(cause, ChannelError::Refused { .. }) && cause.address().is_some()
    });
}

#[tokio::test]
async fn headers_above_the_limit_are_told_with_it() {
    let peer = Scripted::start(OnCall::Answer, None);
    let client = connected(over([peer.address()]).http2_max_header_list_size(8)).await;
    let status = super::client::ends(call(&client, say("x"))).await.expect_err("its head is longer");
    assert_cause(
        &status,
        Code::Internal,
        |cause| matches!(cause, ChannelError::HeadersTooLong { reason, .. } if reason.contains("http2_max_header_list_size is 8")),
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_grpc_is_told_whatever_its_code() {
    for (reply, code) in [
        (Reply::Page(503), Code::Unavailable),
        (Reply::Page(200), Code::Unknown),
        (Reply::HeadAlone, Code::Unknown),
        (Reply::WithoutStatus, Code::Unknown),
    ] {
        let (status, address) = status_of(reply).await;
        assert_cause(&status, code, |cause| {
            matches!(cause, ChannelError::NotGrpc { .. }) && cause.address() == Some(&address)
        });
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_sent_is_told_from_the_callers_own_failure() {
    let echo = Echo::start();
    let mut channel = connected_channel(over([echo.address()])).await;
    let request = |body: Body| {
        http::Request::post("http://ignored/tonicetcd.echo.v1.Echo/UnaryEcho").body(body).expect("a request")
    };
    let broken = stream::poll_fn(|_| -> std::task::Poll<Option<Result<bytes::Bytes, Status>>> {
        panic!("a request stream with a bug")
    });
    let body = Body::new(http_body_util::StreamBody::new(broken.map(|data| data.map(http_body::Frame::data))));
    let status = channel.call(request(body)).await.map(drop).expect_err("its stream panics");
    assert_cause(&status, Code::Internal, |cause| matches!(cause, ChannelError::BadRequest { .. }));

    let own = stream::iter([Err::<bytes::Bytes, _>(Status::data_loss("the file is gone"))]);
    let body = Body::new(http_body_util::StreamBody::new(own.map(|data| data.map(http_body::Frame::data))));
    let status = channel.call(request(body)).await.map(drop).expect_err("its stream fails");
    assert_eq!(status.code(), Code::DataLoss, "{status:?}");
    assert!(ChannelError::of(&status).is_none(), "it is the caller's own: {status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_status_that_a_server_sent_has_no_cause() {
    for code in [Code::Unavailable, Code::DeadlineExceeded, Code::ResourceExhausted, Code::Internal] {
        let (status, _) = status_of(Reply::Fail(code)).await;
        assert_eq!(status.code(), code, "{status:?}");
        assert!(ChannelError::of(&status).is_none(), "{status:?}");
    }
    // Nor has one that was to be retried.
    let rig = Rig::with(|builder| builder.retry(RetryPolicy::new([Code::Unavailable]).max_attempts(2)));
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    peer.reply(Reply::Fail(Code::Unavailable));
    let status = rig.answer().await.expect_err("both attempts fail");
    assert!(ChannelError::of(&status).is_none(), "{status:?}");
}

/// What a layer makes of an error of the service inside.
#[derive(Debug)]
struct Wrapped(Status);

impl fmt::Display for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a layer's own words")
    }
}

impl Error for Wrapped {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

#[tokio::test(start_paused = true)]
async fn a_cause_survives_boxes_and_the_errors_of_layers() {
    let rig = Rig::new();
    rig.set_instances([]);
    sleep(Duration::from_millis(1)).await;
    let status = rig.answer().await.expect_err("no instance is registered");
    let boxed = Status::from_error(Box::new(status.clone()));
    let wrapped = Status::from_error(Box::new(Wrapped(status)));
    for status in [boxed, wrapped] {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(matches!(cause(&status), ChannelError::NoInstances { .. }), "{status:?}");
        assert!(status.to_string().contains("NoInstances"), "tonic shows the cause behind the message: {status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_has_its_cause_too() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    peer.reply(Reply::Stream);
    let mut channel = rig.channel.clone();
    let request = http::Request::post("http://ignored/tonicetcd.echo.v1.Echo/ServerStreamingEcho");
    let response = channel.call(request.body(Body::empty()).expect("a request")).await.expect("it begins");
    let mut body = response.into_body();
    body.frame().await.expect("a message").expect("a good one");
    peer.cut();
    let status = body.frame().await.expect("an end").expect_err("its connection is gone");
    assert_cause(&status, Code::Unavailable, |cause| matches!(cause, ChannelError::ConnectionBroken { .. }));
}
