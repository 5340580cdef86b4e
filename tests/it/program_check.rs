//! `tonic-etcd check` finds what is wrong, names it, and reports by its exit code how bad it is.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{AlarmAction, AlarmOptions, AlarmType, PutOptions, Txn, TxnOp};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::Command;
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_etcd::{Instance, Registry};
use tonic_health::ServingStatus;

use crate::auth::{PASSWORD, add_users};
use crate::support::etcd::{Cluster, Etcd, free_port};
use crate::support::pki::Authority;
use crate::support::process::program;
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

/// What a check came to.
#[derive(Debug)]
struct Check {
    code: i32,
    findings: Vec<Value>,
}

impl Check {
    fn ids(&self) -> Vec<&str> {
        self.findings.iter().map(|finding| finding["id"].as_str().expect("an id")).collect()
    }

    /// The names that a kind of finding has for a service, or for none.
    fn names(&self, id: &str, service: Option<&str>) -> Vec<&str> {
        let is_it = |finding: &&Value| finding["id"] == id && finding["service"].as_str() == service;
        let names = self.findings.iter().filter(is_it).filter_map(|finding| finding["names"].as_array());
        names.flatten().map(|name| name.as_str().expect("a name")).collect()
    }

    fn level(&self, id: &str) -> &str {
        let finding = self.findings.iter().find(|finding| finding["id"] == id);
        finding.unwrap_or_else(|| panic!("{id} is found: {self:#?}"))["level"].as_str().expect("a level")
    }
}

async fn output(urls: &[String], arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::from(program());
    let limit = if arguments.contains(&"--timeout") { &[][..] } else { &["--timeout", "60s"] };
    // A busy machine is no etcd that is down.
    let command =
        command.args(["--etcd", &urls.join(","), "--dial-timeout", "20s", "check"]).args(limit).args(arguments);
    let output = command.kill_on_drop(true).output().await.expect("the program runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("it prints text");
    (output.status.code().expect("it exits"), text(&output.stdout), text(&output.stderr))
}

async fn check_at(urls: &[String], arguments: &[&str]) -> Check {
    let (code, printed, complaints) = output(urls, &[&["--json"], arguments].concat()).await;
    assert!(code < 2, "{arguments:?}: {complaints}");
    let line = |line: &str| serde_json::from_str(line).expect("a line is JSON");
    Check { code, findings: printed.lines().map(line).collect() }
}

async fn check(etcd: &Etcd, arguments: &[&str]) -> Check {
    check_at(&[etcd.url()], arguments).await
}

async fn put(etcd: &Etcd, service: &str, address: &str) {
    put_value(etcd, &format!("{service}/{address}"), &format!(r#"{{"network":"tcp","address":"{address}"}}"#)).await;
}

async fn put_value(etcd: &Etcd, key: &str, value: &str) {
    etcd.put(format!("kitex/registry-etcd/{key}"), value).await;
}

/// Serves each connection of a free port with `serve`.
async fn listener<F: Future<Output = ()> + Send>(
    serve: impl Fn(TcpStream) -> F + Clone + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serve = serve.clone();
            tokio::spawn(async move { serve(stream).await });
        }
    });
    address
}

/// Answers whatever comes first with `answer`, and closes.
async fn says(answer: &'static [u8]) -> SocketAddr {
    listener(async move |mut stream: TcpStream| {
        _ = stream.read(&mut [0; 1_024]).await;
        end_with(stream, answer).await;
    })
    .await
}

/// Sends the last bytes, and reads on: a connection that is closed with bytes unread is reset, and the last are lost.
async fn end_with(mut stream: TcpStream, last: &[u8]) {
    _ = stream.write_all(last).await;
    _ = stream.shutdown().await;
    _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

/// A port whose queue of connections is full, so that others wait in vain, for as long as what is returned lives.
async fn full() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let listener = socket.listen(0).expect("it listens");
    let address = listener.local_addr().expect("an address");
    let mut waiting = Vec::new();
    // On a machine that stalls a connection may come late, though there is a place for it.
    while let Ok(stream) = timeout(Duration::from_secs(2), TcpStream::connect(address)).await {
        waiting.push(stream.expect("it waits in the queue"));
    }
    (address, listener, waiting)
}

#[tokio::test]
async fn a_registry_with_nothing_wrong_has_no_findings_but_notes() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let (one, two) = (EchoServer::registered(&registry, "echo").await, EchoServer::registered(&registry, "echo").await);
    let sound = check(&etcd, &["--strict"]).await;
    assert_eq!((sound.code, sound.ids()), (0, vec!["address-loopback"]), "{sound:#?}");
    assert_eq!(sound.level("address-loopback"), "note", "etcd is here, too");
    let (code, text, _) = output(&[etcd.url()], &["echo"]).await;
    assert!(text.ends_with("looked at 1 services, 2 keys and 2 addresses\n") && code == 0, "{text}");
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn each_thing_that_can_listen_at_an_address_is_named() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", ServingStatus::NotServing).await;
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let not_serving = incoming.local_addr().expect("an address");
    tokio::spawn(Server::builder().add_service(health).serve_with_incoming(incoming));
    let certificate = Authority::new().issue(&["127.0.0.1"]);
    let register = |address| registry.registration(Instance::new("secure", address));
    let secure = EchoServer::start_secure(&certificate, None, register);
    eventually("it is registered", LIMIT, async || !etcd.keys("").await.is_empty()).await;
    let plain = EchoServer::unregistered();
    let http2 = listener(async |stream| {
        let answer = hyper::service::service_fn(async |_| {
            Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from_static(b"hello"))))
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        _ = builder.serve_connection(TokioIo::new(stream), answer).await;
    });
    let http2 = http2.await.to_string();
    let http1 = says(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.to_string();
    let fronted = listener(async |mut stream| {
        let mut begin = [0; 1_024];
        _ = stream.read(&mut begin).await;
        // A web server's port for TLS: an alert for a greeting, and an answer in plain text for anything else.
        let answer =
            if begin[0] == 0x16 { &[0x15, 3, 3, 0, 2, 2, 40][..] } else { b"HTTP/1.1 400 Bad Request\r\n\r\n" };
        end_with(stream, answer).await;
    });
    let fronted = fronted.await.to_string();
    let other = says(b"SSH-2.0-OpenSSH\r\n").await.to_string();
    let closes = listener(async |stream| drop(stream)).await.to_string();
    let silent = listener(async |stream| {
        let _stream = stream;
        pending::<()>().await;
    });
    let silent = silent.await.to_string();
    let refuses = "127.0.0.1:1".to_owned();
    let (unreachable, _listener, _waiting) = full().await;
    let unreachable = unreachable.to_string();
    let (not_serving, plain_address) = (not_serving.to_string(), plain.address().to_string());
    let names = [&http2, &http1, &other, &closes, &silent, &refuses, &unreachable, &not_serving, &plain_address];
    for address in names.map(String::as_str).into_iter().chain(["no-such-host.invalid:80"]) {
        put(&etcd, "echo", address).await;
    }
    put(&etcd, "secure", &plain_address).await;
    put(&etcd, "fronted", &fronted).await;

    // Those that answer do so within that on a busy machine, too.
    let found = check(&etcd, &["--answer-timeout", "15s"]).await;
    assert_eq!(found.code, 1, "{found:#?}");
    for (id, address) in [
        ("server-not-grpc", &http2),
        ("server-http1", &http1),
        ("server-other", &other),
        ("server-closes", &closes),
        ("server-silent", &silent),
        ("address-refused", &refuses),
        ("server-not-serving", &not_serving),
        ("address-unreachable", &unreachable),
        ("address-unresolved", &"no-such-host.invalid:80".to_owned()),
    ] {
        let names = found.names(id, Some("echo"));
        assert!(matches!(names[..], [name] if name.starts_with(address.as_str())), "{id} {address}: {found:#?}");
    }
    assert!(found.names("server-other", Some("echo"))[0].contains("SSH-2.0"), "it says what came");
    let secure_address = secure.address().to_string();
    assert_eq!(found.names("server-tls", Some("secure")), [secure_address.as_str()]);
    assert_eq!(found.names("server-tls", Some("fronted")), [fronted.as_str()], "{found:#?}");
    assert!(found.names("service-partly-tls", Some("secure"))[0].starts_with(&secure_address), "{found:#?}");
    assert_eq!(found.names("address-shared", None), [format!("{plain_address}: echo, secure")]);

    let undialled = check(&etcd, &["--no-dial"]).await;
    assert!(!undialled.ids().iter().any(|id| id.starts_with("server-")), "{undialled:#?}");
    secure.stop().await;
}

#[tokio::test]
async fn keys_that_mean_something_else_than_they_look_like_are_named() {
    let etcd = Etcd::start().await;
    let bad = "\u{1b}[31mno json";
    put_value(&etcd, "echo/broken", bad).await;
    put_value(&etcd, "echo/large", &"x".repeat(70_000)).await;
    put_value(&etcd, "echo/nowhere", r#"{"address":"0.0.0.0:80"}"#).await;
    put_value(&etcd, "echo/one", r#"{"address":"10.255.255.1:80","weight":0}"#).await;
    put_value(&etcd, "echo/two", r#"{"address":"10.255.255.1:80","weight":1,"draining":true}"#).await;
    put_value(&etcd, "echo/deeper/still", "").await;
    let mut client = etcd.client().await;
    let lease = client.lease_grant(600, None).await.expect("a lease").id();
    let live = PutOptions::new().with_lease(lease);
    client.put("kitex/registry-etcd/pay/a", r#"{"address":"10.255.255.2:80"}"#, Some(live)).await.expect("a put");
    put_value(&etcd, "pay/b", r#"{"address":"10.255.255.2:80"}"#).await;
    let found = check(&etcd, &["--no-dial"]).await;
    assert_eq!(found.code, 1);
    let of = |id| found.names(id, Some("echo"));
    assert_eq!(of("value-unreadable").len(), 2, "{found:#?}");
    assert!(of("value-unreadable")[0].starts_with("kitex/registry-etcd/echo/broken: "), "{found:#?}");
    assert!(of("value-unreadable")[1].contains("64 KiB"), "{found:#?}");
    assert!(of("address-unusable")[0].contains("unspecified"), "{found:#?}");
    assert_eq!(of("weight-zero"), ["10.255.255.1:80"]);
    let twice = "10.255.255.1:80: kitex/registry-etcd/echo/one (no lease), kitex/registry-etcd/echo/two (no lease)";
    assert_eq!(of("address-twice"), [twice]);
    let twice =
        format!("10.255.255.2:80: kitex/registry-etcd/pay/a (lease {lease:x}), kitex/registry-etcd/pay/b (no lease)");
    assert_eq!(found.names("address-twice", Some("pay")), [twice], "the older key may be the live one");
    assert_eq!(of("draining-not-left"), ["kitex/registry-etcd/echo/two"]);
    assert_eq!(of("keys-without-lease").len(), 5);
    assert_eq!(found.names("key-foreign", None), ["kitex/registry-etcd/echo/deeper/still"]);

    let (_, text, _) = output(&[etcd.url()], &["--no-dial"]).await;
    assert!(!text.contains('\u{1b}'), "no value colours the terminal: {text:?}");
}

#[tokio::test]
async fn leases_that_run_out_last_long_or_have_no_key_are_named() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let long = client.lease_grant(3_600, None).await.expect("a lease").id();
    let alone = client.lease_grant(600, None).await.expect("a lease").id();
    let brief = client.lease_grant(20, None).await.expect("a lease").id();
    for (key, lease) in [("long", long), ("brief", brief)] {
        let value = r#"{"address":"10.255.255.1:80"}"#;
        let options = PutOptions::new().with_lease(lease);
        client.put(format!("kitex/registry-etcd/{key}/a"), value, Some(options)).await.expect("a put");
    }
    let found = check(&etcd, &["--no-dial"]).await;
    let hex = |lease: i64| format!("lease {lease:x} ");
    assert_eq!(found.code, 0, "no errors: {found:#?}");
    assert!(found.names("lease-long", Some("long"))[0].contains(&hex(long)), "{found:#?}");
    assert!(found.names("lease-without-keys", None)[0].contains(&hex(alone)), "{found:#?}");
    assert!(found.names("lease-running-out", Some("brief")).is_empty(), "it was just granted: {found:#?}");
    assert_eq!(check(&etcd, &["--no-dial", "--strict"]).await.code, 1, "a warning counts");
    eventually("the lease runs out", LIMIT, async || {
        let found = check(&etcd, &["--no-dial"]).await;
        found.names("lease-running-out", Some("brief")).iter().any(|name| name.contains(&hex(brief)))
    })
    .await;
}

#[tokio::test]
async fn a_server_that_leaves_meanwhile_is_none_that_is_down() {
    let etcd = Etcd::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let leaves = listener.local_addr().expect("an address").to_string();
    put(&etcd, "echo", &leaves).await;
    put(&etcd, "echo", "127.0.0.1:1").await;
    let (checked, ()) = tokio::join!(check(&etcd, &[]), async {
        let (stream, _) = listener.accept().await.expect("it is dialled");
        etcd.delete(format!("kitex/registry-etcd/echo/{leaves}")).await;
        drop((stream, listener));
    });
    assert_eq!(checked.names("address-refused", Some("echo")), ["127.0.0.1:1"], "{checked:#?}");
    assert!(!checked.ids().contains(&"server-closes"), "{checked:#?}");
}

#[tokio::test]
async fn what_a_second_look_does_not_confirm_is_no_error_but_its_absence_is() {
    let etcd = Arc::new(Etcd::start().await);
    let closes = listener({
        let etcd = Arc::clone(&etcd);
        move |stream: TcpStream| {
            etcd.kill();
            async move { drop(stream) }
        }
    });
    let closes = closes.await.to_string();
    put(&etcd, "echo", &closes).await;
    let found = check(&etcd, &[]).await;
    assert_eq!((found.code, found.level("server-closes")), (1, "warning"), "{found:#?}");
    assert_eq!(found.names("server-closes", Some("echo")), [format!("{closes} (not confirmed)")]);
    assert_eq!(found.level("check-incomplete"), "error");
    let gaps = found.names("check-incomplete", None);
    assert!(gaps.iter().any(|gap| gap.starts_with("the second look at the keys: ")), "{found:#?}");
}

#[tokio::test]
async fn a_check_that_had_no_time_for_a_server_fails() {
    let etcd = Etcd::start().await;
    let silent = listener(async |stream| {
        let _stream = stream;
        pending::<()>().await;
    });
    put(&etcd, "echo", &silent.await.to_string()).await;
    let found = check(&etcd, &["--timeout", "5s", "--answer-timeout", "60s"]).await;
    assert_eq!((found.code, found.level("check-incomplete")), (1, "error"), "{found:#?}");
    assert_eq!(found.names("check-incomplete", None), ["1 addresses were not dialled in time"]);
}

#[tokio::test]
async fn what_is_registered_under_another_format_or_prefix_is_found_there() {
    let etcd = Etcd::start().await;
    let empty = check(&etcd, &[]).await;
    assert_eq!((empty.code, empty.ids()), (0, vec!["prefix-empty"]), "{empty:#?}");
    etcd.put("echo/10.0.0.1:80", r#"{"Op":0,"Addr":"10.0.0.1:80","Metadata":null}"#).await;
    let elsewhere = check(&etcd, &["echo"]).await;
    assert_eq!((elsewhere.code, elsewhere.ids()), (1, vec!["registered-elsewhere", "service-empty"]));
    let place = "--format etcd --prefix '': 1 instances of echo";
    assert_eq!(elsewhere.names("registered-elsewhere", Some("echo")), [place]);

    etcd.put("/microservices/pay/x", r#"{"id":"x","name":"pay","endpoints":["grpc://10.0.0.1:80"]}"#).await;
    let elsewhere = check(&etcd, &[]).await;
    let place = "--format kratos --prefix '/microservices': 1 instances of pay";
    assert_eq!(elsewhere.names("registered-elsewhere", None), [place], "{elsewhere:#?}");
    let (code, _, complaints) = output(&[etcd.url()], &["--format", "etcd"]).await;
    assert!(code == 2 && complaints.contains("below a prefix only"), "a service or a prefix is needed: {complaints}");
}

#[tokio::test]
async fn an_etcd_that_is_not_there_or_has_lost_its_majority_is_told_apart() {
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let gone = check_at(std::slice::from_ref(&nowhere), &[]).await;
    assert_eq!((gone.code, gone.ids()), (1, vec!["etcd-unreachable"]), "{gone:#?}");
    assert!(gone.names("etcd-unreachable", None)[0].starts_with(&nowhere));

    let cluster = Cluster::start().await;
    // Without the leader there would be an election first.
    let leader = cluster.leader().await;
    put(cluster.member(leader), "echo", "127.0.0.1:1").await;
    let [follower, other] = [1, 2].map(|step| cluster.member((leader + step) % 3));
    follower.kill();
    let down = check_at(&cluster.urls(), &["--no-dial"]).await;
    assert_eq!(down.level("etcd-member-down"), "warning", "{down:#?}");
    assert!(down.names("etcd-member-down", None)[0].starts_with(&follower.url()), "{down:#?}");
    assert_eq!(down.names("keys-without-lease", Some("echo")).len(), 1, "the others are read");
    other.kill();
    eventually("the last member has no leader", LIMIT, async || {
        check_at(&cluster.urls(), &["--no-dial"]).await.ids().contains(&"etcd-no-leader")
    })
    .await;
}

#[tokio::test]
async fn members_of_two_clusters_and_an_etcd_without_space_are_named() {
    let (one, other) = (Etcd::start().await, Etcd::start().await);
    let split = check_at(&[one.url(), other.url()], &[]).await;
    assert!(split.code == 1 && split.ids().contains(&"etcd-split"), "{split:#?}");

    put(&one, "echo", "127.0.0.1:1").await;
    let mut client = one.client().await;
    let mut of_member = AlarmOptions::new();
    let id = client.status().await.expect("a status").header().expect("a header").member_id();
    of_member.with_member(id);
    client.alarm(AlarmAction::Activate, AlarmType::Nospace, Some(of_member)).await.expect("the alarm");
    let full = check(&one, &["--no-dial"]).await;
    assert!(full.names("etcd-nospace", None)[0].contains("NOSPACE"), "{full:#?}");
    assert!(full.ids().contains(&"keys-without-lease"), "it is read all the same");
}

#[tokio::test]
async fn a_member_that_learns_and_one_with_corrupt_data_are_named() {
    let etcd = Etcd::start().await;
    let learner = etcd.add_learner().await;
    let both = check_at(&[etcd.url(), learner.url()], &[]).await;
    assert_eq!(both.names("etcd-learner", None), [learner.url()], "{both:#?}");
    assert_eq!(both.level("etcd-learner"), "warning");
    let alone = check_at(&[learner.url()], &[]).await;
    assert!(alone.code == 1 && alone.ids().contains(&"etcd-refused"), "a learner reads nothing: {alone:#?}");

    let mut client = etcd.client().await;
    let mut of_member = AlarmOptions::new();
    of_member.with_member(client.status().await.expect("a status").header().expect("a header").member_id());
    client.alarm(AlarmAction::Activate, AlarmType::Corrupt, Some(of_member)).await.expect("the alarm");
    let corrupt = check(&etcd, &[]).await;
    assert!(corrupt.code == 1 && corrupt.names("etcd-problem", None)[0].contains("CORRUPT"), "{corrupt:#?}");
}

#[tokio::test]
async fn logins_and_permissions_that_are_missing_are_told_apart() {
    let etcd = Etcd::start().await;
    add_users(&etcd).await;
    put(&etcd, "echo", "127.0.0.1:1").await;
    etcd.client().await.auth_enable().await.expect("etcd switches authentication on");
    let as_server = ["--user", "server", "--password", PASSWORD, "--no-dial"];
    let allowed = check(&etcd, &as_server).await;
    assert!(allowed.ids().contains(&"keys-without-lease") && allowed.code == 0, "{allowed:#?}");
    let denied = check(&etcd, &[&as_server[..], &["--prefix", "other"]].concat()).await;
    assert_eq!((denied.code, denied.ids()), (1, vec!["etcd-permission"]), "{denied:#?}");
    for refused in [&["--user", "server", "--password", "wrong"][..], &[]] {
        let refused = check(&etcd, refused).await;
        assert_eq!((refused.code, refused.ids()), (1, vec!["etcd-login"]), "{refused:#?}");
        assert!(!format!("{refused:?}").contains(PASSWORD));
    }
}

#[tokio::test]
async fn tls_that_does_not_come_about_is_named_on_either_side() {
    let authority = Authority::new();
    let secure = Etcd::builder().tls(&authority.issue_files("etcd", &["127.0.0.1"])).start().await;
    let other = Authority::new();
    let (trusted, stranger) = (authority.file(), other.file());
    let flag = |file: &std::path::Path| file.to_str().expect("a path is text").to_owned();
    let (trusted, stranger) = (flag(&trusted), flag(&stranger));
    let fine = check(&secure, &["--ca", &trusted]).await;
    assert_eq!(fine.ids(), ["prefix-empty"], "{fine:#?}");
    let plain = Etcd::start().await;
    let plaintext = secure.url().replace("https", "http");
    let to_plain = plain.url().replace("http", "https");
    let files = authority.files("expired");
    authority.issue_expired(&["127.0.0.1"]).write(&files);
    let expired = Etcd::builder().tls(&files).start().await;
    let to_expired = check_at(&[expired.url()], &["--ca", &trusted]).await;
    assert_eq!((to_expired.code, to_expired.ids()), (1, vec!["etcd-tls"]), "{to_expired:#?}");
    assert!(to_expired.names("etcd-tls", None)[0].contains("expired"), "it says why: {to_expired:#?}");
    for (url, arguments) in
        [(secure.url(), &["--ca", &stranger][..]), (plaintext, &[]), (to_plain, &["--ca", &trusted])]
    {
        let found = check_at(std::slice::from_ref(&url), arguments).await;
        assert_eq!((found.code, found.ids()), (1, vec!["etcd-tls"]), "{url}: {found:#?}");
    }
}

#[tokio::test]
async fn thousands_of_instances_are_checked_within_the_time() {
    let etcd = Etcd::start().await;
    let server = EchoServer::unregistered();
    let port = server.address().port();
    // Every address of 127.0.0.0/8 is this host, and the server listens at one of them.
    for n in 0..3_000_u32 {
        let [_, a, b, c] = (n + 2).to_be_bytes();
        put(&etcd, "echo", &format!("127.{a}.{b}.{c}:{port}")).await;
    }
    let silent = listener(async |stream| {
        let _stream = stream;
        pending::<()>().await;
    });
    let silent = silent.await.to_string();
    put(&etcd, "echo", &silent).await;
    let found = check(&etcd, &["--answer-timeout", "2s"]).await;
    assert_eq!(found.names("address-refused", Some("echo")).len(), 3_000, "{:?}", found.ids());
    assert_eq!(found.names("server-silent", Some("echo")), [silent]);
    let (_, text, _) = output(&[etcd.url()], &["--answer-timeout", "2s"]).await;
    assert!(text.lines().count() < 60, "people see the first ones: {text}");

    let mut client = etcd.client().await;
    for part in 0..70_u32 {
        let puts = (0..100).map(|n| {
            let [_, a, b, c] = (5_000 + part * 100 + n).to_be_bytes();
            let address = format!("127.{a}.{b}.{c}:{port}");
            let value = format!(r#"{{"network":"tcp","address":"{address}"}}"#);
            TxnOp::put(format!("kitex/registry-etcd/echo/{address}"), value, None)
        });
        client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.expect("etcd takes them");
    }
    let found = check(&etcd, &["--no-dial"]).await;
    assert!(found.names("too-many-keys", Some("echo"))[0].starts_with("10001 keys, "), "{:?}", found.ids());
}
