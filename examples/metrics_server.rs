//! A server that says hello, and shows Prometheus what it does: at `/metrics`, on an address of its own.

use std::error::Error;
use std::net::SocketAddr;

use metrics_exporter_prometheus::PrometheusBuilder;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_etcd::{Instance, Registry, shutdown_signal};

use proto::hello::hello_server::{Hello, HelloServer};
use proto::hello::{HelloReply, HelloRequest};

mod proto;

/// Bounds of the histograms, in seconds: those that gRPC names, of the ones that are of use here.
const SECONDS: [f64; 15] =
    [0.0003, 0.0006, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.065, 0.13, 0.25, 0.5, 1.0, 2.0, 5.0];

struct Greeter;

#[tonic::async_trait]
impl Hello for Greeter {
    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        Ok(Response::new(HelloReply { message: format!("Hello, {}!", request.into_inner().name) }))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "http://127.0.0.1:2379".to_owned());
    let address: SocketAddr = arguments.next().unwrap_or_else(|| "127.0.0.1:9464".to_owned()).parse()?;

    // Before the registry: what is built earlier has nothing to report to.
    let prometheus = PrometheusBuilder::new().with_recommended_naming(true).set_buckets(&SECONDS)?;
    prometheus.with_http_listener(address).install()?;
    println!("metrics are at http://{address}/metrics");

    let registry = Registry::builder([url]).build()?;
    let incoming = TcpIncoming::bind("0.0.0.0:0".parse()?)?;
    let registration = registry.registration(Instance::new("hello", incoming.local_addr()?)).build()?;
    registration.serve(HelloServer::new(Greeter), incoming, shutdown_signal()).await?;
    Ok(())
}
