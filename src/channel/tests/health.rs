//! An instance whose server says that it is not well gets no calls, and gets them again when it says so.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::server::{HealthReporter, health_reporter};

use super::client::over;
use super::peers::{Count, Echo, LIMIT, Scripted};
use crate::channel::{BalancedChannel, ChannelBuilder, Connectivity, InstanceStatus};
use crate::instance::Instance;

/// A server that has nothing but its health.
struct Patient {
    address: SocketAddr,
    reporter: HealthReporter,
    connections: Arc<Count>,
}

impl Patient {
    /// Starts a server that reports this status of `echo`.
    async fn start(status: ServingStatus) -> Self {
        let (reporter, service) = health_reporter();
        reporter.set_service_status("echo", status).await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let connections = Arc::<Count>::default();
        let counted = connections.clone();
        let incoming = TcpListenerStream::new(listener).inspect(move |_| counted.add_one());
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        Self { address, reporter, connections }
    }

    async fn set_status(&self, status: ServingStatus) {
        self.reporter.set_service_status("echo", status).await;
    }
}

fn asking(builder: ChannelBuilder) -> BalancedChannel {
    builder.health_check("echo").build().expect("a good channel")
}

/// Waits until the instances are like that.
async fn until(channel: &BalancedChannel, are: impl Fn(&[InstanceStatus]) -> bool) {
    let mut changes = channel.instance_changes();
    let wait = async { while !are(&changes.next().await.expect("the channel is there")) {} };
    assert!(timeout(LIMIT, wait).await.is_ok(), "in the end: {:?}", channel.instances());
}

fn is(status: &InstanceStatus, address: SocketAddr, state: Connectivity) -> bool {
    status.instance().address == address.into() && status.state() == state
}

/// The address that answers a call.
async fn answerer(channel: &BalancedChannel) -> Result<SocketAddr, Status> {
    let answer = HealthClient::new(channel.clone()).check(HealthCheckRequest { service: String::new() }).await?;
    let chosen = answer.extensions().get::<Arc<Instance>>().expect("the instance is in the extensions");
    Ok(chosen.address.to_string().parse().expect("an IP address"))
}

#[tokio::test]
async fn no_replacement_is_dialled_for_a_server_of_unknown_health() {
    let patients: [Patient; 6] = futures_util::future::join_all((0..6).map(|_| Patient::start(ServingStatus::Serving)))
        .await
        .try_into()
        .unwrap_or_else(|_| unreachable!("there are six"));
    let builder = over(patients.each_ref().map(|patient| patient.address));
    let channel = asking(builder.subset_as(2, "client"));
    let ready = |all: &[InstanceStatus]| all.iter().filter(|one| one.state() == Connectivity::Ready).count() == 2;
    until(&channel, ready).await;
    for _ in 0..100 {
        answerer(&channel).await.expect("both serve");
    }
    let dialled: usize = patients.iter().map(|patient| patient.connections.get()).sum();
    assert_eq!(dialled, 2, "the subset alone");
}

#[tokio::test]
async fn only_instances_that_say_that_they_serve_get_calls() {
    let (well, ill) = (Patient::start(ServingStatus::Serving).await, Patient::start(ServingStatus::NotServing).await);
    let channel = asking(over([well.address, ill.address]));
    until(&channel, |all| all.iter().any(|status| is(status, ill.address, Connectivity::TransientFailure))).await;
    until(&channel, |all| all.iter().any(|status| is(status, well.address, Connectivity::Ready))).await;
    for _ in 0..20 {
        assert_eq!(answerer(&channel).await.expect("one of them serves"), well.address, "the other one does not");
    }
    assert!(channel.instances().iter().all(|status| status.in_flight() == 0), "health checks are not counted as calls");

    well.set_status(ServingStatus::NotServing).await;
    ill.set_status(ServingStatus::Serving).await;
    until(&channel, |all| all.iter().any(|status| is(status, ill.address, Connectivity::Ready))).await;
    until(&channel, |all| all.iter().any(|status| is(status, well.address, Connectivity::TransientFailure))).await;
    for _ in 0..20 {
        assert_eq!(answerer(&channel).await.expect("one of them serves"), ill.address, "they have changed places");
    }
}

#[tokio::test]
async fn calls_fail_with_the_reason_while_no_server_serves_and_succeed_later() {
    let ill = Patient::start(ServingStatus::NotServing).await;
    let channel = asking(over([ill.address]));
    until(&channel, |all| all.iter().any(|status| is(status, ill.address, Connectivity::TransientFailure))).await;
    let status = answerer(&channel).await.expect_err("no server serves");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("NOT_SERVING"), "it carries the server's status: {status:?}");
    ill.set_status(ServingStatus::Serving).await;
    channel.ready_within(LIMIT).await.expect("it serves now");
    assert_eq!(answerer(&channel).await.expect("it serves"), ill.address);
}

#[tokio::test]
async fn a_service_config_asks_for_health_unless_the_channel_does_itself() {
    let ill = Patient::start(ServingStatus::NotServing).await;
    ill.reporter.set_service_status("own", ServingStatus::Serving).await;
    let config = || r#"{"healthCheckConfig":{"serviceName":"echo"}}"#.parse().expect("it is a good one");
    let by_config = over([ill.address]).service_config(config()).build().expect("a good channel");
    until(&by_config, |all| all.iter().any(|status| is(status, ill.address, Connectivity::TransientFailure))).await;
    assert!(answerer(&by_config).await.expect_err("it is ill").message().contains("NOT_SERVING"));
    for builder in [
        over([ill.address]).service_config(config()).health_check("own"),
        over([ill.address]).health_check("own").service_config(config()),
    ] {
        let channel = builder.build().expect("a good channel");
        timeout(LIMIT, channel.ready())
            .await
            .expect("it is well for what the channel asks")
            .expect("the runtime lives");
    }
}

#[tokio::test]
async fn a_service_that_the_server_does_not_know_is_not_served_until_it_is() {
    let patient = Patient::start(ServingStatus::Serving).await;
    let channel = over([patient.address]).health_check("other").build().expect("a good channel");
    until(&channel, |all| all.iter().any(|status| is(status, patient.address, Connectivity::TransientFailure))).await;
    patient.reporter.set_service_status("other", ServingStatus::Serving).await;
    channel.ready_within(LIMIT).await.expect("it is known now");
}

#[tokio::test]
async fn a_server_without_a_health_service_counts_as_serving() {
    let echo = Echo::start();
    let channel = asking(over([echo.address()]));
    channel.ready_within(LIMIT).await.expect("it cannot say that it is ill");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_the_question_gets_no_calls() {
    let silent = Scripted::start(super::peers::OnCall::Hold, None);
    let channel = asking(over([silent.address()]));
    until(&channel, |all| all.iter().any(|status| is(status, silent.address(), Connectivity::TransientFailure))).await;
    let cause = channel.instances()[0].cause().map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains("no answer within 1s"), "it says so: {cause}");
}

#[tokio::test]
async fn where_a_server_allows_one_stream_at_last_that_is_for_calls() {
    let crowded = Scripted::start(super::peers::OnCall::Hold, 2);
    let channel = asking(over([crowded.address()]));
    crowded.calls().reaches(1).await;
    crowded.change_streams(1);
    crowded.resets().reaches(1).await;
    channel.ready_within(LIMIT).await.expect("its health cannot be asked for");
    let call = tokio::spawn(async move { answerer(&channel).await });
    crowded.calls().reaches(2).await;
    call.abort();
}

#[tokio::test]
async fn the_question_ends_with_the_channel() {
    let patient = Patient::start(ServingStatus::Serving).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    let channel = asking(over([patient.address]));
    channel.ready_within(LIMIT).await.expect("it serves");
    assert!(metrics.num_alive_tasks() > before, "the channel has tasks");
    drop(channel);
    let ended = async {
        while metrics.num_alive_tasks() > before {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, ended).await.expect("all of its tasks end");
}
