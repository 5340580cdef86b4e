//! Hundreds of clients with a password, and one etcd.

use std::time::Duration;

use tokio::time;
use tonic_etcd::Registry;

use crate::auth::{PASSWORD, add_users};
use crate::logins::Herd;
use crate::support::costs::Costs;
use crate::support::etcd::Etcd;
use crate::support::figures;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: takes a minute"]
async fn three_hundred_clients_that_log_in_together_are_in() {
    let (herd, took) = Herd::start(300).await;
    figures::within("three hundred clients that log in together are in", took, herd.limit());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: takes a minute"]
async fn one_hundred_and_fifty_clients_are_back_after_etcd_s_restart() {
    let (herd, _) = Herd::start(150).await;
    let took = herd.survives_a_restart().await;
    figures::within("one hundred and fifty clients are back after etcd's restart", took, herd.limit());
}

/// A simple token lives for 300 s from its last use.
#[tokio::test]
#[ignore = "soak: takes six minutes"]
async fn a_registry_that_asks_for_nothing_keeps_its_token() {
    let etcd = Etcd::start().await;
    add_users(&etcd).await;
    etcd.client().await.auth_enable().await.expect("etcd switches authentication on");
    let registry = Registry::builder([etcd.url()]).auth("server", PASSWORD).build().expect("a good registry");
    registry.instances("echo").await.expect("the password is right");
    time::sleep(Duration::from_secs(330)).await;
    registry.instances("echo").await.expect("the token is taken");
    assert_eq!(Costs::of(&etcd).await.calls("Authenticate"), 1, "one login for all that time");
}
