//! A plain hyper server that registers itself in etcd when it begins to serve, and leaves on ctrl-c or SIGTERM.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use futures_util::StreamExt;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic_etcd::{Instance, RegistrationSet, Registry, shutdown_signal};
use tower::{Layer, service_fn};

use shared::{Failure, RegistryFlags};

mod shared;

/// A plain hyper server that registers itself in etcd. It says hello, and takes a while for that at /slow.
#[derive(Parser)]
#[command(name = "hyper_server")]
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
    let hello = Bytes::from(format!("hello from {bound}"));
    let service = service_fn(move |request: Request<_>| answer(request.uri().path() == "/slow", hello.clone()));

    // The first connection that is waited for starts the registration, and the layer would as well.
    let service = TowerToHyperService::new(registrations.layer().layer(service));
    let mut incoming = registrations.incoming(TcpListenerStream::new(listener));
    let mut shutdown = pin!(registrations.deregister_on(shutdown_signal()));
    let (server, connections) = (auto::Builder::new(TokioExecutor::new()), GracefulShutdown::new());
    shared::print_line(&json!({ "event": "listening", "address": bound }))?;
    loop {
        tokio::select! {
            Some(accepted) = incoming.next() => match accepted {
                Ok(io) => {
                    let connection = server.serve_connection(TokioIo::new(io), service.clone()).into_owned();
                    tokio::spawn(connections.watch(connection));
                }
                // Too many open files, for instance, which passes.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            },
            () = &mut shutdown => break,
        }
    }
    // No connection is accepted any more. This waits for the connections, which the registration closes at the limit.
    drop(incoming);
    connections.shutdown().await;
    Ok(())
}

async fn answer(is_slow: bool, hello: Bytes) -> Result<Response<Full<Bytes>>, Infallible> {
    if is_slow {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    Ok(Response::new(Full::new(hello)))
}
