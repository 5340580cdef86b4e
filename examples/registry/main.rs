//! A look into a registry, and an order to one of its servers: `print.rs` shows it as columns or as JSON.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::error::Error;
use std::future::ready;
use std::io;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};
use tonic_etcd::snapshot::Member;
use tonic_etcd::{Address, Change, ConfigError, Instance, Registry, RegistryError, shutdown_signal};

use changes::Line;
use print::Output;
use shared::{Failure, RegistryFlags};

#[path = "../shared/changes.rs"]
mod changes;
mod print;
#[path = "../shared/mod.rs"]
mod shared;

/// How often a watch of all services looks for new ones.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How long a server that is asked to leave may take.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// How often it is looked at meanwhile.
const LEAVE_INTERVAL: Duration = Duration::from_millis(50);

/// Looks into a registry, and asks servers to leave.
///
/// Exits with 0 if it did what it was asked to; with 1 if etcd failed, nothing of that name or address is registered,
/// or a server did not leave; with 2 if the command line is wrong.
#[derive(Parser)]
#[command(name = "registry")]
struct Flags {
    #[command(flatten)]
    registry: RegistryFlags,

    /// Prints one JSON object a line, for programs
    #[arg(long)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the services, or the servers of one
    Ls {
        /// The service's name
        service: Option<String>,
    },
    /// Prints what comes, changes and goes, of all services or of one, until ctrl-c
    Watch {
        /// The service's name
        service: Option<String>,
    },
    /// Asks a server to leave: it is struck out and gets no new calls, but serves on
    Drain {
        /// Where the server is registered, as host:port
        address: Address,

        /// The service's name, where the address is registered for several [default: the one that it is registered for]
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    // In front of the command or behind it: both are easy to type.
    let command = Flags::command().mut_args(|flag| flag.global(true));
    let flags = Flags::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    shared::log_to_stderr(flags.command.log());
    match run(flags).await {
        // The reader of the output has seen enough, as `head` does.
        Err(Failure::Run(error)) if is_closed_pipe(&*error) => ExitCode::SUCCESS,
        ended => shared::exit_code::<Flags>(ended),
    }
}

impl Command {
    /// What is logged: an etcd that does not answer is the error of the commands that ask once.
    fn log(&self) -> &'static str {
        match self {
            Self::Watch { .. } => "warn",
            Self::Ls { .. } | Self::Drain { .. } => "warn,tonic_etcd::etcd=error",
        }
    }
}

fn is_closed_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

async fn run(flags: Flags) -> Result<(), Failure> {
    let mut registries = flags.registry.registries()?;
    let (Some(registry), []) = (registries.pop(), &registries[..]) else {
        return Err(Failure::Usage("this looks at one --format at a time".into()));
    };
    let output = Output { json: flags.json };
    match flags.command {
        Command::Ls { service: None } => Ok(output.services(&registry.services().await?)?),
        Command::Ls { service: Some(service) } => list(&registry, &service, output).await,
        Command::Watch { service } => watch(&registry, service, output).await,
        Command::Drain { address, service } => drain(&registry, address, service, output).await,
    }
}

async fn list(registry: &Registry, service: &str, output: Output) -> Result<(), Failure> {
    let snapshot = registry.instances(service).await?;
    if snapshot.is_empty() {
        return Err(failed(format!("no server of {service} is registered")));
    }
    Ok(output.instances(service, &snapshot)?)
}

async fn watch(registry: &Registry, service: Option<String>, output: Output) -> Result<(), Failure> {
    let mut services = match service {
        Some(service) => stream::once(ready(Ok(vec![service]))).chain(stream::pending()).boxed(),
        None => all_services(registry.clone()),
    };
    let mut changes = SelectAll::new();
    let mut known: HashMap<String, HashMap<Address, Instance>> = HashMap::new();
    let mut shutdown = pin!(shutdown_signal());
    loop {
        tokio::select! {
            Some((service, change)) = changes.next() => {
                if let Some(line) = Line::of(change, known.entry(String::clone(&service)).or_default()) {
                    output.change(&service, &line)?;
                }
            }
            Some(listed) = services.next() => match listed {
                Ok(listed) => {
                    for service in listed {
                        if let Entry::Vacant(place) = known.entry(service) {
                            changes.push(changes_of(registry, place.key().clone())?);
                            place.insert(HashMap::new());
                        }
                    }
                }
                Err(error @ (RegistryError::Unavailable { .. } | RegistryError::Refused { .. })) => {
                    tracing::warn!(%error, "services cannot be listed now");
                }
                Err(error) => return Err(error.into()),
            },
            () = &mut shutdown => return Ok(()),
        }
    }
}

/// The names of all services, now and again.
fn all_services(registry: Registry) -> BoxStream<'static, Result<Vec<String>, RegistryError>> {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let look = async |(registry, mut looks): (Registry, Interval)| {
        looks.tick().await;
        let services = registry.services().await;
        let names = services.map(|services| services.into_keys().map(|name| name.to_string()).collect());
        Some((names, (registry, looks)))
    };
    stream::unfold((registry, looks), look).boxed()
}

fn changes_of(registry: &Registry, service: String) -> Result<BoxStream<'static, Told>, ConfigError> {
    let changes = registry.discover(&service)?;
    Ok(changes.filter_map(move |change| ready(change.ok().map(|change| (service.clone(), change)))).boxed())
}

/// A service and a change of it.
type Told = (String, Change<Address, Instance>);

async fn drain(registry: &Registry, address: Address, service: Option<String>, output: Output) -> Result<(), Failure> {
    let service = match service {
        Some(service) => service,
        None => only_service(registry, &address).await?,
    };
    let before = lease_of(registry, &service, &address).await?;
    registry.drain(&service, address.clone()).await?;
    output.drained(&service, &address, "marked")?;

    // Another lease is another server: the successor at the same address.
    let left = async {
        while before.is_some() && lease_of(registry, &service, &address).await? == before {
            sleep(LEAVE_INTERVAL).await;
        }
        Ok::<_, Failure>(())
    };
    let Ok(left) = timeout(LEAVE_LIMIT, left).await else {
        let limit = LEAVE_LIMIT.as_secs();
        return Err(failed(format!("{address} is marked and gets no new calls, but has not left in {limit} s")));
    };
    left?;
    Ok(output.drained(&service, &address, "left")?)
}

async fn lease_of(registry: &Registry, service: &str, address: &Address) -> Result<Option<i64>, Failure> {
    Ok(registry.instances(service).await?.get(address).map(Member::lease))
}

/// The service that a server at this address is registered for.
async fn only_service(registry: &Registry, address: &Address) -> Result<String, Failure> {
    let mut found = Vec::new();
    for service in registry.services().await?.into_keys() {
        if registry.instances(&service).await?.get(address).is_some() {
            found.push(service.to_string());
        }
    }
    match found.len() {
        0 => Err(failed(format!("no server is registered at {address}"))),
        1 => Ok(found.remove(0)),
        _ => {
            let services = found.join(", ");
            Err(Failure::Usage(format!("{address} is registered for {services}: say which with --service").into()))
        }
    }
}

fn failed(reason: String) -> Failure {
    Failure::Run(reason.into())
}
