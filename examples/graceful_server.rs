//! A server without etcd that shuts down gracefully on ctrl-c or SIGTERM: calls in flight may finish, until a limit.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use serde_json::json;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_etcd::server::Drain;
use tonic_etcd::shutdown_signal;

use proto::hello::hello_server::{Hello, HelloServer};
use proto::hello::{HelloReply, HelloRequest};

mod proto;

/// A server that says hello. At the signal, it waits for the calls in flight, but not longer than the limit.
#[derive(Parser)]
#[command(name = "graceful_server")]
struct Flags {
    /// Where to listen; port 0 finds a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// How long calls in flight may take after the signal
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    drain_limit: u64,
}

struct Greeter;

#[tonic::async_trait]
impl Hello for Greeter {
    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let message = format!("Hello, {}!", request.into_inner().name);
        Ok(Response::new(HelloReply { message }))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let flags = Flags::parse();
    let signal = shutdown_signal();
    let incoming = TcpIncoming::bind(flags.listen)?;
    println!("{}", json!({ "event": "listening", "address": incoming.local_addr()? }));

    let drain = Drain::new().limit(Duration::from_secs(flags.drain_limit));
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
        if calls != reported {
            println!("{}", json!({ "event": "in_flight", "calls": calls }));
            reported = calls;
        }
    }
}
