//! What many watches and many clients cost one etcd.

use std::time::Duration;

use tonic_etcd::{Discover, Registry};

use crate::support::costs::Costs;
use crate::support::etcd::{Cluster, Etcd};
use crate::support::proxy::Proxy;
use crate::support::{LIMIT, eventually};

fn registry(urls: impl IntoIterator<Item = String>) -> Registry {
    Registry::builder(urls).build().expect("a good registry")
}

/// Watches of as many services, each of which has listed.
async fn watches(registry: &Registry, count: usize) -> Vec<Discover> {
    let mut watches: Vec<_> = (0..count).map(|n| registry.discover(format!("echo{n}")).expect("a good name")).collect();
    for watch in &mut watches {
        watch.ready().await;
    }
    watches
}

/// Puts an instance of each service, and waits until each watch has told of its own.
async fn each_is_told(etcd: &Etcd, watches: &mut [Discover], port: u16) {
    for n in 0..watches.len() {
        let value = format!(r#"{{"network":"tcp","address":"127.0.0.1:{port}","weight":10,"tags":null}}"#);
        etcd.put(format!("kitex/registry-etcd/echo{n}/127.0.0.1:{port}"), value).await;
    }
    for watch in watches {
        eventually("the instance is known", LIMIT, async || {
            let snapshot = watch.snapshot().expect("the first list came");
            snapshot.iter().any(|member| member.instance().address().to_string().ends_with(&format!(":{port}")))
        })
        .await;
    }
}

#[tokio::test]
async fn fifty_services_share_one_watch_stream_and_one_connection() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let registry = registry([proxy.url()]);
    let mut watches = watches(&registry, 50).await;
    eventually("each is watched", LIMIT, async || Costs::of(&etcd).await.watchers() == 50).await;
    each_is_told(&etcd, &mut watches, 1).await;
    assert_eq!(Costs::of(&etcd).await.calls("Watch"), 1, "one stream for all");
    assert_eq!(proxy.accepted(), 1, "on the connection that lists came over");

    let rest = watches.split_off(25);
    drop(rest);
    eventually("half of them have ended", LIMIT, async || Costs::of(&etcd).await.watchers() == 25).await;
    each_is_told(&etcd, &mut watches, 2).await;
    drop(watches);
    eventually("so have the others", LIMIT, async || Costs::of(&etcd).await.watchers() == 0).await;
    assert_eq!(Costs::of(&etcd).await.calls("Watch"), 1, "no other stream was opened");
}

#[tokio::test]
async fn a_hundred_watches_wait_for_an_etcd_that_is_slow() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let registry = registry([proxy.url()]);
    let mut watches = watches(&registry, 100).await;
    eventually("each is watched", LIMIT, async || Costs::of(&etcd).await.watchers() == 100).await;
    let before = Costs::of(&etcd).await;
    // Longer than a call usually may take.
    proxy.delay(Duration::from_secs(7));
    tokio::time::sleep(Duration::from_secs(30)).await;
    proxy.delay(Duration::ZERO);
    each_is_told(&etcd, &mut watches, 1).await;
    let spent = before.until_now().await;
    assert_eq!(spent.calls("Watch"), 0, "no stream is opened anew: {spent:?}");
    assert!(spent.calls("Range") <= 10, "{spent:?}");
    assert_eq!(proxy.accepted(), 1, "nor another connection");
}

#[tokio::test]
async fn watches_leave_a_member_for_all_others_and_go_back_when_it_is_there_again() {
    const CLIENTS: usize = 60;
    let cluster = Cluster::start().await;
    let registries: Vec<_> = (0..CLIENTS).map(|_| registry(cluster.urls())).collect();
    let mut discovers = Vec::new();
    for registry in &registries {
        discovers.extend(watches(registry, 1).await);
    }
    let share = async |index: usize| usize::try_from(Costs::of(cluster.member(index)).await.watchers()).expect("few");
    let shares = async || [share(0).await, share(1).await, share(2).await];
    eventually("each is watched", LIMIT, async || shares().await.iter().sum::<usize>() == CLIENTS).await;
    let before = shares().await;
    let lost = (0..3).max_by_key(|index| before[*index]).expect("there are three");
    cluster.member(lost).kill();
    let [one, other] = [1, 2].map(|step| (lost + step) % 3);
    let moved = async || share(one).await + share(other).await == CLIENTS;
    eventually("its watches are on the others", LIMIT, moved).await;
    // Chance decides, not the order of the URLs: of 20 at least, all go one way once in 500,000 times.
    assert!(share(one).await > before[one] && share(other).await > before[other], "each has some of them");
    cluster.member(lost).restart().await;
    eventually("all are where they were", LIMIT * 3, async || shares().await == before).await;
    for discover in &discovers {
        assert!(discover.snapshot().is_some(), "each is current");
    }
}
