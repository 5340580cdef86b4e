//! Calls from outside of the channel's runtime, and of any.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;

use super::client::{Client, connected, over, say, say_within};
use super::peers::proto::echo_client::EchoClient;
use super::peers::{Echo, LIMIT};
use crate::channel::BalancedChannel;
use crate::instance::Instance;
use crate::retry::RetryPolicy;

/// Unparks a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread, without any runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park_timeout(LIMIT),
        }
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// A runtime with a server, and a client that was built on it.
fn served(
    options: impl FnOnce(crate::channel::ChannelBuilder) -> crate::channel::ChannelBuilder,
) -> (Runtime, Echo, Client) {
    let runtime = runtime();
    let (echo, client) = runtime.block_on(async {
        let echo = Echo::start();
        let client = connected(options(over([echo.address()]))).await;
        (echo, client)
    });
    (runtime, echo, client)
}

#[test]
fn calls_with_deadlines_work_outside_of_any_runtime() {
    let (_runtime, echo, mut client) = served(|builder| builder);
    block_on(client.unary_echo(say_within(LIMIT))).expect("an answer");
    echo.hold(true);
    let status = block_on(client.unary_echo(say_within(Duration::from_millis(50)))).expect_err("no answer");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[test]
fn request_streams_work_outside_of_any_runtime() {
    let (_runtime, _echo, mut client) = served(|builder| builder);
    let (messages, requests) = mpsc::unbounded_channel();
    messages.send(say("first")).expect("open");
    let mut request = tonic::Request::new(UnboundedReceiverStream::new(requests));
    request.set_timeout(LIMIT);
    block_on(async {
        let mut answers = client.bidirectional_streaming_echo(request).await.expect("a head").into_inner();
        for next in ["second", "third"] {
            answers.message().await.expect("open").expect("an answer");
            messages.send(say(next)).expect("open");
        }
        drop(messages);
        assert_eq!(answers.count().await, 1, "the last answer, and the end");
    });
}

#[test]
fn an_upload_outlives_the_runtime_that_began_it() {
    let (_runtime, _echo, mut client) = served(|builder| builder);
    let (messages, requests) = mpsc::unbounded_channel();
    messages.send(say("first")).expect("open");
    let short = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let answers = short.block_on(client.bidirectional_streaming_echo(UnboundedReceiverStream::new(requests)));
    let mut answers = answers.expect("a head").into_inner();
    drop(short);
    messages.send(say("second")).expect("open");
    for expected in ["first", "second"] {
        let answer = block_on(answers.message()).expect("open").expect("an answer");
        assert_eq!(answer.message, expected);
    }
}

#[test]
fn retries_pause_outside_of_any_runtime() {
    let policy = RetryPolicy::new([Code::Unavailable, Code::DeadlineExceeded])
        .max_attempts(3)
        .backoff(Duration::from_millis(1), Duration::from_millis(1), 1.0)
        .attempt_timeout(Duration::from_millis(20));
    let (_runtime, echo, mut client) = served(|builder| builder.retry(policy));
    echo.hold(true);
    let status = block_on(client.unary_echo(say("x"))).expect_err("no answer to the third attempt either");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[test]
fn calls_with_deadlines_fail_with_the_reason_once_the_channels_runtime_is_gone() {
    let (first, second) = (runtime(), runtime());
    let channel = {
        let _entered = first.enter();
        let lists = stream::pending::<Vec<Instance>>();
        let policy = RetryPolicy::new([Code::Unavailable]).max_attempts(3);
        let builder = BalancedChannel::from_instances("echo", lists).retry(policy);
        builder.wait_for_ready(true).build().expect("the options are good")
    };
    let elsewhere = {
        let mut client = EchoClient::new(channel.clone());
        second.spawn(async move { client.unary_echo(say_within(LIMIT)).await })
    };
    let nowhere = {
        let mut client = EchoClient::new(channel.clone());
        thread::spawn(move || block_on(client.unary_echo(say_within(LIMIT))))
    };
    while channel.handle.queue.is_idle() {
        thread::yield_now();
    }
    drop(first);
    let elsewhere = second.block_on(async { timeout(LIMIT, elsewhere).await.expect("it ends").expect("no panic") });
    let late = block_on(EchoClient::new(channel.clone()).unary_echo(say_within(LIMIT)));
    for ended in [elsewhere, nowhere.join().expect("no panic"), late] {
        let status = ended.expect_err("there is nothing to send it to");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().contains("the runtime that it was built on"), "{status:?}");
    }
}

fn is_send<T: Send>() {}

fn is_shared<T: Send + Sync>() {}

/// What the channel gives and takes can go to other threads, and all but what is used up by one be looked at from
/// several.
#[test]
fn public_types_go_from_thread_to_thread() {
    use crate::channel::{
        CallPhase, ChannelBuilder, ChannelClosed, ChannelError, Connectivity, InstanceChanges, InstanceStatus,
        NotReady, ResponseBody, ResponseFuture, ServiceConfig, ServiceConfigError, WaitForReady,
    };
    use crate::{outlier, policy, retry};

    is_shared::<(BalancedChannel, InstanceChanges, InstanceStatus, Connectivity, WaitForReady)>();
    is_shared::<(ChannelError, CallPhase, ChannelClosed, NotReady)>();
    is_shared::<(ServiceConfig, ServiceConfigError, retry::RetryPolicy, retry::RetryBudget)>();
    is_shared::<(outlier::OutlierDetection, outlier::SuccessRate, outlier::FailurePercentage, outlier::Outcome)>();
    is_shared::<(policy::LeastRequest, policy::PeakEwma, policy::RingHash, policy::PickFirst)>();
    is_shared::<(policy::WeightedRoundRobin, policy::WeightedRandom, policy::Candidate)>();
    is_shared::<(Box<dyn policy::Policy>, Box<dyn policy::Picker>)>();
    is_send::<(ChannelBuilder, ResponseFuture, ResponseBody)>();
}
