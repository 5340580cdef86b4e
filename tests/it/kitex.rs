//! What Kitex's etcd extension offers, as it is called here: preset, retries, fixed address, environment.

use std::net::SocketAddr;
use std::time::Duration;

use etcd_client::LeaseTimeToLiveResponse;
use tonic_etcd::{Instance, RegistrationStatus, Registry};

use crate::support::changes::Changes;
use crate::support::costs::Costs;
use crate::support::etcd::{Etcd, free_port};
use crate::support::process::{Process, Signal, example};
use crate::support::server::EchoServer;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::{LIMIT, eventually};

fn registry(etcd: &Etcd) -> Registry {
    Registry::builder([etcd.url()]).build().expect("a good registry")
}

async fn registered(server: &EchoServer) {
    let registered = tokio::time::timeout(LIMIT, server.registration().registered()).await;
    registered.expect("it registers in time").expect("it does not give up");
}

/// The TTL that etcd granted the one lease that there is.
async fn granted(etcd: &Etcd) -> i64 {
    let leases = etcd.leases().await;
    assert_eq!(leases.len(), 1, "one lease");
    let ttl: LeaseTimeToLiveResponse =
        etcd.client().await.lease_time_to_live(leases[0], None).await.expect("etcd knows the lease");
    ttl.granted_ttl()
}

#[tokio::test]
async fn the_preset_registers_as_kitex_does() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let server = EchoServer::start(|address| registry.registration(Instance::new("echo", address)).kitex());
    registered(&server).await;
    assert_eq!(granted(&etcd).await, 60, "Kitex's TTL");
    let address = server.address();
    let value = format!(r#"{{"network":"tcp","address":"{address}","weight":10,"tags":null}}"#);
    let (key, found, _) = etcd.keys("").await.pop().expect("it is registered");
    assert_eq!((key, String::from_utf8(found).expect("text")), (format!("kitex/registry-etcd/echo/{address}"), value));
    server.registration().deregister().await;
    drop(server);
}

#[tokio::test]
async fn a_fixed_address_is_registered_and_deregistered_under_its_own_key() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let server = EchoServer::start(|address| {
        registry
            .registration(Instance::new("echo", address))
            .advertise("10.1.2.3:4567")
            .propagation_pause(Duration::ZERO)
    });
    registered(&server).await;
    let keys = etcd.keys("").await;
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0].0, "kitex/registry-etcd/echo/10.1.2.3:4567");
    server.stop().await;
    assert!(etcd.keys("").await.is_empty(), "Kitex would have deleted the key of the listener's address");
}

#[tokio::test]
async fn the_key_is_looked_at_as_often_as_was_said() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let server =
        EchoServer::start(|address| registry.registration(Instance::new("echo", address)).check_interval(SECOND));
    registered(&server).await;
    let before = Costs::of(&etcd).await;
    // The first list, and three looks without any cause.
    eventually("it looks", LIMIT, async || before.until_now().await.calls("Range") >= 4).await;
    server.stop().await;
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_server_that_gave_up_says_so_and_serves_on() {
    let mut command = example("echo_server");
    // No etcd listens there.
    command.args(["--etcd", &format!("http://127.0.0.1:{}", free_port())]);
    let mut server = Process::start(command.args(["--max-attempts", "3", "--retry-delay", "1"]));
    let listening = server.expect_event("listening", LIMIT).await;
    let gave_up = server.expect_event("gave_up", LIMIT).await;
    assert_eq!(gave_up["attempts"], 3, "{gave_up}");
    assert!(gave_up["reason"].as_str().is_some_and(|reason| reason.contains("127.0.0.1")), "{gave_up} says why");
    let log = server.log();
    assert!(log.contains("WARN") && log.contains("registration gave up"), "it is not silent: {log}");

    let url = format!("http://{}", listening["address"].as_str().expect("an address"));
    let mut client = EchoClient::connect(url).await.expect("it still accepts connections");
    client.unary_echo(EchoRequest { message: "hi".into() }).await.expect("and still answers");
    drop(client);
    server.signal(Signal::TERM);
    assert!(server.wait(LIMIT).await.success(), "and ends in order");
}

#[tokio::test]
async fn an_etcd_that_refuses_for_the_time_being_costs_no_attempt() {
    // Its answer to each claim is an error of its own, as "too many requests" is.
    let etcd = Etcd::builder().arg("--max-request-bytes=60").start().await;
    let registry = registry(&etcd);
    let server = EchoServer::start(|address| {
        let registration = registry.registration(Instance::new("echo", address));
        registration.max_attempts(2).retry_delay(Duration::from_millis(10))
    });
    eventually("it claims its key again and again", LIMIT, async || Costs::of(&etcd).await.calls("Txn") >= 5).await;
    // To give up takes three seconds at most.
    let ended = tokio::time::timeout(4 * SECOND, server.registration().registered()).await;
    assert!(ended.is_err(), "it has not given up: {ended:?}");
    assert_eq!(server.registration().status(), RegistrationStatus::Registering);
    server.stop().await;
}

#[tokio::test]
async fn kitex_s_environment_is_honoured() {
    let etcd = Etcd::start().await;
    let environment = [
        ("KITEX_IP_TO_REGISTRY", "10.1.2.3"),
        ("KITEX_PORT_TO_REGISTRY", "4567"),
        ("KITEX_ETCD_REGISTRY_LEASE_TTL", "33"),
    ];
    let mut command = example("echo_server");
    command.args(["--etcd", &etcd.url(), "--kitex", "--pause", "0"]).envs(environment);
    let mut server = Process::start(&mut command);
    let registered = server.expect_event("registered", LIMIT).await;
    assert_eq!(registered["key"], "kitex/registry-etcd/echo/10.1.2.3:4567");
    assert_eq!(granted(&etcd).await, 33, "also where the preset has another TTL");
    server.signal(Signal::TERM);
    assert!(server.wait(LIMIT).await.success());
    assert!(etcd.keys("").await.is_empty(), "the key that was written is the one that goes");

    for (variable, _) in environment {
        let mut command = example("echo_server");
        let output = command.args(["--etcd", &etcd.url()]).env(variable, "nonsense!").output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{variable} is refused");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(variable), "{said} names {variable}");
    }
}

#[tokio::test]
async fn what_kitex_s_old_functions_for_users_wrote_is_found_below_a_slash() {
    let etcd = Etcd::start().await;
    // NewEtcdRegistryWithAuth takes no prefix and sets none.
    let address = SocketAddr::from(([127, 0, 0, 1], 1001));
    let value = format!(r#"{{"network":"tcp","address":"{address}","weight":10,"tags":null}}"#);
    etcd.put(format!("/echo/{address}"), value).await;
    let registry = Registry::builder([etcd.url()]).prefix("/").build().expect("a good prefix");
    Changes::of(&registry, "echo").expect_insert(address).await;
    let server = EchoServer::registered(&registry, "own").await;
    assert_eq!(etcd.keys("/own/").await[0].0, format!("/own/{}", server.address()), "and ours stands where they look");
    server.stop().await;
}

#[tokio::test]
async fn prefix_and_default_weight_are_the_reader_s_options_too() {
    let etcd = Etcd::start().await;
    let builder = || Registry::builder([etcd.url()]).prefix("own/prefix");
    let address = SocketAddr::from(([127, 0, 0, 1], 1001));
    // As a Kitex server writes it that has no weight.
    let value = format!(r#"{{"network":"tcp","address":"{address}","weight":0,"tags":null}}"#);
    etcd.put(format!("own/prefix/echo/{address}"), value).await;
    let registry = builder().default_weight(33).build().expect("good options");
    let mut discover = registry.discover("echo").expect("a good name");
    let snapshot = tokio::time::timeout(LIMIT, discover.ready()).await.expect("it is listed in time");
    assert_eq!(snapshot.get(&address.into()).map(|member| member.instance().weight()), Some(33));
}
