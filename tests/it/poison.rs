//! Whatever lies beside them, good instances are in use at once, and what cannot be used costs neither memory nor log.

use std::time::{Duration, Instant};

use etcd_client::{GetOptions, Txn, TxnOp};
use serde_json::Value;

use crate::support::etcd::Etcd;
use crate::support::figures;
use crate::support::process::{Process, example};
use crate::support::{LIMIT, eventually};

/// How soon the good ones are known.
const IN_USE: Duration = Duration::from_secs(3);

/// How many times as long as a plain list it may take where even that takes long.
const SHARE: u32 = 4;

/// How often that is tried.
const TRIES: usize = 5;

/// By how much the memory of a client may grow.
const GROWTH: usize = 64 * 1024 * 1024;

/// How many operations etcd takes in one transaction.
const AT_ONCE: usize = 128;

const SMALL: usize = 100_000;
const LARGE: usize = 100;
const HUGE: usize = 20;

#[tokio::test]
async fn five_good_keys_among_100_000_bad_ones_are_in_use_within_three_seconds() {
    // The junk is more than half of what this etcd takes by default.
    let etcd = Etcd::builder().arg("--quota-backend-bytes=4294967296").start().await;
    let (mut early, mut quiet) = (watch(&etcd, "echo"), watch(&etcd, "quiet"));
    put_good(&etcd, 1).await;
    expect(&mut early, 1).await;
    put_good(&etcd, 2).await;
    expect(&mut early, 2).await;
    let before = early.memory().1;

    put_junk(&etcd).await;
    let put = Instant::now();
    for n in 3..=5 {
        put_good(&etcd, n).await;
        expect(&mut early, n).await;
    }
    figures::within("good ones are known behind 100,000 bad ones, in a watch", put.elapsed(), IN_USE);

    // A machine may be busy: then etcd-client takes its time for the same list, too.
    let mut tries = Vec::new();
    let mut late = loop {
        let started = Instant::now();
        let mut late = watch(&etcd, "echo");
        for _ in 1..=5 {
            late.expect_event("insert", LIMIT).await;
        }
        let (took, limit) = (started.elapsed(), IN_USE.max(SHARE * plain_list(&etcd).await));
        tries.push((took, limit));
        if took <= limit {
            figures::within("good ones are known among 100,000 bad ones, in a list", took, limit);
            break late;
        }
        assert!(tries.len() < TRIES, "they were known after as long, and as long was allowed: {tries:?}");
    };

    // The list after the reconnect meets an etcd that has everything, and nothing new.
    etcd.restart().await;
    put_good(&etcd, 6).await;
    expect(&mut early, 6).await;
    expect(&mut late, 6).await;
    put_at(&etcd, "quiet", 1).await;
    expect(&mut quiet, 1).await;
    for (name, process) in [("early", &early), ("late", &late)] {
        let growth = process.memory().1.saturating_sub(before.max(quiet.memory().1));
        let growth = usize::try_from(growth / 1024).expect("not that much");
        figures::at_most(&format!("memory that 100,000 bad ones take, {name}"), growth, GROWTH / 1024, "KiB");
        let log = process.log();
        let complaints = log.lines().filter(|line| line.contains("cannot be used")).count();
        // A kind a minute, and none of it took minutes.
        assert!((1..=10).contains(&complaints), "{complaints} lines in the log of the {name} one:\n{log}");
        assert!(log.len() < 16 * 1024, "the log of the {name} one has {} bytes", log.len());
        assert!(!log.contains("panicked"), "nothing panics:\n{log}");
        let shown = process.seen().len();
        assert_eq!(shown, 6, "each good one was inserted once, and nothing else: {:?}", process.seen());
    }
}

/// How long etcd-client takes to list everything, ten thousand keys at a time.
async fn plain_list(etcd: &Etcd) -> Duration {
    let (mut client, started) = (etcd.client().await.kv_client().max_decoding_message_size(1 << 30), Instant::now());
    let mut from = b"kitex/registry-etcd/echo/".to_vec();
    loop {
        let options = GetOptions::new().with_range("kitex/registry-etcd/echo0").with_limit(10_000);
        let page = client.get(from.clone(), Some(options)).await.expect("etcd answers");
        match page.kvs().last() {
            Some(last) if page.more() => from = [last.key(), &[0]].concat(),
            _ => return started.elapsed(),
        }
    }
}

fn watch(etcd: &Etcd, service: &str) -> Process {
    Process::start(example("watch").args(["--etcd", &etcd.url(), "--service", service]))
}

async fn put_good(etcd: &Etcd, n: usize) {
    put_at(etcd, "echo", n).await;
}

async fn put_at(etcd: &Etcd, service: &str, n: usize) {
    let address = address(n);
    let key = format!("kitex/registry-etcd/{service}/{address}");
    etcd.put(key, format!(r#"{{"network":"tcp","address":"{address}","weight":10,"tags":null}}"#)).await;
}

/// Between the junk, in the order of the keys.
fn address(n: usize) -> String {
    format!("127.{n}.0.1:80")
}

async fn expect(process: &mut Process, n: usize) {
    let address = address(n);
    process.expect("insert of a good one", LIMIT, |line| line["event"] == "insert" && line["address"] == address).await;
}

/// Everything that is wrong with a key or a value, around the good ones.
async fn put_junk(etcd: &Etcd) {
    let key = |n: usize| format!("kitex/registry-etcd/echo/127.{}.0.{n}:80", n % 256).into_bytes();
    let mut puts: Vec<TxnOp> = Vec::with_capacity(AT_ONCE);
    let mut client = etcd.client().await;
    let mut flush = async |puts: &mut Vec<TxnOp>| {
        let txn = Txn::new().and_then(std::mem::take(puts));
        tokio::time::timeout(LIMIT, client.txn(txn)).await.expect("etcd answers").expect("the junk is put");
    };
    for n in 0..SMALL {
        let mut key = key(1000 + n);
        if n % 100 == 0 {
            key.extend(b"/\xff\xfe");
        }
        puts.push(TxnOp::put(key, small(n), None));
        if puts.len() == AT_ONCE {
            flush(&mut puts).await;
        }
    }
    flush(&mut puts).await;
    for n in 0..LARGE {
        // Just below what is looked at: as much text that is no instance.
        puts.push(TxnOp::put(key(200_000 + n), "[".repeat(65_000), None));
        if puts.len() == 16 {
            flush(&mut puts).await;
        }
    }
    for n in 0..HUGE {
        flush(&mut puts).await;
        puts.push(TxnOp::put(key(300_000 + n), vec![b'{'; 1_400_000], None));
    }
    flush(&mut puts).await;
}

fn small(n: usize) -> Vec<u8> {
    let with = |address: &str| format!(r#"{{"network":"tcp","address":"{address}","weight":10,"tags":null}}"#);
    match n % 12 {
        0 => Vec::new(),
        1 => b"\xff\xfe\x00\x01".to_vec(),
        2 => b"{".repeat(500),
        3 => with("0.0.0.0:80").into_bytes(),
        4 => with("224.0.0.1:80").into_bytes(),
        5 => with("169.254.169.254:80").into_bytes(),
        6 => with("127.0.0.1").into_bytes(),
        7 => with("127.0.0.1:99999").into_bytes(),
        8 => with("a\\u0000b:80").into_bytes(),
        9 => Value::from(n).to_string().into_bytes(),
        10 => format!(r#"{{"address":{{"address":{n}}}}}"#).into_bytes(),
        _ => with(&format!("{}:80", "x".repeat(300))).into_bytes(),
    }
}

#[tokio::test]
async fn hostile_instances_are_neither_too_many_nor_too_large() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let mut process = watch(&etcd, "echo");
    put_good(&etcd, 1).await;
    expect(&mut process, 1).await;
    let before = process.memory().1;
    // Good ones as far as can be seen, each with 60 KB of tags: 120 MB.
    for n in 0..2_000 {
        let address = format!("10.{}.{}.1:80", n / 200, n % 200);
        let tags: Vec<String> = (0..60).map(|tag| format!(r#""{tag}":"{}""#, "x".repeat(1_000))).collect();
        let value = format!(r#"{{"network":"tcp","address":"{address}","weight":10,"tags":{{{}}}}}"#, tags.join(","));
        client.put(format!("kitex/registry-etcd/echo/{address}"), value, None).await.expect("a put");
    }
    eventually("it says that they are too much", LIMIT, async || process.log().contains("TooManyBytes")).await;
    etcd.put(format!("kitex/registry-etcd/echo/{}", address(1)), r#"{"address":"127.1.0.1:80","weight":99}"#).await;
    let is_changed = |line: &Value| line["address"] == address(1) && line["weight"] == 99;
    process.expect("the known one changes as before", LIMIT, is_changed).await;
    let growth = process.memory().1.saturating_sub(before);
    let growth = usize::try_from(growth / 1024).expect("not that much");
    figures::at_most("memory that instances with 120 MB of tags take", growth, 2 * GROWTH / 1024, "KiB");
    let kept = process.seen().len();
    assert!((400..=1_000).contains(&kept), "{kept} lines: 32 MiB of them are kept");
}
