//! Three members, one of which is lost, frozen or cut off; and members that are none.

use std::time::{Duration, Instant};

use tonic_etcd::{Instance, RegistrationStatus, Registry, RegistryError};

use crate::support::changes::Changes;
use crate::support::costs::Costs;
use crate::support::etcd::{Cluster, Etcd};
use crate::support::figures;
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

/// A TTL that keepalives through one silent member would not save.
const TTL: Duration = Duration::from_secs(5);

fn registry(urls: impl IntoIterator<Item = String>) -> Registry {
    Registry::builder(urls).build().expect("a good registry")
}

fn server(registry: &Registry) -> EchoServer {
    EchoServer::start(|address| registry.registration(Instance::new("echo", address)).ttl(TTL))
}

/// The lease that the server is registered under now.
fn lease(server: &EchoServer) -> i64 {
    match server.registration().status() {
        RegistrationStatus::Registered { lease, .. } => lease,
        status => panic!("it is registered: {status}"),
    }
}

/// Three registered servers, a stream that has reported them, and their leases.
async fn three(registry: &Registry) -> ([EchoServer; 3], Changes, Vec<i64>) {
    let servers = [server(registry), server(registry), server(registry)];
    let mut changes = Changes::of(registry, "echo");
    for server in &servers {
        server.registration().registered().await.expect("it is not deregistered");
        changes.next().await;
    }
    let leases = servers.iter().map(lease).collect();
    (servers, changes, leases)
}

/// A registered server and a stream which both talk to this member first, and know another one.
async fn on(cluster: &Cluster, member: usize, other: usize) -> (EchoServer, Changes) {
    let urls = [cluster.member(member).url(), cluster.member(other).url()];
    // Which one is asked first is left to chance.
    let mut tries = 0;
    loop {
        tries += 1;
        assert!(tries < 50, "chance favours no member");
        let registry = registry(urls.clone());
        let server = server(&registry);
        server.registration().registered().await.expect("it is not deregistered");
        let mut changes = Changes::of(&registry, "echo");
        changes.expect_insert(server.address()).await;
        // Its own key, and the service.
        if Costs::of(cluster.member(member)).await.watchers() == 2 {
            return (server, changes);
        }
        drop(changes);
        server.stop().await;
        let both = [cluster.member(member), cluster.member(other)];
        let none = async || Costs::of(&both).await.watchers() == 0;
        eventually("their watches end", LIMIT, none).await;
    }
}

/// Waits until the next change, which a test's own key makes, and says how long that took.
async fn told(changes: &mut Changes, cluster: &Cluster, through: usize, since: Instant) -> Duration {
    changes.expect_nothing_before(cluster.member(through), "127.0.0.1:1").await;
    since.elapsed()
}

#[tokio::test]
async fn a_member_that_takes_no_claims_leaves_them_to_the_others() {
    // Its answer to each claim is an error of its own; grants and watches it serves.
    let cluster = Etcd::builder().arg_of_first("--max-request-bytes=60").start_cluster().await;
    let mut servers = Vec::new();
    // Each begins with a member of its own choice.
    for _ in 0..12 {
        servers.push(server(&registry(cluster.urls())));
    }
    for server in &servers {
        let registered = tokio::time::timeout(LIMIT, server.registration().registered()).await;
        registered.expect("the other members take its claim").expect("it is not deregistered");
    }
}

#[tokio::test]
async fn a_lease_of_five_seconds_survives_a_frozen_leader() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let registry = registry(cluster.urls());
    let (servers, mut changes, leases) = three(&registry).await;
    cluster.member(leader).freeze();
    let quiet = changes.stays_quiet_for(TTL * 2).await;
    assert!(quiet, "no instance is lost while the leader stands still");
    let kept: Vec<i64> = servers.iter().map(lease).collect();
    assert_eq!(kept, leases, "each is under the lease that it had");
    let alive = cluster.member((leader + 1) % 3).leases().await;
    assert!(leases.iter().all(|lease| alive.contains(lease)), "etcd has all of them");
    // The old leader may revoke what it thinks has expired, and then it is put back.
    cluster.member(leader).resume();
    changes.expect_nothing_before(cluster.member((leader + 1) % 3), "127.0.0.1:1").await;
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_watch_and_a_lease_move_off_a_member_that_is_cut_off_from_the_leader() {
    let cluster = Etcd::builder().start_divisible_cluster().await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let (server, mut changes) = on(&cluster, follower, leader).await;
    let had = lease(&server);

    let since = Instant::now();
    cluster.cut_off(follower).await;
    let took = told(&mut changes, &cluster, leader, since).await;
    figures::within("a watch moves off a member that is cut off", took, Duration::from_secs(6));
    assert!(changes.stays_quiet_for(TTL * 2).await, "the instance is not lost");
    assert_eq!(lease(&server), had, "and is under the lease that it had");
    cluster.reunite();
    server.stop().await;
}

#[tokio::test]
async fn a_watch_and_a_lease_move_off_a_member_that_is_frozen() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let (server, mut changes) = on(&cluster, follower, leader).await;
    let had = lease(&server);

    let before = Costs::of(cluster.member(leader)).await;
    let since = Instant::now();
    cluster.member(follower).freeze();
    eventually("the lease is renewed elsewhere", TTL, async || before.until_now().await.renewals() > 0).await;
    let took = told(&mut changes, &cluster, leader, since).await;
    figures::within("a watch moves off a member that is frozen", took, Duration::from_secs(20));
    assert!(changes.stays_quiet_for(TTL).await, "the instance is not lost");
    assert_eq!(lease(&server), had, "and is under the lease that it had");
    cluster.member(follower).resume();
    server.stop().await;
}

#[tokio::test]
async fn whichever_member_is_lost_no_change_is() {
    let cluster = Cluster::start().await;
    let mut discover = registry(cluster.urls()).discover("echo").expect("a good name");
    discover.ready().await;
    let key = |n: usize| format!("kitex/registry-etcd/echo/127.0.0.1:{}", 1000 + n);
    let value = |n: usize, weight: usize| format!(r#"{{"address":"127.0.0.1:{}","weight":{weight}}}"#, 1000 + n);
    for lost in 0..3 {
        cluster.member(lost).kill();
        // Without a leader no write succeeds.
        cluster.leader().await;
        let there = cluster.member((lost + 1) % 3);
        for change in 1..=60 {
            let n = fastrand::usize(..20);
            if fastrand::bool() {
                there.put(key(n), value(n, 100 * (lost + 1) + change)).await;
            } else {
                there.delete(key(n)).await;
            }
        }
        // The last one, so that all that came before is known.
        let mark = 1000 + lost;
        there.put(key(20), value(20, mark)).await;
        eventually("the last change is reported", LIMIT, async || {
            let snapshot = discover.snapshot().expect("the first list came");
            snapshot.iter().any(|member| usize::from(member.instance().weight()) == mark)
        })
        .await;
        let snapshot = discover.snapshot().expect("the first list came");
        let told: Vec<_> = snapshot
            .iter()
            .map(|member| (member.instance().address().to_string(), member.instance().weight()))
            .collect();
        let there = there.keys("kitex/registry-etcd/echo/").await;
        let there: Vec<_> = there.iter().map(|(_, value, _)| read(value)).collect();
        assert_eq!(told, there, "without member {lost}");
        cluster.member(lost).restart().await;
    }
}

fn read(value: &[u8]) -> (String, u16) {
    let value: serde_json::Value = serde_json::from_slice(value).expect("the test's own value");
    let weight = value["weight"].as_u64().and_then(|weight| weight.try_into().ok()).expect("a weight");
    (value["address"].as_str().expect("an address").to_owned(), weight)
}

#[tokio::test]
async fn members_of_two_clusters_are_a_typed_error_until_they_are_one() {
    let (one, other) = (Etcd::start().await, Etcd::builder().arg("--initial-cluster-token=other").start().await);
    for _ in 0..4 {
        let registry = registry([one.url(), other.url()]);
        match registry.services().await {
            Err(RegistryError::SplitCluster { source, .. }) => {
                let source =
                    std::error::Error::source(&*source).expect("it says which member is of which cluster").to_string();
                assert!(source.contains(&one.url()) && source.contains(&other.url()), "{source} names both");
            }
            answer => panic!("it is refused: {answer:?}"),
        }
        let mut discover = registry.discover("echo").expect("a good name");
        let known = tokio::time::timeout(Duration::from_millis(300), discover.ready()).await;
        assert!(known.is_err(), "a list of one of them is none");
    }
    let registry = registry([one.url(), other.url()]);
    let registered = server(&registry);
    let early = tokio::time::timeout(Duration::from_secs(2), registered.registration().registered()).await;
    assert!(early.is_err(), "it is registered in neither");
    assert!(one.keys("").await.is_empty() && other.keys("").await.is_empty(), "nothing was written");

    other.kill();
    let registration = registered.registration().registered();
    tokio::time::timeout(LIMIT, registration).await.expect("one of them is left").expect("it is not deregistered");
    // On a busy machine the one that is left may have been silent for a moment, when the other one was all there was.
    let is_listed = async || registry.services().await.is_ok_and(|services| services.len() == 1);
    eventually("it is one cluster, with the server in it", LIMIT, is_listed).await;
    registered.stop().await;
}

#[tokio::test]
async fn a_member_of_another_cluster_among_three_is_passed_over() {
    let cluster = Cluster::start().await;
    let stranger = Etcd::start().await;
    let urls = [cluster.member(0).url(), stranger.url(), cluster.member(2).url()];
    // Whichever member is asked first.
    for _ in 0..6 {
        let registry = registry(urls.clone());
        let server = EchoServer::registered(&registry, "echo").await;
        let mut discover = registry.discover("echo").expect("a good name");
        assert_eq!(discover.ready().await.len(), 1, "the server is found");
        server.stop().await;
    }
    assert_eq!(stranger.revision().await, 1, "nothing was ever written there");
}

#[tokio::test]
async fn a_stranger_among_three_costs_no_lease_while_a_member_is_lost() {
    let cluster = Cluster::start().await;
    let stranger = Etcd::start().await;
    let registry = registry([cluster.member(0).url(), stranger.url(), cluster.member(2).url()]);
    let (servers, mut changes, leases) = three(&registry).await;
    let strange = stranger.leases().await;
    for (lost, other) in [(0, 2), (2, 0)] {
        cluster.member(lost).kill();
        assert!(changes.stays_quiet_for(TTL).await, "no instance is lost while member {lost} is");
        let alive = cluster.member(other).leases().await;
        assert!(leases.iter().all(|lease| alive.contains(lease)), "all are renewed without member {lost}");
        cluster.member(lost).restart().await;
        assert!(changes.stays_quiet_for(TTL / 2).await, "nor when it is back");
    }
    assert_eq!(servers.iter().map(lease).collect::<Vec<_>>(), leases, "each is under the lease that it had");
    assert!(stranger.keys("").await.is_empty(), "no key was put there");
    assert!(stranger.leases().await.iter().all(|lease| strange.contains(lease)), "nor a lease, once it was known");
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_stranger_is_not_believed_while_a_member_is_silent() {
    let cluster = Cluster::start().await;
    let stranger = Etcd::start().await;
    let registered = EchoServer::registered(&registry(cluster.urls()), "echo").await;
    let silent = (cluster.leader().await + 1) % 3;
    let urls = [cluster.member(silent).url(), stranger.url(), cluster.member((silent + 1) % 3).url()];
    cluster.member(silent).freeze();
    let mut early = Vec::new();
    // Whichever member is asked first.
    for _ in 0..6 {
        let mut discover = registry(urls.clone()).discover("echo").expect("a good name");
        let known = tokio::time::timeout(Duration::from_secs(4), discover.ready()).await;
        assert!(known.is_err(), "one says this and one says that");
        early.push(discover);
    }
    cluster.member(silent).resume();
    for mut discover in early {
        let known = tokio::time::timeout(LIMIT, discover.ready()).await.expect("most of them are one cluster");
        assert_eq!(known.len(), 1, "the server is found");
    }
    registered.stop().await;
}

#[tokio::test]
async fn a_cluster_that_was_set_up_anew_is_no_other_cluster() {
    let etcd = Etcd::start().await;
    let (one, two) = (Proxy::start(etcd.address()).await, Proxy::start(etcd.address()).await);
    let registry = registry([one.url(), two.url()]);
    let servers = [server(&registry), server(&registry)];
    let mut changes = Changes::of(&registry, "echo");
    for server in &servers {
        server.registration().registered().await.expect("it is not deregistered");
        changes.next().await;
    }
    etcd.set_up_anew().await;
    let set_up = Instant::now();
    let back = async || etcd.keys("").await.len() == 2;
    eventually("both servers registered with the new etcd", LIMIT, back).await;
    changes.expect_nothing_before(&etcd, "127.0.0.1:1").await;
    figures::within("a cluster that was set up anew is followed", set_up.elapsed(), Duration::from_secs(10));
    for server in servers {
        server.stop().await;
    }
}
