//! In each format a server writes what its ecosystem reads, and reads what that writes, whatever else lies beside it.

use std::collections::BTreeSet;

use etcd_client::PutOptions;
use tokio::net::TcpStream;
use tonic_etcd::format::{DecodeError, Decoded, Entry, EtcdNaming, Format, GoZero, Kitex, Kratos};
use tonic_etcd::{Discover, Instance, RegistrationStatus, Registry};

use crate::support::changes::Changes;
use crate::support::etcd::Etcd;
use crate::support::process::{Process, Signal, example};
use crate::support::server::EchoServer;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::{LIMIT, eventually};

fn registry(etcd: &Etcd, format: impl Format) -> Registry {
    Registry::builder([etcd.url()]).format(format).build().expect("a good registry")
}

/// A server of `echo` with a weight and a tag, what it wrote, and whether a channel can call it.
async fn written_and_called(format: impl Format) -> (String, String, i64, String) {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd, format);
    let server = EchoServer::start(|address| {
        registry.registration(
            Instance::new("echo", address).with_weight(20).with_tag("zone", "a").with_tag("version", "v1"),
        )
    });
    let address = server.address().to_string();
    server.registration().registered().await.expect("it is not deregistered");
    let (key, value, lease) = etcd.keys("").await.pop().expect("the server is registered");
    let status = server.registration().status();
    let says = status.to_string();
    assert!(
        matches!(status, RegistrationStatus::Registered { key: told, lease: under, .. } if (&told, under) == (&key, lease)),
        "the status has the key: {says}"
    );

    let channel = registry.channel("echo").build().expect("a good channel");
    channel.ready_within(LIMIT).await.expect("the channel finds the server");
    let reply = EchoClient::new(channel).unary_echo(EchoRequest { message: "hi".into() }).await;
    assert_eq!(reply.expect("the server answers").into_inner().address, address);

    server.stop().await;
    assert!(etcd.keys("").await.is_empty() && etcd.leases().await.is_empty(), "nothing is left behind");
    (key, String::from_utf8(value).expect("text"), lease, address)
}

#[tokio::test]
async fn a_server_in_etcds_naming_is_found_and_leaves_nothing_behind() {
    let (key, value, _, address) = written_and_called(EtcdNaming::new()).await;
    assert_eq!(key, format!("echo/{address}"));
    let metadata = r#"{"version":"v1","weight":20,"zone":"a"}"#;
    assert_eq!(value, format!(r#"{{"Op":0,"Addr":"{address}","Metadata":{metadata}}}"#));
}

#[tokio::test]
async fn a_server_in_go_zeros_format_is_found_and_leaves_nothing_behind() {
    let (key, value, lease, address) = written_and_called(GoZero::new()).await;
    assert_eq!(key, format!("echo/{lease}"));
    assert_eq!(value, address);
}

#[tokio::test]
async fn a_server_in_kratos_format_is_found_and_leaves_nothing_behind() {
    let (key, value, _, address) = written_and_called(Kratos::new()).await;
    let id = key.strip_prefix("/microservices/echo/").expect("the key is in Kratos' namespace");
    let groups: Vec<&str> = id.split('-').collect();
    assert_eq!(groups.iter().map(|group| group.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12], "{id} is a UUID");
    assert!(groups[2].starts_with('4') && groups[3].starts_with(['8', '9', 'a', 'b']), "{id} is a random one");
    let fields = format!(r#""version":"v1","metadata":{{"weight":"20","zone":"a"}},"endpoints":["grpc://{address}"]"#);
    assert_eq!(value, format!(r#"{{"id":"{id}","name":"echo",{fields}}}"#));
}

#[tokio::test]
async fn what_the_other_programs_wrote_is_found() {
    let etcd = Etcd::start().await;
    for (key, value) in [
        ("foo/127.0.0.1:2000", r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":{"weight":20,"zone":"a"}}"#),
        ("user.rpc/7587870411654340610", "192.168.0.5:8080"),
        (
            "/microservices/helloworld/3f1cbb1e-0001-4a6b-9a50-000000000001",
            r#"{"id":"3f1cbb1e-0001-4a6b-9a50-000000000001","name":"helloworld","version":"v1","metadata":{"weight":"20"},"endpoints":["grpc://10.0.0.1:9000","http://10.0.0.1:8000"]}"#,
        ),
    ] {
        etcd.put(key, value).await;
    }
    let naming = Changes::of(&registry(&etcd, EtcdNaming::new()), "foo").expect_insert("127.0.0.1:2000").await;
    assert_eq!((naming.weight(), &naming.tags()["zone"]), (20, "a"));
    let go_zero = Changes::of(&registry(&etcd, GoZero::new()), "user.rpc").expect_insert("192.168.0.5:8080").await;
    assert_eq!((go_zero.weight(), go_zero.tags().len()), (10, 0), "nothing is stated");
    let kratos = Changes::of(&registry(&etcd, Kratos::new()), "helloworld").expect_insert("10.0.0.1:9000").await;
    assert_eq!((kratos.weight(), &kratos.tags()["version"]), (20, "v1"));
}

/// Everything that may lie around under a service's prefix: values of all formats, and of none.
fn values(address: &str) -> Vec<Vec<u8>> {
    let mut values = vec![
        format!(r#"{{"network":"tcp","address":"{address}","weight":10,"tags":null}}"#),
        format!(r#"{{"Op":0,"Addr":"{address}","Metadata":null}}"#),
        address.to_owned(),
        format!(r#"{{"id":"1","name":"echo","version":"","metadata":null,"endpoints":["grpc://{address}"]}}"#),
        format!(r#"{{"id":"1","name":"echo","version":"","metadata":null,"endpoints":["grpcs://{address}"]}}"#),
        String::new(),
        "null".to_owned(),
        "{}".to_owned(),
        "[[[".repeat(1_000),
        "127.0.0.1".to_owned(),
        // No client may be sent there, in any format.
        "0.0.0.0:1".to_owned(),
        "169.254.169.254:80".to_owned(),
        "[::ffff:169.254.169.254]:80".to_owned(),
        r#"{"Addr":"224.0.0.1:1"}"#.to_owned(),
        r#"{"address":"[fe80::1]:1"}"#.to_owned(),
        r#"{"endpoints":["grpc://[::]:1","grpcs://[::]:1"]}"#.to_owned(),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect::<Vec<_>>();
    values.push(b"\xff\xfe\x00".to_vec());
    // Too large to be looked at, though it would be good in one format.
    values.push(format!(r#"{{"Addr":"{address}","x":"{}"}}"#, "x".repeat(70_000)).into_bytes());
    values
}

#[tokio::test]
async fn mixed_and_malformed_neighbours_cost_only_themselves() {
    let etcd = Etcd::start().await;
    mixed(&etcd, Kitex::new(), 0).await;
    mixed(&etcd, EtcdNaming::new(), 1).await;
    mixed(&etcd, GoZero::new(), 2).await;
    mixed(&etcd, Kratos::new(), 3).await;
    mixed(&etcd, Kratos::new().secure(true), 4).await;
}

/// Of all values the `good`th alone is readable, wherever it lies, in the first list and in the watch.
async fn mixed(etcd: &Etcd, format: impl Format, good: usize) {
    let what = format!("{format:?}");
    let registry = Registry::builder([etcd.url()]).format(format).prefix(format!("mixed/{good}"));
    let registry = registry.build().expect("a good registry");
    let put_all = async |port: u16| {
        for (n, value) in values(&format!("127.0.0.1:{port}")).into_iter().enumerate() {
            etcd.put(format!("mixed/{good}/echo/{port}-{n}"), value.clone()).await;
            etcd.put(format!("mixed/{good}/echo/deeper/{port}-{n}"), value.clone()).await;
            etcd.put(format!("mixed/{good}/echo-not-ours/{port}-{n}"), value.clone()).await;
            etcd.put(format!("mixed/{good}/{port}-{n}"), value).await;
        }
        // The last one, so that what comes before it was looked at.
        let marker = values(&format!("127.0.0.1:{}", port + 1)).swap_remove(good);
        etcd.put(format!("mixed/{good}/echo/{port}-marker"), marker).await;
    };
    put_all(1001).await;
    let mut discover = registry.discover("echo").expect("a good name");
    discover.ready().await;
    assert_eq!(known(&discover), set(&["127.0.0.1:1001", "127.0.0.1:1002"]), "{what}: in the list");

    put_all(2001).await;
    let marked = async || known(&discover).contains("127.0.0.1:2002");
    eventually("the watch shows the last one", LIMIT, marked).await;
    let all = set(&["127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:2001", "127.0.0.1:2002"]);
    assert_eq!(known(&discover), all, "{what}: in the watch");
}

fn known(discover: &Discover) -> BTreeSet<String> {
    let snapshot = discover.snapshot().expect("the list has come");
    snapshot.iter().map(|member| member.instance().address().to_string()).collect()
}

fn set(addresses: &[&str]) -> BTreeSet<String> {
    addresses.iter().map(|address| (*address).to_owned()).collect()
}

#[tokio::test]
async fn two_go_zero_keys_with_one_address_are_one_instance_until_both_are_gone() {
    let etcd = Etcd::start().await;
    let mut changes = Changes::of(&registry(&etcd, GoZero::new()), "user.rpc");
    etcd.put("user.rpc/1", "10.0.0.1:80").await;
    etcd.put("user.rpc/2", "10.0.0.1:80").await;
    changes.expect_insert("10.0.0.1:80").await;
    etcd.delete("user.rpc/1").await;
    etcd.put("user.rpc/3", "10.0.0.3:80").await;
    changes.expect_insert("10.0.0.3:80").await;
    etcd.delete("user.rpc/2").await;
    changes.expect_remove("10.0.0.1:80").await;
}

#[tokio::test]
async fn a_new_value_on_a_go_zero_key_swaps_the_instance() {
    let etcd = Etcd::start().await;
    let mut changes = Changes::of(&registry(&etcd, GoZero::new()), "user.rpc");
    etcd.put("user.rpc/1", "10.0.0.1:80").await;
    changes.expect_insert("10.0.0.1:80").await;
    etcd.put("user.rpc/1", "10.0.0.2:80").await;
    changes.expect_remove("10.0.0.1:80").await;
    changes.expect_insert("10.0.0.2:80").await;
}

#[tokio::test]
async fn a_go_zero_server_that_lost_its_lease_is_back_under_the_next_leases_key() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd, GoZero::new());
    let server = EchoServer::registered(&registry, "echo").await;
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;
    for _ in 0..3 {
        let (old, _, lease) = etcd.keys("").await.pop().expect("the server is registered");
        etcd.revoke(lease).await;
        let back = async || match etcd.keys("").await.as_slice() {
            [(key, value, lease)] => {
                *key != old && *key == format!("echo/{lease}") && *value == server.address().to_string().into_bytes()
            }
            _ => false,
        };
        eventually("it is back, once", LIMIT, back).await;
    }
    etcd.put("echo/1", "10.0.0.1:80").await;
    changes.expect_insert("10.0.0.1:80").await;
    server.stop().await;
    assert_eq!(etcd.keys("").await.len(), 1, "what others wrote stays");
    assert!(etcd.leases().await.is_empty(), "and no lease is left behind");
}

#[tokio::test]
async fn a_go_zero_key_that_is_deleted_or_overwritten_is_put_back_as_it_was() {
    let etcd = Etcd::start().await;
    let server = EchoServer::registered(&registry(&etcd, GoZero::new()), "echo").await;
    let before = etcd.keys("").await;
    etcd.delete(before[0].0.clone()).await;
    eventually("the deleted key is back", LIMIT, async || etcd.keys("").await == before).await;
    etcd.put(before[0].0.clone(), "10.0.0.1:80").await;
    // The second within a second waits its turn.
    eventually("the overwritten key is back", LIMIT, async || etcd.keys("").await == before).await;
    server.stop().await;
}

#[tokio::test]
async fn a_go_zero_server_can_be_paused_and_resumed_even_after_a_lost_lease() {
    let etcd = Etcd::start().await;
    let server = EchoServer::registered(&registry(&etcd, GoZero::new()), "echo").await;
    let (key, _, lease) = etcd.keys("").await.pop().expect("the server is registered");
    server.registration().pause();
    eventually("the key is gone", LIMIT, async || etcd.keys("").await.is_empty()).await;
    assert_eq!(etcd.leases().await, [lease], "the lease is kept");
    server.registration().resume();
    let back = async || etcd.keys("").await.first().is_some_and(|(again, ..)| *again == key);
    eventually("it is back under the same key", LIMIT, back).await;

    server.registration().pause();
    eventually("the key is gone", LIMIT, async || etcd.keys("").await.is_empty()).await;
    etcd.revoke(lease).await;
    let another = async || matches!(etcd.leases().await.as_slice(), [next] if *next != lease);
    eventually("another lease is there", LIMIT, another).await;
    server.registration().resume();
    let back = async || etcd.keys("").await.first().is_some_and(|(key, _, lease)| *key == format!("echo/{lease}"));
    eventually("it is back under the key of that", LIMIT, back).await;
    server.stop().await;
}

/// A format of the test's own, whose keys say the zone.
#[derive(Debug)]
struct ByZone;

impl Format for ByZone {
    fn default_prefix(&self) -> &'static str {
        "zones"
    }

    fn segment(&self, entry: &Entry<'_>) -> String {
        let zone = entry.instance.tags().get("zone").unwrap_or("none");
        format!("{zone}-{}", entry.instance.address())
    }

    fn encode(&self, entry: &Entry<'_>) -> Vec<u8> {
        entry.instance.address().to_string().into_bytes()
    }

    fn decode(&self, segment: &str, value: &[u8]) -> Result<Decoded, DecodeError> {
        let address = std::str::from_utf8(value).map_err(|error| DecodeError::new(error.to_string()))?;
        let mut decoded = Decoded::new(address.parse()?);
        let (zone, _) = segment.split_once('-').ok_or_else(|| DecodeError::new("the key has no zone"))?;
        decoded.tags.insert("zone".to_owned(), zone.to_owned());
        Ok(decoded)
    }

    fn carries_draining(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_key_that_follows_the_instance_moves_and_the_former_one_is_deleted() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd, ByZone);
    let server = EchoServer::registered(&registry, "echo").await;
    let address = server.address();
    let mut changes = Changes::of(&registry, "echo");
    assert_eq!(&changes.expect_insert(address).await.tags()["zone"], "none");

    for zone in ["a", "b"] {
        server.registration().update(|instance| instance.with_tag("zone", zone)).expect("a good tag");
        assert_eq!(&changes.expect_insert(address).await.tags()["zone"], zone, "it never leaves");
        let moved = async || {
            let keys: Vec<String> = etcd.keys("").await.into_iter().map(|(key, ..)| key).collect();
            keys == [format!("zones/echo/{zone}-{address}")]
        };
        eventually("only the new key is there", LIMIT, moved).await;
    }
    let refused = server.registration().update(|instance| instance.with_tag("zone", "a/b"));
    let refused = refused.expect_err("a key must not reach into another service").to_string();
    assert!(refused.contains("a/b-"), "{refused} names it");

    server.stop().await;
    assert!(etcd.keys("").await.is_empty() && etcd.leases().await.is_empty(), "nothing is left behind");
}

#[tokio::test]
async fn a_kratos_server_keeps_its_key_when_it_loses_its_lease() {
    let etcd = Etcd::start().await;
    let server = EchoServer::registered(&registry(&etcd, Kratos::new()), "echo").await;
    let (key, value, old) = etcd.keys("").await.pop().expect("the server is registered");
    etcd.revoke(old).await;
    let back = async || match etcd.keys("").await.pop() {
        Some((again, as_before, lease)) => again == key && as_before == value && lease != old,
        None => false,
    };
    eventually("it is back under its id", LIMIT, back).await;
    server.stop().await;
}

#[tokio::test]
async fn an_operators_draining_mark_drains_in_every_format_that_has_one() {
    let etcd = Etcd::start().await;
    for registry in [registry(&etcd, EtcdNaming::new()), registry(&etcd, Kratos::new())] {
        let server = EchoServer::registered(&registry, "echo").await;
        let mut changes = Changes::of(&registry, "echo");
        changes.expect_insert(server.address()).await;
        let (key, value, lease) = etcd.keys("").await.pop().expect("the server is registered");
        let value = String::from_utf8(value).expect("text");
        let marked = format!(r#"{},"draining":true}}"#, value.strip_suffix('}').expect("an object"));
        let options = PutOptions::new().with_lease(lease);
        etcd.client().await.put(key, marked, Some(options)).await.expect("etcd puts");

        changes.expect_remove(server.address()).await;
        eventually("it has left", LIMIT, async || etcd.leases().await.is_empty()).await;
        assert!(TcpStream::connect(server.address()).await.is_ok(), "the server serves on");
        server.stop().await;
    }
}

#[tokio::test]
async fn the_example_programs_find_each_other_in_every_format_and_in_several() {
    let etcd = Etcd::start().await;
    for (theirs, ours, keys) in
        [("etcd", "etcd", 1), ("go-zero", "go-zero", 1), ("kratos", "kratos", 1), ("kitex,kratos", "etcd,kratos", 2)]
    {
        let mut server = Process::start(example("echo_server").args(["--etcd", &etcd.url(), "--format", theirs]));
        let listening = server.expect_event("listening", LIMIT).await;
        let address = listening["address"].as_str().expect("an address").to_owned();
        for _ in 0..keys {
            server.expect_event("registered", LIMIT).await;
        }
        assert_eq!(etcd.keys("").await.len(), keys, "{theirs}");

        let mut watch = Process::start(example("watch").args(["--etcd", &etcd.url(), "--format", ours]));
        let insert = watch.expect_event("insert", LIMIT).await;
        assert_eq!(insert["address"], address, "{ours}");
        let flags = ["--etcd", &etcd.url(), "--format", ours, "--count", "20", "--rps", "0"];
        let mut client = Process::start(example("echo_client").args(flags));
        let summary = client.rest(LIMIT).await.pop().expect("the client ends with a summary");
        assert_eq!(summary["by_instance"][&address], 20, "{ours}: {summary}");

        server.signal(Signal::TERM);
        server.expect_event("stopped", LIMIT).await;
        assert!(server.wait(LIMIT).await.success());
        assert!(etcd.keys("").await.is_empty() && etcd.leases().await.is_empty(), "nothing is left behind");
    }
}
