//! One server in several registries, and one client of several: a service moves from one to the other step by step.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::Request;
use tonic_etcd::channel::Connectivity;
use tonic_etcd::format::{EtcdNaming, Format, GoZero, Kitex, Kratos};
use tonic_etcd::policy::WeightedRoundRobin;
use tonic_etcd::{BalancedChannel, Instance, Registry, RegistrySet};

use crate::support::changes::Changes;
use crate::support::costs::Costs;
use crate::support::etcd::Etcd;
use crate::support::load::{Load, failed};
use crate::support::server::EchoServer;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::{LIMIT, eventually};

/// Calls a second: enough for some in each step, and few beside all that these tests run.
const RATE: u32 = 50;

fn registry(etcd: &Etcd, format: impl Format) -> Registry {
    Registry::builder([etcd.url()]).format(format).build().expect("a good registry")
}

fn channel(registries: &[&Registry]) -> BalancedChannel {
    let registries = RegistrySet::new(registries.iter().map(|registry| (*registry).clone()));
    registries.channel("echo").policy(WeightedRoundRobin::new()).build().expect("a good channel")
}

/// Waits until the channel is connected to these servers and to no others.
async fn wait_connected(channel: &BalancedChannel, servers: &[&EchoServer]) {
    let expected: BTreeSet<String> = servers.iter().map(|server| server.address().to_string()).collect();
    let ready = async || {
        // Without those that are on the list alone: the last one that leaves go-zero's format is held for a minute.
        let ready = channel.instances().into_iter().filter(|status| status.state() == Connectivity::Ready);
        expected == ready.map(|status| status.instance().address().to_string()).collect()
    };
    eventually("the channel is connected to these servers and no others", LIMIT, ready).await;
}

#[tokio::test]
async fn a_server_in_two_formats_is_found_in_either_and_leaves_both_in_order() {
    let etcd = Etcd::start().await;
    let (kitex, naming) = (registry(&etcd, Kitex::new()), registry(&etcd, EtcdNaming::new()));
    let pause = Duration::from_secs(2);
    let server = EchoServer::start_all(|address| {
        let instance = Instance::new("echo", address);
        vec![
            kitex.registration(instance.clone()).propagation_pause(pause),
            naming.registration(instance).propagation_pause(Duration::ZERO),
        ]
    });
    let address = server.address();
    for registry in [&kitex, &naming] {
        Changes::of(registry, "echo").expect_insert(address).await;
    }
    let keys: Vec<String> = etcd.keys("").await.into_iter().map(|(key, ..)| key).collect();
    assert_eq!(keys, [format!("echo/{address}"), format!("kitex/registry-etcd/echo/{address}")]);
    let channels = [channel(&[&kitex]), channel(&[&naming])];
    for channel in &channels {
        channel.ready_within(LIMIT).await.expect("it is found through either");
    }

    let mut changes = [Changes::of(&kitex, "echo"), Changes::of(&naming, "echo")];
    for changes in &mut changes {
        changes.expect_insert(address).await;
    }
    let told = Instant::now();
    let stopped = tokio::spawn(server.stop());
    for changes in &mut changes {
        changes.expect_remove(address).await;
    }
    eventually("both leases are revoked", LIMIT, async || etcd.leases().await.is_empty()).await;
    assert!(TcpStream::connect(address).await.is_ok(), "clients that have not heard of it are still served");
    stopped.await.expect("the server stops");
    let took = told.elapsed();
    assert!(took >= pause, "it waits for the longest pause: {took:?}");
}

#[tokio::test]
async fn each_registration_of_a_server_has_its_own_life() {
    let etcd = Etcd::start().await;
    let (kitex, go_zero) = (registry(&etcd, Kitex::new()), registry(&etcd, GoZero::new()));
    let server = EchoServer::registered_in(&[&kitex, &go_zero], "echo").await;
    let merged = channel(&[&kitex, &go_zero]);
    let load = Load::at_rate(RATE, &merged).await;

    server.registrations()[0].pause();
    let mut kitex_alone = Changes::of(&kitex, "echo");
    let gone = async || etcd.keys("kitex/").await.is_empty();
    eventually("it is paused in one", LIMIT, gone).await;
    wait_connected(&merged, &[&server]).await;
    load.reaches(&server.address().to_string()).await;
    server.registrations()[0].resume();
    kitex_alone.expect_insert(server.address()).await;

    server.registrations()[1].deregister().await;
    wait_connected(&merged, &[&server]).await;
    eventually("it left one for good", LIMIT, async || etcd.keys("echo/").await.is_empty()).await;
    assert_eq!(etcd.keys("kitex/").await.len(), 1, "and stays in the other");
    let calls = load.finish().await;
    assert!(failed(&calls).is_empty(), "no call fails: {:?}", failed(&calls));
    server.stop().await;
    assert!(etcd.leases().await.is_empty(), "nothing is left behind");
}

#[tokio::test]
async fn a_server_with_two_services_is_found_under_both_names() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd, Kitex::new());
    let server = EchoServer::start_all(|address| {
        ["echo", "hello"].into_iter().map(|service| registry.registration(Instance::new(service, address))).collect()
    });
    for service in ["echo", "hello"] {
        Changes::of(&registry, service).expect_insert(server.address()).await;
    }
    server.stop().await;
    assert!(etcd.keys("").await.is_empty() && etcd.leases().await.is_empty(), "nothing is left behind");
}

#[tokio::test]
async fn a_channel_over_two_clusters_follows_both() {
    let (one, two) = (Etcd::start().await, Etcd::start().await);
    let (kitex, kratos) = (registry(&one, Kitex::new()), registry(&two, Kratos::new()));
    let first = EchoServer::registered(&kitex, "echo").await;
    let merged = channel(&[&kitex, &kratos]);
    let load = Load::at_rate(RATE, &merged).await;
    wait_connected(&merged, &[&first]).await;

    let second = EchoServer::registered(&kratos, "echo").await;
    wait_connected(&merged, &[&first, &second]).await;
    load.reaches(&second.address().to_string()).await;
    let third = EchoServer::registered(&kitex, "echo").await;
    load.reaches(&third.address().to_string()).await;

    first.stop().await;
    wait_connected(&merged, &[&second, &third]).await;
    second.stop().await;
    wait_connected(&merged, &[&third]).await;
    let calls = load.finish().await;
    assert!(failed(&calls).is_empty(), "no call fails: {:?}", failed(&calls));
    third.stop().await;
}

#[tokio::test]
async fn an_unreachable_etcd_hides_nothing_of_the_other() {
    let (one, two) = (Etcd::start().await, Etcd::start().await);
    let (away, there) = (registry(&one, Kitex::new()), registry(&two, EtcdNaming::new()));
    one.freeze();
    let server = EchoServer::registered(&there, "echo").await;
    let merged = channel(&[&away, &there]);
    // Waits for less than the 5 s for which calls wait for a list.
    let load = Load::at_rate(RATE, &merged).await;

    one.resume();
    let late = EchoServer::registered(&away, "echo").await;
    load.reaches(&late.address().to_string()).await;
    one.kill();
    let later = EchoServer::registered(&there, "echo").await;
    load.reaches(&later.address().to_string()).await;
    wait_connected(&merged, &[&server, &late, &later]).await;
    let calls = load.finish().await;
    assert!(failed(&calls).is_empty(), "no call fails: {:?}", failed(&calls));
    one.restart().await;
    for server in [server, late, later] {
        server.stop().await;
    }
}

#[tokio::test]
async fn an_address_in_both_is_one_instance_with_the_first_ones_weight() {
    let etcd = Etcd::start().await;
    let (kitex, naming) = (registry(&etcd, Kitex::new()), registry(&etcd, EtcdNaming::new()));
    etcd.put("echo/127.0.0.1:1001", r#"{"Op":0,"Addr":"127.0.0.1:1001","Metadata":{"weight":20}}"#).await;
    let mut changes = Changes::over(&RegistrySet::new([kitex.clone(), naming.clone()]), "echo");
    assert_eq!(changes.expect_insert("127.0.0.1:1001").await.weight(), 20, "the only one that knows it");
    let key = "kitex/registry-etcd/echo/127.0.0.1:1001";
    etcd.put(key, r#"{"address":"127.0.0.1:1001","weight":30}"#).await;
    assert_eq!(changes.expect_insert("127.0.0.1:1001").await.weight(), 30, "the first one counts");
    etcd.put("echo/127.0.0.1:1001", r#"{"Op":0,"Addr":"127.0.0.1:1001","Metadata":{"weight":40}}"#).await;
    etcd.delete(key).await;
    // Two watches: what happened later in one of them can be reported before what happened in the other.
    let weight = match changes.expect_insert("127.0.0.1:1001").await.weight() {
        20 => changes.expect_insert("127.0.0.1:1001").await.weight(),
        weight => weight,
    };
    assert_eq!(weight, 40, "the other one still has it");
    etcd.delete("echo/127.0.0.1:1001").await;
    changes.expect_remove("127.0.0.1:1001").await;

    let mut discover = RegistrySet::new([naming, kitex]).discover("echo").expect("a good name");
    assert!(discover.ready().await.is_empty(), "an empty list of both is one");
}

#[tokio::test]
async fn channels_over_several_registries_share_the_watches_of_each() {
    let etcd = Etcd::start().await;
    let (kitex, naming) = (registry(&etcd, Kitex::new()), registry(&etcd, EtcdNaming::new()));
    etcd.put("kitex/registry-etcd/echo/127.0.0.1:1", r#"{"address":"127.0.0.1:1"}"#).await;
    let before = Costs::of(&etcd).await.watchers();
    let channels: Vec<BalancedChannel> =
        (0..50).map(|n| if n % 2 == 0 { channel(&[&kitex, &naming]) } else { channel(&[&naming]) }).collect();
    let found = async || channels.iter().step_by(2).all(|channel| channel.instances().len() == 1);
    eventually("all that look there find it", LIMIT, found).await;
    eventually("one watch a registry is open", LIMIT, async || Costs::of(&etcd).await.watchers() == before + 2).await;
    assert_eq!(Costs::of(&etcd).await.calls("Watch"), 2, "and no other one ever was");
    drop(channels);
    eventually("they end with the last channel", LIMIT, async || Costs::of(&etcd).await.watchers() == before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_moves_from_one_format_to_another_without_a_failed_call() {
    let etcd = Etcd::start().await;
    moves(&registry(&etcd, Kitex::new()), &registry(&etcd, EtcdNaming::new())).await;
    moves(&registry(&etcd, GoZero::new()), &registry(&etcd, Kratos::new())).await;
    assert!(etcd.keys("").await.is_empty() && etcd.leases().await.is_empty(), "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_moves_from_one_cluster_to_another_without_a_failed_call() {
    let (one, two) = (Etcd::start().await, Etcd::start().await);
    moves(&registry(&one, Kitex::new()), &registry(&two, Kitex::new())).await;
    for etcd in [&one, &two] {
        assert!(etcd.keys("").await.is_empty() && etcd.leases().await.is_empty(), "nothing is left behind");
    }
}

/// Two servers in `old`; then in both, one after the other; then in `new` alone. A client of both is called all the
/// time, one of the old and one of the new whenever there is a server for them.
async fn moves(old: &Registry, new: &Registry) {
    let mut servers =
        vec![EchoServer::registered_in(&[old], "echo").await, EchoServer::registered_in(&[old], "echo").await];
    let (of_old, of_both, of_new) = (channel(&[old]), channel(&[new, old]), channel(&[new]));
    let load = Load::at_rate(RATE, &of_both).await;
    for (registries, others) in [(&[old, new][..], &[&of_old, &of_new][..]), (&[new], &[&of_new])] {
        for _ in 0..2 {
            servers.push(EchoServer::registered_in(registries, "echo").await);
            servers.remove(0).stop().await;
        }
        for server in &servers {
            load.reaches(&server.address().to_string()).await;
        }
        let servers: Vec<&EchoServer> = servers.iter().collect();
        wait_connected(&of_both, &servers).await;
        for channel in others {
            wait_connected(channel, &servers).await;
            call(channel).await;
        }
    }
    let calls = load.finish().await;
    assert!(failed(&calls).is_empty(), "of {} calls failed {:?}", calls.len(), failed(&calls));
    for server in servers {
        server.stop().await;
    }
}

/// A call that is answered.
async fn call(channel: &BalancedChannel) {
    let mut request = Request::new(EchoRequest { message: "hi".into() });
    request.set_timeout(LIMIT);
    let answer = EchoClient::new(channel.clone()).unary_echo(request).await;
    assert!(answer.is_ok(), "{channel:?} reaches a server: {answer:?}");
}
