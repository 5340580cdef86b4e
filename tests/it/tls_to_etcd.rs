//! TLS and mutual TLS towards etcd: which peers are trusted, which are refused with a reason, and what happens when
//! files change.

use std::path::Path;
use std::time::Duration;

use etcd_client::UserAddOptions;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tonic_etcd::{ClientTls, Instance, RegistrationStatus, Registry, RegistryBuilder, RegistryError};

use crate::auth::add_users;
use crate::support::changes::Changes;
use crate::support::costs::Costs;
use crate::support::etcd::Etcd;
use crate::support::pki::{Authority, Files};
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

/// What the tests' etcd is called in its certificate.
const HERE: &[&str] = &["127.0.0.1", "localhost"];

fn trusting(ca: impl AsRef<Path>) -> ClientTls {
    ClientTls::new().ca_file(ca).expect("the authority's file is good")
}

fn builder(url: impl Into<String>, tls: ClientTls) -> RegistryBuilder {
    Registry::builder([url.into()]).tls(tls)
}

fn registry(url: impl Into<String>, tls: ClientTls) -> Registry {
    builder(url, tls).build().expect("a good registry")
}

/// Registers, is found, and leaves.
async fn works(registry: &Registry) {
    let server = EchoServer::registered(registry, "echo").await;
    let mut changes = Changes::of(registry, "echo");
    changes.expect_insert(server.address()).await;
    let address = server.address();
    server.stop().await;
    changes.expect_remove(address).await;
}

/// Tries once to register, and returns why that failed.
async fn refused(registry: &Registry) -> String {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1001));
    let registration =
        registry.registration(Instance::new("echo", address)).max_attempts(1).build().expect("good options");
    registration.start();
    timeout(LIMIT, registration.registered()).await.expect("it ends in time").expect_err("it does not register");
    match registration.status() {
        RegistrationStatus::GaveUp { reason, .. } => reason,
        status => panic!("it gave up: {status}"),
    }
}

async fn refused_for(registry: &Registry, cause: &str) {
    let reason = refused(registry).await;
    assert!(reason.contains("no TLS session with the member"), "{reason} says that it is about TLS");
    assert!(reason.contains(cause), "{reason} says why: {cause}");
}

#[tokio::test]
async fn an_etcd_with_a_trusted_certificate_is_used_over_tls() {
    let authority = Authority::new();
    let etcd = Etcd::builder().tls(&authority.issue_files("etcd", HERE)).start().await;
    assert!(etcd.url().starts_with("https://"), "the rig gives the URL with TLS");
    works(&registry(etcd.url(), trusting(authority.file()))).await;

    let by_name = etcd.url().replace("127.0.0.1", "localhost");
    works(&registry(by_name, ClientTls::new().ca_pem(authority.pem()).expect("a good authority"))).await;
    works(&registry(etcd.address(), trusting(authority.file()))).await;
}

#[tokio::test]
async fn an_etcd_that_wants_certificates_gets_ours_from_files_or_from_memory() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let etcd = Etcd::builder().mutual_tls(&authority.issue_files("etcd", HERE), &clients).start().await;
    let Files { cert, key } = clients.issue_files("client", &["client"]);
    works(&registry(etcd.url(), trusting(authority.file()).identity_files(cert, key).expect("good files"))).await;

    let ours = clients.issue(&["client"]);
    let tls = ClientTls::new().ca_pem(authority.pem()).and_then(|tls| tls.identity_pem(ours.cert, ours.key));
    works(&registry(etcd.url(), tls.expect("good PEM"))).await;

    // With TLS 1.3 the refusal comes after the session, with the first bytes that are read.
    refused(&registry(etcd.url(), trusting(authority.file()))).await;
}

#[tokio::test]
async fn a_certificate_with_a_user_s_name_makes_logins_needless() {
    let authority = Authority::new();
    let here = authority.issue_files("etcd", HERE);
    let etcd = Etcd::builder().mutual_tls(&here, &authority).start().await;
    add_users(&etcd).await;
    let mut client = etcd.client().await;
    let without_password = Some(UserAddOptions::new().with_no_pwd());
    client.user_add("echo-server", "", without_password).await.expect("etcd adds a user");
    client.user_grant_role("echo-server", "registry").await.expect("the role is there");
    client.auth_enable().await.expect("etcd switches authentication on");
    let files = authority.issue_files_of_user("echo-server");
    let tls = trusting(authority.file()).identity_files(&files.cert, &files.key).expect("the files are good");
    works(&registry(etcd.url(), tls)).await;
    assert_eq!(Costs::of(&etcd).await.calls("Authenticate"), 0, "the certificate is enough");

    let files = authority.issue_files_of_user("a-stranger");
    let tls = trusting(authority.file()).identity_files(&files.cert, &files.key).expect("the files are good");
    let reason = refused(&registry(etcd.url(), tls)).await;
    assert!(reason.contains("permission denied"), "no user of etcd's: {reason}");
}

#[tokio::test]
async fn an_etcd_that_cannot_show_a_good_certificate_is_refused_with_the_reason() {
    let authority = Authority::new();
    let etcd = Etcd::builder().tls(&authority.issue_files("etcd", HERE)).start().await;
    let wrong = registry(etcd.url(), trusting(Authority::new().file()));
    refused_for(&wrong, "invalid peer certificate").await;
    let asked = wrong.services().await;
    assert!(matches!(asked, Err(RegistryError::Tls { .. })), "the caller gets a typed error: {asked:?}");

    let expired = authority.files("expired");
    authority.issue_expired(HERE).write(&expired);
    let etcd = Etcd::builder().tls(&expired).start().await;
    refused_for(&registry(etcd.url(), trusting(authority.file())), "expired").await;
}

#[tokio::test]
async fn a_server_name_of_ours_is_verified_instead_of_the_host() {
    let authority = Authority::new();
    let etcd = Etcd::builder().tls(&authority.issue_files("etcd", &["etcd.internal"])).start().await;
    refused_for(&registry(etcd.url(), trusting(authority.file())), "not valid for").await;
    works(&registry(etcd.url(), trusting(authority.file()).server_name("etcd.internal").expect("a name"))).await;
}

#[tokio::test]
async fn nothing_is_sent_in_plaintext_to_a_listener_at_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a listener has an address");
    let registry =
        builder(format!("https://{address}"), trusting(Authority::new().file())).auth("user", "canary").build();
    let registry = registry.expect("a good registry");
    let began = Instant::now();
    let (reason, seen) = tokio::join!(refused(&registry), async {
        let (mut stream, _) = listener.accept().await.expect("the library connects");
        let mut seen = Vec::new();
        // It answers nothing, until the library has had enough.
        timeout(LIMIT, stream.read_to_end(&mut seen)).await.expect("the dial times out").expect("it reads");
        seen
    });
    assert!(began.elapsed() < LIMIT, "a member that is mute is given up: {reason}");
    assert_eq!(seen.first(), Some(&HANDSHAKE), "what comes is a TLS handshake");
    assert!(!seen.windows(3).any(|bytes| bytes == b"PRI") && !seen.windows(6).any(|bytes| bytes == b"canary"));

    // And an etcd that speaks plaintext is not spoken to.
    let etcd = Etcd::start().await;
    refused_for(&self::registry(etcd.address(), trusting(Authority::new().file())), "the TLS handshake failed").await;
}

/// The type of the first TLS record that a client sends.
const HANDSHAKE: u8 = 22;

#[tokio::test]
async fn plain_urls_and_missing_configurations_are_refused_before_any_dial() {
    let error = builder("http://127.0.0.1:1", trusting(Authority::new().file())).build().expect_err("no TLS there");
    assert!(error.to_string().contains("must be https"), "{error}");
    let error = Registry::builder(["https://127.0.0.1:1"]).build().expect_err("no authority is trusted");
    assert!(error.to_string().contains("https needs tls"), "{error}");
    let error = builder("https://127.0.0.1:1", ClientTls::new()).build().expect_err("no authority is trusted");
    assert!(error.to_string().contains("the certificate authority"), "{error}");
}

#[tokio::test]
async fn a_certificate_that_is_replaced_on_disk_is_shown_by_the_next_connection() {
    let (authority, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let etcd = Etcd::builder().mutual_tls(&authority.issue_files("etcd", HERE), &clients).start().await;
    let files = strangers.issue_files("client", &["client"]);
    let tls = trusting(authority.file()).identity_files(&files.cert, &files.key).expect("good files");
    let registry = registry(etcd.url(), tls);
    refused(&registry).await;
    clients.issue(&["client"]).write(&files);
    works(&registry).await;
}

#[tokio::test]
async fn a_new_authority_and_a_new_certificate_of_etcd_cost_nothing() {
    let authority = Authority::new();
    let files = authority.issue_files("etcd", HERE);
    let etcd = Etcd::builder().tls(&files).start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let registry = registry(format!("https://{}", proxy.address()), trusting(authority.file()));
    let server = EchoServer::registered(&registry, "echo").await;
    let before = server.registration().status();
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;

    let next = Authority::new();
    next.issue(HERE).write(&files);
    std::fs::write(authority.file(), next.pem()).expect("the authority's file can be replaced");
    // Every connection is made anew.
    proxy.reset();
    eventually("all connections are gone", LIMIT, async || proxy.open() == 0).await;
    proxy.forward();

    let second = EchoServer::registered(&registry, "echo").await;
    changes.expect_insert(second.address()).await;
    assert_eq!(server.registration().status(), before, "the first one noticed nothing");
    server.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn an_expired_certificate_ends_no_stream_and_works_again_once_renewed() {
    let authority = Authority::new();
    let files = authority.issue_files("etcd", HERE);
    let etcd = Etcd::builder().tls(&files).start().await;
    let registry = registry(etcd.url(), trusting(authority.file()));
    let server = EchoServer::registered(&registry, "echo").await;
    let mut changes = Changes::of(&registry, "echo");
    changes.expect_insert(server.address()).await;

    authority.issue_expired(HERE).write(&files);
    let other = self::registry(etcd.url(), trusting(authority.file()));
    refused_for(&other, "expired").await;
    changes.expect_nothing_before(&etcd, "127.0.0.1:1").await;
    server.registration().update(|instance| instance.with_weight(50)).expect("a good weight");
    assert_eq!(changes.expect_insert(server.address()).await.weight(), 50, "the open connection is as good as before");

    authority.issue(HERE).write(&files);
    let second = EchoServer::start(|address| other.registration(Instance::new("echo", address)));
    changes.expect_insert(second.address()).await;
    server.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn the_dial_timeout_covers_the_tls_session() {
    let mute = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("https://{}", mute.local_addr().expect("a listener has an address"));
    let short = builder(url, trusting(Authority::new().file())).dial_timeout(Duration::from_millis(50)).build();
    let reason = refused(&short.expect("a good registry")).await;
    // Without it the grant's own limit would have come first, and its error would name it.
    assert!(reason.contains("cannot be reached"), "{reason}");
}

#[cfg(feature = "tls-native-roots")]
#[tokio::test]
async fn the_system_s_authorities_are_trusted_once_they_are_asked_for() {
    // A variable names the system's authorities, and only a process of its own can be given one.
    const URL: &str = "TONIC_ETCD_TEST_URL";
    if let Ok(url) = std::env::var(URL) {
        return works(&registry(url, ClientTls::new().native_roots().expect("the variable names a good file"))).await;
    }
    let authority = Authority::new();
    let etcd = Etcd::builder().tls(&authority.issue_files("etcd", HERE)).start().await;
    let itself = std::env::current_exe().expect("the test knows where it lies");
    let output = std::process::Command::new(itself)
        .args(["--exact", "tls_to_etcd::the_system_s_authorities_are_trusted_once_they_are_asked_for"])
        .envs([("SSL_CERT_FILE", authority.file().into_os_string()), (URL, etcd.url().into())])
        .output()
        .expect("the test runs itself");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[cfg(feature = "tls-webpki-roots")]
#[tokio::test]
async fn mozillas_authorities_are_trusted_and_no_others() {
    let authority = Authority::new();
    let etcd = Etcd::builder().tls(&authority.issue_files("etcd", HERE)).start().await;
    refused_for(&registry(etcd.url(), ClientTls::new().webpki_roots()), "invalid peer certificate").await;
    let both = ClientTls::new().webpki_roots().ca_file(authority.file()).expect("the authority's file is good");
    works(&registry(etcd.url(), both)).await;
}
