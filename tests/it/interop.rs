//! The real Go programs as neighbours: grpc-go over etcd's naming, and go-zero's discov. Theirs are found and called by
//! ours, ours by theirs, and each leave is seen.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use futures_util::{TryStreamExt, stream};
use serde_json::{Value, json};
use tonic_etcd::format::{EtcdNaming, GoZero};
use tonic_etcd::{BalancedChannel, Instance, Registry};

use crate::support::changes::Changes;
use crate::support::etcd::{Etcd, free_port};
use crate::support::load::{Load, failed};
use crate::support::process::{Process, Signal, example};
use crate::support::server::EchoServer;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::server::proto::echo::{EchoReply, EchoRequest};
use crate::support::{LIMIT, eventually, neighbour};

/// The service for both sides: without a prefix it is `etcd:///echo` for grpc-go.
const SERVICE: &str = "echo";

fn naming_registry(etcd: &Etcd) -> Registry {
    Registry::builder([etcd.url()]).format(EtcdNaming::new()).build().expect("a good registry")
}

/// The grpc-go program in one of its modes.
fn start(naming: &Path, etcd: &Etcd, mode: &str, options: &[&str]) -> Process {
    // Of an option that is given twice Go takes the last.
    Process::start(Command::new(naming).args([mode, "-etcd", &etcd.url(), "-service", SERVICE]).args(options))
}

/// A grpc-go server, when it is registered, and its address.
async fn serving(naming: &Path, etcd: &Etcd, options: &[&str]) -> (Process, String) {
    let mut server = start(naming, etcd, "serve", options);
    let address = text(&server.expect_event("listening", LIMIT).await["address"]);
    server.expect_event("registered", LIMIT).await;
    (server, address)
}

/// Waits until grpc-go has resolved exactly these addresses.
async fn resolves(client: &mut Process, addresses: &[String]) {
    let expected: BTreeSet<&str> = addresses.iter().map(String::as_str).collect();
    let resolved = |line: &Value| {
        let addresses = line["addresses"].as_array().map(|all| all.iter().filter_map(Value::as_str).collect());
        addresses == Some(expected.clone())
    };
    client.expect(&format!("resolution to {addresses:?}"), LIMIT, resolved).await;
}

/// Waits until a call of grpc-go, of those not looked at yet, was answered by this server.
async fn reaches(client: &mut Process, address: &str) {
    let answered = |line: &Value| line["event"] == "call" && line["address"] == address;
    client.expect(&format!("answer of {address}"), LIMIT, answered).await;
}

/// Lets the calls in flight end, and shows that none of all the calls so far has failed.
async fn stops_without_a_failed_call(mut client: Process) {
    client.signal(Signal::TERM);
    client.expect_event("stopped", LIMIT).await;
    let calls = client.seen().iter().filter(|line| line["event"] == "call");
    let (failed, answered): (Vec<_>, Vec<_>) = calls.partition(|call| call["address"].is_null());
    assert!(failed.is_empty(), "of {} calls these failed: {failed:?}", failed.len() + answered.len());
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// What replies say, each as message and address.
fn said(replies: impl IntoIterator<Item = EchoReply>) -> Vec<(String, String)> {
    replies.into_iter().map(|reply| (reply.message, reply.address)).collect()
}

fn request(message: &str) -> EchoRequest {
    EchoRequest { message: message.to_owned() }
}

#[tokio::test]
async fn a_grpc_go_server_is_found_and_answers_each_kind_of_call() {
    let Some(naming) = neighbour::naming() else { return };
    let etcd = Etcd::start().await;
    let (_server, address) = serving(naming, &etcd, &[]).await;
    let channel = naming_registry(&etcd).channel(SERVICE).build().expect("a good channel");
    let mut client = EchoClient::new(channel);
    let answers =
        |messages: &[&str]| -> Vec<_> { messages.iter().map(|text| (text.to_string(), address.clone())).collect() };

    let reply = client.unary_echo(request("one")).await.expect("a unary call");
    assert_eq!(said([reply.into_inner()]), answers(&["one"]), "one reply");
    let replies = client.server_streaming_echo(request("one two")).await.expect("a call that is answered by a stream");
    let replies: Vec<_> = replies.into_inner().try_collect().await.expect("the stream ends well");
    assert_eq!(said(replies), answers(&["one", "two"]), "a reply a word");
    let requests = stream::iter([request("one"), request("two")]);
    let reply = client.client_streaming_echo(requests.clone()).await.expect("a call of a stream");
    assert_eq!(said([reply.into_inner()]), answers(&["one two"]), "one reply for all");
    let replies = client.bidirectional_streaming_echo(requests).await.expect("a call of two streams");
    let replies: Vec<_> = replies.into_inner().try_collect().await.expect("the stream ends well");
    assert_eq!(said(replies), answers(&["one", "two"]), "a reply each");
}

#[tokio::test]
async fn a_grpc_go_server_that_leaves_is_gone_without_a_failed_call() {
    let Some(naming) = neighbour::naming() else { return };
    let etcd = Etcd::start().await;
    let registry = naming_registry(&etcd);
    let mut changes = Changes::of(&registry, SERVICE);
    let (mut leaving, left) = serving(naming, &etcd, &["-metadata", r#"{"weight":20,"zone":"a"}"#]).await;
    let instance = changes.expect_insert(&left).await;
    assert_eq!((instance.weight(), &instance.tags()["zone"]), (20, "a"), "the metadata are understood");
    let (_staying, stays) = serving(naming, &etcd, &[]).await;
    assert_eq!(changes.expect_insert(&stays).await.weight(), 10, "no metadata are no statement");
    let channel = registry.channel(SERVICE).build().expect("a good channel");
    let load = Load::start(&channel).await;
    load.reaches(&left).await;
    load.reaches(&stays).await;

    leaving.signal(Signal::TERM);
    changes.expect_remove(&left).await;
    eventually("the channel knows one server", LIMIT, async || known(&channel) == [stays.clone()]).await;
    leaving.expect_event("stopped", LIMIT).await;
    load.reaches(&stays).await;
    let calls = load.finish().await;
    assert!(failed(&calls).is_empty(), "of {} calls these failed: {:?}", calls.len(), failed(&calls));
}

/// The addresses of the instances that a channel knows.
fn known(channel: &BalancedChannel) -> Vec<String> {
    channel.instances().iter().map(|status| status.instance().address().to_string()).collect()
}

#[tokio::test]
async fn our_servers_are_resolved_and_called_by_grpc_go_until_they_leave() {
    let Some(naming) = neighbour::naming() else { return };
    let etcd = Etcd::start().await;
    let registry = naming_registry(&etcd);
    let first = EchoServer::registered(&registry, SERVICE).await;
    let mut client = start(naming, &etcd, "call", &[]);
    resolves(&mut client, &[first.address().to_string()]).await;
    reaches(&mut client, &first.address().to_string()).await;
    let second = EchoServer::start(|address| {
        registry.registration(Instance::new(SERVICE, address).with_weight(20).with_tag("zone", "a"))
    });
    let both = [first.address().to_string(), second.address().to_string()];
    resolves(&mut client, &both).await;
    for address in &both {
        reaches(&mut client, address).await;
    }

    first.stop().await;
    resolves(&mut client, &both[1..]).await;
    reaches(&mut client, &both[1]).await;
    stops_without_a_failed_call(client).await;
    second.stop().await;
}

#[tokio::test]
async fn the_draining_mark_changes_nothing_for_grpc_go() {
    let Some(naming) = neighbour::naming() else { return };
    let etcd = Etcd::start().await;
    let registry = naming_registry(&etcd);
    let mut watch = start(naming, &etcd, "watch", &[]);
    let server = EchoServer::start(|address| {
        registry.registration(Instance::new(SERVICE, address).with_weight(20).with_tag("zone", "a"))
    });
    let address = server.address().to_string();
    let added = json!({
        "event": "add",
        "key": format!("{SERVICE}/{address}"),
        "address": address,
        "metadata": {"weight": 20, "zone": "a"},
    });
    assert_eq!(watch.next_line(LIMIT).await.as_ref(), Some(&added), "the server comes");

    server.stop().await;
    assert_eq!(watch.next_line(LIMIT).await.as_ref(), Some(&added), "the same once more, under the mark");
    let deleted = json!({"event": "delete", "key": added["key"]});
    assert_eq!(watch.next_line(LIMIT).await, Some(deleted), "then it is gone");
}

#[tokio::test]
async fn no_call_of_grpc_go_fails_during_a_rolling_restart_of_our_servers() {
    let Some(naming) = neighbour::naming() else { return };
    let etcd = Etcd::start().await;
    let addresses = [(); 3].map(|()| format!("127.0.0.1:{}", free_port()));
    let mut servers = Vec::new();
    for address in &addresses {
        servers.push(our_program(&etcd, address).await);
    }
    let mut client = start(naming, &etcd, "call", &[]);
    resolves(&mut client, &addresses).await;
    for address in &addresses {
        reaches(&mut client, address).await;
    }

    for (index, server) in servers.iter_mut().enumerate() {
        server.signal(Signal::TERM);
        let others: Vec<_> = addresses.iter().filter(|address| **address != addresses[index]).cloned().collect();
        resolves(&mut client, &others).await;
        assert!(server.wait(LIMIT).await.success(), "a graceful end is a success");
        *server = our_program(&etcd, &addresses[index]).await;
        resolves(&mut client, &addresses).await;
        reaches(&mut client, &addresses[index]).await;
    }
    stops_without_a_failed_call(client).await;
}

/// Our example server as a process of its own, when it is registered.
async fn our_program(etcd: &Etcd, address: &str) -> Process {
    let options = ["--etcd", &etcd.url(), "--format", "etcd", "--service", SERVICE, "--listen", address];
    // Long enough for calls to be in flight whenever it leaves.
    let mut server = Process::start(example("echo_server").args(options).args(["--delay", "50"]));
    server.expect_event("registered", LIMIT).await;
    server
}

/// grpc-go addresses its calls to the whole target, here to `apps%2Fecho`, and no server on hyper takes that for an
/// authority.
#[tokio::test]
async fn under_a_prefix_grpc_go_calls_our_servers_once_it_names_an_authority() {
    let Some(naming) = neighbour::naming() else { return };
    let etcd = Etcd::start().await;
    let registry =
        Registry::builder([etcd.url()]).format(EtcdNaming::new()).prefix("apps").build().expect("a good registry");
    let server = EchoServer::registered(&registry, SERVICE).await;
    let mut client = start(naming, &etcd, "call", &["-service", "apps/echo"]);
    resolves(&mut client, &[server.address().to_string()]).await;
    let refused = client.expect("end of a call", LIMIT, |line| line["event"] == "call").await;
    assert!(text(&refused["error"]).contains("PROTOCOL_ERROR"), "it is refused before it is a call: {refused}");

    let mut client = start(naming, &etcd, "call", &["-service", "apps/echo", "-authority", SERVICE]);
    reaches(&mut client, &server.address().to_string()).await;
    stops_without_a_failed_call(client).await;
    server.stop().await;
}

const KEY: &str = "user.rpc";

fn gozero_registry(etcd: &Etcd) -> Registry {
    Registry::builder([etcd.url()]).format(GoZero::new()).build().expect("a good registry")
}

/// A go-zero publisher of this address, when it is registered.
async fn published(gozero: &Path, etcd: &Etcd, address: SocketAddr) -> Process {
    let options = ["publish", "-etcd", &etcd.address(), "-key", KEY, "-value", &address.to_string()];
    let mut publisher = Process::start(Command::new(gozero).args(options));
    publisher.expect_event("registered", LIMIT).await;
    publisher
}

#[tokio::test]
async fn a_server_that_go_zero_publishes_is_found_and_called_until_it_leaves() {
    let Some(gozero) = neighbour::gozero() else { return };
    let etcd = Etcd::start().await;
    let registry = gozero_registry(&etcd);
    let mut changes = Changes::of(&registry, KEY);
    let (first, second) = (EchoServer::unregistered(), EchoServer::unregistered());
    let mut leaving = published(gozero, &etcd, first.address()).await;
    changes.expect_insert(first.address()).await;
    let _staying = published(gozero, &etcd, second.address()).await;
    changes.expect_insert(second.address()).await;
    let mut client = EchoClient::new(registry.channel(KEY).build().expect("a good channel"));
    for server in [&first, &second] {
        let called = async || client.unary_echo(request("hi")).await.is_ok() && server.calls() > 0;
        eventually("both servers are called", LIMIT, called).await;
    }

    leaving.signal(Signal::TERM);
    changes.expect_remove(first.address()).await;
    first.stop().await;
    let before = second.calls();
    for _ in 0..10 {
        client.unary_echo(request("hi")).await.expect("the other server answers");
    }
    assert_eq!(second.calls(), before + 10, "all calls go to the one that stays");
    second.stop().await;
}

#[tokio::test]
async fn our_servers_are_in_the_set_of_a_go_zero_subscriber_until_they_leave() {
    let Some(gozero) = neighbour::gozero() else { return };
    let etcd = Etcd::start().await;
    let registry = gozero_registry(&etcd);
    let mut watch = Process::start(Command::new(gozero).args(["watch", "-etcd", &etcd.address(), "-key", KEY]));
    let mut expect_set = async |servers: &[&EchoServer]| {
        let mut values: Vec<String> = servers.iter().map(|server| server.address().to_string()).collect();
        values.sort();
        let set = json!({"event": "set", "values": values});
        assert_eq!(watch.next_line(LIMIT).await, Some(set), "each change leads to the next set");
    };
    expect_set(&[]).await;
    let first = EchoServer::registered(&registry, KEY).await;
    expect_set(&[&first]).await;
    let second = EchoServer::registered(&registry, KEY).await;
    expect_set(&[&first, &second]).await;

    first.stop().await;
    expect_set(&[&second]).await;
    second.stop().await;
    expect_set(&[]).await;
}
