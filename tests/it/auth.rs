//! User and password towards etcd: registered and found with them, through changes of what etcd wants, never shown.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, Permission, PermissionType};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic_etcd::{Credentials, Instance, Registration, RegistrationStatus, Registry, RegistryError};

use crate::support::changes::Changes;
use crate::support::costs::Costs;
use crate::support::etcd::{Etcd, EtcdBuilder};
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

/// The password of the user `server`.
pub(crate) const PASSWORD: &str = "the-servers-own-password";

/// The password of the user `root`.
pub(crate) const ADMIN: &str = "the-tests-own-password";

/// Adds the user `server` with [`PASSWORD`], with every permission below the default prefix and no other.
pub(crate) async fn add_users(etcd: &Etcd) {
    let done = "etcd sets up its users";
    let mut client = etcd.client().await;
    client.user_add("root", ADMIN, None).await.expect(done);
    client.user_grant_role("root", "root").await.expect(done);
    client.user_add("server", PASSWORD, None).await.expect(done);
    client.role_add("registry").await.expect(done);
    let prefix = Permission::new(PermissionType::Readwrite, "kitex/registry-etcd/").with_prefix();
    client.role_grant_permission("registry", prefix).await.expect(done);
    client.user_grant_role("server", "registry").await.expect(done);
}

pub(crate) async fn admin(etcd: &Etcd) -> Client {
    let options = ConnectOptions::new().with_user("root", ADMIN);
    Client::connect([etcd.plain_address()], Some(options)).await.expect("root may log in")
}

fn registry(url: String) -> Registry {
    Registry::builder([url]).auth("server", PASSWORD).build().expect("a good registry")
}

async fn with_auth() -> Etcd {
    with_auth_on(Etcd::builder()).await
}

async fn with_auth_on(builder: EtcdBuilder) -> Etcd {
    let etcd = builder.start().await;
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
    assert!(admin(&etcd).await.leases().await.expect("root may look").leases().is_empty(), "the lease is revoked");
}

#[tokio::test]
async fn a_stranger_that_refuses_the_credentials_does_not_block_the_others() {
    let (etcd, stranger) = (with_auth().await, with_auth().await);
    let mut client = admin(&stranger).await;
    client.user_change_password("server", "another").await.expect("root may do that");
    let (one, two) = (Proxy::start(etcd.address()).await, Proxy::start(etcd.address()).await);
    let registry = Registry::builder([one.url(), stranger.url(), two.url()]).auth("server", PASSWORD);
    let registry = registry.build().expect("a good registry");
    let mut discover = registry.discover("echo").expect("a good name");
    // Whichever member was asked first, the stranger has been asked when the list is known.
    timeout(LIMIT, discover.ready()).await.expect("two of them take the credentials");
    let begin = Instant::now();
    let server = EchoServer::registered(&registry, "echo").await;
    for proxy in [&one, &two] {
        // The next connections log in anew.
        proxy.reset();
        proxy.forward();
    }
    server.stop().await;
    let gone = async || discover.snapshot().is_some_and(|snapshot| snapshot.is_empty());
    eventually("its leave is seen", LIMIT, gone).await;
    assert!(begin.elapsed() < Duration::from_secs(20), "no login waited for the 30 s: {:?}", begin.elapsed());
}

#[tokio::test]
async fn wrong_credentials_wait_and_are_not_shown() {
    let etcd = with_auth().await;
    let wrong = Registry::builder([etcd.url()]).auth("server", "canary").build().expect("a good registry");
    let server = EchoServer::start(|address| wrong.registration(Instance::new("echo", address)));
    assert!(!format!("{wrong:?} {:?}", server.registration()).contains("canary"));
    tokio::time::timeout(Duration::from_secs(2), server.registration().registered())
        .await
        .expect_err("a wrong password registers nothing");
    assert_eq!(server.registration().status(), RegistrationStatus::Registering);
    let asked = wrong.services().await;
    assert!(matches!(asked, Err(RegistryError::Denied { .. })), "the caller gets a typed error: {asked:?}");
    assert!(!format!("{asked:?}").contains("canary"));
    let logins = Costs::of(&etcd).await.calls("Authenticate");
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
    // All streams are opened anew, and now etcd wants a login.
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
    admin(&etcd).await.user_change_password("server", PASSWORD).await.expect("root may change it");

    // A list and a watch of its own on that connection, then a grant and a claim.
    let mut other = Changes::of(&registry, "other");
    let began = Instant::now();
    let another = EchoServer::registered(&registry, "other").await;
    other.expect_insert(another.address()).await;
    assert!(began.elapsed() < Duration::from_secs(10), "right credentials never wait: {:?}", began.elapsed());
    // etcd judges a watch by the token that its stream was opened with.
    let share_one = async || Costs::of(&etcd).await.watch_streams() == 1;
    eventually("all watches are on the stream with the new token", LIMIT, share_one).await;
    server.registration().update(|instance| instance.with_weight(50)).expect("a good weight");
    assert_eq!(changes.expect_insert(server.address()).await.weight(), 50, "the one that moved goes on");
    server.stop().await;
    another.stop().await;
    let left = admin(&etcd).await.leases().await.expect("root may look").leases().len();
    assert_eq!(left, 0, "the leases are revoked");
}

#[tokio::test]
async fn a_silent_member_costs_no_more_than_the_time_of_one_login() {
    let etcd = with_auth().await;
    let proxy = Proxy::start(etcd.address()).await;
    proxy.black_hole();
    let new =
        || Registry::builder([proxy.url(), etcd.url()]).auth("server", PASSWORD).build().expect("a good registry");
    // Which member a registry asks first is chance.
    for _ in 0..6 {
        let registry = new();
        let began = Instant::now();
        let services =
            ["one", "two", "three", "four", "five", "six"].map(|name| registry.discover(name).expect("a good name"));
        for mut discover in services {
            tokio::time::timeout(LIMIT, discover.ready()).await.expect("the healthy member answers");
        }
        // One second for the first try at the silent member, for all of them together.
        assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
    }
    let registry = new();
    let server = EchoServer::start(|address| registry.registration(Instance::new("echo", address)));
    eventually("the server registers with the healthy member", LIMIT, async || {
        matches!(server.registration().status(), RegistrationStatus::Registered { .. })
    })
    .await;
    server.stop().await;
}

/// A registration at an address where nothing listens, with options of the test's.
fn started_with(registry: &Registry, checks: Duration, attempts: impl Into<Option<u32>>) -> Registration {
    let instance = Instance::new("echo", SocketAddr::from(([127, 0, 0, 1], 1001)));
    let builder = registry.registration(instance).check_interval(checks).max_attempts(attempts);
    let registration = builder.build().expect("good options");
    registration.start();
    registration
}

/// Why a registration with a single attempt gave up.
async fn refusal(registry: &Registry) -> String {
    let registration = started_with(registry, LIMIT, 1);
    timeout(LIMIT, registration.registered()).await.expect("it ends in time").expect_err("it does not register");
    match registration.status() {
        RegistrationStatus::GaveUp { reason, .. } => reason,
        status => panic!("it gave up: {status}"),
    }
}

/// Tokens that live for a second expire again and again between the looks of a registration at its key.
async fn expires_unnoticed(etcd: Etcd) {
    let registry = registry(etcd.url());
    let registration = started_with(&registry, Duration::from_secs(2), 1);
    timeout(LIMIT, registration.registered()).await.expect("it registers in time").expect("it does not give up");
    let before = registration.status();
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert("127.0.0.1:1001").await;

    let first = Costs::of(&etcd).await;
    let replaced = async || first.until_now().await.calls("Authenticate") >= 3;
    eventually("tokens are replaced", LIMIT, replaced).await;
    assert_eq!(registration.status(), before, "the registration noticed nothing");
    registration.update(|instance| instance.with_weight(50)).expect("a good weight");
    assert_eq!(changes.expect_insert("127.0.0.1:1001").await.weight(), 50, "nor did the watch");
    registration.deregister().await;
    changes.expect_remove("127.0.0.1:1001").await;
    assert!(admin(&etcd).await.leases().await.expect("root may look").leases().is_empty(), "the lease is revoked");
}

#[tokio::test]
async fn simple_tokens_that_expire_are_replaced_unnoticed() {
    expires_unnoticed(with_auth_on(Etcd::builder().arg("--auth-token-ttl=1")).await).await;
}

#[tokio::test]
async fn jwt_that_expire_are_replaced_unnoticed() {
    expires_unnoticed(with_auth_on(Etcd::builder().jwt(Duration::from_secs(2))).await).await;
}

#[tokio::test]
async fn jwt_that_a_change_of_any_user_ends_are_replaced_unnoticed() {
    let etcd = with_auth_on(Etcd::builder().jwt(Duration::from_secs(600))).await;
    let registry = registry(etcd.url());
    let server = EchoServer::registered(&registry, "echo").await;
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;
    admin(&etcd).await.user_add("stranger", "strange", None).await.expect("root may add users");
    server.registration().update(|instance| instance.with_weight(50)).expect("a good weight");
    assert_eq!(changes.expect_insert(server.address()).await.weight(), 50);
    let address = server.address();
    server.stop().await;
    changes.expect_remove(address).await;
}

#[tokio::test]
async fn a_password_that_is_rotated_while_they_run_costs_nothing() {
    let etcd = with_auth().await;
    let proxy = Proxy::start(etcd.address()).await;
    let (sender, password) = watch::channel(PASSWORD);
    let provider = move || {
        let password = *password.borrow();
        async move { Ok::<_, std::io::Error>(Credentials::new("server", password)) }
    };
    let registry = Registry::builder([proxy.url()]).auth_with(provider).build().expect("a good registry");
    let server = EchoServer::registered(&registry, "echo").await;
    let before = server.registration().status();
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;

    let began = Instant::now();
    let mut weight = 10;
    let mut sees_an_update = async || {
        weight += 1;
        server.registration().update(|instance| instance.with_weight(weight)).expect("a good weight");
        assert_eq!(changes.expect_insert(server.address()).await.weight(), weight);
    };
    for next in ["second", "third"] {
        sender.send_replace(next);
        // All tokens of the user end with the old password, and no connection notices.
        admin(&etcd).await.user_change_password("server", next).await.expect("root may change it");
        sees_an_update().await;
        // New connections use it as well.
        proxy.reset();
        eventually("all connections are gone", LIMIT, async || proxy.open() == 0).await;
        proxy.forward();
        sees_an_update().await;
    }
    assert!(began.elapsed() < Duration::from_secs(20), "right credentials never wait: {:?}", began.elapsed());
    assert_eq!(server.registration().status(), before, "under the lease that it had");
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_password_removes_nothing_and_is_tried_at_most_twice_a_minute() {
    let etcd = with_auth().await;
    let (sender, password) = watch::channel(PASSWORD);
    let provider = move || {
        let password = *password.borrow();
        async move { Ok::<_, std::io::Error>(Credentials::new("server", password)) }
    };
    let registry = Registry::builder([etcd.url()]).auth_with(provider).build().expect("a good registry");
    let server = EchoServer::registered(&registry, "echo").await;
    let before = server.registration().status();
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;

    admin(&etcd).await.user_change_password("server", "changed").await.expect("root may change it");
    let costs = Costs::of(&etcd).await;
    // Watches and claims of their own, which all want a login.
    let waiting: Vec<EchoServer> = ["one", "two", "three"]
        .map(|name| EchoServer::start(|address| registry.registration(Instance::new(name, address))))
        .into();
    let mut others: Vec<Changes> = ["one", "two", "three"].map(|name| Changes::of(&registry, name)).into();
    server.registration().update(|instance| instance.with_weight(50)).expect("a good weight");
    let logins = async || costs.until_now().await.calls("Authenticate");
    eventually("the wrong password is tried", LIMIT, async || logins().await > 0).await;
    assert!(changes.stays_quiet_for(Duration::from_secs(3)).await, "nothing is removed");
    assert_eq!(logins().await, 1, "all of them together ask once");
    assert_eq!(server.registration().status(), before, "the lease is kept over the open stream");

    sender.send_replace("changed");
    let began = Instant::now();
    assert_eq!(changes.expect_insert(server.address()).await.weight(), 50);
    for (changes, server) in others.iter_mut().zip(waiting) {
        changes.expect_insert(server.address()).await;
        server.stop().await;
    }
    assert!(began.elapsed() < Duration::from_secs(15), "right ones do not wait for that: {:?}", began.elapsed());
    server.stop().await;
}

#[tokio::test]
async fn a_provider_that_fails_is_asked_again_until_it_has_credentials() {
    let etcd = with_auth().await;
    let asked = AtomicUsize::new(0);
    let provider = move || {
        let count = asked.fetch_add(1, Ordering::SeqCst);
        async move { if count < 2 { Err("the vault is locked") } else { Ok(Credentials::new("server", PASSWORD)) } }
    };
    let registry = Registry::builder([etcd.url()]).auth_with(provider).build().expect("a good registry");
    let reason = refusal(&registry).await;
    assert!(reason.contains("the provider of credentials failed: the vault is locked"), "{reason}");
    let server = EchoServer::registered(&registry, "echo").await;
    server.stop().await;
}

#[tokio::test]
async fn a_revoked_role_removes_nothing_and_is_enough_once_granted_again() {
    let etcd = with_auth().await;
    let registry = registry(etcd.url());
    let registration = started_with(&registry, Duration::from_secs(1), None);
    timeout(LIMIT, registration.registered()).await.expect("it registers in time").expect("it does not give up");
    let before = registration.status();
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert("127.0.0.1:1001").await;

    admin(&etcd).await.user_revoke_role("server", "registry").await.expect("root may revoke it");
    let reason = refusal(&registry).await;
    assert!(reason.contains("permission denied"), "{reason}");
    // The looks at the key, one a second, are refused.
    let costs = Costs::of(&etcd).await;
    assert!(changes.stays_quiet_for(Duration::from_secs(5)).await, "nothing is removed");
    assert!(costs.until_now().await.calls("Range") <= 2, "a refused login waits");
    assert_eq!(registration.status(), before, "the lease needs no role");

    admin(&etcd).await.user_grant_role("server", "registry").await.expect("root may grant it");
    registration.update(|instance| instance.with_weight(50)).expect("a good weight");
    assert_eq!(changes.expect_insert("127.0.0.1:1001").await.weight(), 50);
    registration.deregister().await;
}

#[tokio::test]
async fn the_readme_s_commands_are_all_that_a_server_and_a_client_need() {
    let etcd = Etcd::start().await;
    for line in etcdctl_lines() {
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some("etcdctl"), "{line} is for etcdctl");
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", etcd.url())).args(words);
        let output = command.output().expect("etcdctl is installed");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let as_user = |user, password| Registry::builder([etcd.url()]).auth(user, password).build().expect("good options");
    let (servers, clients) = (as_user("echo-server", "SERVER_PASSWORD"), as_user("echo-client", "CLIENT_PASSWORD"));
    let server = EchoServer::registered(&servers, "echo").await;
    let mut changes = Changes::of(&clients, "echo");
    changes.expect_insert(server.address()).await;
    let reason = refusal(&clients).await;
    assert!(reason.contains("permission denied"), "a client cannot register: {reason}");
    let elsewhere = Registry::builder([etcd.url()]).auth("echo-server", "SERVER_PASSWORD").prefix("elsewhere").build();
    let reason = refusal(&elsewhere.expect("a good prefix")).await;
    assert!(reason.contains("permission denied"), "nor a server outside of its prefix: {reason}");
    let address = server.address();
    server.stop().await;
    changes.expect_remove(address).await;
}

/// The block of the page on etcd, without its comments.
fn etcdctl_lines() -> Vec<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/etcd.md")).expect("there is a page");
    let block = page.split("```sh\n").find(|block| block.contains("etcdctl role add")).expect("it has the commands");
    let lines = block.lines().take_while(|line| *line != "```").filter(|line| !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}
