//! A server registers itself and is found; what stands in etcd is what Kitex writes; other services stay out of sight.

use tonic_etcd::{Instance, RegistrationStatus, Registry};

use crate::support::changes::Changes;
use crate::support::etcd::Etcd;
use crate::support::process::{Process, Signal, example};
use crate::support::server::EchoServer;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::{LIMIT, eventually};

#[tokio::test]
async fn a_server_registers_itself_and_a_channel_finds_it() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let server = EchoServer::start(|address| {
        registry.registration(Instance::new("echo", address).with_weight(66).with_tag("hello", "world"))
    });
    let address = server.address();

    let discover = registry.discover("echo").expect("a good name");
    let mut client = EchoClient::new(discover.balance_channel(|_, endpoint| endpoint));
    let reply = tokio::time::timeout(LIMIT, client.unary_echo(EchoRequest { message: "hi".into() })).await;
    let reply = reply.expect("the call waits for the server").expect("the server answers").into_inner();
    assert_eq!(reply.address, address.to_string(), "it is the one that registered");

    let RegistrationStatus::Registered { key, lease, .. } = server.registration().status() else {
        panic!("a server that is found is registered");
    };
    let value = format!(r#"{{"network":"tcp","address":"{address}","weight":66,"tags":{{"hello":"world"}}}}"#);
    assert_eq!(key, format!("kitex/registry-etcd/echo/{address}"));
    assert_eq!(etcd.keys("").await, [(key, value.into_bytes(), lease)], "the key is what Kitex would write");
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_kitex_wrote_down_is_found() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    etcd.put(
        "kitex/registry-etcd/echo/127.0.0.1:8888",
        r#"{"network":"tcp","address":"127.0.0.1:8888","weight":0,"tags":{"a":"b"}}"#,
    )
    .await;
    let instance = Changes::of(&registry, "echo").expect_insert("127.0.0.1:8888").await;
    assert_eq!((instance.weight(), &instance.tags()["a"]), (10, "b"), "a weight of 0 is the default");
}

#[tokio::test]
async fn services_whose_names_begin_alike_see_only_their_own() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let services = ["foo", "foobar", "foo.bar"];
    let mut changes: Vec<_> = services.iter().map(|service| Changes::of(&registry, service)).collect();
    for (n, service) in services.iter().enumerate() {
        let address = format!("127.0.0.1:{}", 1001 + n);
        let value = format!(r#"{{"address":"{address}"}}"#);
        etcd.put(format!("kitex/registry-etcd/{service}/{address}"), value.clone()).await;
        etcd.put(format!("kitex/registry-etcd/{service}/deeper/{address}"), value.clone()).await;
        etcd.put(format!("other/kitex/registry-etcd/{service}/{address}"), value).await;
    }
    for (n, changes) in changes.iter_mut().enumerate() {
        changes.expect_insert(format!("127.0.0.1:{}", 1001 + n)).await;
        changes.expect_nothing_before(&etcd, &format!("127.0.0.1:{}", 2001 + n)).await;
    }
}

#[tokio::test]
async fn prefixes_keep_registries_apart() {
    let etcd = Etcd::start().await;
    let of = |prefix: &str| Registry::builder([etcd.url()]).prefix(prefix).build().expect("a good prefix");
    let server = EchoServer::registered(&of("/teams/a/"), "echo").await;
    let mut same = Changes::of(&of("/teams/a"), "echo");
    same.expect_insert(server.address()).await;
    let keys: Vec<String> = etcd.keys("").await.into_iter().map(|(key, ..)| key).collect();
    assert_eq!(keys, [format!("/teams/a/echo/{}", server.address())], "one slash at the end, one at the beginning");

    let mut other = of("teams/a").discover("echo").expect("a good name");
    assert!(other.ready().await.is_empty(), "a prefix without the leading slash is another one");
    server.stop().await;
}

#[tokio::test]
async fn a_snapshot_can_be_waited_for_and_looked_at() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let server = EchoServer::registered(&registry, "echo").await;
    let mut discover = registry.discover("echo").expect("a good name");
    let snapshot = discover.ready().await;
    assert_eq!(snapshot.len(), 1);
    assert!(snapshot.revision() > 1, "it has its revision");
    let member = snapshot.get(server.registration().address()).expect("the server is in it");
    assert_eq!(member.instance().address(), server.registration().address());
    let address = server.registration().address().clone();
    server.stop().await;
    let gone = async || discover.snapshot().is_some_and(|snapshot| snapshot.get(&address).is_none());
    eventually("the newest snapshot shows that the server left", LIMIT, gone).await;
}

#[tokio::test]
async fn the_example_programs_find_each_other() {
    let etcd = Etcd::start().await;
    let mut server = Process::start(example("echo_server").args(["--etcd", &etcd.url(), "--weight", "3"]));
    let listening = server.expect_event("listening", LIMIT).await;
    let address = listening["address"].as_str().expect("an address").to_owned();
    let registered = server.expect_event("registered", LIMIT).await;
    assert_eq!(registered["key"], format!("kitex/registry-etcd/echo/{address}"));
    let lease = registered["lease"].as_str().and_then(|lease| i64::from_str_radix(lease, 16).ok());
    assert_eq!(etcd.leases().await, [lease.expect("the lease in hexadecimal")]);

    let mut watch = Process::start(example("watch").args(["--etcd", &etcd.url()]));
    let insert = watch.expect_event("insert", LIMIT).await;
    assert_eq!((&insert["address"], &insert["weight"]), (&address.clone().into(), &3.into()));

    for balance in [
        ["--balancer", "tonic"],
        ["--policy", "least-request"],
        ["--policy", "weighted-round-robin"],
        ["--policy", "random"],
        ["--policy", "pick-first"],
        ["--policy", "peak-ewma"],
    ] {
        let flags = ["--etcd", &etcd.url(), "--count", "20", "--rps", "0"];
        let mut client = Process::start(example("echo_client").args(flags).args(balance));
        let summary = client.rest(LIMIT).await.pop().expect("the client ends with a summary");
        assert!(client.wait(LIMIT).await.success(), "{balance:?} is understood");
        assert_eq!((&summary["sent"], &summary["ok"]), (&20.into(), &20.into()), "{balance:?}: {summary}");
        assert_eq!(summary["by_instance"][&address], 20, "{balance:?}: {summary}");
    }

    server.signal(Signal::INT);
    let stopped = server.expect_event("stopped", LIMIT).await;
    assert_eq!(stopped["calls"], 120, "the server counted the calls of all clients");
    assert!(server.wait(LIMIT).await.success());
    watch.expect_event("remove", LIMIT).await;
    watch.signal(Signal::TERM);
    watch.wait(LIMIT).await;
}

#[tokio::test]
async fn the_example_clients_flags_set_its_zone_its_subset_and_its_keys() {
    let etcd = Etcd::start().await;
    let mut servers = Vec::new();
    for zone in ["rack=a", "rack=a", "rack=b"] {
        let mut server = Process::start(example("echo_server").args(["--etcd", &etcd.url(), "--tag", zone]));
        let listening = server.expect_event("listening", LIMIT).await;
        server.expect_event("registered", LIMIT).await;
        servers.push((listening["address"].as_str().expect("an address").to_owned(), server));
    }
    let flags = ["--etcd", &etcd.url(), "--count", "200"];
    let calls = async |own: &[&str]| {
        let mut client = Process::start(example("echo_client").args(flags).args(own));
        let summary = client.rest(LIMIT).await.pop().expect("the client ends with a summary");
        assert!(client.wait(LIMIT).await.success(), "{own:?} is understood");
        assert_eq!(summary["ok"], 200, "{own:?}: {summary}");
        let of = |address: &String| summary["by_instance"][address].as_u64().unwrap_or(0);
        servers.iter().map(|(address, _)| of(address)).collect::<Vec<_>>()
    };

    let zone = calls(&["--zone", "a", "--zone-tag", "rack", "--slow-start", "30"]).await;
    // Until the servers of the zone are connected, the other one may be all that there is.
    assert!(
        zone[0] > 0 && zone[1] > 0 && zone[2] < 100,
        "two of three are enough for all calls of their zone: {zone:?}"
    );
    let subset = calls(&["--subset", "1"]).await;
    assert_eq!(subset.iter().filter(|calls| **calls > 0).count(), 1, "one is used: {subset:?}");
    let ring = calls(&["--policy", "ring-hash", "--hash-header", "x-user"]).await;
    assert!(ring.iter().all(|calls| *calls > 0), "keys spread over all: {ring:?}");
}

#[tokio::test]
async fn the_example_client_retries_by_a_flag_or_a_service_config() {
    let etcd = Etcd::start().await;
    let mut servers = Vec::new();
    for percent in ["50", "0"] {
        let flags = ["--etcd", &etcd.url(), "--fail-percent", percent];
        let mut server = Process::start(example("echo_server").args(flags));
        server.expect_event("registered", LIMIT).await;
        servers.push(server);
    }
    let flags = ["--etcd", &etcd.url(), "--count", "200", "--policy", "weighted-round-robin"];
    let failed = async |own: &[&str]| {
        let mut client = Process::start(example("echo_client").args(flags).args(own));
        let summary = client.rest(LIMIT).await.pop().expect("the client ends with a summary");
        assert!(client.wait(LIMIT).await.success(), "{own:?} is understood");
        200 - summary["ok"].as_u64().expect("a number")
    };
    assert!(failed(&[]).await > 0, "one server fails half of its calls");
    assert_eq!(failed(&["--retry", "unavailable,aborted"]).await, 0, "the other one fails none");

    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("service-config.json");
    let text = r#"{
        "methodConfig": [{
            "name": [{"service": "echo.Echo"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "ABORTED"]
            }
        }]
    }"#;
    std::fs::write(&config, text).expect("it is a file of ours");
    let config = config.to_str().expect("a plain name");
    assert_eq!(failed(&["--service-config", config]).await, 0, "the same, from a file");
}

#[tokio::test]
async fn without_servers_a_client_fails_at_once_unless_it_waits_for_ready() {
    let etcd = Etcd::start().await;
    let flags = ["--etcd", &etcd.url(), "--count", "3", "--timeout", "200"];
    for (wait, code) in [(&[][..], "UNAVAILABLE"), (&["--wait-for-ready"], "DEADLINE_EXCEEDED")] {
        let mut client = Process::start(example("echo_client").args(flags).args(wait));
        let summary = client.rest(LIMIT).await.pop().expect("the client ends with a summary");
        assert!(client.wait(LIMIT).await.success());
        assert_eq!((&summary["sent"], &summary["failed"][code]), (&3.into(), &3.into()), "{wait:?}: {summary}");
    }
}
