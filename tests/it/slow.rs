//! An etcd that answers late, and lives: its connections and streams stay, and leases are kept.

use std::collections::BTreeSet;
use std::time::Duration;

use tonic_etcd::{Instance, RegistrationStatus, Registry};

use crate::support::etcd::Etcd;
use crate::support::figures;
use crate::support::metrics::{renewals, started};
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

const DELAY: Duration = Duration::from_secs(7);

const TTL: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keepalives_that_are_answered_7_s_late_cost_no_connection_and_hardly_a_stream() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let registry = Registry::builder([proxy.url()]).build().expect("a good registry");
    let start = || EchoServer::start(|address| registry.registration(Instance::new("echo", address)).ttl(TTL));
    let servers = [start(), start(), start()];
    for server in &servers {
        server.registration().registered().await.expect("it is not deregistered");
    }
    eventually("the leases were renewed once", LIMIT, async || renewals(&etcd).await >= 3).await;
    let leases: BTreeSet<i64> = etcd.leases().await.into_iter().collect();
    let (connections, streams, kept) =
        (proxy.accepted(), started(&etcd, "LeaseKeepAlive").await, renewals(&etcd).await);

    proxy.delay(DELAY);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let streams = usize::try_from(started(&etcd, "LeaseKeepAlive").await - streams).expect("few");
    let kept = renewals(&etcd).await - kept;
    proxy.delay(Duration::ZERO);

    figures::at_most("keepalive streams opened while answers are 7 s late for 30 s", streams, 2, "streams");
    // Three leases, six renewals each.
    assert!((12..=24).contains(&kept), "{kept} renewals in two TTLs");
    assert_eq!(etcd.leases().await.into_iter().collect::<BTreeSet<_>>(), leases, "each lease is kept");
    for server in &servers {
        let status = server.registration().status();
        assert!(matches!(status, RegistrationStatus::Registered { .. }), "{status}");
    }
    figures::at_most("connections made while answers are 7 s late", proxy.accepted() - connections, 0, "connections");
    for server in servers {
        server.stop().await;
    }
}
