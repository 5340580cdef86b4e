//! The clients of a fleet and the keys that they follow: made, waited for, changed.

use std::process::Command;
use std::time::{Duration, Instant};

use etcd_client::{Client, Txn, TxnOp};
use tokio::time::{sleep, timeout};
use tonic_etcd::{Address, Discover, Registry};

use crate::support::costs::Costs;
use crate::support::etcd::{Etcd, program};

/// A client of these members.
pub(crate) fn registry(urls: &[String]) -> Registry {
    Registry::builder(urls).build().expect("good URLs")
}

/// What a client knows of a service, from now on.
pub(crate) fn watch(registry: &Registry, service: &str) -> Discover {
    registry.discover(service).expect("a good name, and a runtime")
}

/// The key of an instance that no server is behind, in the default format.
pub(crate) fn key(service: &str, address: &str) -> String {
    format!("kitex/registry-etcd/{service}/{address}")
}

/// Its value, with a tag.
pub(crate) fn value(address: &str, tag: &str, text: &str) -> String {
    format!(r#"{{"network":"tcp","address":"{address}","weight":10,"tags":{{"{tag}":"{text}"}}}}"#)
}

/// The address of the instance of this number.
pub(crate) fn address(number: usize) -> String {
    let [_, high, middle, low] = u32::try_from(number).unwrap_or_default().to_be_bytes();
    format!("10.{high}.{middle}.{low}:80")
}

/// Puts so many instances of a service, with values of so many bytes.
pub(crate) async fn fill(etcd: &Etcd, service: &str, instances: usize, bytes: usize) {
    let mut client = etcd.client().await;
    let numbers: Vec<usize> = (0..instances).collect();
    for numbers in numbers.chunks(OPERATIONS) {
        let puts = numbers.iter().map(|&number| {
            let address = address(number);
            let plain = value(&address, "a", "").len();
            TxnOp::put(key(service, &address), value(&address, "a", &"x".repeat(bytes.saturating_sub(plain))), None)
        });
        client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.expect("etcd takes keys");
    }
}

/// Puts one instance of each of these services.
pub(crate) async fn put_each(client: &mut Client, services: &[String], address: &str) {
    for service in services {
        client.put(key(service, address), value(address, "a", ""), None).await.expect("etcd takes a key");
    }
}

/// How many of them have a first list.
pub(crate) fn listed(watches: &[Discover]) -> usize {
    watches.iter().filter(|watch| watch.snapshot().is_some()).count()
}

/// How many of them know this instance.
pub(crate) fn knowing(watches: &[Discover], address: &str) -> usize {
    let address: Address = address.parse().expect("an address");
    watches.iter().filter(|watch| watch.snapshot().is_some_and(|known| known.get(&address).is_some())).count()
}

/// How long it takes until this is true; `None` after `limit`. It is asked every 10 ms, so it must not ask etcd.
pub(crate) async fn until(limit: Duration, is_true: impl AsyncFnMut() -> bool) -> Option<Duration> {
    wait(POLL, limit, is_true).await
}

/// Like [`until`], where etcd is asked.
pub(crate) async fn until_etcd(limit: Duration, is_true: impl AsyncFnMut() -> bool) -> Option<Duration> {
    wait(LOOK, limit, is_true).await
}

async fn wait(every: Duration, limit: Duration, mut is_true: impl AsyncFnMut() -> bool) -> Option<Duration> {
    let begin = Instant::now();
    let wait = async {
        while !is_true().await {
            sleep(every).await;
        }
        begin.elapsed()
    };
    timeout(limit, wait).await.ok()
}

/// Waits for what the case begins with.
pub(crate) async fn begins(what: &str, is_true: impl AsyncFnMut() -> bool) {
    assert!(until_etcd(START_LIMIT, is_true).await.is_some(), "the case does not begin: {what}");
}

/// The most that a reading of etcd shows while something else goes on, looked at ten times a second.
pub(crate) async fn peak<T>(etcd: &Etcd, of: impl Fn(&Costs) -> u64, meanwhile: impl Future<Output = T>) -> (T, u64) {
    let mut meanwhile = std::pin::pin!(meanwhile);
    let mut most = 0;
    loop {
        let look = async {
            sleep(LOOK).await;
            Costs::of(etcd).await
        };
        tokio::select! {
            done = &mut meanwhile => return (done, most),
            costs = look => most = most.max(of(&costs)),
        }
    }
}

/// What the etcd of this run calls itself.
pub(crate) async fn version() -> String {
    let output = tokio::process::Command::from(Command::new(program())).arg("--version").output().await;
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("an etcd that does not tell its version").replace("etcd Version:", "etcd")
}

/// What etcd takes in one transaction.
const OPERATIONS: usize = 128;

const POLL: Duration = Duration::from_millis(10);

/// etcd needs some milliseconds for a page of its metrics.
const LOOK: Duration = Duration::from_millis(100);

const START_LIMIT: Duration = Duration::from_secs(90);
