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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Kitex,
    Etcd,
    GoZero,
    Kratos,
}

impl Format {
    fn default_prefix(self) -> &'static str {
        match self {
            Self::Kitex => "kitex/registry-etcd",
            Self::Etcd | Self::GoZero => "",
            Self::Kratos => "/microservices",
        }
    }
}

impl Connection {
    pub(crate) fn registry(&self) -> Result<Registry, Failure> {
        self.registry_at(self.format, self.prefix())
    }

    /// Whether etcd runs on this host, by its URLs.
    pub(crate) fn is_local(&self) -> bool {
        self.etcd.iter().all(|url| ["127.", "localhost", "[::1]"].iter().any(|host| host_of(url).starts_with(host)))
    }

    /// Where servers are looked for, in words.
    pub(crate) fn place(&self) -> String {
        Self::flags_to(self.format, self.prefix())
    }

    /// Where else servers may be registered: the flags that lead to each place, and its registry.
    pub(crate) fn elsewhere(&self) -> Result<Vec<(String, Registry)>, Failure> {
        let own = self.prefix();
        // A slash at the end changes nothing, and one at the begin is a different prefix.
        let slashed = own.strip_prefix('/').map_or_else(|| format!("/{own}"), str::to_owned);
        let mut places = Vec::new();
        for format in Format::value_variants() {
            let mut prefixes = vec![format.default_prefix(), own, &slashed, ""];
            prefixes.sort_unstable();
            prefixes.dedup_by_key(|prefix| prefix.trim_end_matches('/'));
            prefixes
                .retain(|prefix| (*format, prefix.trim_end_matches('/')) != (self.format, own.trim_end_matches('/')));
            for prefix in prefixes {
                places.push((Self::flags_to(*format, prefix), self.registry_at(*format, prefix)?));
            }
        }
        Ok(places)
    }

    fn prefix(&self) -> &str {
        self.prefix.as_deref().unwrap_or_else(|| self.format.default_prefix())
    }

    fn flags_to(format: Format, prefix: &str) -> String {
        let value = format.to_possible_value();
        let name = value.as_ref().map_or("", |value| value.get_name());
        format!("--format {name} --prefix '{prefix}'")
    }

    fn registry_at(&self, format: Format, prefix: &str) -> Result<Registry, Failure> {
        let mut registry = Registry::builder(&self.etcd).prefix(prefix);
        registry = match format {
            Format::Kitex => registry.format(Kitex::new()),
            Format::Etcd => registry.format(EtcdNaming::new()),
            Format::GoZero => registry.format(GoZero::new()),
            Format::Kratos => registry.format(Kratos::new()),
        };
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

/// The host and what follows it in a URL.
fn host_of(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, rest)| rest)
}
