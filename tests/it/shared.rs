//! What is shared in etcd, and what ends with its last user.

use std::collections::HashSet;
use std::time::Duration;

use tonic_etcd::{Instance, Registry};

use crate::support::costs::Costs;
use crate::support::etcd::Etcd;
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

#[tokio::test]
async fn two_channels_and_a_stream_of_one_service_use_one_watch_and_end_it() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let before = Costs::of(&etcd).await.watchers();
    let mut stream = registry.discover("echo").expect("a good name");
    let again = registry.clone().discover("echo").expect("a good name");
    let channels = [
        registry.discover("echo").expect("a good name").balance_channel(|_, endpoint| endpoint),
        again.balance_channel(|_, endpoint| endpoint),
    ];
    stream.ready().await;
    let watched = async || Costs::of(&etcd).await.watchers() == before + 1;
    eventually("one watch is open", LIMIT, watched).await;
    assert_eq!(Costs::of(&etcd).await.calls("Watch"), 1, "and no other one ever was");

    drop(stream);
    drop(channels);
    let ended = async || Costs::of(&etcd).await.watchers() == before;
    eventually("the watch ends with its last listener", LIMIT, ended).await;

    let mut stream = registry.discover("echo").expect("a good name");
    stream.ready().await;
    eventually("a later user starts another", LIMIT, watched).await;
}

#[tokio::test]
async fn all_registrations_of_a_registry_share_one_keepalive_stream() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let start = |n: u8| {
        let ttl = Duration::from_secs(2);
        EchoServer::start(|address| registry.registration(Instance::new(format!("echo{n}"), address)).ttl(ttl))
    };
    let servers: Vec<EchoServer> = (0..5).map(start).collect();
    for server in &servers {
        server.registration().registered().await.expect("it is not gone");
    }
    let leases: HashSet<i64> = etcd.leases().await.into_iter().collect();
    let renewed = async || Costs::of(&etcd).await.renewals() >= 40;
    eventually("each lease is renewed about eight times, over twice its TTL", LIMIT, renewed).await;
    assert_eq!(etcd.leases().await.into_iter().collect::<HashSet<_>>(), leases, "all leases live");
    // A second one is opened if this machine stands still for two seconds.
    assert!(Costs::of(&etcd).await.calls("LeaseKeepAlive") <= 2, "through one stream");
    for server in servers {
        server.stop().await;
    }
}
