//! Members of etcd that are replaced by others with new addresses, one after the other, until none of the first is
//! left: no process is restarted, and none loses a lease or a change.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tonic_etcd::{Instance, RegistrationStatus, Registry, RegistryBuilder};

use crate::auth::{PASSWORD, add_users};
use crate::support::changes::Changes;
use crate::support::costs::Costs;
use crate::support::etcd::{Cluster, Etcd};
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

/// Long enough for keepalives to find the members that are left.
const TTL: Duration = Duration::from_secs(10);

/// What an operator says of where etcd is, and how often it was asked.
#[derive(Clone, Default)]
struct Directory {
    urls: Arc<Mutex<Vec<String>>>,
    asked: Arc<AtomicUsize>,
}

impl Directory {
    fn name(&self, urls: Vec<String>) {
        *self.urls.lock().expect("no test panics here") = urls;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// A registry that knows these members, and asks for others here.
    fn registry(&self, urls: Vec<String>) -> RegistryBuilder {
        let directory = self.clone();
        directory.name(urls.clone());
        Registry::builder(urls).endpoints_with(move || {
            directory.asked.fetch_add(1, Ordering::Relaxed);
            let urls = directory.urls.lock().expect("no test panics here").clone();
            async move { Ok::<_, std::io::Error>(urls) }
        })
    }
}

fn lease(server: &EchoServer) -> i64 {
    match server.registration().status() {
        RegistrationStatus::Registered { lease, .. } => lease,
        status => panic!("it is registered: {status}"),
    }
}

/// A registered server in a registry of its own, and a stream that has reported it.
async fn process(registry: &Registry, service: &str) -> (EchoServer, Changes) {
    let server = EchoServer::start(|address| registry.registration(Instance::new(service, address)).ttl(TTL));
    server.registration().registered().await.expect("it is not deregistered");
    let mut changes = Changes::of(registry, service);
    changes.expect_insert(server.address()).await;
    (server, changes)
}

/// Replaces all members of a cluster, and shows that no process loses its lease or a change. Each registry has a
/// service of its own.
async fn replace_all(cluster: &mut Cluster, registries: &[Registry], replaced: impl Fn(&Cluster, usize)) {
    let service = |number: usize| format!("echo-{number}");
    let mut processes = Vec::new();
    for (number, registry) in registries.iter().enumerate() {
        processes.push(process(registry, &service(number)).await);
    }
    let leases: Vec<i64> = processes.iter().map(|(server, _)| lease(server)).collect();
    for index in 0..3 {
        cluster.replace(index).await;
        replaced(cluster, index);
        let marker = format!("127.0.0.1:{}", index + 1);
        for (_, changes) in &mut processes {
            changes.expect_nothing_before(cluster.member(index), &marker).await;
        }
    }
    let began = Instant::now();
    eventually("two more TTLs have passed", TTL * 4, async || began.elapsed() > TTL * 2).await;
    let kept: Vec<i64> = processes.iter().map(|(server, _)| lease(server)).collect();
    assert_eq!(kept, leases, "each is under the lease that it had");
    let alive = cluster.member(0).leases().await;
    assert!(leases.iter().all(|lease| alive.contains(lease)), "etcd has all of them");
    for (server, mut changes) in processes {
        let address = server.address();
        server.stop().await;
        changes.expect_remove(address).await;
    }
}

#[tokio::test]
async fn members_with_new_addresses_are_found_where_the_endpoints_are_asked_for_again() {
    let mut cluster = Cluster::start().await;
    let directories: [Directory; 6] = Default::default();
    let registry = |directory: &Directory| directory.registry(cluster.urls()).build().expect("a good registry");
    let registries: Vec<Registry> = directories.iter().map(registry).collect();
    replace_all(&mut cluster, &registries, |cluster, _| {
        // Only after the old one is gone, as an operator may.
        for directory in &directories {
            directory.name(cluster.urls());
        }
    })
    .await;
    for directory in &directories {
        let asked = directory.asked();
        assert!((1..=24).contains(&asked), "after 1 s, 2 s, 4 s and so on while a member is away: {asked} times");
    }
}

#[tokio::test]
async fn members_behind_names_that_lead_to_new_addresses_are_found_without_asking() {
    let mut cluster = Cluster::start().await;
    let mut names = Vec::new();
    for member in cluster.each() {
        names.push(Proxy::start(member.address()).await);
    }
    let registry = || Registry::builder(names.iter().map(Proxy::url)).build().expect("a good registry");
    let registries: Vec<Registry> = (0..6).map(|_| registry()).collect();
    replace_all(&mut cluster, &registries, |cluster, index| names[index].lead_to(cluster.member(index).address()))
        .await;
}

/// Watches that are well while others are named: with a registration, whose keepalives look for the members of now, and
/// without anything but the watch.
#[tokio::test]
async fn a_watch_that_is_open_moves_once_other_members_are_named() {
    for is_registered in [true, false] {
        let etcd = Etcd::start().await;
        // One alone, so that nothing but its name leads away from it.
        let (old, next) = (Proxy::start(etcd.address()).await, Proxy::start(etcd.address()).await);
        let (name, named) = watch::channel(Vec::new());
        let urls = move || {
            let mut named = named.clone();
            async move { named.wait_for(|urls| !urls.is_empty()).await.map(|urls| urls.clone()) }
        };
        let builder = Registry::builder([old.url()]).endpoints_with(urls);
        let registry = builder.build().expect("a good registry");
        let (mut changes, mut server, mut watches) = (Changes::of(&registry, "echo"), None, 1);
        if is_registered {
            // With a watch of its own key.
            (server, watches) = (Some(EchoServer::registered(&registry, "other").await), 2);
        }
        changes.expect_nothing_before(&etcd, "127.0.0.1:1").await;
        let open = async |count| Costs::of(&etcd).await.watchers() == count;
        old.reset();
        eventually("the watches end", LIMIT, async || open(0).await).await;
        old.forward();
        eventually("they are back where they were", LIMIT, async || open(watches).await).await;
        changes.expect_nothing_before(&etcd, "127.0.0.1:2").await;

        let before = Costs::of(&etcd).await;
        name.send(vec![next.url()]).expect("the question waits");
        eventually("all has moved", LIMIT, async || next.open() == 1 && old.open() == 0 && open(watches).await).await;
        changes.expect_nothing_before(&etcd, "127.0.0.1:3").await;
        let spent = before.until_now().await;
        assert_eq!(spent.calls("Watch"), 1, "one stream for all: {spent:?}");
        if let Some(server) = server {
            server.stop().await;
        }
    }
}

#[tokio::test]
async fn another_address_of_the_same_etcd_takes_all_over_without_a_login() {
    let etcd = Etcd::start().await;
    add_users(&etcd).await;
    etcd.client().await.auth_enable().await.expect("etcd switches authentication on");
    let (old, new) = (Proxy::start(etcd.address()).await, Proxy::start(etcd.address()).await);
    let directory = Directory::default();
    let registry = directory.registry(vec![old.url()]).auth("server", PASSWORD).build().expect("a good registry");
    let (server, _changes) = process(&registry, "echo").await;
    let (had, before) = (lease(&server), Costs::of(&etcd).await);
    assert_eq!(directory.asked(), 0, "nothing failed");

    directory.name(vec![new.url()]);
    old.reset();
    eventually("the watches move, of the service and of its key", LIMIT, async || {
        new.accepted() > 0 && Costs::of(&etcd).await.watchers() == 2
    })
    .await;
    eventually("the lease is renewed there", LIMIT, async || before.until_now().await.renewals() > 3).await;
    let spent = before.until_now().await;
    assert_eq!(spent.calls("Authenticate"), 0, "the token is the cluster's: {spent:?}");
    assert!(spent.calls("Watch") <= 2, "one stream carries both watches: {spent:?}");
    assert_eq!(directory.asked(), 1);
    assert_eq!(lease(&server), had);
    server.stop().await;
}
