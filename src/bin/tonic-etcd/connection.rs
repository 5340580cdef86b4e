//! Flags to the registry that every command looks into.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tonic_etcd::format::{EtcdNaming, GoZero, Kitex, Kratos};
use tonic_etcd::{ClientTls, Registry, RegistryBuilder};

use crate::failure::Failure;

/// Where servers are written down, and how.
#[derive(Args)]
pub(crate) struct Connection {
    /// The etcd members, separated by commas
    #[arg(long, value_name = "URL", value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    etcd: Vec<String>,

    /// What every key in etcd begins with [default: the format's own]
    #[arg(long)]
    prefix: Option<String>,

    /// How keys and values look in etcd
    #[arg(long, value_enum, default_value = "kitex")]
    format: Format,

    /// The etcd user
    #[arg(long, requires = "password")]
    user: Option<String>,

    /// The etcd user's password
    #[arg(long, requires = "user")]
    password: Option<String>,

    /// The certificate authority that signed etcd's certificates (PEM); every etcd URL must be https then
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// This program's certificate towards etcd (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["ca", "key"])]
    cert: Option<PathBuf>,

    /// The private key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["ca", "cert"])]
    key: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Kitex,
    Etcd,
    GoZero,
    Kratos,
}

impl Connection {
    pub(crate) fn registry(&self) -> Result<Registry, Failure> {
        let mut registry = Registry::builder(&self.etcd);
        registry = match self.format {
            Format::Kitex => registry.format(Kitex::new()),
            Format::Etcd => registry.format(EtcdNaming::new()),
            Format::GoZero => registry.format(GoZero::new()),
            Format::Kratos => registry.format(Kratos::new()),
        };
        if let Some(prefix) = &self.prefix {
            registry = registry.prefix(prefix);
        }
        if let (Some(user), Some(password)) = (&self.user, &self.password) {
            registry = registry.auth(user, password);
        }
        Ok(self.secure(registry)?.build()?)
    }

    /// What is looked into, in few words.
    pub(crate) fn shown(&self) -> String {
        self.etcd.join(", ")
    }

    fn secure(&self, registry: RegistryBuilder) -> Result<RegistryBuilder, Failure> {
        let Some(ca) = &self.ca else { return Ok(registry) };
        let tls = ClientTls::new().ca_file(ca)?;
        Ok(registry.tls(match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => tls.identity_files(cert, key)?,
            _ => tls,
        }))
    }
}
