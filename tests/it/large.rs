//! A service at its limit: what is left out is counted, and comes in once others left.

use tonic_etcd::{Discover, Registry};

use crate::support::etcd::Etcd;
use crate::support::{LIMIT, eventually};

#[tokio::test]
async fn a_key_beyond_the_limit_is_counted_and_comes_in_once_another_left() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).max_instances(3).build().expect("a good registry");
    for n in 1..=3 {
        put(&etcd, n, 10).await;
    }
    let mut discover = registry.discover("echo").expect("a good name");
    discover.ready().await;
    assert_eq!(counts(&discover), (3, 0), "there is room for three");

    put(&etcd, 4, 10).await;
    eventually("the fourth is counted", LIMIT, async || counts(&discover) == (3, 1)).await;
    let asked = registry.instances("echo").await.expect("etcd answers");
    assert_eq!((asked.len(), asked.cut_off()), (3, 1), "a list says the same");
    assert_eq!(weight(&discover, 4), None, "it is left out");

    etcd.delete(key(1)).await;
    eventually("the fourth comes in", LIMIT, async || weight(&discover, 4) == Some(10)).await;
    assert_eq!(counts(&discover), (3, 0), "nothing is left out any more");

    put(&etcd, 4, 20).await;
    eventually("it is followed", LIMIT, async || weight(&discover, 4) == Some(20)).await;
    put(&etcd, 5, 10).await;
    eventually("the next one is counted", LIMIT, async || counts(&discover) == (3, 1)).await;
    etcd.delete(key(5)).await;
    eventually("until it is gone", LIMIT, async || counts(&discover) == (3, 0)).await;
}

#[tokio::test]
async fn keys_for_which_there_is_no_memory_are_counted() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).max_service_bytes(1024 * 1024).build().expect("a good registry");
    let tag = "x".repeat(50_000);
    for n in 1..=30 {
        let value = format!(r#"{{"network":"tcp","address":"127.0.0.{n}:80","weight":10,"tags":{{"x":"{tag}"}}}}"#);
        etcd.put(key(n), value).await;
    }
    let mut discover = registry.discover("echo").expect("a good name");
    let snapshot = discover.ready().await;
    assert_eq!((snapshot.len(), snapshot.cut_off()), (20, 10), "twenty take a megabyte");
}

async fn put(etcd: &Etcd, n: usize, weight: u16) {
    let value = format!(r#"{{"network":"tcp","address":"127.0.0.{n}:80","weight":{weight},"tags":null}}"#);
    etcd.put(key(n), value).await;
}

fn key(n: usize) -> String {
    format!("kitex/registry-etcd/echo/127.0.0.{n}:80")
}

/// How many instances are known, and how many were cut off.
fn counts(discover: &Discover) -> (usize, usize) {
    let snapshot = discover.snapshot().expect("the first list came");
    (snapshot.len(), snapshot.cut_off())
}

/// The weight of one that is known.
fn weight(discover: &Discover, n: usize) -> Option<u16> {
    let address = format!("127.0.0.{n}:80").parse().expect("an address");
    let snapshot = discover.snapshot().expect("the first list came");
    snapshot.get(&address).map(|member| member.instance().weight())
}
