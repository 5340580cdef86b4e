//! A whole production server: two services, health and reflection, limits, and an end that costs no call.

use std::error::Error;
use std::time::Duration;

use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_etcd::{Instance, Registry, shutdown_signal};

use proto::goodbye::goodbye_server::{Goodbye, GoodbyeServer};
use proto::goodbye::{GoodbyeReply, GoodbyeRequest};
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

#[tonic::async_trait]
impl Goodbye for Greeter {
    async fn say_goodbye(&self, request: Request<GoodbyeRequest>) -> Result<Response<GoodbyeReply>, Status> {
        Ok(Response::new(GoodbyeReply { message: format!("Goodbye, {}!", request.into_inner().name) }))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let urls = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:2379".to_owned());
    let registry = Registry::builder(urls.split(',')).build()?;
    let incoming = TcpIncoming::bind("0.0.0.0:0".parse()?)?.with_nodelay(Some(true));
    let instance = Instance::new("hello", incoming.local_addr()?).with_tag("version", env!("CARGO_PKG_VERSION"));

    // It is in etcd only while hello.Hello is SERVING, which the program says once it is ready.
    let (reporter, health) = tonic_health::server::health_reporter();
    let registration = registry.registration(instance).health(reporter.clone(), "hello.Hello").build()?;
    println!("hello is published as {} once it serves", registration.address());
    reporter.set_serving::<HelloServer<Greeter>>().await;

    let descriptors = include_bytes!("proto/descriptors.bin");
    let reflection = tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(descriptors);
    let services = Routes::new(HelloServer::new(Greeter)).add_service(GoodbyeServer::new(Greeter)).add_service(health);
    let services = services.add_service(reflection.build_v1()?);
    let server = Server::builder().timeout(Duration::from_secs(30)).concurrency_limit_per_connection(256);
    // With SIGTERM or ctrl-c it leaves etcd, then finishes the calls in flight, within 30 s in all.
    registration.serve_with(server, services, incoming, shutdown_signal()).await?;
    println!("hello has left");
    Ok(())
}
