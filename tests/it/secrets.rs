//! No password, no token and no private key shows anywhere: in no log at any level, in no error, on no screen.

use std::fs;
use std::time::Duration;

use crate::auth::{ADMIN, PASSWORD, add_users, admin};
use crate::support::etcd::Etcd;
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
        written.extend([list, denied]);
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
