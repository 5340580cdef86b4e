//! Flags and etcdctl's environment variables to the registry that every command looks into.

#![expect(clippy::doc_markdown, reason = "the help of a flag is plain text")]

use std::env;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tonic_etcd::format::{EtcdNaming, Format, GoZero, Kitex, Kratos};
use tonic_etcd::{ClientTls, Registry};

use crate::failure::{Failure, refused};

/// Where servers are written down, and how.
#[derive(Args)]
#[command(next_help_heading = "Where to look")]
pub(crate) struct Connection {
    /// The etcd members, with commas between [env: ETCDCTL_ENDPOINTS] [default: 127.0.0.1:2379]
    ///
    /// URLs, or host:port alone. With https, authorities of the operating system are trusted unless --ca names one.
    #[arg(long, visible_alias = "etcd", value_name = "URL", value_delimiter = ',')]
    endpoints: Vec<String>,

    /// What every key in etcd begins with [default: the format's own]
    ///
    /// It is kitex/registry-etcd for kitex, /microservices for kratos, and none for etcd and go-zero.
    #[arg(long, env = "TONIC_ETCD_PREFIX")]
    prefix: Option<String>,

    /// How keys and values look in etcd
    #[arg(long, value_enum, default_value = "kitex", env = "TONIC_ETCD_FORMAT")]
    format: FormatName,

    /// How long connecting to a member may take: 2s, 500ms [env: ETCDCTL_DIAL_TIMEOUT] [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = time)]
    dial_timeout: Option<Duration>,

    #[command(flatten)]
    login: Login,

    #[command(flatten)]
    tls: Tls,
}

/// A user of etcd.
#[derive(Args)]
#[command(next_help_heading = "Login to etcd")]
struct Login {
    /// The user; in name:password the password stands in the list of processes, too [env: ETCDCTL_USER]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,

    /// A file that holds the password
    #[arg(long, value_name = "FILE", conflicts_with_all = ["password_stdin", "password"])]
    password_file: Option<PathBuf>,

    /// Reads the password from standard input
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,

    /// The password, which every list of processes shows: better set ETCDCTL_PASSWORD, or use a file
    #[arg(long)]
    password: Option<String>,

    /// User and password, where flags give either: standard input is read once.
    #[arg(skip)]
    given: OnceLock<Option<(String, String)>>,
}

/// TLS towards etcd.
#[derive(Args)]
#[command(next_help_heading = "TLS to etcd")]
struct Tls {
    /// The authorities that sign the members' certificates (PEM) [env: ETCDCTL_CACERT]
    #[arg(long, visible_alias = "cacert", value_name = "FILE")]
    ca: Option<String>,

    /// Trusts the authorities of the operating system, beside those of --ca
    #[arg(long)]
    system_roots: bool,

    /// This program's own certificate (PEM) [env: ETCDCTL_CERT]
    #[arg(long, value_name = "FILE")]
    cert: Option<String>,

    /// The key of that certificate (PEM) [env: ETCDCTL_KEY]
    #[arg(long, value_name = "FILE")]
    key: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatName {
    /// Kitex, and tonic-etcd unless told otherwise
    Kitex,
    /// grpc-go's etcd resolver
    Etcd,
    /// go-zero
    GoZero,
    /// Kratos
    Kratos,
    /// Kratos, servers with TLS
    KratosSecure,
}

impl FormatName {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn default_prefix(self) -> String {
        let prefix_of = |format: &dyn Format| format.default_prefix().to_owned();
        match self {
            Self::Kitex => prefix_of(&Kitex::new()),
            Self::Etcd => prefix_of(&EtcdNaming::new()),
            Self::GoZero => prefix_of(&GoZero::new()),
            Self::Kratos | Self::KratosSecure => prefix_of(&Kratos::new()),
        }
    }
}

impl Connection {
    pub(crate) fn registry(&self) -> Result<Registry, Failure> {
        self.registry_at(self.format, self.prefix.as_deref(), EtcdNaming::new())
    }

    /// For an operator's weight.
    pub(crate) fn registry_to_reweigh(&self, add_metadata: bool) -> Result<Registry, Failure> {
        self.registry_at(self.format, self.prefix.as_deref(), EtcdNaming::new().adds_metadata(add_metadata))
    }

    /// Where else servers may be registered: the flags that lead to each place, and its registry.
    pub(crate) fn elsewhere(&self) -> Result<Vec<(String, Registry)>, Failure> {
        let own = self.prefix();
        let own = own.trim_end_matches('/');
        // A slash at the end changes nothing, and one at the begin is another prefix.
        let slashed = own.strip_prefix('/').map_or_else(|| format!("/{own}"), str::to_owned);
        let mut places = Vec::new();
        for format in FormatName::value_variants() {
            let mut prefixes = vec![format.default_prefix(), own.to_owned(), slashed.clone(), String::new()];
            prefixes.sort_unstable();
            prefixes.dedup();
            prefixes.retain(|prefix| prefix != "/" && (*format, prefix.as_str()) != (self.format, own));
            for prefix in prefixes {
                places.push((format!("--format {} --prefix '{prefix}'", format.name()), *format, prefix));
            }
        }
        let registry = |(flags, format, prefix): (String, FormatName, String)| {
            Ok((flags, self.registry_at(format, Some(&prefix), EtcdNaming::new())?))
        };
        places.into_iter().map(registry).collect()
    }

    fn registry_at(&self, format: FormatName, prefix: Option<&str>, naming: EtcdNaming) -> Result<Registry, Failure> {
        let login = self.login.given()?;
        let tls = self.tls()?;
        let mut registry = Registry::from_env_with(|name| match name {
            "ETCDCTL_ENDPOINTS" => self.endpoints(),
            "ETCDCTL_DIAL_TIMEOUT" if self.dial_timeout.is_some() => None,
            "ETCDCTL_USER" | "ETCDCTL_PASSWORD" if login.is_some() => None,
            "ETCDCTL_CACERT" | "ETCDCTL_CERT" | "ETCDCTL_KEY" | "ETCDCTL_INSECURE_TRANSPORT" if tls.is_some() => None,
            name => variable(name),
        })?;
        registry = match format {
            FormatName::Kitex => registry.format(Kitex::new()),
            FormatName::Etcd => registry.format(naming),
            FormatName::GoZero => registry.format(GoZero::new()),
            FormatName::Kratos => registry.format(Kratos::new()),
            FormatName::KratosSecure => registry.format(Kratos::new().secure(true)),
        };
        if let Some(prefix) = prefix {
            registry = registry.prefix(prefix);
        }
        if let Some(limit) = self.dial_timeout {
            registry = registry.dial_timeout(limit);
        }
        if let Some((user, password)) = login {
            registry = registry.auth(user, password);
        }
        if let Some(tls) = tls {
            registry = registry.tls(tls);
        }
        Ok(registry.build()?)
    }

    /// Where in etcd it looks, for messages.
    pub(crate) fn place(&self) -> String {
        let format = self.format.name();
        match self.prefix().as_str() {
            "" => format!("without a prefix, in the format {format}"),
            prefix => format!("under {prefix}, in the format {format}"),
        }
    }

    /// What every key begins with.
    pub(crate) fn prefix(&self) -> String {
        self.prefix.clone().unwrap_or_else(|| self.format.default_prefix())
    }

    /// Whether etcd runs on this host, by its URLs.
    pub(crate) fn is_local(&self) -> bool {
        let is_local = |url: &str| {
            let host = url.trim().split_once("://").map_or(url, |(_, rest)| rest);
            ["127.", "localhost", "[::1]"].iter().any(|local| host.starts_with(local))
        };
        self.endpoints().is_none_or(|urls| urls.split(',').all(is_local))
    }

    /// What is looked into, in few words.
    pub(crate) fn shown(&self) -> String {
        self.endpoints().unwrap_or_else(|| "127.0.0.1:2379".to_owned())
    }

    fn endpoints(&self) -> Option<String> {
        if self.endpoints.is_empty() { variable("ETCDCTL_ENDPOINTS") } else { Some(self.endpoints.join(",")) }
    }

    /// TLS, where it is not the environment alone that asks for it.
    fn tls(&self) -> Result<Option<ClientTls>, Failure> {
        let ca = file(self.tls.ca.as_deref(), "--ca", "ETCDCTL_CACERT")?;
        let cert = file(self.tls.cert.as_deref(), "--cert", "ETCDCTL_CERT")?;
        let key = file(self.tls.key.as_deref(), "--key", "ETCDCTL_KEY")?;
        let is_https = self.endpoints().is_some_and(|urls| urls.to_ascii_lowercase().contains("https://"));
        let is_asked_for = ca.is_some() || cert.is_some() || key.is_some() || self.tls.system_roots;
        let is_secure = variable("ETCDCTL_INSECURE_TRANSPORT").is_some_and(|value| value.eq_ignore_ascii_case("false"));
        if !(is_https || is_asked_for || is_secure) {
            return Ok(None);
        }
        let mut tls = ClientTls::new();
        if let Some(ca) = &ca {
            tls = tls.ca_file(ca)?;
        }
        if ca.is_none() || self.tls.system_roots {
            tls = tls.native_roots()?;
        }
        Ok(Some(match (cert, key) {
            (Some(cert), Some(key)) => tls.identity_files(cert, key)?,
            (None, None) => tls,
            (Some(_), None) => return Err(refused("a certificate needs its key: --key, or ETCDCTL_KEY")),
            (None, Some(_)) => return Err(refused("a key needs its certificate: --cert, or ETCDCTL_CERT")),
        }))
    }
}

impl Login {
    /// User and password, where flags give either.
    fn given(&self) -> Result<Option<(String, String)>, Failure> {
        if let Some(given) = self.given.get() {
            return Ok(given.clone());
        }
        let given = self.read()?;
        Ok(self.given.get_or_init(|| given).clone())
    }

    fn read(&self) -> Result<Option<(String, String)>, Failure> {
        let password = if let Some(file) = &self.password_file {
            Some(password_in(file)?)
        } else if self.password_stdin {
            Some(
                first_line(io::stdin().lock())
                    .map_err(|error| refused(format!("cannot read the password: {error}")))?,
            )
        } else {
            self.password.clone()
        };
        if self.user.is_none() && password.is_none() {
            return Ok(None);
        }
        let Some(user) = self.user.clone().or_else(|| variable("ETCDCTL_USER")) else {
            return Err(refused("a password needs its user: --user, or ETCDCTL_USER"));
        };
        match (user.split_once(':'), password) {
            (None, Some(password)) => Ok(Some((user, password))),
            (None, None) => match variable("ETCDCTL_PASSWORD") {
                Some(password) => Ok(Some((user, password))),
                None => Err(refused("a user needs a password: ETCDCTL_PASSWORD, --password-file or --password-stdin")),
            },
            (Some((user, password)), None) => Ok(Some((user.to_owned(), password.to_owned()))),
            (Some(_), Some(_)) => Err(refused("the password is given twice: behind the user, and by a flag")),
        }
    }
}

/// A variable of the environment that is set.
fn variable(name: &str) -> Option<String> {
    // A value that is not UTF-8 fails where it is used.
    env::var_os(name).map(|value| value.to_string_lossy().into_owned()).filter(|value| !value.is_empty())
}

/// The path of a file, by a flag or a variable.
fn file(given: Option<&str>, flag: &str, name: &str) -> Result<Option<String>, Failure> {
    let path = given.map(str::to_owned).or_else(|| variable(name));
    match path {
        // Not to be shown as a path that does not exist: it may be a key.
        Some(path) if path.contains("-----BEGIN") => {
            Err(refused(format!("{flag} and {name} want the path of a file, not what is in it")))
        }
        path => Ok(path),
    }
}

fn password_in(path: &Path) -> Result<String, Failure> {
    let read = fs::File::open(path).and_then(first_line);
    read.map_err(|error| refused(format!("cannot read the password in {}: {error}", path.display())))
}

/// The first line, without its end.
fn first_line(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(LONGEST_PASSWORD).read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// A time such as `2s`, `500ms` or `1m`.
pub(crate) fn time(text: &str) -> Result<Duration, &'static str> {
    let expected = "expected a time such as 2s or 500ms";
    let unit = text.find(|c: char| !c.is_ascii_digit()).ok_or(expected)?;
    let (number, unit) = text.split_at(unit);
    let number: u64 = number.parse().map_err(|_| expected)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err(expected),
    };
    Ok(Duration::from_millis(number.saturating_mul(millis)))
}

/// More of a file is not read: it is none with a password.
const LONGEST_PASSWORD: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(time("1m"), Ok(Duration::from_secs(60)));
        for bad in ["", "2", "s", "2h", "-1s", "2 s", "1.5s", "99999999999999999999s"] {
            assert!(time(bad).is_err(), "{bad:?} is no time");
        }
    }

    #[test]
    fn a_password_is_the_first_line() {
        for text in ["secret", "secret\n", "secret\r\n", "secret\nmore\n"] {
            assert_eq!(first_line(text.as_bytes()).expect("text"), "secret");
        }
        assert_eq!(first_line(&b""[..]).expect("text"), "");
        assert!(first_line(&b"\xff"[..]).is_err(), "it is text");
    }
}
