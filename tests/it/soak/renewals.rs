//! What registrations cost over minutes, and what thousands of them cost when their leases end together.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::time;
use tonic_etcd::{Instance, Registration, Registry};

use crate::support::changes::Changes;
use crate::support::costs::Costs;
use crate::support::etcd::Etcd;
use crate::support::figures;
use crate::support::grpc_proxy::GrpcProxy;
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: takes three minutes"]
async fn a_grpc_proxy_is_dialled_once_in_150_s_and_keeps_the_lease() {
    let etcd = Etcd::start().await;
    let proxy = GrpcProxy::start(etcd.url()).await;
    let gate = Proxy::start(proxy.address()).await;
    let registry = Registry::builder([gate.url()]).build().expect("a good registry");
    let server = EchoServer::registered(&registry, "echo").await;
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;
    let lease = etcd.leases().await;
    time::sleep(Duration::from_secs(60)).await;
    let first_minute = proxy.log().len();
    time::sleep(Duration::from_secs(90)).await;
    let is_error = |line: &String| line.to_lowercase().contains("error");
    let errors: Vec<_> = proxy.log().into_iter().skip(first_minute).filter(is_error).collect();
    println!("{} lines with errors after the first minute: {:?}", errors.len(), errors.first());
    assert_eq!(etcd.leases().await, lease, "the lease is kept");
    figures::at_most("connections to a grpc-proxy in 150 s", gate.accepted(), 1, "connections");
    let put = Instant::now();
    changes.expect_nothing_before(&etcd, "127.0.0.1:1").await;
    figures::within("a change is reported behind a grpc-proxy", put.elapsed(), Duration::from_secs(1));
    server.stop().await;
}

const TTL: Duration = Duration::from_secs(10);

const PROCESSES: usize = 20;

const EACH: usize = 100;

const ALL: usize = PROCESSES * EACH;

const PREFIX: &str = "kitex/registry-etcd/echo/";

/// Registrations as of twenty processes: those of one have a registry in common.
async fn two_thousand(etcd: &Etcd) -> Vec<Registration> {
    let mut all = Vec::new();
    for process in 0..PROCESSES {
        let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
        for n in 0..EACH {
            let octet = |n: usize| u8::try_from(n).expect("few");
            let address = SocketAddr::from(([127, 0, octet(process), octet(n)], 80));
            let registration = registry.registration(Instance::new("echo", address)).ttl(TTL);
            all.push(registration.build().expect("good options"));
        }
    }
    for registration in &all {
        registration.start();
    }
    let registered = async || etcd.keys(PREFIX).await.len() == ALL;
    eventually("all are registered", LIMIT * 2, registered).await;
    all
}

/// How many of these calls were started, and what the figures show of them.
async fn calls(etcd: &Etcd) -> [usize; 4] {
    let mut counts = [0; 4];
    for (count, method) in counts.iter_mut().zip(CALLS) {
        *count = usize::try_from(Costs::of(etcd).await.calls(method)).expect("a count");
    }
    counts
}

const CALLS: [&str; 4] = ["LeaseGrant", "Txn", "Watch", "Range"];

/// Waits until all are back under leases that live, and says when half of them and all were.
async fn back(etcd: &Etcd, since: Instant, is_new: impl Fn(i64) -> bool) -> Duration {
    let mut half = None;
    eventually("all are back", LIMIT * 2, async || {
        let count = etcd.keys(PREFIX).await.iter().filter(|(_, _, lease)| is_new(*lease)).count();
        if count * 2 >= ALL {
            half.get_or_insert_with(|| since.elapsed());
        }
        // Each look lists all of them.
        time::sleep(Duration::from_millis(100)).await;
        count == ALL
    })
    .await;
    let took = since.elapsed();
    println!("half of two thousand were back after {half:?}, all after {took:?}");
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: needs two cores for itself"]
async fn two_thousand_leases_that_die_in_a_frozen_etcd_are_replaced_within_ten_seconds() {
    let etcd = Etcd::start().await;
    let all = two_thousand(&etcd).await;
    let (old, before) = (etcd.leases().await, calls(&etcd).await);
    etcd.freeze();
    time::sleep(TTL + Duration::from_secs(4)).await;
    etcd.resume();
    let took = back(&etcd, Instant::now(), |lease| !old.contains(&lease)).await;
    let after = calls(&etcd).await;
    for ((method, after), before) in CALLS.iter().zip(after).zip(before) {
        println!("{method}: {} for two thousand", after - before);
    }
    figures::within("two thousand that lost their leases are back", took, Duration::from_secs(10));
    let left = etcd.leases().await;
    assert!(!left.iter().any(|lease| old.contains(lease)), "all under new leases");
    drop(all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: needs two cores for itself"]
async fn two_thousand_registrations_are_back_in_a_wiped_etcd_with_two_watches_and_reads_each() {
    let etcd = Etcd::start().await;
    let all = two_thousand(&etcd).await;
    etcd.wipe_and_restart().await;
    let took = back(&etcd, Instant::now(), |_| true).await;
    // What came up with the last ones as well.
    time::sleep(Duration::from_secs(2)).await;
    let [grants, claims, watches, reads] = calls(&etcd).await;
    println!("{grants} grants, {claims} claims, {watches} watches, {reads} reads for two thousand");
    figures::within("two thousand are back in a wiped etcd", took, Duration::from_secs(10));
    figures::at_most("watches opened by two thousand in a wiped etcd", watches, 2 * ALL, "watches");
    // The test's own looks count as well.
    figures::at_most("reads by two thousand in a wiped etcd", reads, 2 * ALL + 200, "reads");
    drop(all);
}
