//! An etcd that answers late, and lives: its connections and streams stay, and leases are kept.

use std::collections::BTreeSet;
use std::time::Duration;

use tonic_etcd::{Instance, RegistrationStatus, Registry};

use crate::support::costs::Costs;
use crate::support::etcd::Etcd;
use crate::support::figures;
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

const DELAY: Duration = Duration::from_secs(7);

const TTL: Duration = Duration::from_secs(15);

/// How long answers are late.
const SLOW: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keepalives_that_are_answered_7_s_late_cost_hardly_a_connection_or_a_stream() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let registry = Registry::builder([proxy.url()]).build().expect("a good registry");
    let start = || EchoServer::start(|address| registry.registration(Instance::new("echo", address)).ttl(TTL));
    let servers = [start(), start(), start()];
    for server in &servers {
        server.registration().registered().await.expect("it is not deregistered");
    }
    let renewals = async || Costs::of(&etcd).await.renewals();
    eventually("the leases were renewed once", LIMIT, async || renewals().await >= 3).await;
    let leases: BTreeSet<i64> = etcd.leases().await.into_iter().collect();
    let (connections, before) = (proxy.accepted(), Costs::of(&etcd).await);

    proxy.delay(DELAY);
    tokio::time::sleep(SLOW).await;
    let (made, spent) = (proxy.accepted() - connections, before.until_now().await);
    proxy.delay(Duration::ZERO);

    figures::at_most("connections made while answers are 7 s late", made, 2, "connections");
    let streams = usize::try_from(spent.calls("LeaseKeepAlive")).expect("few");
    figures::at_most("keepalive streams opened while answers are 7 s late", streams, 2, "streams");
    // Two or three renewals of each lease.
    assert!((4..=12).contains(&spent.renewals()), "renewals of three leases in {SLOW:?}: {spent:?}");
    let now = renewals().await;
    eventually("the leases are renewed again", LIMIT, async || renewals().await >= now + 3).await;
    assert_eq!(etcd.leases().await.into_iter().collect::<BTreeSet<_>>(), leases, "each lease is kept");
    for server in &servers {
        let status = server.registration().status();
        assert!(matches!(status, RegistrationStatus::Registered { .. }), "{status}");
    }
    for server in servers {
        server.stop().await;
    }
}
