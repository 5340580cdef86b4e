//! Why a command failed, to an exit code and a message.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::ErrorKind;
use tonic_etcd::{ConfigError, RegistryError};

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
            let _ = writeln!(io::stderr(), "error: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(message, ": {error}");
        cause = error.source();
    }
    message
}

/// The command could not go on, for this reason.
pub(crate) fn failed(reason: String) -> Failure {
    Failure::Run(reason.into())
}
