//! Certificates and keys in PEM, checked when they are read, for TLS towards etcd and towards instances.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{BoxError, ConfigError};

/// PEM that was given for one purpose, as a file or as bytes. `Debug` shows no content.
#[derive(Clone)]
pub(crate) struct PemFile {
    what: &'static str,
    path: Option<PathBuf>,
    bytes: Arc<[u8]>,
}

impl PemFile {
    pub(crate) fn read(what: &'static str, path: &Path) -> Result<Self, ConfigError> {
        let mut pem = Self { what, path: Some(path.to_owned()), bytes: Arc::default() };
        pem.read_again()?;
        Ok(pem)
    }

    pub(crate) fn from_bytes(what: &'static str, bytes: impl AsRef<[u8]>) -> Self {
        Self { what, path: None, bytes: bytes.as_ref().into() }
    }

    /// The file that it came from, if it came from one.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Reads the file again, if there is one, and returns whether its content has changed.
    pub(crate) fn read_again(&mut self) -> Result<bool, ConfigError> {
        let Some(path) = &self.path else { return Ok(false) };
        let bytes = std::fs::read(path).map_err(|error| self.refused(error))?;
        let is_changed = *bytes != *self.bytes;
        self.bytes = bytes.into();
        Ok(is_changed)
    }

    /// The certificates, at least one.
    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.bytes).collect();
        match found {
            Ok(found) if found.is_empty() => Err(self.refused("it holds no certificate")),
            Ok(found) => Ok(found),
            Err(error) => Err(self.refused(error)),
        }
    }

    /// The certificates as authorities that may sign a server's.
    pub(crate) fn roots(&self) -> Result<RootCertStore, ConfigError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|error| self.refused(error))?;
        }
        Ok(roots)
    }

    /// The private key.
    pub(crate) fn private_key(&self) -> Result<PrivateKeyDer<'static>, ConfigError> {
        // The parser's error could quote the key.
        PrivateKeyDer::from_pem_slice(&self.bytes).map_err(|_| self.refused("it holds no private key"))
    }

    pub(crate) fn refused(&self, source: impl Into<BoxError>) -> ConfigError {
        ConfigError::Tls { what: self.what, path: self.path.clone(), source: source.into() }
    }
}

impl fmt::Debug for PemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PemFile").field("what", &self.what).field("path", &self.path).finish_non_exhaustive()
    }
}
