//! Prints one JSON line for each server of a service that comes, changes or goes.

use std::collections::HashMap;
use std::process::ExitCode;

use clap::Parser;
use futures_util::StreamExt;
use tonic_etcd::{RegistrySet, shutdown_signal};

use changes::Line;
use shared::{Failure, RegistryFlags};

#[path = "../src/bin/tonic-etcd/changes.rs"]
mod changes;
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
    let registries = RegistrySet::new(flags.registry.registries()?);
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
