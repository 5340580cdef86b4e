//! The example programs refuse what they do not understand: a message that says what was expected, and exit code 2.

use std::process::Command;
use std::time::Duration;

use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_etcd::{BalancedChannel, Registry};

use crate::support::LIMIT;
use crate::support::etcd::Etcd;
use crate::support::process::{Process, example};
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;

fn refused(name: &str, flags: &[&str]) -> String {
    let output = Command::new(example(name).get_program()).args(flags).output().expect("the example runs");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{name} {flags:?} says {message}");
    assert!(output.stdout.is_empty(), "standard output is for JSON lines");
    assert!(!message.is_empty(), "{name} {flags:?} says what was expected");
    message
}

#[test]
fn bad_flags_are_refused_with_what_was_expected() {
    for name in ["echo_server", "echo_client", "watch"] {
        assert!(refused(name, &["--no-such-flag"]).contains("--no-such-flag"));
        let formats = refused(name, &["--format", "no-such-format"]);
        assert!(formats.contains("kitex, etcd, go-zero, kratos"), "{formats}");
        assert!(
            refused(name, &["--format", "kitex,etcd", "--prefix", "a"]).contains("--prefix"),
            "a prefix is one format's"
        );
        refused(name, &["--etcd", "http://127.0.0.1:99999"]);
        refused(name, &["--etcd", "ftp://127.0.0.1:1"]);
        refused(name, &["--service", "no/slash"]);
        refused(name, &["--prefix", "a//b"]);
        refused(name, &["--user", "root"]);
        refused(name, &["--ca", "/no/such/file"]);
    }
    assert!(refused("echo_server", &["--weight", "0"]).contains('1'));
    refused("echo_server", &["--ttl", "0"]);
    refused("echo_server", &["--listen", "nowhere"]);
    refused("echo_server", &["--advertise", "0.0.0.0:1"]);
    refused("echo_server", &["--tag", "no-equals-sign"]);
    refused("echo_server", &["--fail-percent", "101"]);
    refused("echo_server", &["--shed-percent", "101"]);
    refused("echo_server", &["--max-connection-age", "old"]);
    let grace = refused("echo_server", &["--max-connection-age-grace", "1"]);
    assert!(grace.contains("--max-connection-age <SECONDS>"), "{grace}");
    refused("echo_client", &["--policy", "no-such-policy"]);
    refused("echo_client", &["--count", "1", "--duration", "1"]);
    assert!(refused("echo_client", &["--policy", "ring-hash"]).contains("--hash-header"), "a ring needs keys");
    refused("echo_client", &["--policy", "random", "--hash-header", "x-user"]);
    refused("echo_client", &["--policy", "ring-hash", "--hash-header", "x user"]);
    refused("echo_client", &["--policy", "ring-hash", "--hash-header", "x-user-bin"]);
    refused("echo_client", &["--zone-tag", "rack"]);
    refused("echo_client", &["--subset", "0"]);
    refused("echo_client", &["--slow-start", "0"]);
    refused("echo_client", &["--retry", "OK"]);
    refused("echo_client", &["--retry", "UNAVAILABLE,SOMETIMES"]);
    assert!(refused("echo_client", &["--service-config", "/no/such/file"]).contains("/no/such/file"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("service-config.json");
    std::fs::write(&config, r#"{"methodConfig":[{"name":[{}],"hedgingPolicy":{}}]}"#).expect("it is a file of ours");
    let file = config.to_str().expect("a plain name");
    let said = refused("echo_client", &["--service-config", file]);
    assert!(said.contains(file) && said.contains("methodConfig[0].hedgingPolicy: not supported"), "{said}");
    for own in [
        ["--zone", "a"],
        ["--subset", "2"],
        ["--slow-start", "30"],
        ["--retry", "UNAVAILABLE"],
        ["--service-config", "/no/such/file"],
    ] {
        let flags = ["--balancer", "tonic", own[0], own[1]];
        assert!(refused("echo_client", &flags).contains(own[0]), "tonic's balancer has no such thing");
    }
    let tonics = ["--balancer", "tonic", "--policy", "least-request"];
    assert!(refused("echo_client", &tonics).contains("random"), "tonic's balancer has one policy");
}

#[tokio::test]
async fn a_server_sheds_as_many_calls_as_its_flag_says() {
    let (_etcd, _server, mut client) = echo(&["--shed-percent", "40"]).await;
    let mut shed = 0;
    for _ in 0..50 {
        if let Err(status) = client.unary_echo(EchoRequest { message: "hi".into() }).await {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            assert!(status.message().ends_with(" sheds 40 of 100 calls"), "{status}");
            shed += 1;
        }
    }
    assert_eq!(shed, 20, "40 of each 100 calls");
}

#[tokio::test]
async fn a_connection_that_is_too_old_takes_no_call_and_ends_its_streams() {
    let age = ["--max-connection-age", "0.2", "--max-connection-age-grace", "0.2"];
    let (_etcd, _server, mut client) = echo(&age).await;
    let (requests, body) = tokio::sync::mpsc::channel(1);
    let response = client.bidirectional_streaming_echo(ReceiverStream::new(body)).await.expect("the stream begins");
    // The old connection announces its end, and another one takes them.
    let calls = async {
        loop {
            client.unary_echo(EchoRequest { message: "hi".into() }).await.expect("no call fails");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut replies = response.into_inner();
    let ended = tokio::select! {
        ended = tokio::time::timeout(LIMIT, replies.message()) => ended.expect("the grace ends"),
        () = calls => unreachable!("they go on"),
    };
    ended.expect_err("its connection ended under it");
    drop(requests);
}

/// An echo server with these flags, and its client.
async fn echo(flags: &[&str]) -> (Etcd, Process, EchoClient<BalancedChannel>) {
    let etcd = Etcd::start().await;
    let mut server = Process::start(example("echo_server").args(["--etcd", &etcd.url()]).args(flags));
    server.expect_event("registered", LIMIT).await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let channel = registry.channel("echo").build().expect("a good channel");
    (etcd, server, EchoClient::new(channel))
}
