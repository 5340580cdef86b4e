//! TLS towards instances: whom a channel trusts, and what it shows of itself.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio_rustls::TlsConnector;

use super::socket::BoxIo;
use crate::error::ConfigError;
use crate::instance::{Address, Host};
use crate::pem::PemFile;

/// TLS towards instances: who may sign their certificates, under which name, and what the channel shows of itself.
///
/// Roots add up: each method that gives some trusts more. At least one is needed, and nothing is trusted by default.
/// With TLS every connection of the channel uses it, TLS 1.2 or 1.3, and the server has to agree on HTTP/2 by ALPN;
/// nothing ever falls back to plaintext. `Debug` shows no key.
///
/// ```
/// use tonic_etcd::ChannelTls;
///
/// # fn example() -> Result<(), tonic_etcd::ConfigError> {
/// let tls = ChannelTls::new()
///     .ca_file("/etc/echo/ca.pem")?
///     .identity_files("/etc/echo/client.pem", "/etc/echo/client.key")?
///     .server_name("echo.internal")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct ChannelTls {
    roots: RootCertStore,
    identity: Option<Identity>,
    server_name: Option<ServerName<'static>>,
}

/// Our certificate with its chain, and its key.
#[derive(Clone)]
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl ChannelTls {
    /// TLS that trusts nobody yet.
    pub fn new() -> Self {
        Self { roots: RootCertStore::empty(), identity: None, server_name: None }
    }

    /// Trusts the certificate authorities in a PEM file.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Tls`], if the file cannot be read or holds no certificate that can be used.
    pub fn ca_file(self, path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        self.authority(&PemFile::read(AUTHORITY, path.as_ref())?)
    }

    /// Trusts the certificate authorities in PEM.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Tls`], if it holds no certificate that can be used.
    pub fn ca_pem(self, pem: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        self.authority(&PemFile::from_bytes(AUTHORITY, pem.as_ref()))
    }

    /// Trusts the operating system's certificate authorities, as they are now.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Tls`], if the system has none that can be read.
    #[cfg(feature = "tls-native-roots")]
    pub fn native_roots(mut self) -> Result<Self, ConfigError> {
        let mut found = rustls_native_certs::load_native_certs();
        let (added, _) = self.roots.add_parsable_certificates(found.certs);
        if added > 0 {
            return Ok(self);
        }
        let source = found.errors.pop().map_or_else(|| "there are none".into(), Into::into);
        Err(ConfigError::Tls { what: "the system's certificate authorities", path: None, source })
    }

    /// Trusts Mozilla's certificate authorities, as they were when this was compiled.
    #[cfg(feature = "tls-webpki-roots")]
    pub fn webpki_roots(mut self) -> Self {
        self.roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        self
    }

    /// Shows a certificate to servers that ask for one: PEM files of the certificate with its chain, and of its key.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Tls`] names the file that cannot be read, or holds no certificate or key that can be used.
    pub fn identity_files(self, cert: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Self, ConfigError> {
        self.identity(&PemFile::read(CERTIFICATE, cert.as_ref())?, &PemFile::read(KEY, key.as_ref())?)
    }

    /// Shows a certificate to servers that ask for one: PEM of the certificate with its chain, and of its key.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Tls`], if one holds no certificate or key that can be used.
    pub fn identity_pem(self, cert: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        self.identity(&PemFile::from_bytes(CERTIFICATE, cert.as_ref()), &PemFile::from_bytes(KEY, key.as_ref()))
    }

    /// The name, or IP address, that every instance's certificate must be for. Without it, that is the host of each
    /// instance's address as it was found; what else an instance tells about itself has no say.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Option`], if it is neither a DNS name nor an IP address.
    pub fn server_name(mut self, name: impl Into<String>) -> Result<Self, ConfigError> {
        let name = name.into();
        let refused =
            |value| ConfigError::Option { option: "server_name", value, expected: "a DNS name or an IP address" };
        self.server_name = Some(ServerName::try_from(name.clone()).map_err(|_| refused(name))?);
        Ok(self)
    }

    /// What connects. Refuses what can never verify a server.
    pub(super) fn build(&self) -> Result<TlsClient, ConfigError> {
        if self.roots.is_empty() {
            let source = "there is none: give a file or PEM, or choose the system's or Mozilla's".into();
            return Err(ConfigError::Tls { what: AUTHORITY, path: None, source });
        }
        let mut config = config(self.roots.clone(), self.identity.as_ref()).map_err(|error| ConfigError::Tls {
            what: "the TLS configuration",
            path: None,
            source: error.into(),
        })?;
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(TlsClient { connector: Arc::new(config).into(), server_name: self.server_name.clone() })
    }

    fn authority(mut self, pem: &PemFile) -> Result<Self, ConfigError> {
        self.roots.roots.extend(pem.roots()?.roots);
        Ok(self)
    }

    fn identity(self, cert: &PemFile, key: &PemFile) -> Result<Self, ConfigError> {
        let identity = Identity { chain: cert.certificates()?, key: Arc::new(key.private_key()?) };
        // Now rather than in `build()`: here it is known which file it was.
        config(RootCertStore::empty(), Some(&identity)).map_err(|error| key.refused(error))?;
        Ok(Self { identity: Some(identity), ..self })
    }
}

impl Default for ChannelTls {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ChannelTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelTls")
            .field("roots", &self.roots.len())
            .field("identity", &self.identity.is_some())
            .field("server_name", &self.server_name)
            .finish()
    }
}

/// The client side of TLS, shared by all connections of a channel, so that they resume each other's sessions.
#[derive(Clone)]
pub(super) struct TlsClient {
    connector: TlsConnector,
    server_name: Option<ServerName<'static>>,
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClient").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// Why there is no TLS session.
#[derive(Debug, Error)]
pub(super) enum TlsError {
    #[error("the TLS handshake failed")]
    Handshake(#[source] std::io::Error),
    #[error("the address's host is no name for TLS")]
    Name(#[source] rustls::pki_types::InvalidDnsNameError),
    #[error("the server did not agree on HTTP/2 by ALPN")]
    NoHttp2,
}

impl TlsClient {
    pub(super) async fn handshake(&self, address: &Address, io: BoxIo) -> Result<BoxIo, TlsError> {
        let name = match (&self.server_name, address.host()) {
            (Some(name), _) => name.clone(),
            (None, Host::Ip(ip)) => ServerName::from(ip.to_canonical()),
            (None, Host::Name(name)) => ServerName::try_from(name.to_string()).map_err(TlsError::Name)?,
        };
        let stream = self.connector.connect(name, io).await.map_err(TlsError::Handshake)?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
            return Err(TlsError::NoHttp2);
        }
        Ok(Box::new(stream))
    }
}

fn config(roots: RootCertStore, identity: Option<&Identity>) -> Result<ClientConfig, rustls::Error> {
    // Named, not taken from the process: another provider may be its default, or none.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    match identity {
        Some(Identity { chain, key }) => builder.with_client_auth_cert(chain.clone(), key.clone_key()),
        None => Ok(builder.with_no_client_auth()),
    }
}

const AUTHORITY: &str = "the certificate authority";
const CERTIFICATE: &str = "the client certificate";
const KEY: &str = "the client key";
const ALPN_H2: &[u8] = b"h2";
