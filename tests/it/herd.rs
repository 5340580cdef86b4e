//! Five hundred registrations that lose their leases at the same moment.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use etcd_client::{EventType, WatchOptions};
use tonic_etcd::{Instance, Registration, Registry};

use crate::support::costs::{Costs, figure};
use crate::support::etcd::Etcd;
use crate::support::figures;
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
    let leases = etcd.leases().await;
    let spent = Costs::of(&etcd).await;
    let asked = [leases.len(), calls(&spent, "LeaseGrant"), calls(&spent, "Txn")];
    assert_eq!(asked, [HERD; 3], "one grant and one claim each");

    eventually("each watches its key", LIMIT, async || Costs::of(&etcd).await.watchers() == HERD as u64).await;
    // What it costs to be registered: three keepalives a TTL each, and nothing else.
    let before = Costs::of(&etcd).await;
    let since = Instant::now();
    tokio::time::sleep(TTL).await;
    let spent = before.until_now().await;
    // Both ends are where the costs have been read, which takes a while on a busy machine.
    let a_ttl = since.elapsed().as_secs_f64() / TTL.as_secs_f64();
    let bytes = usize::try_from(spent.bytes() / spent.renewals()).expect("few");
    figures::at_most("what a keepalive and its answer take", bytes, 64, "bytes");
    let each = figure(spent.renewals()) / 500.0 / a_ttl;
    assert!((2.4..3.6).contains(&each), "{each} keepalives an instance and TTL");
    assert_eq!([calls(&spent, "LeaseGrant"), calls(&spent, "Txn")], [0; 2], "and nothing else");

    let mut client = etcd.client().await;
    let options = WatchOptions::new().with_prefix();
    let mut watch = client.watch("kitex/registry-etcd/echo/", Some(options)).await.expect("etcd watches");
    let before = Costs::of(&etcd).await;
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
    let spent = before.until_now().await;
    let (grants, claims) = (calls(&spent, "LeaseGrant"), calls(&spent, "Txn"));
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

fn calls(spent: &Costs, method: &str) -> usize {
    usize::try_from(spent.calls(method)).expect("few of them")
}
