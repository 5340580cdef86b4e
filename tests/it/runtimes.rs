//! A registry outlives the runtimes that use it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tonic_etcd::{Instance, Registration, RegistrationStatus, Registry};

use crate::support::changes::Changes;
use crate::support::etcd::Etcd;
use crate::support::{LIMIT, eventually};

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

fn start(registry: &Registry, port: u16) -> Registration {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let instance = Instance::new("echo", address);
    let registration = registry.registration(instance).ttl(Duration::from_secs(2)).build().expect("a good instance");
    registration.start();
    registration
}

#[test]
fn a_second_runtime_goes_on_where_the_first_has_ended() {
    let (first, second) = (runtime(), runtime());
    let etcd = second.block_on(Etcd::start());
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");

    // The first runtime opens the connections, runs the watch and the keepalives of both registrations.
    let one = first.block_on(async {
        let one = start(&registry, 1001);
        one.registered().await.expect("it is not gone");
        let mut changes = Changes::of(&registry, "echo");
        changes.expect_insert("127.0.0.1:1001").await;
        // It goes on in the second runtime.
        (one, changes)
    });
    let (one, mut changes) = one;
    let two = second.block_on(async {
        let two = start(&registry, 1002);
        two.registered().await.expect("it is not gone");
        changes.expect_insert("127.0.0.1:1002").await;
        two
    });
    let before = two.status();
    first.shutdown_timeout(Duration::from_secs(10));

    second.block_on(async {
        assert_eq!(one.status(), RegistrationStatus::Gone, "a registration ends with its runtime");
        let key = "kitex/registry-etcd/echo/127.0.0.1:1002";
        let kept = async || {
            let gone = etcd.keys("kitex/registry-etcd/echo/127.0.0.1:1001").await.is_empty();
            gone && !etcd.keys(key).await.is_empty()
        };
        eventually("the other one's lease is kept while the first one's ends", LIMIT, kept).await;
        changes.expect_remove("127.0.0.1:1001").await;
        changes.expect_nothing_before(&etcd, "127.0.0.1:1003").await;
        assert_eq!(two.status(), before, "under the lease that it had");
        let port = |port: u16| SocketAddr::from(([127, 0, 0, 1], port)).into();
        let snapshot = changes.stream().snapshot().expect("it was listed long ago");
        assert!(snapshot.get(&port(1001)).is_none() && snapshot.get(&port(1003)).is_some(), "it is the newest");
        two.deregister().await;
        assert!(etcd.keys(key).await.is_empty(), "and it can leave");
    });
}
