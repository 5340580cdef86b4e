//! A look into a registry, and orders to its servers.
//!
//! # Layout
//!
//! | file | what flows through it |
//! | --- | --- |
//! | this file | the command line to a command |
//! | `connection` | flags to a registry |
//! | `command` | a command to its outcome |
//! | `target` | an address to the service that is meant, and to its keys |
//! | `names` | a name that is not there to similar ones |
//! | `services` | a registry to its services, and to what comes of each |
//! | `web` | the registry to a page in browsers |
//! | `changes` | changes of a service to lines |
//! | `print` | values to standard output |
//! | `failure` | errors to exit codes |

mod changes;
mod command;
mod connection;
mod failure;
mod names;
mod print;
mod services;
mod target;
mod web;

use std::env;
use std::error::Error;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::runtime;
use tonic_etcd::{Address, ServiceName};
use tracing_subscriber::EnvFilter;

use self::connection::Connection;
use self::failure::{Failure, refused};
use self::print::Output;

/// Shows what is registered in etcd, and gives orders to the servers there.
///
/// Without flags it looks into the etcd that etcdctl would ask, for services of tonic-etcd and Kitex.
#[derive(Parser)]
#[command(name = "tonic-etcd", version, after_help = EXIT_CODES)]
struct Flags {
    /// Prints one JSON object a line, for programs; all commands but `top`
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the services, or the servers of one
    ///
    /// Services come with the number of their keys: one a server. Servers come with address, weight, state (live, or
    /// draining: about to leave), zone, the lease that their key ends with, and tags.
    Ls {
        /// The service's name; all services without
        service: Option<ServiceName>,
    },
    /// Prints what comes, changes and goes, of all services or of one, until ctrl-c
    ///
    /// Waits for an etcd that does not answer, and exits with 1 where it may not read at first. What fails later is
    /// logged, and it goes on.
    Watch {
        /// The service's name; all services without
        service: Option<ServiceName>,
    },
    /// Has a server leave: it takes itself off etcd, ends the calls that it has, and serves on
    ///
    /// Clients of tonic-etcd send it no new calls from the mark on, unless it is the last one; other clients still do
    /// until it has left. Waits until it has left, 5 s at most. A server that does not run tonic-etcd stays in etcd,
    /// marked: clients that run tonic-etcd leave it alone, and others do not.
    Drain {
        /// Where the server is registered, as host:port
        address: Address,

        /// The service's name, where the address is registered for several [default: the one that it is registered for]
        #[arg(long, value_name = "NAME")]
        service: Option<ServiceName>,
    },
    /// Sets the weight of a server: its share of the calls beside the other servers' weights
    ///
    /// Waits until the server has written it as its own, for which it has 3 s, and has it keep it until its program
    /// ends or sets another one. A server that does not run tonic-etcd would forget it: its former weight is put back.
    Weight {
        /// Where the server is registered, as host:port
        address: Address,

        /// The weight; 10 is what servers have that state none
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        weight: u16,

        /// The service's name, where the address is registered for several [default: the one that it is registered for]
        #[arg(long, value_name = "NAME")]
        service: Option<ServiceName>,

        /// Turns a Metadata of null into an object (format etcd): old grpc-go clients panic on one
        #[arg(long)]
        add_metadata: bool,
    },
    /// Looks for what is wrong, in etcd and at each server, and says what to do about it
    ///
    /// Exits with 1 if it found an error, with --strict if it found a warning.
    Check(command::check::Flags),
    /// Shows services, their servers and what happens to them on the whole terminal
    Top(command::top::Flags),
    /// Shows the registry live on a page for browsers, until ctrl-c
    Web(command::web::Flags),
}

fn main() -> ExitCode {
    // In front of the command or behind it: both are easy to type.
    let command = Flags::command().mut_args(|flag| flag.global(true));
    let flags = Flags::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    // A line of a log would stand in the middle of the screen.
    if !matches!(flags.command, Command::Top(_)) || !io::stderr().is_terminal() {
        log_to_stderr(flags.command.log());
    }
    let runtime = match runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::exit_code::<Flags>(Err(error.into())),
    };
    let ended = runtime.block_on(run(flags));
    // A file on a mount that does not answer would hold up the end for ever.
    runtime.shutdown_background();
    match ended {
        // The reader of the output has seen enough, as `head` does.
        Err(Failure::Run(error)) if is_closed_pipe(&*error) => ExitCode::SUCCESS,
        ended => failure::exit_code::<Flags>(ended),
    }
}

impl Command {
    /// What is logged: an etcd that does not answer is the error of the commands that ask once.
    fn log(&self) -> &'static str {
        match self {
            Self::Watch { .. } | Self::Web(_) => "warn",
            Self::Top(_) => "off",
            Self::Ls { .. } | Self::Drain { .. } | Self::Weight { .. } | Self::Check(_) => {
                "warn,tonic_etcd::etcd=error"
            }
        }
    }
}

async fn run(flags: Flags) -> Result<(), Failure> {
    let registry = flags.connection.registry()?;
    let output = Output { json: flags.json };
    let shown = flags.connection.shown();
    match flags.command {
        Command::Ls { service } => {
            command::ls::run(&registry, &flags.connection.place(), service.as_ref(), output).await
        }
        Command::Watch { service } => command::watch::run(&registry, service, output).await,
        Command::Drain { address, service } => command::drain::run(&registry, address, service, output).await,
        Command::Weight { address, weight, service, add_metadata } => {
            let registry = flags.connection.registry_to_reweigh(add_metadata)?;
            command::weight::run(&registry, address, weight, service, output).await
        }
        Command::Top(_) if output.json => {
            Err(refused("a screen is no JSON: `ls --json` prints what there is, `watch --json` what changes"))
        }
        Command::Top(top) => command::top::run(&registry, &flags.connection, &top).await,
        Command::Check(check) => command::check::run(registry, &flags.connection, &check, output).await,
        Command::Web(flags) => command::web::run(registry, shown, flags, output).await,
    }
}

fn is_closed_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Sends logs to standard error: what `RUST_LOG` asks for, or else `default`.
fn log_to_stderr(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colours = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // Its own complaints about a closed standard error would end in a panic there.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).log_internal_errors(false);
    log.with_writer(io::stderr).init();
}

/// The end of the help.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  etcd failed, nothing of that name or address is registered, a server did not obey, or check found an error
  2  the command line, a variable of the environment or a file that they name is wrong";
