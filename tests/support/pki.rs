//! Certificates for the tests: an authority, and what it signs, as PEM and as files.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};
use tempfile::TempDir;

/// A certificate authority, with a folder for files.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// A certificate and its key, in PEM.
#[derive(Debug)]
pub struct Certificate {
    /// The certificate.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

/// Where a certificate and its key lie.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// A new authority, which no peer trusts yet.
    pub fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names are good names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority of the tests");
        let key = KeyPair::generate().expect("a key can be made");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority signs itself");
        let folder = tempfile::tempdir().expect("the temporary folder takes a folder");
        fs::write(folder.path().join(CA), issuer.pem()).expect("the folder takes a file");
        Self { issuer, folder }
    }

    /// The authority's own certificate, in PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// The authority's own certificate, as a PEM file.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join(CA)
    }

    /// A certificate for these names and IP addresses, for servers and clients.
    pub fn issue(&self, names: &[&str]) -> Certificate {
        self.sign(&params(names))
    }

    /// A certificate for these names that expired long ago.
    pub fn issue_expired(&self, names: &[&str]) -> Certificate {
        let mut params = params(names);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 2, 1));
        self.sign(&params)
    }

    /// A new certificate for these names, as files called `name`.
    pub fn issue_files(&self, name: &str, names: &[&str]) -> Files {
        let files = self.files(name);
        self.issue(names).write(&files);
        files
    }

    /// A certificate that names a user of etcd as its subject, as files called like the user.
    pub fn issue_files_of_user(&self, user: &str) -> Files {
        let mut params = params(&[]);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        let files = self.files(user);
        self.sign(&params).write(&files);
        files
    }

    /// Where files called `name` would lie.
    pub fn files(&self, name: &str) -> Files {
        let path = |ending: &str| self.folder.path().join(format!("{name}.{ending}"));
        Files { cert: path("pem"), key: path("key") }
    }

    fn sign(&self, params: &CertificateParams) -> Certificate {
        let key = KeyPair::generate().expect("a key can be made");
        let cert = params.signed_by(&key, &self.issuer).expect("the authority signs");
        Certificate { cert: cert.pem(), key: key.serialize_pem() }
    }
}

impl Certificate {
    /// Puts certificate and key where others look for them.
    pub fn write(&self, files: &Files) {
        let write = |path: &Path, pem: &str| fs::write(path, pem).expect("the folder takes a file");
        write(&files.key, &self.key);
        write(&files.cert, &self.cert);
    }
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("the test's names are good");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

const CA: &str = "ca.pem";
