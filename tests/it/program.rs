//! The program `tonic-etcd` shows what is registered, asks servers to leave, and reports by its exit code how that went.

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::LIMIT;
use crate::support::etcd::Etcd;
use crate::support::process::{Process, Signal, example, program};

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
    assert_eq!(succeeds(&etcd, &["ls"]).await, "", "nothing is there yet, which is no failure");
    put(&etcd, "echo", "10.0.0.1:80", r#""weight":7,"tags":{"zone":"a","red":"\u001b[31m"}"#).await;
    put(&etcd, "echo", "10.0.0.10:8080", r#""weight":10,"tags":null,"draining":true"#).await;
    put(&etcd, "hello-world", "10.0.0.1:80", r#""weight":10,"tags":null"#).await;

    let table = "SERVICE      KEYS\n\
                 echo            2\n\
                 hello-world     1\n";
    assert_eq!(succeeds(&etcd, &["ls"]).await, table);
    let table = "ADDRESS         WEIGHT  STATE     LEASE  TAGS\n\
                 10.0.0.1:80          7  live      0      red=\\u{1b}[31m zone=a\n\
                 10.0.0.10:8080      10  draining  0\n";
    assert_eq!(succeeds(&etcd, &["ls", "echo"]).await, table, "and no tag colours the terminal");

    let services = [json!({ "service": "echo", "keys": 2 }), json!({ "service": "hello-world", "keys": 1 })];
    assert_eq!(lines(&succeeds(&etcd, &["ls", "--json"]).await), services);
    let tags = json!({ "red": "\u{1b}[31m", "zone": "a" });
    let first = json!({
        "service": "echo", "address": "10.0.0.1:80", "weight": 7, "state": "live", "lease": "0", "tags": tags,
    });
    let second = json!({
        "service": "echo", "address": "10.0.0.10:8080", "weight": 10, "state": "draining", "lease": "0", "tags": {},
    });
    assert_eq!(lines(&succeeds(&etcd, &["--json", "ls", "echo"]).await), [first, second]);
    assert_eq!(succeeds(&etcd, &["ls", "--prefix", "elsewhere"]).await, "", "flags of the registry count");
}

#[tokio::test]
async fn what_cannot_be_done_differs_from_what_cannot_be_understood() {
    let etcd = Etcd::start().await;
    assert!(fails(&etcd, &["ls", "nobody"], 1).await.contains("no server of nobody"));
    assert!(fails(&etcd, &["drain", "10.0.0.1:80"], 1).await.contains("10.0.0.1:80"));
    assert!(fails(&etcd, &["drain", "10.0.0.1:80", "--service", "echo"], 1).await.contains("no instance of echo"));
    assert!(fails(&etcd, &["ls", "no/slash"], 2).await.contains("no/slash"));
    assert!(fails(&etcd, &["drain", "nowhere"], 2).await.contains("nowhere"));
    assert!(fails(&etcd, &["ls", "--prefix", ""], 2).await.contains("prefix"));
    assert!(fails(&etcd, &["ls", "--user", "root"], 2).await.contains("--password"));
    fails(&etcd, &["--no-such-flag"], 2).await;
    etcd.kill();
    assert!(fails(&etcd, &["ls"], 1).await.contains("etcd does not answer"));
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
