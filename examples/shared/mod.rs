//! What the example programs share: the flags that lead to a registry, the JSON lines, and how a program ends.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, ValueEnum};
use serde::Serialize;
use tonic_etcd::format::{EtcdNaming, GoZero, Kitex, Kratos};
use tonic_etcd::{ConfigError, Registry, RegistryBuilder, RegistryError};
use tracing_subscriber::EnvFilter;

/// Where servers are written down, and how.
#[derive(Args)]
pub(crate) struct RegistryFlags {
    /// The etcd members, separated by commas
    #[arg(long, value_name = "URL", value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    etcd: Vec<String>,

    /// What every key in etcd begins with; for one format only [default: the format's own]
    #[arg(long)]
    prefix: Option<String>,

    /// How keys and values look in etcd. Several, separated by commas: a server registers in each, a client looks in
    /// each, and the first one counts more
    #[arg(long, value_enum, value_delimiter = ',', default_value = "kitex")]
    format: Vec<Format>,

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

impl RegistryFlags {
    /// One registry for each format.
    pub(crate) fn registries(&self) -> Result<Vec<Registry>, Failure> {
        if self.prefix.is_some() && self.format.len() > 1 {
            return Err(Failure::Usage("--prefix is for one --format: each has a prefix of its own".into()));
        }
        self.format.iter().map(|format| self.registry(*format)).collect()
    }

    fn registry(&self, format: Format) -> Result<Registry, Failure> {
        let mut registry = Registry::builder(&self.etcd);
        registry = match format {
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

    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
    fn secure(&self, registry: RegistryBuilder) -> Result<RegistryBuilder, Failure> {
        use tonic_etcd::ClientTls;

        let Some(ca) = &self.ca else { return Ok(registry) };
        let tls = ClientTls::new().ca_file(ca)?;
        Ok(registry.tls(match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => tls.identity_files(cert, key)?,
            _ => tls,
        }))
    }

    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
    fn secure(&self, registry: RegistryBuilder) -> Result<RegistryBuilder, Failure> {
        match (&self.ca, &self.cert, &self.key) {
            (None, None, None) => Ok(registry),
            _ => Err(Failure::Usage(
                "--ca, --cert and --key need a program built with the feature tls-ring or tls-aws-lc".into(),
            )),
        }
    }
}

/// Why a program ends early.
pub(crate) enum Failure {
    /// A flag's value was refused: exit code 2, as for every other wrong command line.
    Usage(Box<dyn Error + Send + Sync>),
    /// It could not go on: exit code 1.
    Run(Box<dyn Error + Send + Sync>),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.into())
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Config(error) => error.into(),
            error => Self::Run(error.into()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Run(error.into())
    }
}

impl From<tonic::transport::Error> for Failure {
    fn from(error: tonic::transport::Error) -> Self {
        Self::Run(error.into())
    }
}

/// Says on standard error why the program failed, if it did. `P` is its command line.
pub(crate) fn exit_code<P: CommandFactory>(ended: Result<(), Failure>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => {
            // Where standard error is closed nothing is left to do.
            let _ = P::command().error(ErrorKind::ValueValidation, with_causes(&*error)).print();
            ExitCode::from(2)
        }
        Err(Failure::Run(error)) => {
            let _ = writeln!(io::stderr(), "error: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(message, ": {error}");
        cause = error.source();
    }
    message
}

/// Prints one JSON line to standard output, now: its reader acts on it.
pub(crate) fn print_line(line: &impl Serialize) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, line)?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Sends logs to standard error: what `RUST_LOG` asks for, or else `default`.
pub(crate) fn log_to_stderr(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(io::stderr).init();
}
