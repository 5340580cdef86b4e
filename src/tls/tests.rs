use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::io::duplex;

use super::config::ALPN_H2;
use super::testing::{Authority, acceptor, authority, issue};
use super::*;
use crate::error::chain;
use crate::instance::Host;
use crate::pem::PemFile;

/// Our files on disk, a server that wants our certificate, and the authorities of both.
struct World {
    folder: TempDir,
    root: Authority,
    clients: Authority,
    tls: TlsClient,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (root, clients) = (authority(), authority());
        let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| folder.path().join(name));
        fs::write(&ca, root.pem()).expect("a file");
        let (cert_pem, key_pem) = issue(&clients, "first");
        fs::write(&cert, cert_pem).expect("a file");
        fs::write(&key, key_pem).expect("a file");
        let tls = ClientTls::new().ca_file(ca).and_then(|tls| tls.identity_files(cert, key)).expect("good files");
        let tls = tls.build(Peer::Etcd).expect("it has roots");
        Self { folder, root, clients, tls }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.file(name), content).expect("a file");
    }

    /// Makes a session with a server of `root`, and returns what we showed it.
    async fn session_with(&self, root: &Authority) -> Result<CertificateDer<'static>, TlsError> {
        let (near, far) = duplex(1 << 16);
        let acceptor = acceptor(root, "localhost", &[ALPN_H2], Some(&self.clients));
        let host = Host::Name("localhost".into());
        let (ours, theirs) = tokio::join!(self.tls.handshake(&host, near), acceptor.accept(far));
        ours?;
        let theirs = theirs.expect("the server takes our certificate");
        let shown = theirs.get_ref().1.peer_certificates().expect("the server asked for one");
        Ok(shown[0].clone().into_owned())
    }

    async fn session(&self) -> CertificateDer<'static> {
        self.session_with(&self.root).await.expect("the server's authority is trusted")
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    PemFile::from_bytes("a certificate", pem).certificates().expect("a certificate").remove(0)
}

#[tokio::test]
async fn a_certificate_that_was_replaced_on_disk_is_shown_in_the_next_session() {
    let world = World::new();
    let first = world.session().await;
    let (cert, key) = issue(&world.clients, "second");
    world.write("cert.pem", &cert);
    world.write("key.pem", key);
    assert_eq!(world.session().await, der(&cert), "the new one is shown");
    assert_ne!(first, der(&cert), "it is another one");
}

#[tokio::test]
async fn an_authority_that_was_replaced_on_disk_is_trusted_from_then_on() {
    let world = World::new();
    let next = authority();
    let refused = world.session_with(&next).await.expect_err("it is not trusted yet");
    assert!(chain(&refused).contains("invalid peer certificate"), "{}", chain(&refused));
    world.write("ca.pem", next.pem());
    world.session_with(&next).await.expect("it is trusted now");
    world.session_with(&world.root).await.expect_err("the old one is trusted no more");
}

#[tokio::test]
async fn files_that_became_unusable_leave_the_last_good_ones_in_use() {
    let world = World::new();
    let first = world.session().await;
    let (cert, key) = issue(&world.clients, "second");

    world.write("cert.pem", &cert);
    assert_eq!(world.session().await, first, "a certificate whose key has yet to come");
    world.write("key.pem", "-----BEGIN PRIVATE KEY-----\nnonsense");
    assert_eq!(world.session().await, first, "a key that is none");
    fs::remove_file(world.file("key.pem")).expect("it was there");
    assert_eq!(world.session().await, first, "a key that is not there");
    world.write("ca.pem", "");
    assert_eq!(world.session().await, first, "no authority");

    world.write("ca.pem", world.root.pem());
    world.write("key.pem", key);
    assert_eq!(world.session().await, der(&cert), "good again: the new ones are used");
}

#[tokio::test]
async fn sessions_share_what_was_made_of_files_that_did_not_change() {
    let world = World::new();
    let (one, two) = (world.tls.reloaded.config().await, world.tls.reloaded.config().await);
    assert!(Arc::ptr_eq(&one, &two), "so that they can resume each other");
}

#[test]
fn what_can_never_verify_a_server_is_refused_before_any_connect() {
    let error = ClientTls::new().build(Peer::Etcd).expect_err("there are no roots");
    assert_eq!(error.to_string(), "cannot use the certificate authority");
    assert!(ClientTls::new().ca_pem("no certificate").is_err());
    assert!(ClientTls::new().server_name("no name").is_err());
    let (cert, _) = issue(&authority(), "a");
    let (_, other_key) = issue(&authority(), "a");
    assert!(ClientTls::new().identity_pem(cert, other_key).is_err(), "the key is not the certificate's");
    let missing = ClientTls::new().ca_file("/nowhere/ca.pem").expect_err("there is no such file");
    assert_eq!(missing.to_string(), "cannot use the certificate authority from /nowhere/ca.pem");
}

#[test]
fn debug_shows_no_key() {
    let (cert, key) = issue(&authority(), "a");
    let tls = ClientTls::new().identity_pem(&cert, &key).expect("an identity");
    let shown = format!("{tls:?} {:?}", tls.identity.as_ref().map(|identity| &identity.key));
    let secret = key.lines().nth(1).expect("a line of the key");
    assert!(!shown.contains(secret), "{shown}");
}

#[cfg(all(feature = "tls-native-roots", feature = "tls-webpki-roots"))]
#[test]
fn the_roots_of_the_system_and_of_mozilla_are_roots() {
    let mozilla = ClientTls::new().webpki_roots();
    assert!(mozilla.build(Peer::Etcd).is_ok(), "Mozilla's come with the program");
    // A machine without any has nothing to trust, and says so.
    match ClientTls::new().native_roots() {
        Ok(system) => assert!(system.build(Peer::Etcd).is_ok(), "the system's are enough"),
        Err(error) => assert!(error.to_string().contains("the system's certificate authorities"), "{error}"),
    }
}
