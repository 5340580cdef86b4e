//! No password, no token and no private key shows anywhere: in no log at any level, in no error, on no screen.

use std::fs;
use std::time::Duration;

use crate::auth::{ADMIN, PASSWORD, add_users, admin};
use crate::support::etcd::Etcd;
use crate::support::page::{Events, ask};
use crate::support::pki::Authority;
use crate::support::process::{Process, Signal, example, program};
use crate::support::{LIMIT, eventually};

/// What a program wrote, and what must not be in it.
struct Written {
    name: &'static str,
    text: String,
}

impl Written {
    async fn by(name: &'static str, mut process: Process) -> Self {
        let printed = process.rest(LIMIT).await;
        process.wait(LIMIT).await;
        let seen: Vec<String> = process.seen().iter().chain(&printed).map(ToString::to_string).collect();
        Self { name, text: format!("{}\n{}", seen.join("\n"), process.log()) }
    }

    fn shows_none_of(&self, secrets: &[&str]) {
        let Self { name, text } = self;
        assert!(!text.trim().is_empty(), "{name} wrote something");
        for secret in secrets {
            let line = text.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "{name} shows {secret}: {line:?}");
        }
    }
}

/// A line of the key itself, without the frame around it.
fn body(key: &str) -> &str {
    key.lines().find(|line| !line.starts_with("-----")).expect("a key has a body")
}

#[tokio::test]
async fn no_password_token_or_key_shows_in_any_program_whatever_happens() {
    let authority = Authority::new();
    let here = authority.issue_files("etcd", &["127.0.0.1", "localhost"]);
    let client = authority.issue_files("client", &["client"]);
    let key = fs::read_to_string(&client.key).expect("the key was written");
    // JWT are easy to recognise.
    let etcd = Etcd::builder().mutual_tls(&here, &authority).jwt(Duration::from_secs(600)).start().await;
    add_users(&etcd).await;
    etcd.client().await.auth_enable().await.expect("etcd switches authentication on");
    let start = |name: &str, password: &str, more: &[&str]| {
        let mut command = if name == "tonic-etcd" { program() } else { example(name) };
        command.args(["--etcd", &etcd.url(), "--user", "server", "--password", password]).env("RUST_LOG", "trace");
        for (flag, file) in [("--ca", authority.file()), ("--cert", client.cert.clone()), ("--key", client.key.clone())]
        {
            command.arg(flag).arg(file);
        }
        Process::start(command.args(more))
    };

    let mut server = start("echo_server", PASSWORD, &[]);
    server.expect_event("registered", LIMIT).await;
    let (mut watch, wrong) = (start("watch", PASSWORD, &[]), start("echo_server", "canary", &[]));
    watch.expect_event("insert", LIMIT).await;
    let calls = start("echo_client", PASSWORD, &["--count", "20"]);
    let calls = Written::by("echo_client", calls).await;
    eventually("the refusal is logged", LIMIT, async || wrong.log().contains("etcd refused the credentials")).await;
    let mut written = vec![calls];
    if cfg!(feature = "cli") {
        let list = Written::by("tonic-etcd", start("tonic-etcd", PASSWORD, &["ls", "--json"])).await;
        assert!(list.text.contains(r#""service":"echo""#), "the program lists what is there: {}", list.text);
        let denied = Written::by("tonic-etcd", start("tonic-etcd", "canary", &["ls"])).await;
        let check = Written::by("tonic-etcd", start("tonic-etcd", PASSWORD, &["check", "--json"])).await;
        assert!(
            check.text.contains(r#""id":"address-loopback""#),
            "the program looks at what is there: {}",
            check.text
        );
        written.extend([list, denied, check]);

        let value = r#"{"network":"tcp","address":"10.0.0.1:80","weight":1}"#;
        admin(&etcd).await.put("kitex/registry-etcd/other/10.0.0.1:80", value, None).await.expect("root may");
        let flags = ["web", "other", "--json", "--listen", "127.0.0.1:0", "--allow-drain"];
        let mut page = start("tonic-etcd", PASSWORD, &flags);
        let token = drain_by_the_page(&mut page).await;
        page.signal(Signal::TERM);
        page.wait(LIMIT).await;
        // The line that it prints is where the token belongs.
        let page = Written { name: "tonic-etcd", text: page.log() };
        assert!(page.text.contains("TRACE"), "everything is logged: {}", page.text);
        page.shows_none_of(&[&token]);
        written.push(page);
    }

    // Broken connections, refused tokens, and a password that is not good any more.
    etcd.restart().await;
    let mut root = admin(&etcd).await;
    root.user_change_password("server", "another-canary").await.expect("root may");
    etcd.restart().await;
    eventually("the refusal is logged", LIMIT, async || server.log().contains("etcd refused the credentials")).await;
    for (name, mut process) in [("echo_server", server), ("watch", watch), ("echo_server", wrong)] {
        process.signal(Signal::TERM);
        written.push(Written::by(name, process).await);
    }
    assert!(written.iter().any(|written| written.text.contains("TRACE")), "everything is logged");
    for written in &written {
        written.shows_none_of(&[PASSWORD, "canary", "eyJ", ADMIN, body(&key)]);
    }
}

/// Sends an order to the page of `other`, with the token that is returned.
async fn drain_by_the_page(page: &mut Process) -> String {
    let url = page.expect_event("listening", LIMIT).await["url"].as_str().expect("a URL").to_owned();
    let (address, token) = url.trim_start_matches("http://").split_once("/#").expect("a token at the end");
    Events::open(address).await.expect("the server", "service", |data| data["instances"][0].is_object()).await;
    let (own, bearer) = (format!("http://{address}"), format!("Bearer {token}"));
    let headers = [("origin", own.as_str()), ("content-type", "application/json"), ("authorization", bearer.as_str())];
    let order = r#"{"service":"other","address":"10.0.0.1:80","lease":"0"}"#;
    let answer = ask(address, "POST", "/drain", &headers, order).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    token.to_owned()
}

#[tokio::test]
async fn what_is_refused_before_it_is_used_is_not_shown_either() {
    let authority = Authority::new();
    let client = authority.issue_files("client", &["client"]);
    let key = fs::read_to_string(&client.key).expect("the key was written");
    let body = body(&key);
    // As if half of the file were there, or something else.
    for broken in [body.to_owned(), format!("-----BEGIN PRIVATE KEY-----\n{body}\n"), key.replace("PRIVATE", "SECRET")]
    {
        fs::write(&client.key, broken).expect("the folder takes a file");
        let mut command = example("echo_server");
        command.args(["--etcd", "https://127.0.0.1:1"]).env("RUST_LOG", "trace");
        for (flag, file) in [("--ca", &authority.file()), ("--cert", &client.cert), ("--key", &client.key)] {
            command.arg(flag).arg(file);
        }
        let refused = Written::by("echo_server", Process::start(&mut command)).await;
        assert!(refused.text.contains("key"), "it says what is wrong: {}", refused.text);
        refused.shows_none_of(&[body]);
    }
    let mut command = example("echo_server");
    command.args(["--etcd", "http://root:canary@127.0.0.1:1"]).env("RUST_LOG", "trace");
    Written::by("echo_server", Process::start(&mut command)).await.shows_none_of(&["canary"]);
}
