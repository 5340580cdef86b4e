//! What an operator and a program do to a registration: pause, resume, drain, two servers on one address.

use std::net::SocketAddr;
use std::time::Duration;

use tonic_etcd::{ConfigError, Instance, Registration, RegistrationStatus, Registry};

use crate::support::changes::Changes;
use crate::support::etcd::Etcd;
use crate::support::proxy::Proxy;
use crate::support::server::{EchoServer, reaches};
use crate::support::{LIMIT, eventually};

fn started(registry: &Registry, address: SocketAddr, advertise: Option<&str>) -> Registration {
    let mut builder = registry.registration(Instance::new("echo", address)).ttl(Duration::from_secs(3));
    if let Some(advertise) = advertise {
        builder = builder.advertise(advertise);
    }
    let registration = builder.build().expect("a good instance");
    registration.start();
    registration
}

#[tokio::test]
async fn pausing_takes_the_key_out_keeps_the_lease_and_resuming_puts_it_back() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let server = EchoServer::registered(&registry, "echo").await;
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;
    let (before, lease) = (etcd.keys("").await, etcd.leases().await);

    for _ in 0..3 {
        server.registration().pause();
        changes.expect_remove(server.address()).await;
        reaches(server.registration(), "it is paused", |status| *status == RegistrationStatus::Paused).await;
        assert!(etcd.keys("").await.is_empty(), "the key is gone");
        assert_eq!(etcd.leases().await, lease, "the lease is kept");

        server.registration().resume();
        changes.expect_insert(server.address()).await;
        reaches(server.registration(), "it is back", |status| matches!(status, RegistrationStatus::Registered { .. }))
            .await;
        assert_eq!(etcd.keys("").await, before, "as it was");
    }
    server.stop().await;
    assert!(etcd.leases().await.is_empty(), "nothing is left behind");
}

#[tokio::test]
async fn an_update_while_paused_shows_after_the_return() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let registration = started(&registry, ([127, 0, 0, 1], 1001).into(), None);
    registration.pause();
    reaches(&registration, "it is paused", |status| *status == RegistrationStatus::Paused).await;
    registration.update(|instance| instance.with_weight(77)).expect("a good weight");
    registration.resume();
    let instance = Changes::of(&registry, "echo").expect_insert("127.0.0.1:1001").await;
    assert_eq!(instance.weight(), 77);
    registration.deregister().await;
}

#[tokio::test]
async fn bad_updates_are_refused_and_change_nothing() {
    let registry = Registry::builder(["http://127.0.0.1:1"]).build().expect("a good registry");
    let address: SocketAddr = ([127, 0, 0, 1], 1001).into();
    let registration = registry.registration(Instance::new("echo", address)).build().expect("a good instance");
    let refused = [
        registration.update(|instance| instance.with_weight(0)),
        registration.update(|_| Instance::new("other", address)),
        registration.update(|_| Instance::new("echo", SocketAddr::from(([127, 0, 0, 1], 1002)))),
    ];
    for refused in refused {
        assert!(matches!(refused, Err(ConfigError::Option { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn the_draining_mark_under_the_servers_own_lease_drains_it() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let server = EchoServer::registered(&registry, "echo").await;
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;
    let (key, value, lease) = etcd.keys("").await.pop().expect("the server is registered");
    let value = String::from_utf8(value).expect("text");
    let marked = value.replace(r#""tags":null}"#, r#""tags":null,"draining":true}"#);
    assert_ne!(value, marked, "the mark is set");
    let options = etcd_client::PutOptions::new().with_lease(lease);
    etcd.client().await.put(key, marked, Some(options)).await.expect("etcd puts");

    changes.expect_remove(server.address()).await;
    reaches(server.registration(), "it has left", |status| *status == RegistrationStatus::Drained).await;
    assert!(etcd.leases().await.is_empty(), "the lease is revoked");
    let connection = tokio::net::TcpStream::connect(server.address()).await;
    assert!(connection.is_ok(), "the server serves on");
    drop(connection);
    server.stop().await;
}

#[tokio::test]
async fn a_server_bound_to_the_address_takes_it_over_until_it_leaves() {
    let etcd = Etcd::start().await;
    // Two processes: two registries.
    let registry = || Registry::builder([etcd.url()]).build().expect("a good registry");
    let (one, two) = (registry(), registry());
    let address: SocketAddr = ([127, 0, 0, 1], 1001).into();
    let old = started(&one, address, None);
    old.registered().await.expect("it is not gone");
    let mut changes = Changes::of(&one, "echo");
    changes.expect_insert(address).await;

    let new = started(&two, address, None);
    new.registered().await.expect("it is not gone");
    let RegistrationStatus::Registered { lease: theirs, key, .. } = new.status() else {
        panic!("it took the address over")
    };
    reaches(&old, "the former owner sees the conflict", |status| {
        matches!(status, RegistrationStatus::Conflict { key: held, lease, .. } if (held, *lease) == (&key, theirs))
    })
    .await;
    assert_eq!(etcd.keys("").await[0].2, theirs, "and leaves the key alone");

    new.deregister().await;
    reaches(&old, "it claims the key when that goes", |status| matches!(status, RegistrationStatus::Registered { .. }))
        .await;
    old.deregister().await;
    assert!(etcd.keys("").await.is_empty() && etcd.leases().await.is_empty(), "nothing is left behind");
}

#[tokio::test]
async fn a_server_not_bound_to_the_address_waits_for_its_owner() {
    let etcd = Etcd::start().await;
    let registry = || Registry::builder([etcd.url()]).build().expect("a good registry");
    let (one, two) = (registry(), registry());
    let address: SocketAddr = ([127, 0, 0, 1], 1001).into();
    let owner = started(&one, address, None);
    owner.registered().await.expect("it is not gone");
    let before = etcd.keys("").await;

    let other = started(&two, ([127, 0, 0, 1], 1002).into(), Some("127.0.0.1:1001"));
    reaches(&other, "it sees the conflict", |status| matches!(status, RegistrationStatus::Conflict { .. })).await;
    assert_eq!(etcd.keys("").await, before, "the owner's key was not touched");
    owner.deregister().await;
    reaches(&other, "its turn comes", |status| matches!(status, RegistrationStatus::Registered { .. })).await;
    other.deregister().await;
}

#[tokio::test]
async fn a_fast_restart_on_one_address_survives_the_end_of_the_old_lease() {
    let etcd = Etcd::start().await;
    let registry = || Registry::builder([etcd.url()]).build().expect("a good registry");
    let address: SocketAddr = ([127, 0, 0, 1], 1001).into();
    let client = registry();
    let mut changes = Changes::of(&client, "echo");
    // A process that was killed left this behind.
    let lease = etcd.client().await.lease_grant(2, None).await.expect("etcd grants").id();
    let options = etcd_client::PutOptions::new().with_lease(lease);
    let value = r#"{"network":"tcp","address":"127.0.0.1:1001","weight":10,"tags":null}"#;
    let put = etcd.client().await.put("kitex/registry-etcd/echo/127.0.0.1:1001", value, Some(options)).await;
    put.expect("etcd puts");
    changes.expect_insert(address).await;

    let restarted = started(&registry(), address, None);
    restarted.registered().await.expect("it is not gone");
    let ended = async || !etcd.leases().await.contains(&lease);
    eventually("the old lease ends", LIMIT, ended).await;

    changes.expect_nothing_before(&etcd, "127.0.0.1:1").await;
    assert_eq!(etcd.keys("kitex/registry-etcd/echo/127.0.0.1:1001").await.len(), 1);
    restarted.deregister().await;
}

#[tokio::test]
async fn a_resume_while_etcd_is_unreachable_reports_a_pending_registration() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let registry = Registry::builder([proxy.url()]).build().expect("a good registry");
    let registration = started(&registry, ([127, 0, 0, 1], 1001).into(), None);
    registration.registered().await.expect("it is not gone");
    registration.pause();
    reaches(&registration, "it is paused", |status| *status == RegistrationStatus::Paused).await;

    proxy.reset();
    eventually("all connections are gone", LIMIT, async || proxy.open() == 0).await;
    registration.resume();
    reaches(&registration, "it is on its way", |status| *status == RegistrationStatus::Registering).await;

    proxy.forward();
    reaches(&registration, "it is back", |status| matches!(status, RegistrationStatus::Registered { .. })).await;
    registration.deregister().await;
    assert!(etcd.leases().await.is_empty(), "nothing is left behind");
}

#[tokio::test]
async fn an_update_while_etcd_is_unreachable_costs_no_registration() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let registry = Registry::builder([proxy.url()]).build().expect("a good registry");
    let builder = registry.registration(Instance::new("echo", SocketAddr::from(([127, 0, 0, 1], 1001))));
    let registration = builder.ttl(Duration::from_secs(300)).max_attempts(2).build().expect("a good instance");
    registration.start();
    reaches(&registration, "it is registered", |status| matches!(status, RegistrationStatus::Registered { .. })).await;

    proxy.reset();
    let before = proxy.accepted();
    registration.update(|instance| instance.with_weight(77)).expect("a good weight");
    eventually("it was tried far more than twice", LIMIT, async || proxy.accepted() > before + 6).await;
    proxy.forward();
    let instance = async || {
        let changes = registry.instances("echo").await.ok()?;
        changes.iter().any(|member| member.instance().weight() == 77).then_some(())
    };
    eventually("the new weight is in etcd", LIMIT, instance).await;
    assert!(matches!(registration.status(), RegistrationStatus::Registered { .. }), "{:?}", registration.status());
    registration.deregister().await;
}
