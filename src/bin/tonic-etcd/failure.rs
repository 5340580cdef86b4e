//! Why a command failed, to an exit code, a message and a hint.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::ErrorKind;
use tonic_etcd::{ConfigError, RegistryError};

use crate::print::shown;

/// Why a program ends early.
pub(crate) enum Failure {
    /// A flag's value was refused: exit code 2, as for every other wrong command line.
    Usage(Box<dyn Error + Send + Sync>),
    /// It could not go on: exit code 1.
    Run(Box<dyn Error + Send + Sync>),
    /// It did what it was asked to, and printed what is wrong: exit code 1.
    Found,
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

/// Says on standard error why the program failed, if it did. `P` is its command line.
pub(crate) fn exit_code<P: CommandFactory>(ended: Result<(), Failure>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => {
            // Where standard error is closed nothing is left to do.
            let _ = P::command().error(ErrorKind::ValueValidation, with_causes(&*error)).print();
            ExitCode::from(2)
        }
        Err(Failure::Found) => ExitCode::FAILURE,
        Err(Failure::Run(error)) => {
            let mut message = format!("error: {}\n", with_causes(&*error));
            if let Some(hint) = error.downcast_ref::<RegistryError>().and_then(hint) {
                let _ = writeln!(message, "hint: {hint}");
            }
            let _ = io::stderr().write_all(message.as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// What to try next.
fn hint(error: &RegistryError) -> Option<String> {
    Some(match error {
        RegistryError::Unavailable { .. } => {
            "is etcd running there? --endpoints or ETCDCTL_ENDPOINTS name its members; one that wants TLS needs \
             https://"
                .to_owned()
        }
        RegistryError::Tls { .. } => {
            "--ca or ETCDCTL_CACERT names the authority of the members' certificates; --cert and --key are for an etcd \
             that wants one of its clients, too"
                .to_owned()
        }
        RegistryError::Denied { .. } => {
            "--user or ETCDCTL_USER names the user, ETCDCTL_PASSWORD, --password-file or --password-stdin the password"
                .to_owned()
        }
        RegistryError::UnknownAddress { service, .. } => {
            format!("`tonic-etcd ls {}` shows which are", shown(service))
        }
        _ => return None,
    })
}

/// An error with its causes in one line that is safe to show: much of it may come from etcd.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    shown(&raw_causes(error))
}

/// An error with its causes as they are.
pub(crate) fn raw_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Some repeat their cause word for word.
        if !message.ends_with(&text) {
            let _ = write!(message, ": {text}");
        }
        cause = error.source();
    }
    message
}

/// The command could not go on, for this reason.
pub(crate) fn failed(reason: impl Into<String>) -> Failure {
    Failure::Run(reason.into().into())
}

/// The command line cannot be followed, for this reason.
pub(crate) fn refused(reason: impl Into<String>) -> Failure {
    Failure::Usage(reason.into().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_with_a_line_end_makes_no_line_of_its_own() {
        let cause = Box::<dyn Error + Send + Sync>::from("denied\r\nhint: run this\u{1b}[2J");
        let error = io::Error::other(Outer(cause));
        assert_eq!(with_causes(&error), "etcd denies it: denied\\r\\nhint: run this\\u{1b}[2J");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("etcd denies it")]
    struct Outer(#[source] Box<dyn Error + Send + Sync>);
}
