//! A graceful shutdown without etcd: `graceful_server [SECONDS]` lets calls in flight finish at SIGTERM, up to a limit.

use std::error::Error;
use std::time::Duration;

use serde_json::json;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_etcd::server::Drain;
use tonic_etcd::shutdown_signal;

use proto::hello::hello_server::{Hello, HelloServer};
use proto::hello::{HelloReply, HelloRequest};

mod proto;

struct Greeter;

#[tonic::async_trait]
impl Hello for Greeter {
    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        Ok(Response::new(HelloReply { message: format!("Hello, {}!", request.into_inner().name) }))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let seconds = std::env::args().nth(1).map_or(Ok(10), |seconds| seconds.parse())?;
    let signal = shutdown_signal();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?;
    println!("{}", json!({ "event": "listening", "address": incoming.local_addr()? }));

    let drain = Drain::new().limit(Duration::from_secs(seconds));
    tokio::spawn(report_in_flight(drain.clone()));
    let shutdown = drain.on(async {
        signal.await;
        println!("{}", json!({ "event": "draining", "in_flight": drain.in_flight() }));
    });
    Server::builder()
        .layer(drain.layer())
        .add_service(HelloServer::new(Greeter))
        .serve_with_incoming_shutdown(drain.incoming(incoming), shutdown)
        .await?;
    println!("{}", json!({ "event": "stopped" }));
    Ok(())
}

/// Prints how many calls are in flight when that has changed.
async fn report_in_flight(drain: Drain) {
    let mut reported = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let calls = drain.in_flight();
        if calls != std::mem::replace(&mut reported, calls) {
            println!("{}", json!({ "event": "in_flight", "calls": calls }));
        }
    }
}
