//! What TLS trusts and shows: the user's options, as files, PEM and roots, to a configuration of rustls.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};

use crate::error::ConfigError;
use crate::pem::PemFile;

/// TLS towards etcd ([`RegistryBuilder::tls`](crate::RegistryBuilder::tls)) or towards the instances of a service
/// ([`ChannelBuilder::tls`](crate::ChannelBuilder::tls)): the authorities that sign their certificates, the name in
/// them, and our own certificate.
///
/// Roots add up: each method that gives some trusts more. At least one is needed, and nothing is trusted by default.
/// With TLS every connection uses it, TLS 1.2 or 1.3, and the server has to agree on HTTP/2 by ALPN; nothing ever falls
/// back to plaintext. `Debug` shows no key.
///
/// ```
/// use tonic_etcd::ClientTls;
///
/// # fn example() -> Result<(), tonic_etcd::ConfigError> {
/// let tls = ClientTls::new()
///     .ca_file("/etc/echo/ca.pem")?
///     .identity_files("/etc/echo/client.pem", "/etc/echo/client.key")?
///     .server_name("echo.internal")?;
/// # Ok(())
/// # }
/// ```
///
/// # Rotation
///
/// Files are read when they are named, so that a bad one is an error before any I/O on the network, and again before
/// each new connection: a certificate that was replaced is used by the next one. Open connections keep the one that
/// they began with. A file that cannot be read any more or makes no sense, or a key that is not its certificate's, is
/// logged as a warning, at most once a minute, and the last good files go on being used: while two files are replaced
/// one after the other, connections can still be made. To distrust an authority replace its file; removing it changes
/// nothing.
///
/// What was given as PEM, and the roots of the system and of Mozilla, stay as they are.
#[derive(Clone)]
#[must_use]
pub struct ClientTls {
    authorities: Vec<PemFile>,
    /// Roots that came in other ways than as PEM.
    other_roots: RootCertStore,
    pub(super) identity: Option<Identity>,
    server_name: Option<ServerName<'static>>,
}

/// Our certificate with its chain, and its key.
#[derive(Clone)]
pub(super) struct Identity {
    cert: PemFile,
    pub(super) key: PemFile,
}

impl ClientTls {
    /// TLS that trusts no authority yet.
    pub fn new() -> Self {
        Self { authorities: Vec::new(), other_roots: RootCertStore::empty(), identity: None, server_name: None }
    }

    /// Trusts the certificate authorities in a PEM file.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Tls`], if the file cannot be read or holds no certificate that can be used.
    pub fn ca_file(self, path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        self.authority(PemFile::read(AUTHORITY, path.as_ref())?)
    }

    /// Trusts the certificate authorities in PEM.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Tls`], if it holds no certificate that can be used.
    pub fn ca_pem(self, pem: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        self.authority(PemFile::from_bytes(AUTHORITY, pem.as_ref()))
    }

    /// Trusts the operating system's certificate authorities, as they are now.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Tls`], if the system has none that can be read.
    #[cfg(feature = "tls-native-roots")]
    pub fn native_roots(mut self) -> Result<Self, ConfigError> {
        let mut found = rustls_native_certs::load_native_certs();
        let (added, _) = self.other_roots.add_parsable_certificates(found.certs);
        if added > 0 {
            return Ok(self);
        }
        let source = found.errors.pop().map_or_else(|| "there are none".into(), Into::into);
        Err(ConfigError::Tls { what: "the system's certificate authorities", path: None, source })
    }

    /// Trusts Mozilla's certificate authorities, as they were when this was compiled.
    #[cfg(feature = "tls-webpki-roots")]
    pub fn webpki_roots(mut self) -> Self {
        self.other_roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        self
    }

    /// Shows a certificate to servers that ask for one: PEM files of the certificate with its chain, and of its key.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Tls`] names the file that cannot be read, or holds no certificate or key that can be used.
    pub fn identity_files(self, cert: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Self, ConfigError> {
        self.identity(PemFile::read(CERTIFICATE, cert.as_ref())?, PemFile::read(KEY, key.as_ref())?)
    }

    /// Shows a certificate to servers that ask for one: PEM of the certificate with its chain, and of its key.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Tls`], if one holds no certificate or key that can be used.
    pub fn identity_pem(self, cert: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        self.identity(PemFile::from_bytes(CERTIFICATE, cert.as_ref()), PemFile::from_bytes(KEY, key.as_ref()))
    }

    /// The name, or IP address, that every server's certificate must be for. Without it, that is the host of the etcd
    /// member's URL, or of the instance's address as it was found; nothing else that an instance says of itself counts.
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

    /// # Errors
    ///
    /// Nothing is trusted, so that no server can ever be verified.
    pub(super) fn check_roots(&self) -> Result<(), ConfigError> {
        if self.authorities.is_empty() && self.other_roots.is_empty() {
            let source = "there is none: give a file or PEM, or choose the system's or Mozilla's".into();
            return Err(ConfigError::Tls { what: AUTHORITY, path: None, source });
        }
        Ok(())
    }

    /// The name that every server's certificate must be for, if it is not that of its address.
    pub(super) fn server_name_override(&self) -> Option<&ServerName<'static>> {
        self.server_name.as_ref()
    }

    fn authority(mut self, pem: PemFile) -> Result<Self, ConfigError> {
        pem.roots()?;
        self.authorities.push(pem);
        Ok(self)
    }

    fn identity(self, cert: PemFile, key: PemFile) -> Result<Self, ConfigError> {
        let identity = Identity { cert, key };
        // Now rather than in `build()`: here it is known which file it was.
        config(RootCertStore::empty(), Some(&identity))?;
        Ok(Self { identity: Some(identity), ..self })
    }

    /// The configuration of sessions, from the PEM as it was read last.
    pub(super) fn config(&self) -> Result<ClientConfig, ConfigError> {
        let mut roots = self.other_roots.clone();
        for authority in &self.authorities {
            roots.roots.extend(authority.roots()?.roots);
        }
        config(roots, self.identity.as_ref())
    }

    /// Everything that came as PEM.
    pub(super) fn pems(&mut self) -> impl Iterator<Item = &mut PemFile> {
        let identity = self.identity.iter_mut().flat_map(|Identity { cert, key }| [cert, key]);
        self.authorities.iter_mut().chain(identity)
    }
}

impl Default for ClientTls {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("authorities", &self.authorities)
            .field("other_roots", &self.other_roots.len())
            .field("identity", &self.identity.as_ref().map(|identity| &identity.cert))
            .field("server_name", &self.server_name)
            .finish()
    }
}

fn config(roots: RootCertStore, identity: Option<&Identity>) -> Result<ClientConfig, ConfigError> {
    let unusable =
        |error: rustls::Error| ConfigError::Tls { what: "the TLS configuration", path: None, source: error.into() };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(Identity { cert, key }) => builder
            .with_client_auth_cert(cert.certificates()?, key.private_key()?)
            .map_err(|error| key.refused(error))?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Ok(config)
}

/// The provider, not taken from the process: another one may be its default, or none. With the feature for aws-lc it is
/// used, even where ring came with the default features.
pub(super) fn provider() -> CryptoProvider {
    #[cfg(feature = "tls-aws-lc")]
    return rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(not(feature = "tls-aws-lc"))]
    return rustls::crypto::ring::default_provider();
}

/// The protocol that sessions offer and servers must agree on.
pub(super) const ALPN_H2: &[u8] = b"h2";

const AUTHORITY: &str = "the certificate authority";
const CERTIFICATE: &str = "the client certificate";
const KEY: &str = "the client key";
