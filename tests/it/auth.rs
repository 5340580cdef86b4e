//! User and password towards etcd: registered and found with them, through changes of what etcd wants, never shown.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, PermissionType};
use etcd_client::{Permission, RoleRevokePermissionOptions};
use tonic_etcd::{Instance, RegistrationStatus, Registry};

use crate::support::changes::Changes;
use crate::support::etcd::Etcd;
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
    proxy.forward();

    let second = EchoServer::registered(&registry, "echo").await;
    changes.expect_insert(second.address()).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_change_of_permissions_makes_no_watch_stop() {
    let etcd = with_auth().await;
    let proxy = Proxy::start(etcd.address()).await;
    let registry = registry(proxy.url());
    let first = EchoServer::registered(&registry, "echo").await;
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(first.address()).await;

    // Any change makes every token old.
    let mut root = root(&etcd).await;
    let prefix = Permission::new(PermissionType::Readwrite, "elsewhere/").with_prefix();
    root.role_grant_permission("registry", prefix).await.expect("root may grant");
    let options = RoleRevokePermissionOptions::new().with_prefix();
    root.role_revoke_permission("registry", "elsewhere/", Some(options)).await.expect("root may revoke");
    proxy.reset();
    proxy.forward();

    let second = EchoServer::registered(&registry, "echo").await;
    changes.expect_insert(second.address()).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_silent_member_delays_nobody_for_longer_than_one_login() {
    let etcd = with_auth().await;
    let proxy = Proxy::start(etcd.address()).await;
    proxy.black_hole();
    let registry =
        Registry::builder([proxy.url(), etcd.url()]).auth("server", "secret").build().expect("a good registry");
    let started = std::time::Instant::now();
    let services =
        ["one", "two", "three", "four", "five", "six"].map(|name| registry.discover(name).expect("a good name"));
    for mut discover in services {
        tokio::time::timeout(LIMIT, discover.ready()).await.expect("the healthy member answers");
    }
    // One second for the first try at the silent member; six of five seconds each it was once.
    assert!(started.elapsed() < Duration::from_secs(6), "it took {:?}", started.elapsed());
    let server = EchoServer::start(|address| registry.register(Instance::new("echo", address)));
    eventually("the server registers with the healthy member", LIMIT, async || {
        matches!(server.registration().status(), RegistrationStatus::Registered { .. })
    })
    .await;
    server.stop().await;
}
