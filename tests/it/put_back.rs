//! A registration that is removed from outside comes back within a second, and the clients notice nothing.

use std::time::Duration;

use tonic_etcd::{RegistrationStatus, Registry};

use crate::support::changes::Changes;
use crate::support::etcd::Etcd;
use crate::support::eventually;
use crate::support::server::EchoServer;

/// The promise.
const A_SECOND: Duration = Duration::from_secs(1);

/// A registered server, a client that knows it, and the key.
struct World {
    etcd: Etcd,
    server: EchoServer,
    changes: Changes,
    key: String,
    value: Vec<u8>,
    lease: i64,
}

impl World {
    async fn new() -> Self {
        let etcd = Etcd::start().await;
        let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
        let server = EchoServer::registered(&registry, "echo").await;
        let mut changes = Changes::of(&registry, "echo");
        changes.expect_insert(server.address()).await;
        let (key, value, lease) = etcd.keys("").await.pop().expect("the server is registered");
        Self { etcd, server, changes, key, value, lease }
    }

    /// Waits until the key stands in etcd as it did, under a lease that `is_right`.
    async fn comes_back(self, is_right: impl Fn(i64) -> bool) {
        let Self { etcd, server, mut changes, key, value, .. } = self;
        let back = async || match etcd.keys(&key).await.pop() {
            Some((_, now, lease)) => now == value && is_right(lease),
            None => false,
        };
        eventually("the key is back as it was", A_SECOND, back).await;
        let registered = async || matches!(server.registration().status(), RegistrationStatus::Registered { .. });
        eventually("the status says so", A_SECOND, registered).await;
        changes.expect_nothing_before(&etcd, "127.0.0.1:1").await;
        server.stop().await;
    }
}

#[tokio::test]
async fn a_revoked_lease_is_replaced_within_a_second() {
    let world = World::new().await;
    let old = world.lease;
    world.etcd.revoke(old).await;
    world.comes_back(|lease| lease != 0 && lease != old).await;
}

#[tokio::test]
async fn a_deleted_key_is_put_back_within_a_second() {
    let world = World::new().await;
    let old = world.lease;
    assert!(world.etcd.delete(world.key.clone()).await, "the key was there");
    world.comes_back(|lease| lease == old).await;
}

#[tokio::test]
async fn an_overwritten_key_is_put_back_within_a_second() {
    let world = World::new().await;
    let old = world.lease;
    world.etcd.put(world.key.clone(), "something else").await;
    world.comes_back(|lease| lease == old).await;
}

#[tokio::test]
async fn a_key_that_is_deleted_again_and_again_is_put_back_each_time() {
    let world = World::new().await;
    for _ in 0..3 {
        assert!(world.etcd.delete(world.key.clone()).await, "the key is there");
        let back = async || !world.etcd.keys(&world.key).await.is_empty();
        // Putting back is limited to once a second.
        eventually("the key is back", A_SECOND * 2, back).await;
    }
    let old = world.lease;
    world.comes_back(|lease| lease == old).await;
}

#[tokio::test]
async fn the_status_reports_the_loss_and_the_new_lease() {
    use futures_util::StreamExt;
    let world = World::new().await;
    let mut statuses = world.server.registration().status_changes();
    assert!(
        matches!(statuses.next().await, Some(RegistrationStatus::Registered { lease, .. }) if lease == world.lease)
    );
    world.etcd.revoke(world.lease).await;
    assert!(matches!(statuses.next().await, Some(RegistrationStatus::Lost { reason, .. }) if !reason.is_empty()));
    let mut last = statuses.next().await;
    // The deleted key may be seen before the dead lease: two reasons for one loss.
    while matches!(last, Some(RegistrationStatus::Lost { .. })) {
        last = statuses.next().await;
    }
    assert!(matches!(last, Some(RegistrationStatus::Registered { lease, .. }) if lease != world.lease), "{last:?}");
    world.server.stop().await;
    let rest: Vec<RegistrationStatus> = statuses.collect().await;
    assert_eq!(rest.last(), Some(&RegistrationStatus::Gone), "the stream ends with the registration");
}
