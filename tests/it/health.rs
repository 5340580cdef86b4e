//! A registration that follows its server's health is in etcd while that is SERVING, and only then.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic_etcd::{Instance, Registration, RegistrationStatus, Registry};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Answer;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::server::{HealthReporter, health_reporter};

use crate::support::changes::Changes;
use crate::support::etcd::Etcd;
use crate::support::proxy::Proxy;
use crate::support::server::reaches;
use crate::support::{LIMIT, eventually};

const SERVICE: &str = "echo.Echo";

/// An etcd, and a registration that is started and follows the reported status of [`SERVICE`].
struct World {
    etcd: Etcd,
    registry: Registry,
    reporter: HealthReporter,
    registration: Registration,
    address: SocketAddr,
}

impl World {
    async fn new() -> Self {
        let etcd = Etcd::start().await;
        let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
        let reporter = HealthReporter::new();
        let address = SocketAddr::from(([127, 0, 0, 1], 1001));
        let registration = registry
            .registration(Instance::new("echo", address))
            .ttl(Duration::from_secs(3))
            .health(reporter.clone(), SERVICE)
            .build()
            .expect("a good instance");
        registration.start();
        Self { etcd, registry, reporter, registration, address }
    }

    async fn set_status(&self, status: ServingStatus) {
        self.reporter.set_service_status(SERVICE, status).await;
    }

    async fn wait_registered(&self) {
        let registered = |status: &RegistrationStatus| matches!(status, RegistrationStatus::Registered { .. });
        reaches(&self.registration, "it is registered", registered).await;
    }

    async fn wait_status(&self, status: RegistrationStatus) {
        reaches(&self.registration, &format!("it is {status}"), |now| *now == status).await;
    }

    async fn lease(&self) -> i64 {
        let one = async || match self.etcd.leases().await[..] {
            [lease] => Some(lease),
            _ => None,
        };
        eventually("there is one lease", LIMIT, one).await
    }

    async fn assert_no_key(&self) {
        assert!(self.etcd.keys("").await.is_empty(), "the key is not there");
    }
}

#[tokio::test]
async fn a_server_is_held_back_until_it_serves_for_the_first_time() {
    let world = World::new().await;
    let mut changes = Changes::of(&world.registry, "echo");
    world.wait_status(RegistrationStatus::NotServing).await;
    let lease = world.lease().await;
    // The whole server is reported as SERVING from the start, which does not count for the service.
    assert!(changes.stays_quiet_for(Duration::from_millis(300)).await, "the service was not reported as SERVING");
    for status in [ServingStatus::NotServing, ServingStatus::Unknown] {
        world.set_status(status).await;
    }
    changes.expect_nothing_before(&world.etcd, "127.0.0.1:1").await;
    world.etcd.delete("kitex/registry-etcd/echo/127.0.0.1:1").await;
    changes.expect_remove("127.0.0.1:1").await;
    world.assert_no_key().await;

    world.set_status(ServingStatus::Serving).await;
    changes.expect_insert(world.address).await;
    world.wait_registered().await;
    assert_eq!(world.etcd.keys("").await[0].2, lease, "under the lease that was granted before");
    world.registration.deregister().await;
    assert!(world.etcd.leases().await.is_empty(), "nothing is left behind");
}

#[tokio::test]
async fn a_server_that_stops_serving_is_taken_out_and_put_back_under_its_lease() {
    let mut world = World::new().await;
    let mut changes = Changes::of(&world.registry, "echo");
    world.set_status(ServingStatus::Serving).await;
    changes.expect_insert(world.address).await;
    world.wait_registered().await;
    let before = world.etcd.keys("").await;

    for status in [Some(ServingStatus::NotServing), Some(ServingStatus::Unknown), None] {
        match status {
            Some(status) => world.set_status(status).await,
            None => world.reporter.clear_service_status(SERVICE).await,
        }
        changes.expect_remove(world.address).await;
        world.wait_status(RegistrationStatus::NotServing).await;
        world.assert_no_key().await;
        assert_eq!(world.etcd.leases().await, [before[0].2], "the lease is kept");

        world.set_status(ServingStatus::Serving).await;
        changes.expect_insert(world.address).await;
        world.wait_registered().await;
        assert_eq!(world.etcd.keys("").await, before, "as it was");
    }
    world.registration.deregister().await;
}

#[tokio::test]
async fn a_pause_and_bad_health_each_keep_a_server_out_and_end_separately() {
    let world = World::new().await;
    let mut changes = Changes::of(&world.registry, "echo");
    world.set_status(ServingStatus::Serving).await;
    changes.expect_insert(world.address).await;

    world.set_status(ServingStatus::NotServing).await;
    changes.expect_remove(world.address).await;
    world.wait_status(RegistrationStatus::NotServing).await;
    world.registration.pause();
    world.wait_status(RegistrationStatus::Paused).await;
    world.registration.resume();
    world.wait_status(RegistrationStatus::NotServing).await;

    world.registration.pause();
    world.wait_status(RegistrationStatus::Paused).await;
    world.set_status(ServingStatus::Serving).await;
    changes.expect_nothing_before(&world.etcd, "127.0.0.1:1").await;
    assert_eq!(world.registration.status(), RegistrationStatus::Paused, "health does not resume what was paused");

    world.registration.resume();
    changes.expect_insert(world.address).await;
    world.wait_registered().await;
    world.registration.deregister().await;
}

#[tokio::test]
async fn a_lease_lost_while_the_server_does_not_serve_is_replaced_without_a_key() {
    let world = World::new().await;
    world.wait_status(RegistrationStatus::NotServing).await;
    let lost = world.lease().await;
    world.etcd.revoke(lost).await;
    let replaced = async || matches!(world.etcd.leases().await[..], [lease] if lease != lost);
    eventually("there is another lease", LIMIT, replaced).await;
    world.wait_status(RegistrationStatus::NotServing).await;
    world.assert_no_key().await;

    world.set_status(ServingStatus::Serving).await;
    world.wait_registered().await;
    let (lease, keys) = (world.lease().await, world.etcd.keys("").await);
    assert_eq!(keys[0].2, lease, "the key is under the new lease");
    world.registration.deregister().await;
}

#[tokio::test]
async fn health_that_flutters_moves_the_key_about_once_a_second() {
    let world = World::new().await;
    world.set_status(ServingStatus::Serving).await;
    world.wait_registered().await;
    let (before, began) = (world.etcd.revision().await, Instant::now());
    for _ in 0..200 {
        world.set_status(ServingStatus::NotServing).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
        world.set_status(ServingStatus::Serving).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    world.wait_registered().await;
    let written = world.etcd.revision().await - before;
    // A mark, a delete and a put each time; the first return is free.
    let at_most = 3 * (i64::try_from(began.elapsed().as_secs()).expect("a short time") + 2);
    assert!(written <= at_most, "{written} writes are more than {at_most}");
    world.registration.deregister().await;
}

#[tokio::test]
async fn at_the_shutdown_signal_health_turns_not_serving_before_the_key_goes() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let registry = Registry::builder([proxy.url()]).build().expect("a good registry");
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let address = incoming.local_addr().expect("it is bound");
    let (reporter, health) = health_reporter();
    reporter.set_service_status(SERVICE, ServingStatus::Serving).await;
    let registration = registry
        .registration(Instance::new("echo", address))
        .ttl(Duration::from_secs(3))
        .health(reporter, SERVICE)
        .build()
        .expect("a good instance");
    let (shutdown, stopped) = oneshot::channel::<()>();
    let server = Server::builder().layer(registration.layer()).add_service(health).serve_with_incoming_shutdown(
        registration.incoming(incoming),
        registration.deregister_on(async { stopped.await.unwrap_or_default() }),
    );
    let server = tokio::spawn(server);
    registration.registered().await.expect("it is not gone");

    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a good URL");
    let mut client = HealthClient::new(endpoint.connect().await.expect("the server listens"));
    let request = HealthCheckRequest { service: SERVICE.to_owned() };
    let mut statuses = client.watch(request).await.expect("the health service knows it").into_inner();
    let mut next = async || statuses.message().await.expect("the server serves").map(|answer| answer.status());
    assert_eq!(next().await, Some(Answer::Serving), "it serves");

    let before = etcd.keys("").await;
    proxy.black_hole();
    shutdown.send(()).expect("the server waits for it");
    assert_eq!(next().await, Some(Answer::NotServing), "clients that watch the health hear of it");
    assert_eq!(etcd.keys("").await, before, "while etcd has heard nothing");
    let whole = client.check(HealthCheckRequest::default()).await.expect("the server still answers");
    assert_eq!(whole.into_inner().status(), Answer::NotServing, "the whole server says so");

    proxy.forward();
    eventually("then it leaves etcd", LIMIT, async || etcd.keys("").await.is_empty()).await;
    drop((client, statuses));
    let end = tokio::time::timeout(LIMIT, server).await.expect("the server ends").expect("it does not panic");
    end.expect("it ends without an error");
    assert_eq!(registration.status(), RegistrationStatus::Gone, "as every server that is shut down");
}
