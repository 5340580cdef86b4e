//! Behind `etcd grpc-proxy`, which gathers the watches of many clients: registration and discovery, and what is lost
//! and comes back.

use std::time::Duration;

use tonic_etcd::{Instance, RegistrationStatus, Registry};

use crate::support::changes::Changes;
use crate::support::costs::Costs;
use crate::support::etcd::Etcd;
use crate::support::grpc_proxy::GrpcProxy;
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

/// Short, so that a test sees several renewals.
const TTL: Duration = Duration::from_secs(5);

/// An etcd, its proxy, and a registered server whose client knows it. Both are behind the proxy.
struct World {
    etcd: Etcd,
    proxy: GrpcProxy,
    /// In front of the proxy: it counts connections.
    gate: Proxy,
    registry: Registry,
    server: EchoServer,
    changes: Changes,
}

impl World {
    async fn new() -> Self {
        let etcd = Etcd::start().await;
        let proxy = GrpcProxy::start(etcd.url()).await;
        let gate = Proxy::start(proxy.address()).await;
        let registry = Registry::builder([gate.url()]).build().expect("a good registry");
        let server = server(&registry);
        let mut changes = Changes::of(&registry, "echo");
        changes.expect_insert(server.address()).await;
        Self { etcd, proxy, gate, registry, server, changes }
    }

    /// A server that comes and one that goes are reported, and a key that is deleted by hand is put back.
    async fn works(&mut self) {
        let another = server(&self.registry);
        let address = another.address();
        self.changes.expect_insert(address).await;
        another.stop().await;
        self.changes.expect_remove(address).await;
        self.changes.expect_nothing_before(&self.etcd, "127.0.0.1:2").await;
        let key = self.key().await.0;
        assert!(self.etcd.delete(key).await, "the key was there");
        eventually("the key is put back", LIMIT, async || self.is_registered().await).await;
    }

    /// The server's key, its value and its lease.
    async fn key(&self) -> (String, Vec<u8>, i64) {
        let address = self.server.address().to_string();
        let keys = self.etcd.keys("kitex/registry-etcd/echo/").await;
        keys.into_iter().find(|(key, ..)| key.ends_with(&address)).expect("the server is registered")
    }

    /// Whether etcd has the key under a lease that lives, and the status says so.
    async fn is_registered(&self) -> bool {
        let RegistrationStatus::Registered { key, lease, .. } = self.server.registration().status() else {
            return false;
        };
        let keys = self.etcd.keys(&key).await;
        keys.iter().any(|(_, _, of)| *of == lease) && self.etcd.leases().await.contains(&lease)
    }

    async fn end(self) {
        self.server.stop().await;
        let left = self.etcd.keys("kitex/registry-etcd/echo/").await;
        let is_of_test = |key: &str| key.ends_with(":1") || key.ends_with(":2");
        assert!(left.iter().all(|(key, ..)| is_of_test(key)), "the test's own keys alone are left: {left:?}");
    }
}

fn server(registry: &Registry) -> EchoServer {
    EchoServer::start(|address| registry.registration(Instance::new("echo", address)).ttl(TTL))
}

#[tokio::test]
async fn a_registration_is_kept_and_changes_are_reported_behind_a_grpc_proxy() {
    let mut world = World::new().await;
    let (_, _, lease) = world.key().await;
    // The proxy renews every 2 s at this TTL, and answers no sooner.
    assert!(world.changes.stays_quiet_for(TTL * 4).await, "nothing happens for four TTLs");
    assert_eq!(world.key().await.2, lease, "it is under the lease that it had");
    assert_eq!(world.gate.accepted(), 1, "on one connection");
    world.works().await;
    world.end().await;
}

#[tokio::test]
async fn a_grpc_proxy_that_is_killed_and_restarted_loses_nothing() {
    let mut world = World::new().await;
    world.proxy.kill();
    assert!(world.changes.stays_quiet_for(TTL * 2).await, "no change is reported without it");
    world.proxy.restart().await;
    eventually("the server is registered", LIMIT, async || world.is_registered().await).await;
    world.changes.expect_nothing_before(&world.etcd, "127.0.0.1:1").await;
    world.works().await;
    world.end().await;
}

#[tokio::test]
async fn an_etcd_behind_a_grpc_proxy_that_is_killed_and_restarted_loses_nothing() {
    let mut world = World::new().await;
    world.etcd.kill();
    assert!(world.changes.stays_quiet_for(TTL * 2).await, "no change is reported without it");
    world.etcd.restart().await;
    eventually("the server is registered", LIMIT, async || world.is_registered().await).await;
    eventually("the watches are back", LIMIT, async || Costs::of(&world.etcd).await.watchers() > 0).await;
    world.changes.expect_nothing_before(&world.etcd, "127.0.0.1:1").await;
    world.works().await;
    world.end().await;
}
