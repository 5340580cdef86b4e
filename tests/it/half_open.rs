//! Connections that are open and carry nothing: what is behind a black hole is noticed, and a full etcd is not.

use std::time::{Duration, Instant};

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, CompactionOptions, GetOptions};
use tonic_etcd::{Instance, RegistrationStatus, Registry};

use crate::support::changes::Changes;
use crate::support::costs::Costs;
use crate::support::etcd::Etcd;
use crate::support::figures;
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

#[tokio::test]
async fn a_black_hole_is_noticed_by_a_watch_in_20_s_and_by_a_keepalive_in_2_s() {
    let etcd = Etcd::start().await;
    let proxies = [Proxy::start(etcd.address()).await, Proxy::start(etcd.address()).await];
    let registry = Registry::builder(proxies.iter().map(Proxy::url)).build().expect("a good registry");
    let ttl = Duration::from_secs(5);
    let server = EchoServer::start(|address| registry.registration(Instance::new("echo", address)).ttl(ttl));
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;
    let lease = etcd.leases().await;

    // Whichever of the two the streams are on.
    for (marker, proxy) in ["127.0.0.1:1", "127.0.0.1:2"].into_iter().zip(&proxies) {
        proxy.black_hole();
        let (since, before) = (Instant::now(), Costs::of(&etcd).await);
        // A third of the TTL, and the patience of two seconds.
        eventually("the lease is renewed", ttl, async || before.until_now().await.renewals() > 0).await;
        changes.expect_nothing_before(&etcd, marker).await;
        figures::within("a watch in a black hole is noticed", since.elapsed(), Duration::from_secs(20));
        proxy.forward();
    }
    assert_eq!(etcd.leases().await, lease, "the registration is under the lease that it had");
    server.stop().await;
}

#[tokio::test]
async fn a_lease_survives_the_silent_loss_of_its_connection_where_there_is_one_url() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let registry = Registry::builder([proxy.url()]).build().expect("a good registry");
    let ttl = Duration::from_secs(5);
    let server = EchoServer::start(|address| registry.registration(Instance::new("echo", address)).ttl(ttl));
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;
    let lease = etcd.leases().await;
    for marker in ["127.0.0.1:1", "127.0.0.1:2"] {
        proxy.strand();
        let (since, before) = (Instant::now(), Costs::of(&etcd).await);
        eventually("the lease is renewed", ttl, async || before.until_now().await.renewals() > 0).await;
        changes.expect_nothing_before(&etcd, marker).await;
        figures::within("a watch on a lost connection is opened anew", since.elapsed(), Duration::from_secs(20));
    }
    assert_eq!(etcd.leases().await, lease, "the registration is under the lease that it had");
    server.stop().await;
}

#[tokio::test]
async fn an_etcd_without_space_keeps_its_leases_and_is_asked_again_every_10_s() {
    let etcd = Etcd::builder().arg("--quota-backend-bytes=16777216").start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let start = || {
        let ttl = Duration::from_secs(3);
        EchoServer::start(|address| registry.registration(Instance::new("echo", address)).ttl(ttl))
    };
    let early = start();
    early.registration().registered().await.expect("it is not deregistered");
    let lease = etcd.leases().await;
    let mut client = etcd.client().await;
    let mut fill = 0;
    while client.put(format!("junk/{fill}"), vec![b'x'; 500_000], None).await.is_ok() {
        fill += 1;
        assert!(fill < 200, "the quota ends this");
    }

    let before = Costs::of(&etcd).await;
    let late = start();
    let grants = async || before.until_now().await.calls("LeaseGrant");
    eventually("it tries", LIMIT, async || grants().await > 0).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(grants().await, 1, "and leaves etcd alone then");
    assert_eq!(late.registration().status(), RegistrationStatus::Registering);
    assert!(
        matches!(early.registration().status(), RegistrationStatus::Registered { .. }),
        "a registered server stays in"
    );
    assert_eq!(etcd.leases().await, lease, "its lease is kept, and no other was granted");

    for n in 0..fill {
        client.delete(format!("junk/{n}"), None).await.expect("to delete is always possible");
    }
    let revision = client.get("junk/", Some(GetOptions::new().with_prefix())).await.expect("etcd answers");
    let revision = revision.header().expect("a header").revision();
    client.compact(revision, Some(CompactionOptions::new().with_physical())).await.expect("etcd compacts");
    client.defragment().await.expect("etcd defragments");
    let member = client.status().await.expect("etcd answers").header().expect("a header").member_id();
    let mut of_it = AlarmOptions::new();
    of_it.with_member(member);
    client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(of_it)).await.expect("the alarm is switched off");
    let since = Instant::now();
    tokio::time::timeout(LIMIT, late.registration().registered()).await.expect("in time").expect("it is registered");
    assert!(since.elapsed() < Duration::from_secs(13), "it was registered after {:?}", since.elapsed());
    for server in [early, late] {
        server.stop().await;
    }
}
