//! The program `tonic-etcd` shows what is registered, asks servers to leave, and reports by its exit code how that went.

use std::process::Stdio;

use etcd_client::{Permission, PermissionType, PutOptions, RoleRevokePermissionOptions, Txn, TxnOp};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::auth::{PASSWORD, add_users, admin};
use crate::support::costs::Costs;
use crate::support::etcd::{Cluster, Etcd};
use crate::support::process::{Process, Signal, example, program};
use crate::support::{LIMIT, eventually};

/// What the program came to: its exit code, standard output and standard error.
async fn run(etcd: &Etcd, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::from(program());
    let output = command.args(["--etcd", &etcd.url()]).args(arguments).output().await.expect("the program runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("it prints text");
    (output.status.code().expect("it exits"), text(&output.stdout), text(&output.stderr))
}

async fn succeeds(etcd: &Etcd, arguments: &[&str]) -> String {
    let (code, printed, complaints) = run(etcd, arguments).await;
    assert_eq!((code, complaints.as_str()), (0, ""), "{arguments:?} prints {printed}");
    printed
}

async fn fails(etcd: &Etcd, arguments: &[&str], with: i32) -> String {
    let (code, printed, complaints) = run(etcd, arguments).await;
    assert_eq!(code, with, "{arguments:?} says {complaints}");
    assert!(complaints.starts_with("error: "), "{arguments:?} says why: {complaints:?}, and prints {printed:?}");
    complaints
}

fn lines(printed: &str) -> Vec<Value> {
    printed.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

async fn put(etcd: &Etcd, service: &str, address: &str, rest: &str) {
    let value = format!(r#"{{"network":"tcp","address":"{address}",{rest}}}"#);
    etcd.put(format!("kitex/registry-etcd/{service}/{address}"), value).await;
}

#[tokio::test]
async fn services_and_servers_are_listed_in_columns_or_as_json() {
    let etcd = Etcd::start().await;
    let (code, printed, note) = run(&etcd, &["ls"]).await;
    assert_eq!((code, printed.as_str()), (0, ""), "nothing is there yet, which is no failure");
    assert!(note.contains("nothing is registered under kitex/registry-etcd, in the format kitex"), "{note}");
    put(&etcd, "echo", "10.0.0.1:80", r#""weight":7,"tags":{"zone":"\u6f22","red":"\u001b[31m\u202e"}"#).await;
    put(&etcd, "echo", "10.0.0.10:8080", r#""weight":10,"tags":null,"draining":true"#).await;
    put(&etcd, "hello-world", "10.0.0.1:80", r#""weight":10,"tags":null"#).await;

    let table = "SERVICE      INSTANCES\n\
                 echo                 2\n\
                 hello-world          1\n";
    assert_eq!(succeeds(&etcd, &["ls"]).await, table);
    let table = "ADDRESS         WEIGHT  STATE     ZONE  LEASE  LEFT  TAGS\n\
                 10.0.0.1:80          7  live      \u{6f22}    0         -  red=\\u{1b}[31m\\u{202e}\n\
                 10.0.0.10:8080      10  draining  -     0         -\n";
    assert_eq!(succeeds(&etcd, &["ls", "echo"]).await, table, "no tag colours the terminal, or turns it around");

    let services = [json!({ "service": "echo", "instances": 2 }), json!({ "service": "hello-world", "instances": 1 })];
    assert_eq!(lines(&succeeds(&etcd, &["ls", "--json"]).await), services);
    let tags = json!({ "red": "\u{1b}[31m\u{202e}", "zone": "\u{6f22}" });
    let first = json!({
        "service": "echo", "address": "10.0.0.1:80", "weight": 7, "state": "live", "lease": "0", "seconds_left": null,
        "tags": tags,
    });
    let second = json!({
        "service": "echo", "address": "10.0.0.10:8080", "weight": 10, "state": "draining", "lease": "0", "seconds_left": null,
        "tags": {},
    });
    let printed = succeeds(&etcd, &["--json", "ls", "echo"]).await;
    assert!(!printed.contains(['\u{1b}', '\u{202e}']), "nor does JSON: {printed}");
    assert_eq!(lines(&printed), [first, second]);
    let (code, printed, note) = run(&etcd, &["ls", "--prefix", "elsewhere"]).await;
    assert_eq!((code, printed.as_str()), (0, ""), "flags of the registry count");
    assert!(note.contains("under elsewhere"), "{note}");
}

#[tokio::test]
async fn what_cannot_be_done_differs_from_what_cannot_be_understood() {
    let etcd = Etcd::start().await;
    let unknown = fails(&etcd, &["ls", "nobody"], 1).await;
    assert!(unknown.contains("no server of nobody") && unknown.contains("nor of any other service"), "{unknown}");
    put(&etcd, "echo", "10.0.0.9:80", r#""weight":1"#).await;
    let listed = fails(&etcd, &["ls", "nobody"], 1).await;
    assert!(listed.contains("services there: echo"), "{listed}");
    put(&etcd, "hello", "10.0.0.9:80", r#""weight":1"#).await;
    let similar = fails(&etcd, &["ls", "helo"], 1).await;
    assert!(similar.contains("similar names: hello\n"), "{similar}");
    assert!(fails(&etcd, &["drain", "10.0.0.1:80"], 1).await.contains("10.0.0.1:80"));
    let unknown = fails(&etcd, &["drain", "10.0.0.1:80", "--service", "echo"], 1).await;
    assert!(unknown.contains("no instance of echo") && unknown.contains("hint: `tonic-etcd ls echo`"), "{unknown}");
    for order in [
        &["ls", "no/slash"][..],
        &["watch", "no/slash"],
        &["drain", "10.0.0.9:80", "--service", "no/slash"],
        &["weight", "10.0.0.9:80", "3", "--service", "no/slash"],
        &["web", "echo", "no/slash"],
    ] {
        assert!(fails(&etcd, order, 2).await.contains("no/slash"), "{order:?}");
    }
    assert!(fails(&etcd, &["drain", "nowhere"], 2).await.contains("nowhere"));
    assert!(fails(&etcd, &["ls", "--prefix", ""], 2).await.contains("prefix"));
    assert!(fails(&etcd, &["ls", "--user", "root"], 2).await.contains("--password-file"));
    assert!(fails(&etcd, &["ls", "--password", "x"], 2).await.contains("--user"));
    assert!(fails(&etcd, &["ls", "--user", "a:b", "--password", "x"], 2).await.contains("twice"));
    assert!(fails(&etcd, &["ls", "--user", "a", "--password-file", "/no/file"], 2).await.contains("/no/file"));
    assert!(fails(&etcd, &["ls", "--dial-timeout", "soon"], 2).await.contains("500ms"));
    assert!(fails(&etcd, &["weight", "10.0.0.9:80", "0"], 2).await.contains("65535"));
    let https = fails(&etcd, &["ls", "--ca", "/no/ca.pem"], 2).await;
    assert!(https.contains("/no/ca.pem"), "{https}");
    fails(&etcd, &["--no-such-flag"], 2).await;
    etcd.kill();
    let unreachable = fails(&etcd, &["ls"], 1).await;
    for part in ["etcd does not answer", &etcd.url(), "hint: ", "ETCDCTL_ENDPOINTS"] {
        assert!(unreachable.contains(part), "{unreachable} says {part}");
    }
}

#[tokio::test]
async fn a_watch_of_everything_takes_in_services_that_come_later() {
    let etcd = Etcd::start().await;
    put(&etcd, "echo", "10.0.0.1:80", r#""weight":1"#).await;
    let start = |arguments: &[&str]| Process::start(program().args(["--etcd", &etcd.url()]).args(arguments));
    let (mut all, mut one) = (start(&["watch", "--json"]), start(&["watch", "hello", "--json"]));
    let told = |line: &Value| (line["service"].clone(), line["address"].clone(), line["weight"].clone());
    let insert = all.expect_event("insert", LIMIT).await;
    assert_eq!(told(&insert), (json!("echo"), json!("10.0.0.1:80"), json!(1)));
    put(&etcd, "hello", "10.0.0.2:80", r#""weight":2"#).await;
    for watch in [&mut all, &mut one] {
        let insert = watch.expect_event("insert", LIMIT).await;
        assert_eq!(told(&insert), (json!("hello"), json!("10.0.0.2:80"), json!(2)));
    }
    put(&etcd, "hello", "10.0.0.2:80", r#""weight":3"#).await;
    assert_eq!(one.expect_event("update", LIMIT).await["weight"], 3);
    etcd.delete("kitex/registry-etcd/hello/10.0.0.2:80").await;
    assert_eq!(all.expect_event("remove", LIMIT).await["address"], "10.0.0.2:80");
    for watch in [&mut all, &mut one] {
        watch.signal(Signal::INT);
        assert!(watch.wait(LIMIT).await.success(), "ctrl-c is how it ends");
    }
}

#[tokio::test]
async fn a_watch_goes_on_through_a_denial_and_does_not_begin_with_one() {
    let etcd = Etcd::start().await;
    add_users(&etcd).await;
    etcd.client().await.auth_enable().await.expect("etcd switches authentication on");
    let mut root = admin(&etcd).await;
    let value = |address: &str| format!(r#"{{"network":"tcp","address":"{address}","weight":1}}"#);
    root.put("kitex/registry-etcd/echo/10.0.0.1:80", value("10.0.0.1:80"), None).await.expect("root may");
    let start = |password: &str, service: &[&str]| {
        let mut command = program();
        let command = command.args(["--etcd", &etcd.url(), "--user", "server", "--password", password, "--json"]);
        Process::start(command.arg("watch").args(service))
    };
    for service in [&[][..], &["echo"]] {
        let mut denied = start("wrong", service);
        assert_eq!(denied.wait(LIMIT).await.code(), Some(1), "{service:?}");
        assert!(denied.log().contains("hint: --user"), "{}", denied.log());
    }
    let mut watch = start(PASSWORD, &[]);
    watch.expect_event("insert", LIMIT).await;
    // It has listed services before that, as nothing was asked for.
    let prefix = Permission::new(PermissionType::Readwrite, "kitex/registry-etcd/").with_prefix();
    let end = RoleRevokePermissionOptions::new().with_prefix();
    root.role_revoke_permission("registry", "kitex/registry-etcd/", Some(end)).await.expect("root may");
    let complaint = "services cannot be read now";
    eventually("it says so", LIMIT, async || watch.log().contains(complaint)).await;
    for service in [&[][..], &["echo"]] {
        let mut denied = start(PASSWORD, service);
        assert_eq!(denied.wait(LIMIT).await.code(), Some(1), "without the permission: {service:?}");
    }
    root.role_grant_permission("registry", prefix).await.expect("root may");
    root.put("kitex/registry-etcd/hello/10.0.0.2:80", value("10.0.0.2:80"), None).await.expect("root may");
    let hello = watch.expect_event("insert", LIMIT).await;
    assert_eq!(hello["service"], "hello", "it goes on");
    assert_eq!(watch.log().matches(complaint).count(), 1, "{}", watch.log());
}

#[tokio::test]
async fn a_watch_of_one_service_does_not_read_it_again_and_again() {
    let etcd = Etcd::start().await;
    put(&etcd, "echo", "10.0.0.1:80", r#""weight":1"#).await;
    let begin = Costs::of(&etcd).await;
    let mut watch = Process::start(program().args(["--etcd", &etcd.url(), "watch", "echo", "--json"]));
    watch.expect_event("insert", LIMIT).await;
    let was_asked = async |since: &Costs, times: u64| {
        let since = since.clone();
        eventually("it asks whether etcd answers", LIMIT, async || since.until_now().await.calls("Status") >= times)
            .await;
    };
    was_asked(&begin, 1).await;
    let since = Costs::of(&etcd).await;
    was_asked(&since, 2).await;
    let spent = since.until_now().await;
    assert_eq!(spent.calls("Range"), 0, "{spent:?}");
}

#[tokio::test]
async fn a_watch_of_one_service_reports_that_etcd_has_lost_its_majority() {
    let cluster = Cluster::start().await;
    put(cluster.member(0), "echo", "10.0.0.1:80", r#""weight":1"#).await;
    let mut watch = Process::start(program().args(["--etcd", &cluster.urls().join(","), "watch", "echo", "--json"]));
    watch.expect_event("insert", LIMIT).await;
    assert!(!watch.log().contains("services cannot be read now"), "{}", watch.log());
    cluster.member(1).kill();
    cluster.member(2).kill();
    // The member that is left answers when it is asked for its status.
    eventually("it says so", LIMIT, async || watch.log().contains("services cannot be read now")).await;
}

#[tokio::test]
async fn a_server_that_is_asked_to_leave_leaves_and_serves_on() {
    let etcd = Etcd::start().await;
    let mut server = Process::start(example("echo_server").args(["--etcd", &etcd.url()]));
    let address = server.expect_event("listening", LIMIT).await["address"].as_str().expect("an address").to_owned();
    server.expect_event("registered", LIMIT).await;

    let events = lines(&succeeds(&etcd, &["drain", &address, "--json"]).await);
    let event = |event: &str| json!({ "event": event, "service": "echo", "address": address });
    assert_eq!(events, [event("marked"), event("left")], "what it did, and what came of it");
    assert!(etcd.keys("").await.is_empty(), "it has left");
    server.expect_event("drained", LIMIT).await;
    assert!(tokio::net::TcpStream::connect(&address).await.is_ok(), "and serves on");
    server.signal(Signal::TERM);
    server.expect_event("stopped", LIMIT).await;
    assert!(server.wait(LIMIT).await.success(), "until it is signalled");
}

#[tokio::test]
async fn a_server_that_does_not_leave_is_named_and_an_order_must_be_unambiguous() {
    let etcd = Etcd::start().await;
    put(&etcd, "echo", "10.0.0.1:80", r#""weight":1"#).await;
    put(&etcd, "hello", "10.0.0.1:80", r#""weight":1"#).await;
    let ambiguous = fails(&etcd, &["drain", "10.0.0.1:80"], 2).await;
    assert!(ambiguous.contains("echo, hello") && ambiguous.contains("--service"), "{ambiguous}");
    let (code, printed, complaints) = run(&etcd, &["drain", "10.0.0.1:80", "--service", "hello"]).await;
    assert_eq!(printed, "hello 10.0.0.1:80 marked\n", "the mark is there");
    assert!(code == 1 && complaints.contains("has not left"), "a key that no server keeps does not go: {complaints}");
    let keys = etcd.keys("").await;
    let is_marked = |index: usize| String::from_utf8_lossy(&keys[index].1).contains("draining");
    assert_eq!((is_marked(0), is_marked(1)), (false, true), "and no other key was marked");
}

#[tokio::test]
async fn a_server_beyond_those_that_clients_read_is_not_said_to_have_left() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let key = |address: &str| format!("kitex/registry-etcd/echo/{address}");
    let value = |address: &str| format!(r#"{{"network":"tcp","address":"{address}","weight":1}}"#);
    for part in 0..100 {
        let addresses = (0..100).map(|port| format!("10.0.0.1:{}", 1_000 + part * 100 + port));
        let puts = addresses.map(|address| TxnOp::put(key(&address), value(&address), None));
        client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.expect("etcd takes them");
    }
    let last = "10.0.0.2:80";
    etcd.put(key(last), value(last)).await;
    let (code, printed, complaints) = run(&etcd, &["drain", last, "--service", "echo"]).await;
    assert_eq!(printed, format!("echo {last} marked\n"), "it is beyond the first 10,000: {complaints}");
    assert!(code == 1 && complaints.contains("has not left"), "{complaints}");
}

#[tokio::test]
async fn of_two_keys_at_one_address_the_newer_one_is_drained() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let mut leases = Vec::new();
    for name in ["b", "a"] {
        let lease = client.lease_grant(600, None).await.expect("a lease").id();
        let options = PutOptions::new().with_lease(lease);
        let value = r#"{"network":"tcp","address":"10.0.0.1:80","weight":1}"#;
        client.put(format!("kitex/registry-etcd/echo/{name}"), value, Some(options)).await.expect("etcd takes it");
        leases.push(lease);
    }
    let mut drain = Process::start(program().args(["--etcd", &etcd.url(), "--json", "drain", "10.0.0.1:80"]));
    drain.expect_event("marked", LIMIT).await;
    let marked =
        etcd.keys("").await.into_iter().filter(|(_, value, _)| String::from_utf8_lossy(value).contains("draining"));
    assert_eq!(marked.map(|(_, _, lease)| lease).collect::<Vec<_>>(), [leases[1]], "no other key is marked");
    client.lease_revoke(leases[1]).await.expect("it leaves");
    drain.expect_event("left", LIMIT).await;
    assert!(drain.wait(LIMIT).await.success(), "the older key is another server's");
}

#[tokio::test]
async fn a_weight_is_set_and_one_that_is_not_kept_is_a_failure() {
    let etcd = Etcd::start().await;
    let mut server = Process::start(example("echo_server").args(["--etcd", &etcd.url()]));
    let address = server.expect_event("listening", LIMIT).await["address"].as_str().expect("an address").to_owned();
    server.expect_event("registered", LIMIT).await;
    assert_eq!(succeeds(&etcd, &["weight", &address, "3"]).await, format!("echo {address} weight 3\n"));
    let events = lines(&succeeds(&etcd, &["weight", &address, "4", "--service", "echo", "--json"]).await);
    assert_eq!(events, [json!({ "event": "reweighed", "service": "echo", "address": address, "weight": 4 })]);
    let listed = lines(&succeeds(&etcd, &["ls", "echo", "--json"]).await);
    assert_eq!(listed[0]["weight"], 4, "{listed:?}");
    let left = listed[0]["seconds_left"].as_u64().expect("it has a lease");
    assert!((1..=15).contains(&left), "{listed:?}");
    server.signal(Signal::TERM);
    assert!(server.wait(LIMIT).await.success());

    put(&etcd, "echo", "10.0.0.1:80", r#""weight":1"#).await;
    let by_hand = fails(&etcd, &["weight", "10.0.0.1:80", "3"], 1).await;
    assert!(by_hand.contains("stays as it was") && by_hand.contains("no lease"), "{by_hand}");
    let unknown = fails(&etcd, &["weight", "10.0.0.2:80", "3", "--service", "echo"], 1).await;
    assert!(unknown.contains("hint: `tonic-etcd ls echo`"), "{unknown}");
}

#[tokio::test]
async fn the_environment_of_etcdctl_counts_and_flags_count_before_it() {
    let etcd = Etcd::start().await;
    put(&etcd, "echo", "10.0.0.1:80", r#""weight":1"#).await;
    let ls = async |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = Command::from(program());
        let output = command.envs(variables.iter().copied()).arg("ls").args(arguments).output().await;
        let output = output.expect("the program runs");
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let url = etcd.url();
    let found = ls(&[("ETCDCTL_ENDPOINTS", &url)], &[]).await;
    assert!(found.0 && found.1.contains("echo"), "{found:?}");
    let found = ls(&[("ETCDCTL_ENDPOINTS", "http://127.0.0.1:1")], &["--endpoints", &url]).await;
    assert!(found.0 && found.1.contains("echo"), "{found:?}");
    let elsewhere = ls(&[("ETCDCTL_ENDPOINTS", &url), ("TONIC_ETCD_PREFIX", "elsewhere")], &[]).await;
    assert!(elsewhere.0 && elsewhere.1.contains("under elsewhere"), "{elsewhere:?}");
    let refused = ls(&[("ETCDCTL_ENDPOINTS", &url), ("ETCDCTL_DIAL_TIMEOUT", "soon")], &[]).await;
    assert!(!refused.0 && refused.1.contains("ETCDCTL_DIAL_TIMEOUT"), "{refused:?}");
    let found = ls(&[("ETCDCTL_ENDPOINTS", &url), ("ETCDCTL_DIAL_TIMEOUT", "soon")], &["--dial-timeout", "1s"]).await;
    assert!(found.0 && found.1.contains("echo"), "{found:?}");
}

#[tokio::test]
async fn a_password_comes_from_the_environment_a_file_or_standard_input() {
    let etcd = Etcd::start().await;
    add_users(&etcd).await;
    etcd.client().await.auth_enable().await.expect("etcd switches authentication on");
    let file = tempfile::NamedTempFile::new().expect("the temporary folder takes a file");
    std::fs::write(file.path(), format!("{PASSWORD}\n")).expect("the file can be written");
    let path = file.path().to_str().expect("a path in UTF-8");
    let both = format!("server:{PASSWORD}");
    let ls = async |variables: &[(&str, &str)], arguments: &[&str], input: Stdio| {
        let mut command = Command::from(program());
        let command = command.envs(variables.iter().copied()).args(["--etcd", &etcd.url(), "ls"]).args(arguments);
        let output = command.stdin(input).output().await.expect("the program runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let password = ("ETCDCTL_PASSWORD", PASSWORD);
    for (variables, arguments, input) in [
        (&[("ETCDCTL_USER", "server"), password][..], &[][..], Stdio::null()),
        (&[("ETCDCTL_USER", &both)], &[], Stdio::null()),
        (&[password], &["--user", "server"], Stdio::null()),
        (&[], &["--user", "server", "--password-file", path], Stdio::null()),
        (&[("ETCDCTL_USER", "server:wrong")], &["--user", "server", "--password-file", path], Stdio::null()),
        (&[], &["--user", "server", "--password-stdin"], Stdio::from(file.reopen().expect("it opens again"))),
        (&[], &["--user", &both], Stdio::null()),
        (&[], &["--user", "server", "--password", PASSWORD], Stdio::null()),
    ] {
        let (code, complaints) = ls(variables, arguments, input).await;
        assert_eq!(code, Some(0), "{arguments:?} with {variables:?}: {complaints}");
    }
    let (code, complaints) = ls(&[], &["--user", "server", "--password", "wrong"], Stdio::null()).await;
    assert!(code == Some(1) && complaints.contains("hint: --user"), "{complaints}");
    let (code, complaints) = ls(&[], &[], Stdio::null()).await;
    assert!(code == Some(1) && complaints.contains("ETCDCTL_USER"), "without a user etcd denies it: {complaints}");
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_failure() {
    let etcd = Etcd::start().await;
    for port in 1..=200 {
        put(&etcd, "echo", &format!("10.0.0.1:{port}"), r#""weight":1"#).await;
    }
    let mut command = Command::from(program());
    let mut child = command
        .args(["--etcd", &etcd.url(), "ls", "echo"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().await.expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
