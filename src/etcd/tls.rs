//! TLS towards etcd: certificates from files, checked when they are read.

use std::fmt;
use std::path::Path;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::error::ConfigError;
use crate::pem::PemFile;

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
        let cert = PemFile::read("the client certificate", cert.as_ref())?;
        cert.certificates()?;
        let key = PemFile::read("the client key", key.as_ref())?;
        key.private_key()?;
        let identity = Identity::from_pem(cert.into_bytes(), key.into_bytes());
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
    let file = PemFile::read("the certificate authority", path)?;
    file.roots()?;
    Ok(Certificate::from_pem(file.into_bytes()))
}
