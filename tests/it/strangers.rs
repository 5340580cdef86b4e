//! A stranger, a member of another cluster, among members of ours that are unreachable, frozen or come later.

use std::time::Duration;

use tonic_etcd::{Instance, Registration, RegistrationStatus, Registry, RegistryError};

use crate::auth::{ADMIN, PASSWORD, add_users, admin};
use crate::support::costs::Costs;
use crate::support::etcd::{Cluster, Etcd};
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

const TTL: Duration = Duration::from_secs(5);

/// Where Kitex servers of this service stand.
const RANGE: &str = "kitex/registry-etcd/echo/";

fn registry(urls: impl IntoIterator<Item = String>) -> Registry {
    Registry::builder(urls).build().expect("a good registry")
}

async fn registered(registry: &Registry) -> EchoServer {
    let server = EchoServer::start(|address| registry.registration(Instance::new("echo", address)).ttl(TTL));
    let registration = tokio::time::timeout(LIMIT, server.registration().registered());
    registration.await.expect("it is registered in time").expect("it is not deregistered");
    server
}

fn lease(registration: &Registration) -> i64 {
    match registration.status() {
        RegistrationStatus::Registered { lease, .. } => lease,
        status => panic!("it is registered: {status}"),
    }
}

async fn put(etcd: &Etcd, port: u16) {
    etcd.put(format!("{RANGE}127.0.0.1:{port}"), format!(r#"{{"address":"127.0.0.1:{port}","weight":10}}"#)).await;
}

/// Asserts that nothing was ever put or granted there, apart from as many puts of the test.
async fn assert_untouched(stranger: &Etcd, puts: i64) {
    assert_eq!(stranger.revision().await, 1 + puts, "no key was written");
    assert!(stranger.leases().await.is_empty(), "no lease was granted");
}

#[tokio::test]
async fn a_lease_is_kept_without_any_one_member_and_the_stranger_is_not_asked() {
    let cluster = Cluster::start().await;
    let stranger = Etcd::start().await;
    // Where the first is unreachable, the stranger is the next in order.
    let registry = registry([cluster.member(0).url(), stranger.url(), cluster.member(2).url()]);
    registry.services().await.expect("the cluster of each member is known by now");
    let mut servers = vec![registered(&registry).await];
    let had = lease(servers[0].registration());
    // The first one is asked when it is lost.
    for (away, left) in [(2, 0), (0, 2)] {
        cluster.member(away).kill();
        cluster.leader().await;
        // The stranger misses what is asked meanwhile.
        stranger.restart().await;
        // Counted by the leader, whichever member is asked.
        let before = Costs::of(&[cluster.member(left), cluster.member(1)]).await;
        let renewed = async || before.until_now().await.renewals() >= 3;
        eventually("the lease is renewed by the members that are left", LIMIT, renewed).await;
        servers.push(registered(&registry).await);
        assert_untouched(&stranger, 0).await;
        assert_eq!(Costs::of(&stranger).await.calls("LeaseKeepAlive"), 0, "nor is it asked for what it cannot know");
        cluster.member(away).restart().await;
    }
    assert_eq!(lease(servers[0].registration()), had, "it is under the lease that it had");
    for server in servers {
        server.stop().await;
    }
    assert_untouched(&stranger, 0).await;
}

#[tokio::test]
async fn no_frozen_member_lets_a_stranger_through() {
    let cluster = Cluster::start().await;
    let stranger = Etcd::start().await;
    put(&stranger, 9).await;
    let urls = [cluster.member(0).url(), stranger.url(), cluster.member(2).url()];
    cluster.member(2).freeze();
    cluster.leader().await;
    // Whichever member is asked first.
    for _ in 0..6 {
        let registry = registry(urls.clone());
        let answer = registry.services().await;
        assert!(
            matches!(answer, Err(RegistryError::SplitCluster { .. } | RegistryError::Unavailable { .. })),
            "the rest cannot tell which of them is wrong: {answer:?}"
        );
    }
    let registry = registry(urls);
    let mut discover = registry.discover("echo").expect("a good name");
    let known = tokio::time::timeout(Duration::from_secs(2), discover.ready()).await;
    assert!(known.is_err(), "and no list counts");
    cluster.member(2).resume();
    let known = tokio::time::timeout(LIMIT, discover.ready()).await.expect("most are of one cluster again");
    assert!(known.is_empty(), "no server is registered there: {known:?}");
}

#[tokio::test]
async fn a_registry_with_only_a_stranger_leaves_it_once_the_others_are_back() {
    let cluster = Cluster::start().await;
    let stranger = Etcd::start().await;
    put(&stranger, 9).await;
    put(cluster.member(0), 1).await;
    for member in 0..3 {
        cluster.member(member).kill();
    }
    let registry = registry([cluster.member(0).url(), stranger.url(), cluster.member(2).url()]);
    let mut discover = registry.discover("echo").expect("a good name");
    let server = registered(&registry).await;
    let known = tokio::time::timeout(LIMIT, discover.ready()).await.expect("one answers, and no member disagrees");
    assert!(known.iter().any(|member| member.instance().address().to_string() == "127.0.0.1:9"));

    let back = [0, 1, 2].map(|member| cluster.member(member).restart());
    futures_util::future::join_all(back).await;
    eventually("its watches end", LIMIT, async || Costs::of(&stranger).await.watchers() == 0).await;
    let moved = async || cluster.member(0).keys(RANGE).await.len() == 2;
    eventually("the server registers with the others", LIMIT, moved).await;
    eventually("their list counts", LIMIT, async || {
        let known = discover.snapshot().expect("a list came before");
        let known = |address: &str| known.iter().any(|member| member.instance().address().to_string() == address);
        known("127.0.0.1:1") && known(&server.address().to_string())
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_stranger_that_takes_no_login_does_not_block_the_others() {
    let (cluster, stranger) = (Cluster::start().await, Etcd::start().await);
    add_users(cluster.member(0)).await;
    cluster.member(0).client().await.auth_enable().await.expect("etcd switches authentication on");
    let mut client = stranger.client().await;
    let done = "the stranger sets up its users";
    client.user_add("root", ADMIN, None).await.expect(done);
    client.user_grant_role("root", "root").await.expect(done);
    client.auth_enable().await.expect(done);
    let urls = [cluster.member(0).url(), stranger.url(), cluster.member(2).url()];
    // Whichever member is asked first.
    for _ in 0..6 {
        let registry = Registry::builder(urls.clone()).auth("server", PASSWORD).build().expect("a good registry");
        let services = registry.services().await;
        services.expect("most have reported their cluster, so the stranger's refusal proves nothing");
        let server = EchoServer::start(|address| registry.registration(Instance::new("echo", address)).ttl(TTL));
        let registration = tokio::time::timeout(Duration::from_secs(10), server.registration().registered());
        registration.await.expect("well before a refused login is tried again").expect("it is not deregistered");
        server.stop().await;
    }
    let leases = admin(cluster.member(0)).await.leases().await.expect("root may look");
    assert!(leases.leases().is_empty(), "all are revoked");
}

#[tokio::test]
async fn a_late_stranger_is_found_out_before_it_can_declare_a_lease_dead() {
    let cluster = Cluster::start().await;
    let stranger = Etcd::start().await;
    stranger.kill();
    let registry = registry([cluster.member(0).url(), stranger.url(), cluster.member(2).url()]);
    let server = registered(&registry).await;
    let had = lease(server.registration());
    // From now on the first one is asked, and the stranger when that is lost.
    cluster.member(2).kill();
    cluster.leader().await;
    let before = Costs::of(&[cluster.member(0), cluster.member(1)]).await;
    let renewed = async || before.until_now().await.renewals() >= 2;
    eventually("the first one renews the lease", LIMIT, renewed).await;
    cluster.member(2).restart().await;
    stranger.restart().await;
    cluster.member(0).kill();
    cluster.leader().await;
    let before = Costs::of(&[cluster.member(1), cluster.member(2)]).await;
    let renewed = async || before.until_now().await.renewals() >= 2;
    eventually("the third one does", LIMIT, renewed).await;
    assert_eq!(lease(server.registration()), had, "it is under the lease that it had");
    server.stop().await;
}
