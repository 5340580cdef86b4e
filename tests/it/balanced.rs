//! tonic's own balanced channel, fed by the stream.

use std::collections::HashSet;
use std::time::Duration;

use tonic::transport::Channel;
use tonic_etcd::{Instance, Registry};

use crate::support::changes::Changes;
use crate::support::etcd::Etcd;
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::{LIMIT, eventually};

async fn answered_by(client: &mut EchoClient<Channel>) -> String {
    let call = client.unary_echo(EchoRequest { message: "hi".into() });
    let reply = tokio::time::timeout(LIMIT, call).await.expect("the call ends in time");
    reply.expect("the call succeeds").into_inner().address
}

#[tokio::test]
async fn an_idle_channel_gets_its_changes() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let first = EchoServer::registered(&registry, "echo").await;
    let mut client =
        EchoClient::new(registry.discover("echo").expect("a good name").balance_channel(|_, endpoint| endpoint));
    assert_eq!(answered_by(&mut client).await, first.address().to_string());

    // No call is made meanwhile.
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(first.address()).await;
    let second = EchoServer::registered(&registry, "echo").await;
    changes.expect_insert(second.address()).await;
    let gone = first.address();
    first.stop().await;
    changes.expect_remove(gone).await;

    for _ in 0..20 {
        assert_eq!(answered_by(&mut client).await, second.address().to_string(), "the old server is forgotten");
    }
    second.stop().await;
}

#[tokio::test]
async fn calls_spread_over_every_server_that_joins() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let mut client =
        EchoClient::new(registry.discover("echo").expect("a good name").balance_channel(|_, endpoint| endpoint));
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(EchoServer::registered(&registry, "echo").await);
        let expected: HashSet<String> = servers.iter().map(|server| server.address().to_string()).collect();
        let mut seen = HashSet::new();
        let all = async || {
            seen.insert(answered_by(&mut client).await);
            seen == expected
        };
        eventually("every server answers", LIMIT, all).await;
    }
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_weight_change_does_not_reconnect() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let backend = EchoServer::unregistered();
    let proxy = Proxy::start(backend.address().to_string()).await;
    let registration = registry.registration(Instance::new("echo", proxy.address())).build().expect("a good instance");
    registration.start();
    let mut changes = Changes::of(&registry, "echo");
    assert_eq!(changes.expect_insert(proxy.address()).await.weight(), 10);
    let mut client =
        EchoClient::new(registry.discover("echo").expect("a good name").balance_channel(|_, endpoint| endpoint));
    answered_by(&mut client).await;
    let lease = etcd.leases().await;

    for weight in [20, 30] {
        registration.update(|instance| instance.with_weight(weight).with_tag("zone", "b")).expect("a good weight");
        let updated = changes.expect_insert(proxy.address()).await;
        assert_eq!((updated.weight(), &updated.tags()["zone"]), (weight, "b"));
        answered_by(&mut client).await;
    }

    assert_eq!(proxy.accepted(), 1, "the connection is the first one");
    assert_eq!(etcd.leases().await, lease, "and so is the lease");
    registration.deregister().await;
}

#[tokio::test]
async fn more_changes_than_tonic_queues_are_neither_lost_nor_a_panic() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let channel = registry.discover("echo").expect("a good name").balance_channel(|_, endpoint| endpoint);
    let mut changes = Changes::of(&registry, "echo");
    // One transaction of etcd holds 128 writes; nothing listens on these addresses.
    let mut client = etcd.client().await;
    let write = |base: u16, delete: bool| {
        (base..base + 100).map(move |n| {
            let key = format!("kitex/registry-etcd/echo/127.0.0.2:{n}");
            let value = format!(r#"{{"address":"127.0.0.2:{n}"}}"#);
            if delete { etcd_client::TxnOp::delete(key, None) } else { etcd_client::TxnOp::put(key, value, None) }
        })
    };
    for batch in 0..20 {
        for delete in [false, true] {
            let txn = etcd_client::Txn::new().and_then(write(1 + batch * 100, delete).collect::<Vec<_>>());
            client.txn(txn).await.expect("etcd writes");
        }
    }
    let server = EchoServer::registered(&registry, "echo").await;
    let only_ours = async || {
        let snapshot = changes.stream().snapshot();
        snapshot.is_some_and(|snapshot| snapshot.len() == 1 && snapshot.get(server.registration().address()).is_some())
    };
    eventually("the snapshot holds what is left of 4,000 changes", LIMIT, only_ours).await;

    let mut client = EchoClient::new(channel);
    let reached = async || {
        let call = client.unary_echo(EchoRequest { message: "hi".into() });
        matches!(tokio::time::timeout(Duration::from_secs(5), call).await, Ok(Ok(_)))
    };
    eventually("the channel ends up at the server that is there", LIMIT, reached).await;
    for _ in 0..50 {
        assert_eq!(answered_by(&mut client).await, server.address().to_string(), "and at no other");
    }
    server.stop().await;
}
