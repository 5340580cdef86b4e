//! A weight that an operator sets reaches the clients, and the server keeps it; where it would not be kept, it is
//! refused with the reason.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use etcd_client::PutOptions;
use tonic_etcd::format::{EtcdNaming, Format, GoZero, Kitex, Kratos};
use tonic_etcd::policy::WeightedRoundRobin;
use tonic_etcd::{ConfigError, Registration, Registry, RegistryError, WeightRefusal};

use crate::support::changes::Changes;
use crate::support::etcd::Etcd;
use crate::support::process::{Process, Signal, example};
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::{LIMIT, eventually};

fn registry(etcd: &Etcd) -> Registry {
    Registry::builder([etcd.url()]).build().expect("a good registry")
}

/// The only value in etcd, and its lease.
async fn only_value(etcd: &Etcd) -> (String, i64) {
    let (_, value, lease) = etcd.keys("").await.pop().expect("the server is registered");
    (String::from_utf8(value).expect("text"), lease)
}

/// Waits until the key of the registration has this weight, and no mark.
async fn stands_at(etcd: &Etcd, registration: &Registration, weight: u16, why: &str) {
    let address = registration.address();
    let value = format!(r#"{{"network":"tcp","address":"{address}","weight":{weight},"tags":null}}"#);
    let is_there = async || etcd.keys("").await.pop().is_some_and(|(_, now, _)| now == value.as_bytes());
    eventually(why, LIMIT, is_there).await;
    assert_eq!(registration.weight(), weight, "{why}: to the program as well");
}

/// A key without a server, under a lease.
async fn put(etcd: &Etcd, key: &str, value: &str) -> i64 {
    let mut client = etcd.client().await;
    let lease = client.lease_grant(60, None).await.expect("etcd grants").id();
    client.put(key, value, Some(PutOptions::new().with_lease(lease))).await.expect("etcd puts");
    lease
}

#[tokio::test]
async fn a_weight_that_an_operator_sets_outlives_the_lease_and_the_data_of_etcd() {
    let etcd = Etcd::start().await;
    // Two processes: two registries.
    let (here, operator) = (registry(&etcd), registry(&etcd));
    let server = EchoServer::registered(&here, "echo").await;
    let registration = server.registration();
    let mut changes = Changes::of(&operator, "echo");
    assert_eq!(changes.expect_insert(server.address()).await.weight(), 10, "its own");
    let (_, lease) = only_value(&etcd).await;

    operator.set_weight("echo", server.address(), 77).await.expect("its server keeps it");
    stands_at(&etcd, registration, 77, "it is taken up before the call returns").await;
    assert_eq!(changes.expect_insert(server.address()).await.weight(), 77, "clients see it");
    assert_eq!(only_value(&etcd).await.1, lease, "under the lease that it had");
    operator.set_weight("echo", server.address(), 77).await.expect("it has it already");

    etcd.revoke(lease).await;
    let replaced = async || etcd.keys("").await.pop().is_some_and(|(_, _, now)| now != lease);
    eventually("it is registered anew", LIMIT, replaced).await;
    stands_at(&etcd, registration, 77, "after a lost lease").await;
    etcd.wipe_and_restart().await;
    stands_at(&etcd, registration, 77, "after all data were lost").await;
    server.stop().await;
}

#[tokio::test]
async fn the_last_of_operator_and_program_counts() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let server = EchoServer::registered(&registry, "echo").await;
    let registration = server.registration();
    registry.set_weight("echo", server.address(), 1).await.expect("its server keeps it");
    registration.update(|instance| instance.with_tag("zone", "a")).expect("a good tag");
    let tagged = async || only_value(&etcd).await.0.contains(r#""weight":1,"tags":{"zone":"a"}"#);
    eventually("an update of the tags leaves it", LIMIT, tagged).await;
    registration.update(|instance| instance.with_tags([("", ""); 0]).with_weight(10)).expect("a good weight");
    stands_at(&etcd, registration, 10, "a weight that the program sets replaces it, although it was its own before")
        .await;
    registry.set_weight("echo", server.address(), 65_535).await.expect("its server keeps it");
    etcd.delete(etcd.keys("").await.pop().expect("a key").0).await;
    stands_at(&etcd, registration, 65_535, "and an operator's replaces that").await;
    registry.drain("echo", server.address()).await.expect("it is registered");
    let left = async || etcd.keys("").await.is_empty();
    eventually("a draining mark behind another weight is obeyed", LIMIT, left).await;
    server.stop().await;
}

#[tokio::test]
async fn weights_that_are_set_without_end_are_answered_once_a_second() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let server = EchoServer::registered(&registry, "echo").await;
    let begin = Instant::now();
    for weight in 1..=14 {
        registry.set_weight("echo", server.address(), weight).await.expect("its server keeps it");
    }
    assert!(begin.elapsed() > Duration::from_millis(3_900), "ten at once, and four: {:?}", begin.elapsed());
    server.stop().await;
}

#[tokio::test]
async fn every_format_with_room_for_a_weight_takes_it() {
    async fn takes_it(format: impl Format + Copy) {
        let etcd = Etcd::start().await;
        let build = || Registry::builder([etcd.url()]).prefix("of").format(format).build().expect("a good registry");
        let (here, operator) = (build(), build());
        let server = EchoServer::registered(&here, "echo").await;
        let before = etcd.keys("").await;
        for weight in [7, 700, 10] {
            operator.set_weight("echo", server.address(), weight).await.expect("its server keeps it");
            let now = operator.instances("echo").await.expect("etcd answers");
            let member = now.iter().next().expect("it is registered");
            assert_eq!(member.instance().weight(), weight, "{format:?}");
            assert_eq!(server.registration().weight(), weight, "{format:?}");
            let marked =
                etcd.keys("").await.iter().any(|(_, value, _)| String::from_utf8_lossy(value).contains("rewei"));
            assert!(!marked, "the server answered: {format:?}");
        }
        assert_eq!(etcd.keys("").await, before, "with its first weight all is as it was: {format:?}");
        server.stop().await;
    }
    takes_it(Kitex::new()).await;
    takes_it(EtcdNaming::new().adds_metadata(true)).await;
    takes_it(Kratos::new()).await;
    takes_it(Kratos::new().secure(true)).await;
}

#[tokio::test]
async fn a_channel_shares_its_calls_by_the_weight_that_an_operator_set() {
    let etcd = Etcd::start().await;
    let (here, operator) = (registry(&etcd), registry(&etcd));
    let (light, heavy) = (EchoServer::registered(&here, "echo").await, EchoServer::registered(&here, "echo").await);
    let channel =
        here.channel("echo").policy(WeightedRoundRobin::new()).timeout(LIMIT).build().expect("a good channel");
    operator.set_weight("echo", light.address(), 10).await.expect("it has it");
    operator.set_weight("echo", heavy.address(), 30).await.expect("its server keeps it");
    let both = async || {
        let instances = channel.instances();
        let weights = instances.iter().map(|known| known.instance().weight()).collect::<Vec<_>>();
        weights.len() == 2 && weights.contains(&30)
    };
    eventually("the channel knows the weights", LIMIT, both).await;
    let mut client = EchoClient::new(channel.clone());
    let mut call = async |count: usize| {
        for _ in 0..count {
            client.unary_echo(EchoRequest::default()).await.expect("a server answers");
        }
    };
    let share = async || {
        let before = (light.calls(), heavy.calls());
        call(40).await;
        (light.calls() - before.0, heavy.calls() - before.1) == (10, 30)
    };
    let mut share = share;
    eventually("one call in four goes to the light one", LIMIT, async || share().await).await;
    light.stop().await;
    heavy.stop().await;
}

#[tokio::test]
async fn a_weight_that_cannot_be_is_refused_before_anything_is_written() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let refused = async |registry: &Registry, address: &str, weight: u16| {
        let before = etcd.keys("").await;
        let error = registry.set_weight("echo", address, weight).await.expect_err("it cannot be");
        assert_eq!(etcd.keys("").await, before, "nothing is touched");
        error
    };
    let unknown = refused(&registry, "10.0.0.1:80", 7).await;
    assert!(matches!(unknown, RegistryError::UnknownAddress { .. }), "{unknown}");
    let zero = refused(&registry, "10.0.0.1:80", 0).await;
    assert!(matches!(zero, RegistryError::Config(ConfigError::Option { option: "weight", .. })), "{zero}");

    let value = |rest: &str| format!(r#"{{"network":"tcp","address":"10.0.0.1:80","weight":10,"tags":null{rest}}}"#);
    etcd.put("kitex/registry-etcd/echo/10.0.0.1:80", value("")).await;
    let by_hand = refused(&registry, "10.0.0.1:80", 7).await.to_string();
    assert!(by_hand.contains("echo at 10.0.0.1:80") && by_hand.contains("no lease"), "{by_hand}");
    put(&etcd, "kitex/registry-etcd/echo/10.0.0.1:80", &value(r#","draining":true"#)).await;
    let leaving = refused(&registry, "10.0.0.1:80", 7).await.to_string();
    assert!(leaving.contains("it is leaving"), "{leaving}");

    let go_zero = Registry::builder([etcd.url()]).format(GoZero::new()).build().expect("a good registry");
    put(&etcd, "echo/17", "10.0.0.1:80").await;
    let bare = refused(&go_zero, "10.0.0.1:80", 7).await;
    assert!(matches!(bare, RegistryError::NoWeight { .. }) && bare.to_string().contains("GoZero"), "{bare}");
    let naming = Registry::builder([etcd.url()]).format(EtcdNaming::new()).build().expect("a good registry");
    put(&etcd, "echo/10.0.0.2:80", r#"{"Op":0,"Addr":"10.0.0.2:80","Metadata":"a text"}"#).await;
    let text = refused(&naming, "10.0.0.2:80", 7).await;
    assert!(matches!(text, RegistryError::NoWeight { .. }), "{text}");
}

#[tokio::test]
async fn what_another_program_registered_has_its_former_weight_back() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let value = r#"{"network":"tcp","address":"10.0.0.1:80","weight":10,"tags":null}"#;
    let key = "kitex/registry-etcd/echo/10.0.0.1:80";
    let lease = put(&etcd, key, value).await;
    let before = etcd.keys("").await;
    let refused = registry.set_weight("echo", "10.0.0.1:80", 7).await.expect_err("no server keeps it");
    assert!(matches!(refused, RegistryError::WeightNotKept { .. }), "{refused}");
    assert!(refused.to_string().contains("did not take the weight up"), "{refused}");
    assert_eq!(etcd.keys("").await, before, "as it was");

    // One that puts its own value back, as a watchful program does.
    let mut owner = etcd.client().await;
    let keeps = tokio::spawn(async move {
        loop {
            let now = owner.get(key, None).await.expect("etcd answers").take_kvs();
            if now.first().is_some_and(|kv| kv.value() != value.as_bytes()) {
                owner.put(key, value, Some(PutOptions::new().with_lease(lease))).await.expect("etcd puts");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let refused = registry.set_weight("echo", "10.0.0.1:80", 7).await.expect_err("it is overwritten each time");
    assert!(refused.to_string().contains("writes its own weight over it"), "{refused}");
    let restored = async || only_value(&etcd).await.0 == value;
    eventually("its own value stands", LIMIT, restored).await;
    keeps.abort();
}

#[tokio::test]
async fn an_order_that_is_seen_only_after_it_was_withdrawn_is_not_obeyed() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let here = Registry::builder([proxy.url()]).build().expect("a good registry");
    let server = EchoServer::registered(&here, "echo").await;
    let registration = server.registration();
    let (value, _) = only_value(&etcd).await;

    // The order arrives after 3.5 s, and its withdrawal, which comes at 3 s, after 6.5 s.
    proxy.delay(Duration::from_millis(3_500));
    let refused = registry(&etcd).set_weight("echo", server.address(), 7).await.expect_err("it cannot answer in time");
    assert!(matches!(refused, RegistryError::WeightNotKept { .. }), "{refused}");
    assert_eq!(only_value(&etcd).await.0, value, "its own value is back");
    proxy.delay(Duration::ZERO);
    etcd.delete(etcd.keys("").await.pop().expect("a key").0).await;
    let is_back = async || !etcd.keys("").await.is_empty();
    eventually("the order arrives, and the key is put back", LIMIT, is_back).await;
    assert_eq!((only_value(&etcd).await.0, registration.weight()), (value, 10), "its own weight stays");
    stands_at(&etcd, registration, 10, "to the end").await;
    server.stop().await;
}

#[tokio::test]
async fn a_frozen_server_is_not_reweighed_and_both_orders_at_once_are_obeyed() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let mut server = Process::start(example("echo_server").args(["--etcd", &etcd.url()]));
    let listening = server.expect_event("listening", LIMIT).await;
    let address: SocketAddr = listening["address"].as_str().expect("an address").parse().expect("an address");
    server.expect_event("registered", LIMIT).await;
    let (value, lease) = only_value(&etcd).await;
    server.freeze();
    let refused = registry.set_weight("echo", address, 7).await.expect_err("it cannot answer");
    assert!(refused.to_string().contains("frozen"), "{refused}");
    assert_eq!(only_value(&etcd).await, (value.clone(), lease), "its own value is back");
    server.resume();
    etcd.delete(format!("kitex/registry-etcd/echo/{address}")).await;
    let is_back = async || !etcd.keys("").await.is_empty();
    eventually("it has seen what happened, and puts its key back", LIMIT, is_back).await;
    assert_eq!(only_value(&etcd).await, (value.clone(), lease), "an order that was withdrawn is none");
    server.freeze();

    // A weight whose call was cut off, and a drain: it sees both at once.
    let reweighed = Kitex::new().reweigh(value.as_bytes(), 7).expect("its own value takes it");
    let key = format!("kitex/registry-etcd/echo/{address}");
    let options = PutOptions::new().with_lease(lease);
    etcd.client().await.put(key, reweighed, Some(options)).await.expect("etcd puts");
    registry.drain("echo", address).await.expect("it is registered");
    server.resume();
    server.expect_event("drained", LIMIT).await;
    server.signal(Signal::TERM);
    assert!(server.wait(LIMIT).await.success(), "it served on until now");
}

#[tokio::test]
async fn a_mark_that_another_call_left_behind_is_undone() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let value = r#"{"network":"tcp","address":"10.0.0.1:80","weight":10,"tags":null}"#;
    let key = "kitex/registry-etcd/echo/10.0.0.1:80";
    let marked = Kitex::new().reweigh(value.as_bytes(), 5).expect("its own value takes it");
    let marked = String::from_utf8(marked).expect("text");
    put(&etcd, key, &marked).await;
    registry.set_weight("echo", "10.0.0.1:80", 10).await.expect("it is its server's own weight");
    assert_eq!(only_value(&etcd).await.0, value, "as its server wrote it");

    put(&etcd, key, &marked).await;
    let silent = registry.set_weight("echo", "10.0.0.1:80", 7).await.expect_err("no server keeps it");
    assert!(matches!(silent, RegistryError::WeightNotKept { reason: WeightRefusal::Silent, .. }), "{silent}");
    assert!(silent.is_transient(), "it may be frozen");
    assert_eq!(only_value(&etcd).await.0, value, "what comes back is not the other call's weight");
}

#[tokio::test]
async fn an_etcd_that_does_not_answer_for_a_while_leaves_no_mark() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let operator = Registry::builder([proxy.url()]).build().expect("a good registry");
    let value = r#"{"network":"tcp","address":"10.0.0.1:80","weight":10,"tags":null}"#;
    put(&etcd, "kitex/registry-etcd/echo/10.0.0.1:80", value).await;
    for stays_away in [false, true] {
        let order = operator.set_weight("echo", "10.0.0.1:80", 7);
        let cut = async {
            let is_marked = async || only_value(&etcd).await.0.contains("reweighed");
            eventually("the mark is written", LIMIT, is_marked).await;
            let before = proxy.accepted();
            proxy.reset();
            eventually("another connection is tried", LIMIT, async || proxy.accepted() > before).await;
            if !stays_away {
                proxy.forward();
            }
        };
        let (ended, ()) = tokio::join!(order, cut);
        let error = ended.expect_err("no server keeps it");
        if stays_away {
            assert!(matches!(error, RegistryError::WeightUnknown { .. }) && error.is_transient(), "{error}");
            assert!(only_value(&etcd).await.0.contains("reweighed"), "it could not be put back");
        } else {
            // The answer to the put itself may have been lost.
            let is_told = matches!(error, RegistryError::WeightNotKept { .. } | RegistryError::Unavailable { .. });
            assert!(is_told, "{error}");
            assert_eq!(only_value(&etcd).await.0, value, "the own value is back");
        }
    }
    proxy.forward();
    let undone = async || operator.set_weight("echo", "10.0.0.1:80", 10).await.is_ok();
    eventually("another call undoes it", LIMIT, undone).await;
    assert_eq!(only_value(&etcd).await.0, value, "as its server wrote it");
}

#[tokio::test]
async fn metadata_of_null_becomes_an_object_only_where_that_is_asked_for() {
    let etcd = Etcd::start().await;
    let of = |format: EtcdNaming| Registry::builder([etcd.url()]).format(format).build().expect("a good registry");
    let (careful, bold) = (of(EtcdNaming::new()), of(EtcdNaming::new().adds_metadata(true)));
    let server = EchoServer::registered(&careful, "echo").await;
    let before = only_value(&etcd).await;
    let refused = careful.set_weight("echo", server.address(), 7).await.expect_err("old clients would panic");
    assert!(matches!(refused, RegistryError::NoWeight { .. }), "{refused}");
    assert!(refused.to_string().contains("grpc-go"), "{refused}");
    assert_eq!(only_value(&etcd).await, before, "nothing is touched");
    bold.set_weight("echo", server.address(), 7).await.expect("it is asked for");
    assert_eq!(server.registration().weight(), 7, "the server keeps it");
    careful.set_weight("echo", server.address(), 8).await.expect("it is an object already");
    server.stop().await;
}

#[tokio::test]
async fn a_weight_that_clients_would_not_read_is_refused() {
    let etcd = Etcd::start().await;
    let format = Kratos::new();
    let registry = Registry::builder([etcd.url()]).format(format).default_weight(100).build().expect("a good registry");
    let server = EchoServer::registered(&registry, "echo").await;
    let refused = registry.set_weight("echo", server.address(), 10).await.expect_err("10 is not stated");
    assert!(matches!(refused, RegistryError::NoWeight { .. }), "{refused}");
    assert!(refused.to_string().contains("read as 100"), "{refused}");
    registry.set_weight("echo", server.address(), 100).await.expect("clients read that already");
    assert_eq!(server.registration().weight(), 10, "so nothing was ordered");
    registry.set_weight("echo", server.address(), 11).await.expect("its server keeps it");
    server.stop().await;
}
