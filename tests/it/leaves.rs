//! A server that leaves on purpose is gone from etcd and from the clients at once; one that is killed, after its TTL.

use std::time::{Duration, Instant};

use tonic_etcd::{Instance, RegistrationStatus, Registry};

use crate::support::changes::Changes;
use crate::support::etcd::Etcd;
use crate::support::process::{Process, Signal, example};
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

#[tokio::test]
async fn sigterm_revokes_the_lease_at_once_and_the_server_serves_for_the_pause() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let mut changes = Changes::of(&registry, "echo");
    let mut server = Process::start(example("echo_server").args(["--etcd", &etcd.url(), "--pause", "3000"]));
    let address = server.expect_event("listening", LIMIT).await["address"].as_str().expect("an address").to_owned();
    server.expect_event("registered", LIMIT).await;
    changes.expect_insert(&address).await;

    server.signal(Signal::TERM);
    changes.expect_remove(&address).await;
    eventually("the lease is revoked", LIMIT, async || etcd.leases().await.is_empty()).await;
    server.expect_event("deregistered", LIMIT).await;
    let connection = tokio::net::TcpStream::connect(&address).await;
    assert!(connection.is_ok(), "clients that have not heard of it yet are still served");
    drop(connection);

    server.expect_event("stopped", LIMIT).await;
    assert!(server.wait(LIMIT).await.success(), "a graceful end is a success");
    assert!(etcd.keys("").await.is_empty(), "nothing is left behind");
}

#[tokio::test]
async fn a_leave_is_announced_before_the_key_goes() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let server = EchoServer::registered(&registry, "echo").await;
    let mut client = etcd.client().await;
    let options = etcd_client::WatchOptions::new().with_prefix();
    let mut watch = client.watch("kitex/registry-etcd/echo/", Some(options)).await.expect("etcd watches");
    let lease = etcd.leases().await;
    server.stop().await;

    let mut seen = Vec::new();
    while seen.len() < 2 {
        let response = watch.message().await.expect("the watch lives").expect("the watch does not end");
        for event in response.events() {
            let kv = event.kv().expect("an event has a key");
            let value = String::from_utf8(kv.value().to_vec()).expect("text");
            seen.push((event.event_type(), value, kv.lease()));
        }
    }
    assert!(seen[0].1.ends_with(r#","draining":true}"#), "first the mark: {seen:?}");
    assert_eq!([seen[0].2], lease[..], "the marked value is still under the lease");
    assert_eq!(seen[1].0, etcd_client::EventType::Delete, "then the end");
}

#[tokio::test]
async fn a_server_that_is_killed_leaves_after_its_ttl() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let mut changes = Changes::of(&registry, "echo");
    let stays = [EchoServer::registered(&registry, "echo").await, EchoServer::registered(&registry, "echo").await];
    for _ in &stays {
        changes.next().await;
    }
    let mut server = Process::start(example("echo_server").args(["--etcd", &etcd.url(), "--ttl", "2"]));
    let address = server.expect_event("listening", LIMIT).await["address"].as_str().expect("an address").to_owned();
    changes.expect_insert(&address).await;

    server.kill();
    let killed = Instant::now();
    changes.expect_remove(&address).await;
    // A keepalive was sent at most 0.8 s before (a third of the TTL, 10 % more, and some way); etcd looks every 0.5 s.
    assert!(killed.elapsed() > Duration::from_secs(1), "not before its lease ended: {:?}", killed.elapsed());
    for server in stays {
        server.stop().await;
    }
}

#[tokio::test]
async fn dropping_the_last_handle_deregisters() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let address: std::net::SocketAddr = "127.0.0.1:1001".parse().expect("an address");
    let registration = registry.registration(Instance::new("echo", address)).build().expect("a good instance");
    let clone = registration.clone();
    registration.start();
    registration.registered().await.expect("it is not gone");
    drop(registration);
    assert!(matches!(clone.status(), RegistrationStatus::Registered { .. }), "another handle keeps it");
    drop(clone);
    eventually("the lease is revoked", LIMIT, async || etcd.leases().await.is_empty()).await;
}

#[tokio::test]
async fn a_registration_can_be_ended_at_any_moment_and_leaves_nothing_behind() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    for n in 0..50u16 {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1000 + n));
        let registration = registry.registration(Instance::new("echo", address)).build().expect("a good instance");
        registration.start();
        // From before the grant to after the claim, which take about a millisecond each.
        tokio::time::sleep(Duration::from_micros(u64::from(n) * 100)).await;
        registration.deregister().await;
        assert_eq!(registration.status(), RegistrationStatus::Gone);
        assert!(registration.registered().await.is_err(), "it does not come back");
    }
    assert!(etcd.keys("").await.is_empty(), "no key is left");
}

#[tokio::test]
async fn a_server_ends_in_time_while_etcd_is_unreachable() {
    let etcd = Etcd::start().await;
    let mut server = Process::start(example("echo_server").args(["--etcd", &etcd.url(), "--pause", "0"]));
    server.expect_event("registered", LIMIT).await;
    etcd.freeze();
    let asked = Instant::now();
    server.signal(Signal::TERM);
    assert!(server.wait(LIMIT).await.success());
    // Three seconds for etcd, and room for a busy machine.
    assert!(asked.elapsed() < Duration::from_secs(5), "etcd held it up for {:?}", asked.elapsed());
}
