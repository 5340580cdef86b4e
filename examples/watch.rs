//! Prints one JSON line for each server of a service that comes, changes or goes.

use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use futures_util::StreamExt;
use serde::Serialize;
use tonic_etcd::{Address, Instance, Registries, shutdown_signal};
use tower::discover::Change;

use shared::{Failure, RegistryFlags};

mod shared;

/// Prints one JSON line for each server of a service that comes, changes or goes, until ctrl-c.
///
/// A line has the event (insert, update or remove), address, weight, tags, and the time in microseconds since 1970. The
/// servers that are there already come first, as inserts; a remove repeats the last known weight and tags.
#[derive(Parser)]
#[command(name = "watch")]
struct Flags {
    #[command(flatten)]
    registry: RegistryFlags,

    /// The service's name
    #[arg(long, value_name = "NAME", default_value = "echo")]
    service: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    shared::log_to_stderr("warn");
    shared::exit_code::<Flags>(run(&flags).await)
}

async fn run(flags: &Flags) -> Result<(), Failure> {
    let registries = Registries::new(flags.registry.registries()?);
    let mut changes = registries.discover(&flags.service)?;
    let shutdown = shutdown_signal();
    tokio::pin!(shutdown);

    let mut known = HashMap::new();
    loop {
        tokio::select! {
            Some(Ok(change)) = changes.next() => {
                if let Some(line) = Line::of(change, &mut known) {
                    shared::print_line(&line)?;
                }
            }
            () = &mut shutdown => return Ok(()),
        }
    }
}

#[derive(Serialize)]
struct Line {
    event: &'static str,
    address: String,
    weight: u16,
    tags: BTreeMap<String, String>,
    unix_us: u128,
}

impl Line {
    /// The stream inserts a known address again when its weight or tags changed, and removes it by its address alone.
    fn of(change: Change<Address, Instance>, known: &mut HashMap<Address, Instance>) -> Option<Self> {
        let unix_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let (event, instance) = match change {
            Change::Insert(address, instance) => match known.insert(address, instance.clone()) {
                None => ("insert", instance),
                Some(_) => ("update", instance),
            },
            Change::Remove(address) => ("remove", known.remove(&address)?),
        };
        let Instance { address, weight, tags, .. } = instance;
        Some(Self { event, address: address.to_string(), weight, tags, unix_us })
    }
}
