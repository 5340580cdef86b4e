//! TLS towards etcd: certificates from files, checked when they are read.

use std::fmt;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::error::ConfigError;

/// TLS towards etcd: who may sign its certificate, and what we show of ourselves.
///
/// With it every endpoint must be `https`; nothing ever falls back to plaintext. The server's name is the host of each
/// endpoint's URL. `Debug` shows no key.
#[derive(Clone)]
pub struct EtcdTls {
    config: ClientTlsConfig,
}

impl EtcdTls {
    /// Mutual TLS from three PEM files: the certificate authority of etcd's certificates, our certificate (with its
    /// chain) and its private key. Kitex calls this `WithTLSOpt`, with the arguments in the order cert, key, CA.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Tls`] names the file that cannot be read, or holds no certificate or key that can be used.
    pub fn from_files(
        ca: impl AsRef<Path>,
        cert: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, ConfigError> {
        let authority = authority(ca.as_ref())?;
        let (cert, key) = (cert.as_ref(), key.as_ref());
        let cert_pem = read("the client certificate", cert)?;
        certificates("the client certificate", cert, &cert_pem)?;
        let key_pem = read("the client key", key)?;
        // The parser's error could quote the key.
        PrivateKeyDer::from_pem_slice(&key_pem)
            .map_err(|_| refused("the client key", key, "it holds no private key"))?;
        let identity = Identity::from_pem(cert_pem, key_pem);
        Ok(Self { config: ClientTlsConfig::new().ca_certificate(authority).identity(identity) })
    }

    /// TLS from one PEM file: the certificate authority of etcd's certificates. We show no certificate.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Tls`], if the file cannot be read or holds no certificate that can be used.
    pub fn from_ca_file(ca: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Ok(Self { config: ClientTlsConfig::new().ca_certificate(authority(ca.as_ref())?) })
    }

    pub(super) fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, ConfigError> {
        let what = "the TLS configuration";
        endpoint.tls_config(self.config.clone()).map_err(|source| ConfigError::Tls {
            what,
            path: None,
            source: Box::new(source),
        })
    }
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdTls").finish_non_exhaustive()
    }
}

fn authority(path: &Path) -> Result<Certificate, ConfigError> {
    let what = "the certificate authority";
    let pem = read(what, path)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(what, path, &pem)? {
        roots.add(certificate).map_err(|error| refused(what, path, error))?;
    }
    Ok(Certificate::from_pem(pem))
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|error| refused(what, path, error))
}

fn certificates(what: &'static str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(refused(what, path, "it holds no certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(refused(what, path, error)),
    }
}

fn refused(
    what: &'static str,
    path: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ConfigError {
    ConfigError::Tls { what, path: Some(path.to_owned()), source: source.into() }
}
