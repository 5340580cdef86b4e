//! Connections over TLS.

use super::*;
use crate::tls::Peer;
use crate::tls::testing::{Authority, acceptor, authority, issue};

/// A server with a certificate for `name`; with `clients`, only for clients whose certificate that signed.
async fn serve(authority: &Authority, name: &str, alpn: &[&[u8]], clients: Option<&Authority>) -> (Server, Address) {
    let acceptor = acceptor(authority, name, alpn, clients);
    let (listener, address) = listen().await;
    (Server::serve(async move { acceptor.accept(listener.accept().await?.0).await }), address)
}

fn options(tls: &ClientTls) -> TransportConfig {
    TransportConfig { tls: Some(tls.build(Peer::Instance).expect("it has roots")), ..TransportConfig::default() }
}

fn trusting(authority: &Authority) -> ClientTls {
    ClientTls::new().ca_pem(authority.pem()).expect("a root")
}

#[tokio::test]
async fn the_address_s_host_is_verified_without_a_configured_name() {
    let root = authority();
    let (_by_ip, address) = serve(&root, "127.0.0.1", &[b"h2"], None).await;
    let connection = connect(&options(&trusting(&root)), &address).await.expect("the IP address is verified");
    assert_eq!(connection.max_streams, 100);
    let (_by_name, address) = serve(&root, "localhost", &[b"h2"], None).await;
    let named = Address::new(Host::Name("localhost".into()), address.port());
    assert!(connect(&options(&trusting(&root)), &named).await.is_ok(), "the DNS name is verified");
}

#[tokio::test]
async fn a_configured_name_is_verified_instead_of_the_address() {
    let root = authority();
    let tls = trusting(&root).server_name("echo.internal").expect("a name");
    let (_right, address) = serve(&root, "echo.internal", &[b"h2"], None).await;
    assert!(connect(&options(&tls), &address).await.is_ok(), "the certificate is for that name");
    let (_wrong, address) = serve(&root, "127.0.0.1", &[b"h2"], None).await;
    let error = refusal(&options(&tls), &address).await.reason();
    assert!(error.starts_with(&format!("{address}: no TLS session: the TLS handshake failed: ")), "{error}");
    assert!(error.contains("not valid for"), "{error}");
    assert!(error.ends_with("; server_name(..) sets the name to expect"), "{error}");
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let (_server, address) = serve(&authority(), "127.0.0.1", &[b"h2"], None).await;
    let error = refusal(&options(&trusting(&authority())), &address).await.reason();
    assert!(error.contains("invalid peer certificate"), "{error}");
    assert!(error.ends_with("; ca_file(..) names the authority to trust"), "{error}");
}

#[tokio::test]
async fn a_server_without_http2_is_refused() {
    let root = authority();
    let (_none, address) = serve(&root, "127.0.0.1", &[], None).await;
    let error = refusal(&options(&trusting(&root)), &address).await;
    assert!(matches!(error, ConnectError::Tls { source: TlsError::NoHttp2, .. }), "{}", chain(&error));
    let (_http1, address) = serve(&root, "127.0.0.1", &[b"http/1.1"], None).await;
    let error = refusal(&options(&trusting(&root)), &address).await;
    assert!(matches!(error, ConnectError::Tls { .. }), "{}", chain(&error));
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_ours_and_refuses_without() {
    let (root, clients) = (authority(), authority());
    let (_strict, address) = serve(&root, "127.0.0.1", &[b"h2"], Some(&clients)).await;
    let (cert, key) = issue(&clients, "client");
    let known = trusting(&root).identity_pem(cert, key).expect("an identity");
    assert!(connect(&options(&known), &address).await.is_ok(), "our certificate is accepted");
    let (_strict, address) = serve(&root, "127.0.0.1", &[b"h2"], Some(&clients)).await;
    let error = refusal(&options(&trusting(&root)), &address).await.reason();
    assert!(error.starts_with(&address.to_string()), "{error}");
    assert!(error.ends_with("; it may want a client certificate, or another one: identity_files(..)"), "{error}");
}

#[tokio::test]
async fn nothing_falls_back_to_plaintext_on_either_side() {
    let root = authority();
    let (_plain, address) = Server::tcp().await;
    let error = refusal(&options(&trusting(&root)), &address).await;
    assert!(matches!(error, ConnectError::Tls { source: TlsError::Handshake(_), .. }), "{}", chain(&error));
    assert!(error.reason().ends_with("; it may speak plaintext: leave tls(..) out"), "{}", error.reason());
    let (_secure, address) = serve(&root, "127.0.0.1", &[b"h2"], None).await;
    let error = refusal(&TransportConfig::default(), &address).await;
    assert!(matches!(error, ConnectError::Http2 { .. }), "{}", chain(&error));
    assert!(error.reason().ends_with("; it may want TLS: tls(..)"), "{}", error.reason());
}
