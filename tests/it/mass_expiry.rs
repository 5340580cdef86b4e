//! Leases that end together are etcd's fault, not the servers': no server is taken out for that. A real leave is seen.

use std::time::{Duration, Instant};

use etcd_client::PutOptions;
use tonic_etcd::channel::Connectivity;
use tonic_etcd::{Address, BalancedChannel, Instance, Registry};

use crate::support::changes::Changes;
use crate::support::etcd::Etcd;
use crate::support::figures;
use crate::support::load::{Load, failed};
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

const TTL: Duration = Duration::from_secs(2);

/// How long an unannounced leaver is kept while others stay, and what a busy machine adds.
const JUDGED: Duration = Duration::from_millis(2_000 + 800);

fn registry(etcd: &Etcd) -> Registry {
    Registry::builder([etcd.url()]).build().expect("a good registry")
}

fn channel(registry: &Registry) -> BalancedChannel {
    registry.channel("echo").build().expect("a good channel")
}

/// Registers an address as another program would: under a lease of its own, and unannounced when it goes.
async fn put_foreign(etcd: &Etcd, address: impl ToString) -> i64 {
    let (mut client, address) = (etcd.client().await, address.to_string());
    let lease = client.lease_grant(600, None).await.expect("etcd grants").id();
    let value = format!(r#"{{"network":"tcp","address":"{address}","weight":10,"tags":null}}"#);
    let options = PutOptions::new().with_lease(lease);
    client.put(format!("kitex/registry-etcd/echo/{address}"), value, Some(options)).await.expect("etcd takes it");
    lease
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_frozen_beyond_the_ttl_costs_neither_a_call_nor_an_instance() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let (mut servers, mut clients) = (Vec::new(), Vec::new());
    for (service, count) in [("one", 1), ("two", 2), ("five", 5)] {
        let mut changes = Changes::of(&registry, service);
        for _ in 0..count {
            let server = EchoServer::start(|address| registry.registration(Instance::new(service, address)).ttl(TTL));
            server.registration().registered().await.expect("it is not deregistered");
            changes.next().await;
            servers.push(server);
        }
        let channel = registry.channel(service).build().expect("a good channel");
        clients.push((changes, Load::at_rate(50, &channel).await));
    }
    let before = etcd.leases().await;

    etcd.freeze();
    tokio::time::sleep(TTL + Duration::from_secs(4)).await;
    etcd.resume();
    let resumed = Instant::now();
    let back = async || {
        let keys = etcd.keys("kitex/registry-etcd/").await;
        keys.len() == servers.len() && keys.iter().all(|(_, _, lease)| !before.contains(lease))
    };
    eventually("all are back under new leases", Duration::from_secs(3), back).await;
    figures::within("leases that died together are replaced", resumed.elapsed(), Duration::from_secs(3));
    for (mut changes, load) in clients {
        load.goes_on_for(Duration::from_secs(3)).await;
        let calls = load.finish().await;
        figures::at_most("calls that fail when leases die together", failed(&calls).len(), 0, "calls");
        let marker = "127.0.0.1:1";
        changes.expect_nothing_before(&etcd, marker).await;
    }
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_service_whose_servers_all_say_that_they_leave_is_empty_at_once() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let (one, two) = (EchoServer::registered(&registry, "echo").await, EchoServer::registered(&registry, "echo").await);
    let mut changes = Changes::of(&registry, "echo");
    let channel = channel(&registry);
    for _ in 0..2 {
        changes.next().await;
    }
    eventually("the channel knows both", LIMIT, async || channel.instances().len() == 2).await;
    let told = Instant::now();
    tokio::join!(one.stop(), two.stop());
    for _ in 0..2 {
        changes.next().await;
    }
    eventually("the channel knows no server", LIMIT, async || channel.instances().is_empty()).await;
    assert!(told.elapsed() < JUDGED, "nothing was held: {:?}", told.elapsed());
}

#[tokio::test]
async fn a_service_whose_servers_all_go_unannounced_is_empty_after_its_hold() {
    let etcd = Etcd::start().await;
    let hold = Duration::from_secs(4);
    let registry = Registry::builder([etcd.url()]).removal_hold(hold).build().expect("a good registry");
    let mut changes = Changes::of(&registry, "echo");
    let mut leases = Vec::new();
    for port in 1..=3 {
        leases.push(put_foreign(&etcd, format!("127.0.0.1:{port}")).await);
        changes.next().await;
    }
    let since = Instant::now();
    for lease in leases {
        etcd.revoke(lease).await;
    }
    for _ in 0..3 {
        changes.next().await;
        assert!(since.elapsed() >= hold, "they were held for {:?} only", since.elapsed());
    }
    assert!(since.elapsed() < hold + Duration::from_secs(2), "they were held for {:?}", since.elapsed());
}

#[tokio::test]
async fn a_channel_calls_unannounced_leavers_for_as_long_as_they_answer() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let servers = [EchoServer::unregistered(), EchoServer::unregistered()];
    let mut leases = Vec::new();
    for server in &servers {
        leases.push(put_foreign(&etcd, server.address()).await);
    }
    let channel = channel(&registry);
    let all_ready = async || {
        let instances = channel.instances();
        instances.len() == 2 && instances.iter().all(|instance| instance.state() == Connectivity::Ready)
    };
    eventually("both are connected", LIMIT, all_ready).await;
    let load = Load::at_rate(50, &channel).await;
    for lease in leases {
        etcd.revoke(lease).await;
    }
    load.goes_on_for(Duration::from_secs(3)).await;
    let calls = load.finish().await;
    assert!(failed(&calls).is_empty(), "of {} calls failed {:?}", calls.len(), failed(&calls));

    let since = Instant::now();
    for server in servers {
        server.stop().await;
    }
    let none_ready = async || channel.instances().iter().all(|instance| instance.state() == Connectivity::Idle);
    eventually("the channel has no server to call", LIMIT, none_ready).await;
    assert!(since.elapsed() < Duration::from_secs(10), "long before the hold ends: {:?}", since.elapsed());
}

#[tokio::test]
async fn an_unannounced_leaver_is_reported_in_2_s_and_called_until_it_hangs_up() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let (gone, stays) = (EchoServer::unregistered(), [EchoServer::unregistered(), EchoServer::unregistered()]);
    let mut changes = Changes::of(&registry, "echo");
    let lease = put_foreign(&etcd, gone.address()).await;
    for server in &stays {
        put_foreign(&etcd, server.address()).await;
    }
    for _ in 0..3 {
        changes.next().await;
    }
    let channel = channel(&registry);
    let load = Load::at_rate(100, &channel).await;
    load.reaches(&gone.address().to_string()).await;

    let since = Instant::now();
    let address = gone.address();
    etcd.revoke(lease).await;
    gone.stop().await;
    let is_out = async || {
        let instances = channel.instances();
        let out = instances.iter().find(|instance| *instance.instance().address() == Address::from(address));
        out.is_none_or(|instance| instance.state() == Connectivity::Idle)
    };
    eventually("the channel has dropped it", LIMIT, is_out).await;
    changes.expect_remove(address).await;
    figures::within("one of several that goes without a word is told", since.elapsed(), JUDGED);
    let calls = load.finish().await;
    assert!(failed(&calls).is_empty(), "of {} calls failed {:?}", calls.len(), failed(&calls));
    for server in stays {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_rolling_replacement_under_new_addresses_holds_no_dead_instance() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let mut changes = Changes::of(&registry, "echo");
    let mut old = Vec::new();
    for port in [1, 2] {
        old.push((port, put_foreign(&etcd, format!("127.0.0.1:{port}")).await));
        changes.next().await;
    }
    for (port, lease) in old {
        let (successor, since) = (port + 10, Instant::now());
        put_foreign(&etcd, format!("127.0.0.1:{successor}")).await;
        changes.expect_insert(format!("127.0.0.1:{successor}")).await;
        etcd.revoke(lease).await;
        changes.expect_remove(format!("127.0.0.1:{port}")).await;
        figures::within("one of several that goes without a word is told", since.elapsed(), JUDGED);
    }
    let snapshot = changes.stream().snapshot().expect("the first list came");
    let left: Vec<_> = snapshot.iter().map(|member| member.instance().address().to_string()).collect();
    assert_eq!(left, ["127.0.0.1:11", "127.0.0.1:12"]);
}
