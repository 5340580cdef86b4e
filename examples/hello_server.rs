//! A server that says hello: it registers itself in etcd as "hello" when it starts to serve, and leaves on ctrl-c.

use std::error::Error;

use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_etcd::{Instance, Registry, shutdown_signal};

use proto::hello::hello_server::{Hello, HelloServer};
use proto::hello::{HelloReply, HelloRequest};

mod proto;

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
    tracing_subscriber::fmt().init();
    let registry = Registry::builder(["http://127.0.0.1:2379"]).build()?;
    // On all interfaces, on a free port. What is published is the address that others reach this host at.
    let incoming = TcpIncoming::bind("0.0.0.0:0".parse()?)?;
    let registration = registry.registration(Instance::new("hello", incoming.local_addr()?)).build()?;
    println!("hello will be published as {}", registration.address());

    registration.serve(HelloServer::new(Greeter), incoming, shutdown_signal()).await?;
    Ok(())
}
