//! While etcd is unreachable nothing changes for the clients, and everything is in place when it is back.

use std::time::Duration;

use tonic_etcd::{Instance, RegistrationStatus, Registry};

use crate::support::changes::Changes;
use crate::support::etcd::{Cluster, Etcd};
use crate::support::figures;
use crate::support::load::{Load, failed};
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::{LIMIT, eventually};

#[tokio::test]
async fn no_change_reaches_the_stream_when_etcd_restarts_on_its_data() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let server = EchoServer::registered(&registry, "echo").await;
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;

    etcd.restart().await;

    changes.expect_nothing_before(&etcd, "127.0.0.1:1").await;
    server.stop().await;
}

#[tokio::test]
async fn no_change_is_reported_when_etcd_was_dead_for_longer_than_the_ttl() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let server =
        EchoServer::start(|address| registry.registration(Instance::new("echo", address)).ttl(Duration::from_secs(2)));
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;
    let channel = registry.discover("echo").expect("a good name").balance_channel(|_, endpoint| endpoint);
    let mut client = EchoClient::new(channel);

    etcd.kill();
    assert!(changes.stays_quiet_for(Duration::from_secs(5)).await, "nothing is reported while etcd is unreachable");
    let reply = client.unary_echo(EchoRequest { message: "hi".into() }).await.expect("calls go on without etcd");
    assert_eq!(reply.into_inner().address, server.address().to_string());
    etcd.restart().await;

    changes.expect_nothing_before(&etcd, "127.0.0.1:1").await;
    let registered = async || matches!(server.registration().status(), RegistrationStatus::Registered { .. });
    eventually("the server is registered, still or again", LIMIT, registered).await;
    server.stop().await;
    let left = etcd.keys("kitex/registry-etcd/echo/").await;
    assert_eq!(left.len(), 1, "and leaves nothing but the test's own key: {left:?}");
}

#[tokio::test]
async fn no_change_is_reported_when_etcd_is_frozen_for_longer_than_the_ttl() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let start = || {
        EchoServer::start(|address| registry.registration(Instance::new("echo", address)).ttl(Duration::from_secs(2)))
    };
    let servers = [start(), start(), start()];
    let mut changes = Changes::of(&registry, "echo");
    for _ in &servers {
        changes.next().await;
    }
    let leases = etcd.leases().await;

    etcd.freeze();
    let quiet = changes.stays_quiet_for(Duration::from_secs(6)).await;
    etcd.resume();

    assert!(quiet, "nothing is reported while etcd is unreachable");
    let all_new = async || {
        let now = etcd.leases().await;
        now.len() == 3 && now.iter().all(|lease| !leases.contains(lease)) && etcd.keys("").await.len() == 3
    };
    eventually("all leases ended, and all servers registered again", LIMIT, all_new).await;
    changes.expect_nothing_before(&etcd, "127.0.0.1:1").await;
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn no_change_reaches_the_stream_when_etcd_comes_back_wiped() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let start = || {
        EchoServer::start(|address| registry.registration(Instance::new("echo", address)).ttl(Duration::from_secs(3)))
    };
    let servers = [start(), start()];
    let mut changes = Changes::of(&registry, "echo");
    for _ in &servers {
        changes.next().await;
    }

    etcd.wipe_and_restart().await;

    let back = async || etcd.keys("").await.len() == 2;
    eventually("both servers registered with the new etcd", LIMIT, back).await;
    changes.expect_nothing_before(&etcd, "127.0.0.1:1").await;
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn no_change_is_reported_and_no_call_fails_when_etcd_is_restored() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let start = || {
        EchoServer::start(|address| registry.registration(Instance::new("echo", address)).ttl(Duration::from_secs(5)))
    };
    let mut servers = vec![start()];
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(servers[0].address()).await;
    etcd.save().await;
    // What the copy lacks.
    servers.push(start());
    changes.expect_insert(servers[1].address()).await;
    for n in 1..=20 {
        etcd.put("elsewhere", n.to_string()).await;
    }
    let channel = registry.channel("echo").build().expect("a good channel");
    let load = Load::start(&channel).await;
    let before = etcd.revision().await;

    etcd.restore().await;
    let restored = std::time::Instant::now();
    assert!(etcd.revision().await < before, "the store went back");
    let both = async || {
        let keys = etcd.keys("kitex/registry-etcd/echo/").await;
        servers.iter().all(|server| keys.iter().any(|(key, ..)| key.ends_with(&server.address().to_string())))
    };
    eventually("both servers are registered", LIMIT, both).await;
    changes.expect_nothing_before(&etcd, "127.0.0.1:1").await;
    figures::within("an etcd that was restored is followed", restored.elapsed(), Duration::from_secs(10));
    let calls = load.finish().await;
    assert!(failed(&calls).is_empty(), "of {} calls failed {:?}", calls.len(), failed(&calls));
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn server_and_client_start_without_etcd_and_meet_when_it_comes() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    proxy.reset();
    let registry = Registry::builder([proxy.url()]).build().expect("a good registry");
    let server = EchoServer::start(|address| registry.registration(Instance::new("echo", address)));
    let discover = registry.discover("echo").expect("a good name");
    assert!(discover.snapshot().is_none(), "nothing is known yet");
    let mut client = EchoClient::new(discover.balance_channel(|_, endpoint| endpoint));
    let call = tokio::spawn(async move { client.unary_echo(EchoRequest { message: "hi".into() }).await });
    let tried = async || proxy.accepted() > 3;
    eventually("both sides try to reach etcd", LIMIT, tried).await;
    assert_eq!(server.registration().status(), RegistrationStatus::Registering);

    proxy.forward();

    let reply = tokio::time::timeout(LIMIT, call).await.expect("the call ends in time").expect("no panic");
    assert_eq!(reply.expect("the call waited").into_inner().address, server.address().to_string());
    server.stop().await;
}

#[tokio::test]
async fn a_compaction_while_disconnected_costs_only_the_difference() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let registry = Registry::builder([proxy.url()]).build().expect("a good registry");
    let key = |n: u16| format!("kitex/registry-etcd/echo/127.0.0.1:{n}");
    let value = |n: u16, weight: u16| format!(r#"{{"address":"127.0.0.1:{n}","weight":{weight}}}"#);
    let mut changes = Changes::of(&registry, "echo");
    for n in 1..=4 {
        etcd.put(key(n), value(n, 1)).await;
        changes.expect_insert(format!("127.0.0.1:{n}")).await;
    }

    proxy.reset();
    etcd.delete(key(1)).await;
    etcd.put(key(2), value(2, 2)).await;
    etcd.put(key(5), value(5, 1)).await;
    etcd.compact().await;
    proxy.forward();

    changes.expect_remove("127.0.0.1:1").await;
    assert_eq!(changes.expect_insert("127.0.0.1:2").await.weight(), 2);
    changes.expect_insert("127.0.0.1:5").await;
    changes.expect_nothing_before(&etcd, "127.0.0.1:6").await;
}

#[tokio::test]
async fn a_change_of_the_very_revision_that_is_compacted_is_not_missed() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let registry = Registry::builder([proxy.url()]).build().expect("a good registry");
    let key = "kitex/registry-etcd/echo/127.0.0.1:1";
    etcd.put(key, r#"{"address":"127.0.0.1:1"}"#).await;
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert("127.0.0.1:1").await;

    proxy.reset();
    etcd.delete(key).await;
    etcd.compact().await;
    proxy.forward();

    changes.expect_remove("127.0.0.1:1").await;
}

#[tokio::test]
async fn losing_each_of_three_members_in_turn_loses_no_registration_or_change() {
    let cluster = Cluster::start().await;
    let registry = Registry::builder(cluster.urls()).build().expect("a good registry");
    let start = || {
        EchoServer::start(|address| registry.registration(Instance::new("echo", address)).ttl(Duration::from_secs(5)))
    };
    let server = start();
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;
    let heard = async || cluster.member(0).leases().await.first().copied();
    let lease = eventually("the member has heard of the lease", LIMIT, heard).await;

    for index in 0..3 {
        cluster.member(index).kill();
        let another = start();
        changes.expect_insert(another.address()).await;
        let quiet = changes.stays_quiet_for(Duration::from_secs(6)).await;
        assert!(quiet, "no registration ends although its TTL of 5 s has passed");
        another.stop().await;
        changes.next().await;
        cluster.member(index).restart().await;
    }
    assert!(cluster.member(0).leases().await.contains(&lease), "the first one is under the lease that it had");
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_starts_does_not_wait_for_a_frozen_member() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let mut urls = cluster.urls();
    let frozen = urls.remove(follower);
    cluster.member(follower).freeze();
    // Whichever member is asked first, each registry has the frozen one in it.
    for _ in 0..6 {
        let registry = Registry::builder([frozen.clone(), urls[0].clone()]).build().expect("a good registry");
        let started = std::time::Instant::now();
        let mut discover = registry.discover("echo").expect("a good name");
        tokio::time::timeout(LIMIT, discover.ready()).await.expect("the other member answers");
        assert!(started.elapsed() < Duration::from_millis(4_500), "it took {:?}", started.elapsed());
    }
    cluster.member(follower).resume();
}
