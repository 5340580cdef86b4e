//! The rig does what the other tests rely on.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use etcd_client::{Channel, Client, PutOptions, Txn, TxnOp, WatchOptions, WatchResponse};
use futures_util::stream::{self, TryStreamExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic_etcd::Registry;

use crate::support::etcd::{Cluster, Etcd};
use crate::support::process::{Process, Signal, example};
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::server::proto::echo::{EchoReply, EchoRequest};
use crate::support::{LIMIT, eventually};

#[tokio::test]
async fn an_etcd_that_is_killed_and_restarted_has_its_data_and_its_url() {
    let etcd = Etcd::start().await;
    etcd.put("a", "1").await;

    etcd.kill();
    let refused = TcpStream::connect(etcd.address()).await;
    assert!(refused.is_err(), "nothing listens while etcd is down");

    etcd.restart().await;
    let keys = etcd.keys("a").await;
    assert_eq!(keys, [("a".to_owned(), b"1".to_vec(), 0)], "the key is back");
}

#[tokio::test]
async fn a_wiped_etcd_begins_anew_on_its_url() {
    let etcd = Etcd::start().await;
    etcd.put("a", "1").await;

    etcd.wipe_and_restart().await;

    assert!(etcd.keys("").await.is_empty(), "the key is gone");
    assert_eq!(etcd.revision().await, 1, "the revisions begin anew");
}

#[tokio::test]
async fn a_frozen_etcd_is_silent_until_it_is_resumed() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;

    etcd.freeze();
    let silence = timeout(Duration::from_millis(200), client.put("a", "1", None)).await;
    assert!(silence.is_err(), "a frozen etcd answers nothing");
    let connected = TcpStream::connect(etcd.address()).await;
    assert!(connected.is_ok(), "the kernel still accepts connections");

    etcd.resume();
    client.put("a", "2", None).await.expect("etcd runs again");
}

#[tokio::test]
async fn a_frozen_etcd_can_be_killed() {
    let etcd = Etcd::start().await;
    etcd.freeze();
    etcd.restart().await;
    etcd.freeze();
    let address = etcd.address();
    drop(etcd);
    assert!(TcpStream::connect(address).await.is_err(), "the process ends with its handle");
}

#[tokio::test]
async fn an_etcd_with_authentication_restarts() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let done = "etcd sets up authentication";
    client.user_add("root", "secret", None).await.expect(done);
    client.user_grant_role("root", "root").await.expect(done);
    client.auth_enable().await.expect(done);

    etcd.restart().await;

    let mut client = etcd.client().await;
    let refused = client.get("a", None).await;
    assert!(refused.is_err(), "etcd wants a login");
}

#[tokio::test]
async fn keys_and_leases_can_be_seen_and_taken_away() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let lease = client.lease_grant(60, None).await.expect("etcd grants");
    let options = PutOptions::new().with_lease(lease.id());
    client.put("a/1", "one", Some(options)).await.expect("etcd puts");
    etcd.put("a/2", "two").await;
    etcd.put("b", "three").await;

    assert_eq!(
        etcd.keys("a/").await,
        [("a/1".to_owned(), b"one".to_vec(), lease.id()), ("a/2".to_owned(), b"two".to_vec(), 0),],
        "the keys of one prefix, with their leases"
    );
    assert_eq!(etcd.leases().await, [lease.id()], "the lease lives");

    etcd.revoke(lease.id()).await;
    assert!(etcd.leases().await.is_empty(), "the lease is gone");
    assert!(etcd.delete("a/2").await, "the key was there");
    assert!(!etcd.delete("a/2").await, "the key was deleted before");
    assert!(etcd.keys("a/").await.is_empty(), "both keys are gone");
}

#[tokio::test]
async fn nothing_is_left_to_watch_behind_a_compaction() {
    let etcd = Etcd::start().await;
    let first = etcd.put("a", "1").await;
    etcd.put("a", "2").await;

    let compacted = etcd.compact().await;
    assert_eq!(compacted, first + 1, "compacted to the current revision");

    let options = WatchOptions::new().with_start_revision(first);
    let mut client = etcd.client().await;
    let mut watch = client.watch("a", Some(options)).await.expect("a watch starts");
    let response = eventually("the watch is cancelled", LIMIT, async || {
        let response = watch.message().await.expect("the stream lives");
        response.filter(WatchResponse::canceled)
    })
    .await;
    assert_eq!(response.compact_revision(), compacted, "and says why");
}

#[tokio::test]
async fn arguments_reach_etcd() {
    let etcd = Etcd::builder().arg("--max-txn-ops=1").start().await;
    let put = |key: &str| TxnOp::put(key, "1", None);
    let both = Txn::new().and_then([put("a"), put("b")]);
    let refused = etcd.client().await.txn(both).await;
    assert!(refused.is_err(), "two operations are too many");
}

#[tokio::test]
#[should_panic(expected = "no-such-option")]
async fn an_etcd_that_does_not_start_says_why() {
    Etcd::builder().arg("--no-such-option").start().await;
}

#[tokio::test]
async fn a_cluster_elects_another_leader_while_one_is_frozen() {
    let cluster = Cluster::start().await;
    let first = cluster.leader().await;
    cluster.member(first).put("a", "1").await;

    cluster.member(first).freeze();
    let second = cluster.leader().await;
    assert_ne!(first, second, "a frozen leader does not lead");
    cluster.member(second).put("a", "2").await;

    cluster.member(first).resume();
    assert_eq!(
        cluster.member(first).keys("a").await,
        [("a".to_owned(), b"2".to_vec(), 0)],
        "the first leader learns what it missed"
    );
}

#[tokio::test]
async fn a_cluster_survives_the_kill_of_a_member_and_of_all() {
    let cluster = Cluster::start().await;
    let mut client = Client::connect(cluster.urls(), None).await.expect("the cluster is reachable");
    client.put("a", "1", None).await.expect("the cluster puts");

    let leader = cluster.leader().await;
    cluster.member(leader).kill();
    let next = cluster.leader().await;
    assert_ne!(leader, next, "a killed leader does not lead");

    let members = [0, 1, 2].map(|index| cluster.member(index));
    for member in members {
        member.kill();
    }
    let [one, two, three] = members.map(Etcd::restart);
    tokio::join!(one, two, three);
    assert_eq!(cluster.member(0).keys("a").await, [("a".to_owned(), b"1".to_vec(), 0)], "the data is back");
}

#[tokio::test]
async fn a_proxy_forwards_and_counts() {
    let (proxy, _target) = echoing().await;
    let mut first = connect(&proxy).await;
    assert_eq!(answer(&mut first, b"one").await.expect("it echoes"), b"one");
    let mut second = connect(&proxy).await;
    assert_eq!(answer(&mut second, b"two").await.expect("it echoes"), b"two");
    assert_eq!((proxy.accepted(), proxy.open()), (2, 2), "two connections");

    drop(first);
    eventually("the first connection is closed", LIMIT, async || proxy.open() == 1).await;
    assert_eq!(proxy.accepted(), 2, "nothing more was accepted");
}

#[tokio::test]
async fn a_black_hole_holds_everything_back_until_it_ends() {
    let (proxy, _target) = echoing().await;
    let mut old = connect(&proxy).await;
    assert_eq!(answer(&mut old, b"one").await.expect("it echoes"), b"one");

    proxy.black_hole();
    let mut new = connect(&proxy).await;
    let silence = Duration::from_millis(100);
    for stream in [&mut old, &mut new] {
        let answered = timeout(silence, answer(stream, b"two")).await;
        assert!(answered.is_err(), "nothing comes back, not even an end");
    }

    proxy.forward();
    for stream in [&mut old, &mut new] {
        let mut late = [0; 3];
        stream.read_exact(&mut late).await.expect("it lives");
        assert_eq!(&late, b"two", "what was held back arrives");
    }
}

#[tokio::test]
async fn a_reset_ends_all_connections_and_each_new_one() {
    let (proxy, _target) = echoing().await;
    let mut old = connect(&proxy).await;
    assert_eq!(answer(&mut old, b"one").await.expect("it echoes"), b"one");

    proxy.reset();
    let error = answer(&mut old, b"two").await.expect_err("it is reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    let ended = async {
        let mut stream = TcpStream::connect(proxy.address()).await?;
        answer(&mut stream, b"three").await
    };
    assert!(ended.await.is_err(), "a new connection does not live");

    proxy.forward();
    let mut later = connect(&proxy).await;
    assert_eq!(answer(&mut later, b"four").await.expect("it echoes"), b"four");
}

#[tokio::test]
async fn a_delay_counts_for_answers_until_it_is_ended() {
    let (proxy, _target) = echoing().await;
    let mut stream = connect(&proxy).await;
    let delay = Duration::from_millis(50);
    proxy.delay(delay);
    let start = Instant::now();
    assert_eq!(answer(&mut stream, b"one").await.expect("it echoes"), b"one");
    assert!(start.elapsed() >= delay, "on the way back");

    proxy.delay(LIMIT * 2);
    proxy.delay(Duration::ZERO);
    let soon = timeout(LIMIT, answer(&mut stream, b"two")).await.expect("without delay");
    assert_eq!(soon.expect("it echoes"), b"two");
}

#[tokio::test]
async fn a_delayed_etcd_answers_pings_in_time() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let endpoint = tonic::transport::Endpoint::from_shared(proxy.url()).expect("a URL");
    let endpoint =
        endpoint.http2_keep_alive_interval(Duration::from_secs(6)).keep_alive_timeout(Duration::from_secs(1));
    let channel = endpoint.connect().await.expect("the proxy is reachable");
    let mut client = Client::from_channel(Channel::Tonic(channel), None).await.expect("a client");
    client.put("a", "1", None).await.expect("etcd puts");
    let delay = Duration::from_secs(8);
    proxy.delay(delay);
    let start = Instant::now();
    // Its connection is pinged after 6 s, and ends if that stays unanswered for a second.
    client.put("a", "2", None).await.expect("the connection lives");
    assert!(start.elapsed() >= delay, "the answer was late");
    assert_eq!(proxy.accepted(), 1, "it came on the first connection");
}

#[tokio::test]
async fn a_proxy_takes_its_connections_and_its_port_with_it() {
    let (proxy, _target) = echoing().await;
    let mut stream = connect(&proxy).await;
    assert_eq!(answer(&mut stream, b"one").await.expect("it echoes"), b"one");

    let address = proxy.address();
    drop(proxy);
    assert!(answer(&mut stream, b"two").await.is_err(), "it is closed");
    eventually("the port is free", LIMIT, async || TcpStream::connect(address).await.is_err()).await;
}

#[tokio::test]
async fn etcd_can_be_reached_through_a_proxy() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let mut client = Client::connect([proxy.url()], None).await.expect("the proxy is reachable");
    client.put("a", "1", None).await.expect("etcd puts");
    assert_eq!(proxy.accepted(), 1, "the client went through the proxy");
}

#[tokio::test]
async fn a_process_reports_events_takes_signals_and_ends() {
    let mut process = Process::start(&mut shell(
        r#"trap 'echo "{\"event\":\"stopped\",\"calls\":1}"; exit 3' TERM
           echo "to the log" >&2
           echo '{"event":"listening","address":"a"}'
           echo '{"event":"registered","lease":"1"}'
           while :; do sleep 0.01; done"#,
    ));
    let registered = process.expect_event("registered", LIMIT).await;
    assert_eq!(registered["lease"], "1", "the lines before are skipped");
    assert_eq!(process.log(), "to the log\n", "the log is apart");

    process.freeze();
    process.signal(Signal::TERM);
    let silence = timeout(Duration::from_millis(100), process.next_line(LIMIT)).await;
    assert!(silence.is_err(), "a frozen process does nothing");

    process.resume();
    let rest = process.rest(LIMIT).await;
    assert_eq!(rest, [json!({"event": "stopped", "calls": 1})]);
    assert_eq!(process.wait(LIMIT).await.code(), Some(3));
}

#[tokio::test]
async fn a_process_can_be_killed() {
    let mut process = Process::start(&mut shell("while :; do sleep 0.01; done"));
    process.kill();
    let status = process.wait(LIMIT).await;
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{status}");
    assert_eq!(process.next_line(LIMIT).await, None, "its output ends");
}

#[tokio::test]
#[should_panic(expected = "the output ended without event \"registered\"")]
async fn a_missing_event_is_a_failure() {
    let mut process = Process::start(&mut shell(r#"echo '{"event":"listening"}'"#));
    process.expect_event("registered", LIMIT).await;
}

#[tokio::test]
async fn an_example_is_run_as_a_process() {
    let mut process = Process::start(example("echo_server").arg("--no-such-flag"));
    assert_eq!(process.wait(LIMIT).await.code(), Some(2), "{}", process.log());
    assert!(process.log().contains("no-such-flag"), "it says what is wrong");
}

#[tokio::test]
async fn a_server_answers_each_kind_of_call_with_its_address() {
    let server = EchoServer::unregistered();
    let address = server.address().to_string();
    let url = format!("http://{address}");
    let mut client = EchoClient::connect(url).await.expect("the server accepts");
    let request = |message: &str| EchoRequest { message: message.to_owned() };
    let reply = |message: &str| EchoReply { message: message.to_owned(), address: address.clone() };
    let requests = || stream::iter([request("one"), request("two")]);

    let unary = client.unary_echo(request("one")).await.expect("a reply");
    assert_eq!(unary.into_inner(), reply("one"));

    let replies = client.server_streaming_echo(request("one")).await.expect("a stream");
    let mut replies = replies.into_inner();
    assert_eq!(replies.message().await.expect("a reply"), Some(reply("one")));

    let joined = client.client_streaming_echo(requests()).await.expect("a reply");
    assert_eq!(joined.into_inner(), reply("one two"));

    let both = client.bidirectional_streaming_echo(requests()).await.expect("a stream");
    let both: Vec<EchoReply> = both.into_inner().try_collect().await.expect("replies");
    assert_eq!(both, [reply("one"), reply("two")]);

    assert_eq!(server.calls(), 4, "one of each kind");
    let delay = Duration::from_millis(50);
    server.delay(delay);
    let start = Instant::now();
    client.unary_echo(request("late")).await.expect("a reply");
    assert!(start.elapsed() >= delay, "the delay counts at once");

    drop((replies, client));
    server.stop().await;
}

#[tokio::test]
async fn a_registered_server_is_in_etcd_until_it_stops() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("the registry is valid");

    let server = EchoServer::registered(&registry, "echo").await;
    let keys = etcd.keys("").await;
    let [(key, _, lease)] = keys.as_slice() else { panic!("not one key: {keys:?}") };
    assert!(key.contains(&server.address().to_string()), "{key} names the server");
    assert_eq!(etcd.leases().await, [*lease], "the key has the only lease");

    server.stop().await;
    assert!(etcd.keys("").await.is_empty(), "the key is gone");
    assert!(etcd.leases().await.is_empty(), "and the lease is revoked");
}

#[tokio::test]
#[should_panic(expected = "not within 20ms: the sun rises")]
async fn waiting_ends_at_its_limit() {
    eventually("the sun rises", Duration::from_millis(20), async || false).await;
}

/// A proxy in front of a listener that sends back what it gets, until the guard is dropped.
async fn echoing() -> (Proxy, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let target = listener.local_addr().expect("a listener has an address");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                // Ends with the connection, however that ends.
                _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    (Proxy::start(target.to_string()).await, tasks)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.expect("the proxy accepts")
}

/// What comes back for `message`.
async fn answer(stream: &mut TcpStream, message: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(message).await?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}
