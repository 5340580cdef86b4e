//! Five hundred registrations that lose their leases at the same moment.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use etcd_client::{EventType, WatchOptions};
use tonic_etcd::{Instance, Registration, Registry};

use crate::support::etcd::Etcd;
use crate::support::figures;
use crate::support::metrics::{renewals, started, traffic, watchers};
use crate::support::{LIMIT, eventually};

const HERD: usize = 500;

const TTL: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_lost_leases_are_back_within_ten_seconds_and_spare_etcd() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let herd: Vec<Registration> = (0..HERD).map(|n| register(&registry, n)).collect();
    let all = async || etcd.keys("kitex/registry-etcd/echo/").await.len() == HERD;
    eventually("all are registered", LIMIT, all).await;
    let (leases, grants, claims) = (etcd.leases().await, asked(&etcd, "LeaseGrant").await, asked(&etcd, "Txn").await);
    assert_eq!((leases.len(), grants, claims), (HERD, HERD, HERD), "one grant and one claim each");

    eventually("each watches its key", LIMIT, async || watchers(&etcd).await == HERD as u64).await;
    // What it costs to be registered: three keepalives a TTL each, and nothing else.
    let (since, before, bytes) = (Instant::now(), renewals(&etcd).await, traffic(&etcd).await);
    tokio::time::sleep(TTL).await;
    let a_ttl = since.elapsed().as_secs_f64() / TTL.as_secs_f64();
    let count = renewals(&etcd).await - before;
    let bytes = usize::try_from((traffic(&etcd).await - bytes) / count).expect("few");
    figures::at_most("what a keepalive and its answer take", bytes, 64, "bytes");
    let each = f64::from(u32::try_from(count).expect("few")) / 500.0 / a_ttl;
    assert!((2.4..3.6).contains(&each), "{each} keepalives an instance and TTL");
    assert_eq!((asked(&etcd, "LeaseGrant").await, asked(&etcd, "Txn").await), (grants, claims), "and nothing else");

    let mut client = etcd.client().await;
    let options = WatchOptions::new().with_prefix();
    let mut watch = client.watch("kitex/registry-etcd/echo/", Some(options)).await.expect("etcd watches");
    etcd.freeze();
    tokio::time::sleep(TTL + Duration::from_secs(4)).await;
    etcd.resume();
    let resumed = Instant::now();
    let mut puts = Vec::new();
    while puts.len() < HERD {
        let response = tokio::time::timeout(LIMIT, watch.message()).await.expect("all come back in time");
        let response = response.expect("the watch lives").expect("the watch does not end");
        let is_put = |event: &&etcd_client::Event| event.event_type() == EventType::Put;
        puts.extend(response.events().iter().filter(is_put).map(|_| resumed.elapsed()));
    }
    figures::within("five hundred that lost their leases are back", puts[HERD - 1], Duration::from_secs(10));
    let spread = puts[HERD * 9 / 10].saturating_sub(puts[HERD / 10]);
    assert!(spread >= Duration::from_millis(100), "most of them came within {spread:?}");
    eventually("each is registered", LIMIT, all).await;
    let left = etcd.leases().await;
    assert!(left.len() <= HERD + HERD / 10 && !left.iter().any(|lease| leases.contains(lease)), "under new leases");
    let grants = asked(&etcd, "LeaseGrant").await - grants;
    let claims = asked(&etcd, "Txn").await - claims;
    // A grant each, and a second claim where the key under the dead lease is still there; and some patience.
    figures::at_most("leases that five hundred ask for to come back", grants, HERD * 3 / 2, "grants");
    figures::at_most("claims that five hundred make to come back", claims, HERD * 3, "claims");
    futures_util::future::join_all(herd.iter().map(Registration::deregister)).await;
    assert!(etcd.keys("").await.is_empty(), "all have left");
}

fn register(registry: &Registry, n: usize) -> Registration {
    let third = u8::try_from(n / 250).expect("few hundreds");
    let address = SocketAddr::from(([127, 0, third, u8::try_from(n % 250).expect("it is below 250")], 80));
    let registration = registry.registration(Instance::new("echo", address)).ttl(TTL).build().expect("good options");
    registration.start();
    registration
}

async fn asked(etcd: &Etcd, method: &str) -> usize {
    usize::try_from(started(etcd, method).await).expect("a count")
}
