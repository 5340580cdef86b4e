//! A generated client over a channel to the peers of one test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::peers::proto::echo_client::EchoClient;
use super::peers::proto::{EchoReply, EchoRequest};
use super::peers::{Count, LIMIT};
use crate::channel::{BalancedChannel, ChannelBuilder, Connectivity};
use crate::instance::Instance;

pub(super) type Client = EchoClient<BalancedChannel>;

/// A channel to be built over these instances, which stay.
pub(super) fn over<const N: usize>(addresses: [SocketAddr; N]) -> ChannelBuilder {
    let set: Vec<_> = addresses.into_iter().map(|address| Instance::new("echo", address)).collect();
    BalancedChannel::from_instances("echo", stream::iter([set]))
}

/// A client whose every instance is READY.
pub(super) async fn connected(builder: ChannelBuilder) -> Client {
    EchoClient::new(connected_channel(builder).await)
}

/// A channel whose every instance is READY.
pub(super) async fn connected_channel(builder: ChannelBuilder) -> BalancedChannel {
    let channel = builder.build().expect("the options are good");
    let mut changes = channel.instance_changes();
    let all_ready = async {
        while let Some(all) = changes.next().await {
            if !all.is_empty() && all.iter().all(|status| status.state() == Connectivity::Ready) {
                return;
            }
        }
    };
    timeout(LIMIT, all_ready).await.expect("every instance becomes READY");
    channel
}

pub(super) fn say(message: impl Into<String>) -> EchoRequest {
    EchoRequest { message: message.into() }
}

/// A request with that timeout of its own.
pub(super) fn say_within(limit: Duration) -> tonic::Request<EchoRequest> {
    let mut request = tonic::Request::new(say("x"));
    request.set_timeout(limit);
    request
}

/// A unary call on a task of its own.
pub(super) fn call(
    client: &Client,
    request: impl tonic::IntoRequest<EchoRequest>,
) -> JoinHandle<Result<EchoReply, Status>> {
    let (mut client, request) = (client.clone(), request.into_request());
    tokio::spawn(async move { client.unary_echo(request).await.map(tonic::Response::into_inner) })
}

pub(super) async fn ends<T>(call: JoinHandle<T>) -> T {
    timeout(LIMIT, call).await.expect("the call ends in time").expect("the call does not panic")
}

/// Whether nothing happens although everything else has come to rest: paused time jumps only then.
pub(super) async fn hangs<T>(call: &mut JoinHandle<T>) -> bool {
    tokio::time::pause();
    let hangs = timeout(Duration::from_secs(60), call).await.is_err();
    tokio::time::resume();
    hangs
}

/// A request stream that the test writes while the call reads.
pub(super) fn written() -> (mpsc::UnboundedSender<EchoRequest>, UnboundedReceiverStream<EchoRequest>) {
    let (writer, messages) = mpsc::unbounded_channel();
    (writer, UnboundedReceiverStream::new(messages))
}

/// Messages that count their drop, however far they were read.
pub(super) fn watched<S: Stream>(messages: S, dropped: &Arc<Count>) -> impl Stream<Item = S::Item> + use<S> {
    let guard = CountsDrop(dropped.clone());
    let mut messages = Box::pin(messages);
    stream::poll_fn(move |cx| {
        let _alive = &guard;
        messages.as_mut().poll_next(cx)
    })
}

struct CountsDrop(Arc<Count>);

impl Drop for CountsDrop {
    fn drop(&mut self) {
        self.0.add_one();
    }
}
