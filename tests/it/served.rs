//! A server in one call: registered under two names, with two services, options and a layer of its own; and its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::service::{InterceptorLayer, Routes};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_etcd::{Instance, Registration, RegistrationSet, RegistrationStatus, Registry};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::etcd::Etcd;
use crate::support::server::proto::hello::hello_client::HelloClient;
use crate::support::server::proto::hello::hello_server::{Hello, HelloServer};
use crate::support::server::proto::hello::{HelloReply, HelloRequest};
use crate::support::{LIMIT, eventually};

struct Greeter;

#[tonic::async_trait]
impl Hello for Greeter {
    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        Ok(Response::new(HelloReply { message: request.into_inner().name }))
    }
}

#[tokio::test]
async fn a_server_with_services_options_and_layers_is_one_call() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().expect("an address")).expect("there is a free port");
    let address = incoming.local_addr().expect("it listens");
    let register = |service: &str| {
        let registration = registry.registration(Instance::new(service, address)).propagation_pause(Duration::ZERO);
        registration.build().expect("good options")
    };
    let registrations = RegistrationSet::new([register("hello"), register("health")]).expect("two of one server");
    let (health, checks) = tonic_health::server::health_reporter();
    health.set_serving::<HelloServer<Greeter>>().await;
    let services = Routes::new(HelloServer::new(Greeter)).add_service(checks);
    let calls = Arc::<AtomicUsize>::default();
    let seen = calls.clone();
    let count = InterceptorLayer::new(move |request: Request<()>| {
        seen.fetch_add(1, Ordering::Relaxed);
        Ok(request)
    });
    let server = Server::builder().timeout(LIMIT).layer(count);
    let (signal, signalled) = oneshot::channel::<()>();
    let serving = tokio::spawn(registrations.serve_with(server, services, incoming, async { _ = signalled.await }));

    // Not `registered()`, which starts what was not started.
    let is_registered =
        |registration: &Registration| matches!(registration.status(), RegistrationStatus::Registered { .. });
    eventually("it registers itself", LIMIT, async || registrations.iter().all(is_registered)).await;
    let channel = |service: &str| registry.channel(service).wait_for_ready(true).build().expect("a good name");
    let reply = HelloClient::new(channel("hello")).say_hello(HelloRequest { name: "you".to_owned() }).await;
    assert_eq!(reply.expect("it answers").into_inner().message, "you");
    let check = HealthCheckRequest { service: "hello.Hello".to_owned() };
    HealthClient::new(channel("health")).check(check).await.expect("the other service answers, too");
    assert_eq!(calls.load(Ordering::Relaxed), 2, "the layer saw both");

    signal.send(()).expect("it waits for the signal");
    timeout(LIMIT, serving).await.expect("it ends").expect("it does not panic").expect("it ends in order");
    assert!(etcd.keys("").await.is_empty(), "nothing is left in etcd");
    assert!(registrations.iter().all(|registration| registration.status() == RegistrationStatus::Gone));
}
