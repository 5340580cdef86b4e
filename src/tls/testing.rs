//! Certificate authorities and TLS servers for unit tests.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

use crate::pem::PemFile;

/// A certificate authority.
pub(crate) type Authority = CertifiedIssuer<'static, KeyPair>;

pub(crate) fn authority() -> Authority {
    let mut params = CertificateParams::new([]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

/// A certificate for `name` and its key, in PEM.
pub(crate) fn issue(authority: &Authority, name: &str) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    (params.signed_by(&key, authority).expect("a certificate").pem(), key.serialize_pem())
}

/// A server with a certificate for `name`; with `clients`, only for clients with a certificate of that authority.
pub(crate) fn acceptor(authority: &Authority, name: &str, alpn: &[&[u8]], clients: Option<&Authority>) -> TlsAcceptor {
    let provider = Arc::new(super::config::provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider has them");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let roots = PemFile::from_bytes("roots", clients.pem()).roots().expect("a root");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
        }
    };
    let (cert, key) = issue(authority, name);
    let chain = PemFile::from_bytes("certificate", cert).certificates().expect("a certificate");
    let key = PemFile::from_bytes("key", key).private_key().expect("a key");
    let mut config = builder.with_single_cert(chain, key).expect("they match");
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}
