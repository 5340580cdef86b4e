//! An axum server that registers itself in etcd when it begins to serve, and leaves on ctrl-c or SIGTERM.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use clap::Parser;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic_etcd::{Instance, RegistrationSet, Registry, shutdown_signal};

use accepting::Accepting;
use shared::{Failure, RegistryFlags};

#[path = "shared/accepting.rs"]
mod accepting;
mod shared;

/// An axum server that registers itself in etcd. It says hello at /, and takes a while for that at /slow.
#[derive(Parser)]
#[command(name = "axum_server")]
struct Flags {
    #[command(flatten)]
    registry: RegistryFlags,

    /// The service's name
    #[arg(long, value_name = "NAME", default_value = "web")]
    service: String,

    /// Where to listen; port 0 finds a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    shared::log_to_stderr("warn,tonic_etcd=info");
    shared::exit_code::<Flags>(run(flags).await)
}

async fn run(flags: Flags) -> Result<(), Failure> {
    let listener = TcpListener::bind(flags.listen).await?;
    let bound = listener.local_addr()?;
    let register = |registry: &Registry| registry.registration(Instance::new(&flags.service, bound)).build();
    let registries = flags.registry.registries()?;
    let registrations = RegistrationSet::new(registries.iter().map(register).collect::<Result<Vec<_>, _>>()?)?;
    let hello = format!("hello from {bound}");
    let slow = hello.clone();

    let app = Router::new()
        .route("/", get(async || hello))
        .route(
            "/slow",
            get(async || {
                tokio::time::sleep(Duration::from_secs(2)).await;
                slow
            }),
        )
        // axum applies it to each route, here and now. So it only counts; accepting starts the registration.
        .layer(registrations.layer().count_only());
    let accepting = Accepting::new(registrations.incoming(TcpListenerStream::new(listener)), bound);
    shared::print_line(&json!({ "event": "listening", "address": bound }))?;
    axum::serve(accepting, app).with_graceful_shutdown(registrations.deregister_on(shutdown_signal())).await?;
    Ok(())
}
