//! What is compared: four channels behind one face, each with the options it has by itself.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_etcd::{BalancedChannel, Instance};

use crate::floor::Floor;
use crate::load::{self, Call, Caller as _, Sample, Shape};
use crate::proto::echo::echo_client::EchoClient;

/// A channel under test.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// Its name in the results.
    pub(crate) name: &'static str,
    client: Client,
}

#[derive(Debug, Clone)]
enum Client {
    Etcd(EchoClient<BalancedChannel>),
    Tonic(EchoClient<Channel>),
    Floor(EchoClient<Floor>),
}

impl Subject {
    /// This crate's channel with everything that is on by default.
    pub(crate) fn tonic_etcd(addresses: &[SocketAddr]) -> Self {
        Self::of(&balanced(addresses))
    }

    /// A channel of this crate that is looked at meanwhile.
    pub(crate) fn of(channel: &BalancedChannel) -> Self {
        Self { name: TONIC_ETCD, client: Client::Etcd(EchoClient::new(channel.clone())) }
    }

    /// tonic's balanced channel, with the defaults of its `Endpoint`.
    pub(crate) fn tonic_balance(addresses: &[SocketAddr]) -> Self {
        let channel = Channel::balance_list(addresses.iter().map(|address| endpoint(*address)));
        Self { name: TONIC_BALANCE, client: Client::Tonic(EchoClient::new(channel)) }
    }

    /// tonic's channel to one server.
    pub(crate) fn tonic_channel(address: SocketAddr) -> Self {
        let channel = endpoint(address).connect_lazy();
        Self { name: TONIC_CHANNEL, client: Client::Tonic(EchoClient::new(channel)) }
    }

    /// What any balanced channel costs at least.
    pub(crate) async fn floor(addresses: &[SocketAddr]) -> Self {
        Self { name: FLOOR, client: Client::Floor(EchoClient::new(Floor::connect(addresses).await)) }
    }

    /// See [`load::closed`].
    pub(crate) async fn closed(&self, shape: Shape, in_flight: usize, duration: Duration) -> Sample {
        match self.client.clone() {
            Client::Etcd(client) => load::closed(client, shape, in_flight, duration).await,
            Client::Tonic(client) => load::closed(client, shape, in_flight, duration).await,
            Client::Floor(client) => load::closed(client, shape, in_flight, duration).await,
        }
    }

    /// One short call. Returns the address of the server that answered.
    ///
    /// # Errors
    ///
    /// What the call failed with.
    pub(crate) async fn call(&self) -> Result<SocketAddr, Status> {
        let reply = match self.client.clone() {
            Client::Etcd(mut client) => client.call(None).await,
            Client::Tonic(mut client) => client.call(None).await,
            Client::Floor(mut client) => client.call(None).await,
        };
        Ok(reply?.address.parse().expect("a server tells its address"))
    }

    /// See [`load::open`].
    pub(crate) async fn open(&self, rate: u32, duration: Duration, deadline: Duration) -> Vec<Call> {
        match self.client.clone() {
            Client::Etcd(client) => load::open(client, rate, duration, deadline).await,
            Client::Tonic(client) => load::open(client, rate, duration, deadline).await,
            Client::Floor(client) => load::open(client, rate, duration, deadline).await,
        }
    }
}

/// This crate's channel over a set of servers that stays as it is.
///
/// # Panics
///
/// If the defaults do not make a channel.
pub(crate) fn balanced(addresses: &[SocketAddr]) -> BalancedChannel {
    let instances: Vec<Instance> = addresses.iter().map(|address| Instance::new("echo", *address)).collect();
    // A stream that ended would be a set that is no longer kept up to date.
    let set = stream::iter([instances]).chain(stream::pending());
    BalancedChannel::from_instances("echo", set).build().expect("the defaults make a channel")
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}")).expect("an address makes a URL")
}

/// This crate's channel.
pub(crate) const TONIC_ETCD: &str = "tonic-etcd";
/// `tonic::transport::Channel::balance_list`.
pub(crate) const TONIC_BALANCE: &str = "tonic-balance";
/// `tonic::transport::Channel` to one server.
pub(crate) const TONIC_CHANNEL: &str = "tonic-channel";
const FLOOR: &str = "floor";
