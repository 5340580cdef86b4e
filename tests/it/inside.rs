//! What an operator sees of a registry, and the order to leave that a server obeys.

use std::net::SocketAddr;
use std::time::Duration;

use etcd_client::{PutOptions, Txn, TxnOp};
use futures_util::future::join_all;
use tonic_etcd::format::{DecodeError, Decoded, Entry, Format};
use tonic_etcd::snapshot::MemberState;
use tonic_etcd::{Address, ConfigError, Instance, RegistrationStatus, Registry, RegistryError};

use crate::support::changes::Changes;
use crate::support::etcd::Etcd;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::server::{EchoServer, reaches};
use crate::support::{LIMIT, eventually};

fn registry(etcd: &Etcd) -> Registry {
    Registry::builder([etcd.url()]).build().expect("a good registry")
}

fn value(address: &str) -> String {
    format!(r#"{{"network":"tcp","address":"{address}","weight":10,"tags":null}}"#)
}

async fn names(registry: &Registry) -> Vec<(String, usize)> {
    let services = registry.services().await.expect("etcd answers");
    services.into_iter().map(|(name, keys)| (name.to_string(), keys)).collect()
}

#[tokio::test]
async fn services_and_instances_are_what_is_registered_right_now() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    assert!(registry.services().await.expect("etcd answers").is_empty(), "no server is there yet");
    assert!(registry.instances("echo").await.expect("etcd answers").is_empty(), "no server is there yet");

    let server = EchoServer::start(|address| {
        registry.registration(Instance::new("echo", address).with_weight(20).with_tag("zone", "a"))
    });
    server.registration().registered().await.expect("it is not gone");
    let hello = EchoServer::registered(&registry, "hello").await;
    let prefix = "kitex/registry-etcd";
    etcd.put(format!("{prefix}/echo/10.0.0.1:80"), value("10.0.0.1:80")).await;
    etcd.put(format!("{prefix}/echo/junk"), "junk").await;
    for other in ["/echo", "/echo/", "/echo/a/b", "/no good/x", "2/other/10.0.0.1:80"] {
        etcd.put(format!("{prefix}{other}"), value("10.0.0.2:80")).await;
    }

    assert_eq!(names(&registry).await, [("echo".into(), 3), ("hello".into(), 1)], "services by their keys");
    let snapshot = registry.instances("echo").await.expect("etcd answers");
    assert_eq!(snapshot.len(), 2, "what can be read");
    assert_eq!(snapshot.revision(), etcd.revision().await, "right now");
    let member = snapshot.get(&server.address().into()).expect("the server is there");
    assert_eq!((member.instance().weight(), &member.instance().tags()["zone"]), (20, "a"), "as it registered itself");
    assert_eq!(
        (member.state(), member.lease()),
        (MemberState::Live, etcd.keys(&format!("{prefix}/echo/1")).await[1].2)
    );

    server.stop().await;
    hello.stop().await;
    assert_eq!(names(&registry).await, [("echo".into(), 2)], "a server that left is not there any more");
}

#[tokio::test]
async fn lists_of_many_pages_are_complete() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let mut client = etcd.client().await;
    for page in 0..13_u8 {
        let puts = (0..100_u8).map(|n| {
            let address = format!("10.0.{page}.{n}:80");
            TxnOp::put(format!("kitex/registry-etcd/echo/{address}"), value(&address), None)
        });
        client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.expect("etcd puts");
    }
    etcd.put("kitex/registry-etcd/zulu/10.0.0.1:80", value("10.0.0.1:80")).await;
    assert_eq!(names(&registry).await, [("echo".into(), 1_300), ("zulu".into(), 1)], "behind the third page, too");
    assert_eq!(registry.instances("echo").await.expect("etcd answers").len(), 1_300, "all of them");
}

#[tokio::test]
async fn what_cannot_be_answered_says_why() {
    let etcd = Etcd::start().await;
    let bad_name = registry(&etcd).instances("no/slash").await;
    assert!(matches!(bad_name, Err(RegistryError::Config(ConfigError::ServiceName { .. }))), "{bad_name:?}");
    let everything = Registry::builder([etcd.url()]).prefix("").build().expect("a good registry").services().await;
    assert!(matches!(everything, Err(RegistryError::Config(ConfigError::Prefix { .. }))), "{everything:?}");

    let mut client = etcd.client().await;
    client.user_add("root", "root", None).await.expect("etcd adds a user");
    client.user_grant_role("root", "root").await.expect("etcd grants the role");
    client.auth_enable().await.expect("etcd switches authentication on");
    for registry in
        [registry(&etcd), Registry::builder([etcd.url()]).auth("root", "wrong").build().expect("a good registry")]
    {
        let denied = registry.services().await;
        assert!(matches!(denied, Err(RegistryError::Denied { .. })), "{denied:?}");
    }
    let allowed = Registry::builder([etcd.url()]).auth("root", "root").build().expect("a good registry");
    assert!(allowed.services().await.is_ok(), "a permitted user can look");

    etcd.kill();
    let away = allowed.services().await;
    assert!(matches!(away, Err(RegistryError::Unavailable { .. })), "{away:?}");
}

#[tokio::test]
async fn a_server_that_is_drained_leaves_as_if_signalled_and_serves_on() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let server = EchoServer::registered(&registry, "echo").await;
    let other = EchoServer::registered(&registry, "echo").await;
    let mut changes = Changes::of(&registry, "echo");
    for _ in 0..2 {
        changes.next().await;
    }
    server.delay(Duration::from_millis(300));
    let mut client = EchoClient::connect(format!("http://{}", server.address())).await.expect("the server listens");
    let call = tokio::spawn(async move { client.unary_echo(EchoRequest { message: "hello".into() }).await });
    eventually("the call is in flight", LIMIT, async || server.registration().in_flight() == 1).await;

    registry.drain("echo", server.address()).await.expect("it is registered");
    changes.expect_remove(server.address()).await;
    reaches(server.registration(), "it has left", |status| *status == RegistrationStatus::Drained).await;
    assert_eq!(etcd.keys("").await.len(), 1, "its key is gone, and only its own");
    assert_eq!(etcd.leases().await.len(), 1, "its lease is revoked");
    let reply = call.await.expect("the call does not panic").expect("calls in flight go on");
    assert_eq!(reply.into_inner().message, "hello");
    let mut client = EchoClient::connect(format!("http://{}", server.address())).await.expect("the server serves on");
    client.unary_echo(EchoRequest::default()).await.expect("also from a client that has not seen it");

    let again = registry.drain("echo", server.address()).await;
    assert!(matches!(again, Err(RegistryError::UnknownAddress { .. })), "{again:?}");
    server.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_drain_is_obeyed_whatever_the_server_changes_at_the_same_moment() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let rounds = (1..=50_u16).map(async |n| {
        let address = SocketAddr::from(([127, 0, 0, 1], 1000 + n));
        let registration = registry.registration(Instance::new("echo", address)).build().expect("a good instance");
        registration.start();
        registration.registered().await.expect("it is not gone");
        let updates = async {
            for weight in 1..=20 {
                registration.update(|instance| instance.with_weight(weight)).expect("a good weight");
                tokio::time::sleep(Duration::from_micros(u64::from(n) * 50)).await;
            }
        };
        let (drained, ()) = tokio::join!(registry.drain("echo", address), updates);
        drained.expect("it is registered");
        reaches(&registration, "it obeys", |status| *status == RegistrationStatus::Drained).await;
    });
    join_all(rounds).await;
    assert!(etcd.keys("").await.is_empty() && etcd.leases().await.is_empty(), "nothing is left behind");
}

#[tokio::test]
async fn the_mark_keeps_the_lease_and_all_else_that_another_program_wrote() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let mut client = etcd.client().await;
    let lease = client.lease_grant(60, None).await.expect("etcd grants").id();
    let theirs = r#"{"network":"tcp","address":"10.0.0.1:80","weight":7,"tags":{"a":"b"},"version":3}"#;
    let key = "kitex/registry-etcd/echo/10.0.0.1:80";
    client.put(key, theirs, Some(PutOptions::new().with_lease(lease))).await.expect("etcd puts");
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert("10.0.0.1:80").await;

    let address: Address = "10.0.0.1:80".parse().expect("an address");
    registry.drain("echo", address.clone()).await.expect("it is registered");
    changes.expect_remove("10.0.0.1:80").await;
    let marked = theirs.replace("3}", r#"3,"draining":true}"#).into_bytes();
    assert_eq!(etcd.keys("").await, [(key.to_owned(), marked, lease)], "one field more, under the lease it had");
    let state =
        registry.instances("echo").await.expect("etcd answers").get(&address).map(tonic_etcd::snapshot::Member::state);
    assert_eq!(state, Some(MemberState::Draining), "and it can be seen");

    let before = etcd.revision().await;
    registry.drain("echo", address).await.expect("it is marked already");
    assert_eq!(etcd.revision().await, before, "which is not done twice");
}

/// An address and nothing else: the format cannot carry a mark.
#[derive(Debug)]
struct Bare;

impl Format for Bare {
    fn default_prefix(&self) -> &'static str {
        "bare"
    }

    fn segment(&self, entry: &Entry<'_>) -> String {
        entry.instance.address().to_string()
    }

    fn encode(&self, entry: &Entry<'_>) -> Vec<u8> {
        entry.instance.address().to_string().into_bytes()
    }

    fn decode(&self, _segment: &str, value: &[u8]) -> Result<Decoded, DecodeError> {
        let text = std::str::from_utf8(value).map_err(|_| DecodeError::new("no text"))?;
        Ok(Decoded::new(text.parse()?))
    }

    fn carries_draining(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_format_without_a_draining_mark_drains_no_server() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).format(Bare).build().expect("a good registry");
    let server = EchoServer::registered(&registry, "echo").await;
    let before = etcd.keys("").await;
    let refused = registry.drain("echo", server.address()).await.expect_err("it cannot carry the mark");
    assert!(
        matches!(refused, RegistryError::NoDrainingMark { .. }) && refused.to_string().contains("Bare"),
        "{refused}"
    );
    assert_eq!(etcd.keys("").await, before, "nothing is touched");
    server.stop().await;
}
