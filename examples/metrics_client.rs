//! A client that says hello twenty times a second, and shows Prometheus what becomes of it: at `/metrics`.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use tonic_etcd::{Registry, shutdown_signal};

use proto::hello::HelloRequest;
use proto::hello::hello_client::HelloClient;

mod proto;

/// Bounds of the histograms, in seconds: those that gRPC names, of the ones that are of use here.
const SECONDS: [f64; 15] =
    [0.0003, 0.0006, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.065, 0.13, 0.25, 0.5, 1.0, 2.0, 5.0];

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "http://127.0.0.1:2379".to_owned());
    let address: SocketAddr = arguments.next().unwrap_or_else(|| "127.0.0.1:9465".to_owned()).parse()?;

    // Before the channel: what is built earlier has nothing to report to.
    let prometheus = PrometheusBuilder::new().with_recommended_naming(true).set_buckets(&SECONDS)?;
    prometheus.with_http_listener(address).install()?;
    println!("metrics are at http://{address}/metrics");

    let channel = Registry::builder([url]).build()?.channel("hello").timeout(Duration::from_secs(5)).build()?;
    let mut client = HelloClient::new(channel);
    let calls = async {
        loop {
            if let Err(status) = client.say_hello(HelloRequest { name: "Prometheus".to_owned() }).await {
                eprintln!("the call failed: {:?}: {}", status.code(), status.message());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = calls => {}
        () = shutdown_signal() => {}
    }
    Ok(())
}
