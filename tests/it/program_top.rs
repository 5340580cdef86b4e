//! `tonic-etcd top` shows a registry on a screen: once as text, or on a terminal that it leaves as it was.

use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::support::etcd::{Etcd, free_port};
use crate::support::process::program;
use crate::support::{LIMIT, eventually};

async fn run(url: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::from(program());
    let command = command.args(["--etcd", url, "top"]).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.expect("the program runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("it prints text");
    (output.status.code().expect("it exits"), text(&output.stdout), text(&output.stderr))
}

async fn put(etcd: &Etcd, service: &str, address: &str, rest: &str) {
    let value = format!(r#"{{"network":"tcp","address":"{address}",{rest}}}"#);
    etcd.put(format!("kitex/registry-etcd/{service}/{address}"), value).await;
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[tokio::test]
async fn one_screen_is_printed_as_text() {
    let etcd = Etcd::start().await;
    put(&etcd, "echo", "10.0.0.1:80", r#""weight":7,"tags":{"zone":"a","red":"\u001b[31m"}"#).await;
    put(&etcd, "echo", "10.0.0.2:80", r#""weight":10,"draining":true"#).await;
    put(&etcd, "hello", "10.0.0.1:80", r#""weight":10"#).await;

    let (code, screen, complaints) = run(&etcd.url(), &["--once"]).await;
    assert_eq!((code, complaints.as_str()), (0, ""), "{screen}");
    let lines: Vec<&str> = screen.lines().collect();
    assert!(lines.len() == 24 && lines.iter().all(|line| line.chars().count() <= 80), "80 x 24: {screen}");
    assert!(lines[0].contains("2 services  3 instances  0 changes/min"), "{screen}");
    assert_eq!(words(lines[3]), ["echo", "2", "1", "1", "0", "17", "0"], "{screen}");
    assert_eq!(words(lines[4]), ["hello", "1", "1", "0", "0", "10", "0"], "{screen}");

    let (code, screen, _) = run(&etcd.url(), &["echo", "--once", "--size", "100x10"]).await;
    assert!(code == 0 && screen.lines().count() == 10 && !screen.contains('\u{1b}'), "{screen:?}");
    assert!(screen.contains("10.0.0.1:80") && screen.contains(r"red=\u{1b}[31m zone=a"), "{screen}");
}

#[tokio::test]
async fn without_a_terminal_or_an_etcd_it_says_so() {
    let etcd = Etcd::start().await;
    let (code, _, complaints) = run(&etcd.url(), &[]).await;
    assert!(code == 1 && complaints.contains("needs a terminal"), "{complaints}");
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    for arguments in [&["--once"][..], &["echo", "--once"]] {
        let (code, _, complaints) = run(&nowhere, arguments).await;
        assert!(code == 1 && complaints.contains("etcd does not answer"), "{arguments:?}: {complaints}");
    }
    let (code, _, complaints) = run(&etcd.url(), &["--once", "--json"]).await;
    assert!(code == 2 && complaints.contains("no JSON"), "{complaints}");
    let (code, _, complaints) = run(&etcd.url(), &["--once", "--format", "etcd"]).await;
    assert!(code == 2 && complaints.contains("below a prefix only"), "{complaints}");
    assert_eq!(run(&etcd.url(), &["--once", "--size", "1x1"]).await.0, 2);
}

#[tokio::test]
async fn on_a_terminal_it_shows_changes_takes_keys_and_leaves_it_as_it_was() {
    if !Path::new("/usr/bin/script").exists() {
        println!("SKIPPED: there is no /usr/bin/script to give it a terminal");
        return;
    }
    let etcd = Etcd::start().await;
    put(&etcd, "echo", "10.0.0.1:80", r#""weight":7"#).await;
    let log = tempfile::NamedTempFile::new().expect("a file");
    let command = format!(
        "stty rows 24 cols 80; {:?} --etcd {} top; stty -a | grep -q ' icanon' && printf 'as-%s' before",
        program().get_program(),
        etcd.url()
    );
    let mut script = Command::new("script");
    script.args(["--quiet", "--flush", "--command", &command]).arg(log.path());
    let script = script.env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    let mut terminal = script.spawn().expect("script runs");
    let mut keyboard = terminal.stdin.take().expect("it is piped");
    let screen = || String::from_utf8_lossy(&std::fs::read(log.path()).expect("the log")).into_owned();
    let mut port = 1_000;
    eventually("an instance joins", LIMIT, async || {
        port += 1;
        put(&etcd, "echo", &format!("10.0.0.2:{port}"), r#""weight":7"#).await;
        screen().contains("joined")
    })
    .await;

    keyboard.write_all(b"\r").await.expect("a key");
    // Cells that stay the same are not drawn again: the e in front is there already.
    eventually("its instances are shown", LIMIT, async || screen().contains("sc: all")).await;
    keyboard.write_all(b"q").await.expect("a key");
    eventually("it ends", LIMIT, async || terminal.try_wait().expect("a child").is_some()).await;
    let end = screen();
    assert!(end.contains("\u{1b}[?1049l") && end.contains("as-before"), "{end:?}");
}
