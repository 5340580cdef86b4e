//! A client of plain HTTP servers: it finds them in etcd, and asks those that have the fewest requests under way.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use futures_util::TryStreamExt;
use http_body_util::{BodyExt, Empty};
use hyper::Uri;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::time::{interval, timeout};
use tonic_etcd::{Change, RegistrySet, shutdown_signal};
use tower::balance::p2c::Balance;
use tower::load::{CompleteOnResponse, PendingRequests};
use tower::{BoxError, Service, ServiceExt, service_fn};

use shared::{Failure, RegistryFlags};

mod shared;

/// How long a request may take, waiting for a server included.
const LIMIT: Duration = Duration::from_secs(5);

/// Asks the HTTP servers of a service for a page, again and again, and prints each answer as a JSON line.
#[derive(Parser)]
#[command(name = "http_client")]
struct Flags {
    #[command(flatten)]
    registry: RegistryFlags,

    /// The service's name
    #[arg(long, value_name = "NAME", default_value = "web")]
    service: String,

    /// The page
    #[arg(long, default_value = "/")]
    path: String,

    /// The time between two requests, in milliseconds
    #[arg(long, value_name = "MILLIS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    shared::log_to_stderr("warn");
    shared::exit_code::<Flags>(run(flags).await)
}

async fn run(flags: Flags) -> Result<(), Failure> {
    let changes = RegistrySet::new(flags.registry.registries()?).discover(&flags.service)?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();

    // A tower service for each server that joins, which tower's balancer takes in and lets go of.
    let servers = changes.map_ok(|change| match change {
        Change::Insert(address, _) => {
            let (client, server) = (client.clone(), address.to_string());
            let fetch = service_fn(move |path: String| fetch(client.clone(), server.clone(), path));
            Change::Insert(address, PendingRequests::new(fetch, CompleteOnResponse::default()))
        }
        Change::Remove(address) => Change::Remove(address),
    });
    let mut balanced = Balance::new(servers);

    let mut ticks = interval(Duration::from_millis(flags.interval));
    let mut shutdown = pin!(shutdown_signal());
    loop {
        let exchange = async {
            ticks.tick().await;
            let answer = async { balanced.ready().await?.call(flags.path.clone()).await };
            timeout(LIMIT, answer).await.unwrap_or_else(|_| Err("nobody answered in time".into()))
        };
        let answer = tokio::select! {
            answer = exchange => answer,
            () = &mut shutdown => return Ok(()),
        };
        shared::print_line(&answer.unwrap_or_else(|error| json!({ "event": "failed", "reason": error.to_string() })))?;
    }
}

type HttpClient = Client<HttpConnector, Empty<Bytes>>;

async fn fetch(client: HttpClient, server: String, path: String) -> Result<Value, BoxError> {
    let uri = Uri::builder().scheme("http").authority(server).path_and_query(path).build()?;
    let response = client.get(uri).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(json!({ "event": "answered", "status": status, "body": String::from_utf8_lossy(&body) }))
}
