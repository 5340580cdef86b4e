//! User and password towards etcd: registered and found with them, through changes of what etcd wants, never shown.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Permission, PermissionType};
use tonic_etcd::{Instance, RegistrationStatus, Registry};

use crate::support::changes::Changes;
use crate::support::etcd::Etcd;
use crate::support::metrics::started;
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

/// Makes the user `server` with the password `secret`, who may do everything below the default prefix and nothing else.
async fn add_users(etcd: &Etcd) {
    let done = "etcd sets up its users";
    let mut client = etcd.client().await;
    client.user_add("root", "root", None).await.expect(done);
    client.user_grant_role("root", "root").await.expect(done);
    client.user_add("server", "secret", None).await.expect(done);
    client.role_add("registry").await.expect(done);
    let prefix = Permission::new(PermissionType::Readwrite, "kitex/registry-etcd/").with_prefix();
    client.role_grant_permission("registry", prefix).await.expect(done);
    client.user_grant_role("server", "registry").await.expect(done);
}

async fn root(etcd: &Etcd) -> Client {
    let options = ConnectOptions::new().with_user("root", "root");
    Client::connect([etcd.url()], Some(options)).await.expect("root may log in")
}

fn registry(url: String) -> Registry {
    Registry::builder([url]).auth("server", "secret").build().expect("a good registry")
}

async fn with_auth() -> Etcd {
    let etcd = Etcd::start().await;
    add_users(&etcd).await;
    etcd.client().await.auth_enable().await.expect("etcd switches authentication on");
    etcd
}

#[tokio::test]
async fn a_role_for_the_prefix_is_enough_to_register_and_to_be_found() {
    let etcd = with_auth().await;
    let registry = registry(etcd.url());
    let server = EchoServer::registered(&registry, "echo").await;
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;
    let address = server.address();
    server.stop().await;
    changes.expect_remove(address).await;
    assert!(root(&etcd).await.leases().await.expect("root may look").leases().is_empty(), "the lease is revoked");
}

#[tokio::test]
async fn wrong_credentials_wait_and_are_not_shown() {
    let etcd = with_auth().await;
    let wrong = Registry::builder([etcd.url()]).auth("server", "canary").build().expect("a good registry");
    let server = EchoServer::start(|address| wrong.register(Instance::new("echo", address)));
    assert!(!format!("{wrong:?} {:?}", server.registration()).contains("canary"));
    tokio::time::timeout(Duration::from_secs(2), server.registration().registered())
        .await
        .expect_err("a wrong password registers nothing");
    assert_eq!(server.registration().status(), RegistrationStatus::Registering);
    let logins = started(&etcd, "Authenticate").await;
    assert_eq!(logins, 1, "refused credentials are not tried again at once");
    server.stop().await;
}

#[tokio::test]
async fn authentication_that_is_switched_on_while_they_run_costs_nothing() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let registry = registry(proxy.url());
    let first = EchoServer::registered(&registry, "echo").await;
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(first.address()).await;

    add_users(&etcd).await;
    etcd.client().await.auth_enable().await.expect("etcd switches authentication on");
    // All streams are opened anew, and now etcd wants to know who asks.
    proxy.reset();
    eventually("all connections are gone", LIMIT, async || proxy.open() == 0).await;
    proxy.forward();

    let second = EchoServer::registered(&registry, "echo").await;
    changes.expect_insert(second.address()).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn tokens_that_become_invalid_under_an_open_connection_are_renewed() {
    let etcd = with_auth().await;
    let registry = registry(etcd.url());
    let server = EchoServer::registered(&registry, "echo").await;
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;

    // A new password, the same again, ends all tokens of the user; the connection does not notice.
    root(&etcd).await.user_change_password("server", "secret").await.expect("root may change it");

    // A list and a watch of its own on that connection, then a grant and a claim.
    let mut other = Changes::of(&registry, "other");
    let began = std::time::Instant::now();
    let another = EchoServer::registered(&registry, "other").await;
    other.expect_insert(another.address()).await;
    assert!(began.elapsed() < Duration::from_secs(10), "right credentials never wait: {:?}", began.elapsed());
    server.stop().await;
    another.stop().await;
    let left = root(&etcd).await.leases().await.expect("root may look").leases().len();
    assert_eq!(left, 0, "the leases are revoked");
}

#[tokio::test]
async fn a_silent_member_delays_nobody_for_longer_than_one_login() {
    let etcd = with_auth().await;
    let proxy = Proxy::start(etcd.address()).await;
    proxy.black_hole();
    let new =
        || Registry::builder([proxy.url(), etcd.url()]).auth("server", "secret").build().expect("a good registry");
    // Which member a registry asks first is chance.
    for _ in 0..6 {
        let registry = new();
        let began = std::time::Instant::now();
        let services =
            ["one", "two", "three", "four", "five", "six"].map(|name| registry.discover(name).expect("a good name"));
        for mut discover in services {
            tokio::time::timeout(LIMIT, discover.ready()).await.expect("the healthy member answers");
        }
        // One second for the first try at the silent member, for all of them together.
        assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
    }
    let registry = new();
    let server = EchoServer::start(|address| registry.register(Instance::new("echo", address)));
    eventually("the server registers with the healthy member", LIMIT, async || {
        matches!(server.registration().status(), RegistrationStatus::Registered { .. })
    })
    .await;
    server.stop().await;
}
