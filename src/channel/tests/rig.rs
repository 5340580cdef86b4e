//! A channel over peers in memory, whose list of instances the test writes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status};

use super::peers::proto::EchoRequest;
use super::peers::proto::echo_client::EchoClient;
use super::peers::{LIMIT, Network, Peer};
use crate::channel::{BalancedChannel, ChannelBuilder, Connectivity, InstanceStatus, Listing};
use crate::instance::Instance;
use crate::policy::Policy;
use crate::snapshot::{Member, MemberState, Snapshot};

/// What a channel of a [`Rig`] is called in messages.
pub(super) const LABEL: &str = "echo under kitex/registry-etcd";

/// A channel over peers in memory. For tests that begin with paused time.
pub(super) struct Rig {
    pub(super) network: Network,
    pub(super) channel: BalancedChannel,
    list: mpsc::UnboundedSender<Arc<Snapshot>>,
}

/// A call on a task of its own, which ends with the address that answered it.
pub(super) type Call = JoinHandle<Result<SocketAddr, Status>>;

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(|builder| builder)
    }

    /// With options.
    pub(super) fn with(options: impl FnOnce(ChannelBuilder) -> ChannelBuilder) -> Self {
        let network = Network::default();
        let (list, lists) = mpsc::unbounded_channel();
        let listing = Listing::new("no instance is registered", || Some("etcd is down".to_owned()));
        let source = move || Ok((UnboundedReceiverStream::new(lists).boxed(), listing));
        let builder = ChannelBuilder::new(LABEL.to_owned(), "etcd:///echo".to_owned(), source);
        let channel = options(builder.connector(network.connector())).build().expect("the options are good");
        Self { network, channel, list }
    }

    /// Replaces the channel's list of instances.
    pub(super) fn set_instances(&self, members: impl IntoIterator<Item = Member>) {
        let mut members: Vec<Member> = members.into_iter().collect();
        members.sort_by(|a, b| a.instance().address.cmp(&b.instance().address));
        self.list.send(Arc::new(Snapshot::new(1, members))).expect("the channel listens");
    }

    /// Ends the list: its sender is dropped.
    pub(super) fn without_list(self) -> (BalancedChannel, Network) {
        (self.channel, self.network)
    }

    /// Lists these peers, and waits until every one of them is READY.
    pub(super) async fn serve(&self, peers: &[&Peer]) {
        self.set_instances(peers.iter().copied().map(live));
        self.until("all are READY", |all| {
            all.len() == peers.len() && all.iter().all(|status| status.state() == Connectivity::Ready)
        })
        .await;
    }

    /// A channel whose new instances start slowly, over [`WINDOW`].
    pub(super) fn slowly(policy: impl Policy) -> Self {
        Self::with(|builder| builder.policy(policy).slow_start(WINDOW))
    }

    /// Waits until a peer is READY.
    pub(super) async fn wait_ready(&self, peer: &Peer) {
        self.until_peer(peer, "it is READY", |status| status.state() == Connectivity::Ready).await;
    }

    /// The channel's status of a peer.
    pub(super) fn status(&self, peer: &Peer) -> InstanceStatus {
        let address = peer.address().into();
        let all = self.channel.instances();
        all.into_iter().find(|status| status.instance().address == address).expect("the peer is known")
    }

    pub(super) fn state(&self, peer: &Peer) -> Connectivity {
        self.status(peer).state()
    }

    /// Waits until the instances are like that.
    pub(super) async fn until(&self, what: &str, are: impl Fn(&[InstanceStatus]) -> bool) {
        let mut changes = self.channel.instance_changes();
        let wait = async { while !are(&changes.next().await.expect("the channel is there")) {} };
        let waited = timeout(LIMIT, wait).await;
        assert!(waited.is_ok(), "{what}, in the end: {:?}", self.channel.instances());
    }

    /// Waits until a peer is like that.
    pub(super) async fn until_peer(&self, peer: &Peer, what: &str, is: impl Fn(&InstanceStatus) -> bool) {
        let address = peer.address().into();
        self.until(what, |all| all.iter().any(|status| status.instance().address == address && is(status))).await;
    }

    /// Begins a call.
    pub(super) fn call(&self) -> Call {
        self.call_with(|_| {})
    }

    /// Begins a call with a deadline.
    pub(super) fn call_within(&self, limit: Duration) -> Call {
        self.call_with(|request| request.set_timeout(limit))
    }

    /// Begins a call, with whatever its request needs.
    pub(super) fn call_with(&self, prepare: impl FnOnce(&mut Request<EchoRequest>)) -> Call {
        let mut request = Request::new(EchoRequest { message: "x".into() });
        prepare(&mut request);
        let mut client = EchoClient::new(self.channel.clone());
        tokio::spawn(async move { client.unary_echo(request).await.map(answerer) })
    }

    /// Makes a call and returns the address that answered.
    pub(super) async fn answer(&self) -> Result<SocketAddr, Status> {
        ends(self.call()).await
    }

    /// Makes that many calls, one after the other, none of which may fail, and counts those that this peer answered.
    pub(super) async fn answers_of(&self, peer: &Peer, calls: usize) -> usize {
        let mut answers = 0;
        for _ in 0..calls {
            let answerer = self.answer().await.expect("no call fails");
            answers += usize::from(answerer == peer.address());
        }
        answers
    }
}

fn answerer(response: Response<super::peers::proto::EchoReply>) -> SocketAddr {
    response.into_inner().address.parse().expect("a peer reports its address")
}

pub(super) async fn ends(call: Call) -> Result<SocketAddr, Status> {
    timeout(LIMIT, call).await.expect("the call ends in time").expect("the call does not panic")
}

/// Lets everything come to rest: paused time moves on by this millisecond only then.
pub(super) async fn rest() {
    sleep(Duration::from_millis(1)).await;
}

/// Waits until a peer that was ejected is READY, and in or on probation.
pub(super) async fn wait_recovered(rig: &Rig, peer: &Peer) {
    let is_back = |status: &InstanceStatus| !status.is_ejected() && status.state() == Connectivity::Ready;
    rig.until_peer(peer, "it is back", is_back).await;
}

pub(super) fn is_ejected(rig: &Rig, peer: &Peer) -> bool {
    rig.status(peer).is_ejected()
}

/// A peer as it is registered, alive and under the lease 1.
pub(super) fn live(peer: &Peer) -> Member {
    member(peer, 1, MemberState::Live)
}

pub(super) fn draining(peer: &Peer) -> Member {
    member(peer, 1, MemberState::Draining)
}

pub(super) fn suspect(peer: &Peer) -> Member {
    member(peer, 1, MemberState::Suspect)
}

pub(super) fn member(peer: &Peer, lease: i64, state: MemberState) -> Member {
    Member::new(Arc::new(Instance::new("echo", peer.address())), lease, state)
}

/// A peer as it is registered in a zone.
pub(super) fn in_zone(peer: &Peer, zone: &str, state: MemberState) -> Member {
    Member::new(Arc::new(Instance::new("echo", peer.address()).with_tag("zone", zone)), 1, state)
}

pub(super) fn weighing(peer: &Peer, weight: u16) -> Member {
    Member::new(Arc::new(Instance::new("echo", peer.address()).with_weight(weight)), 1, MemberState::Live)
}

/// In what time new instances come up to their weights: ninety seconds, a percent each.
pub(super) const WINDOW: Duration = Duration::from_secs(90);

/// A second, the unit of most tests.
pub(super) const SECOND: Duration = Duration::from_secs(1);
