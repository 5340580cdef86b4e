//! The examples to copy from run, and do what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::future::pending;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_etcd::{Address, Instance, Registry};

use crate::support::etcd::Etcd;
use crate::support::process::{Process, Signal, example};
use crate::support::server::proto::hello::hello_client::HelloClient;
use crate::support::server::proto::hello::hello_server::{Hello, HelloServer};
use crate::support::server::proto::hello::{HelloReply, HelloRequest};
use crate::support::{LIMIT, eventually};

/// On the loopback, whatever other networks there are.
fn run(name: &str, arguments: &[&dyn AsRef<OsStr>]) -> Process {
    Process::start(example(name).args(arguments.iter().map(AsRef::as_ref)).env("POD_IP", "127.0.0.1"))
}

async fn echo_server(etcd: &Etcd, flags: &[&str]) -> (Process, String) {
    let mut server = Process::start(example("echo_server").args(["--etcd", &etcd.url()]).args(flags));
    let listening = server.expect_event("listening", LIMIT).await;
    server.expect_event("registered", LIMIT).await;
    let address = listening["address"].as_str().expect("an address").to_owned();
    (server, address)
}

fn registry(etcd: &Etcd) -> Registry {
    Registry::builder([etcd.url()]).build().expect("a good registry")
}

/// The one server of `service`, once it is there.
async fn only_server(etcd: &Etcd, service: &str) -> Instance {
    let registry = registry(etcd);
    eventually("one server is registered", LIMIT, async || {
        let snapshot = registry.instances(service).await.ok()?;
        let mut instances = snapshot.iter().map(|member| member.instance().clone());
        instances.next().filter(|_| instances.next().is_none())
    })
    .await
}

async fn leaves(etcd: &Etcd, mut server: Process) {
    server.signal(Signal::TERM);
    assert!(server.wait(LIMIT).await.success(), "it ends in order");
    assert!(etcd.keys("").await.is_empty(), "and leaves nothing in etcd");
}

async fn ends(client: &mut Process) {
    assert!(client.wait(LIMIT).await.success(), "it ends by itself: {}", client.log());
}

fn hello() -> Request<HelloRequest> {
    let mut request = Request::new(HelloRequest { name: "test".to_owned() });
    request.set_timeout(LIMIT);
    request
}

/// A server of the test's own that keeps the metadata of its calls.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<MetadataMap>>>);

#[tonic::async_trait]
impl Hello for Recorder {
    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(request.metadata().clone());
        Ok(Response::new(HelloReply { message: format!("Hello, {}!", request.into_inner().name) }))
    }
}

impl Recorder {
    /// Serves until the test ends. Returns its address, too.
    async fn serve(etcd: &Etcd) -> (Self, Address) {
        let incoming = TcpIncoming::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let instance = Instance::new("hello", incoming.local_addr().expect("it is bound"));
        let address = instance.address().clone();
        let registration = registry(etcd).registration(instance).build().expect("a good registration");
        let recorder = Self::default();
        tokio::spawn(registration.serve(HelloServer::new(recorder.clone()), incoming, pending()));
        timeout(LIMIT, registration.registered()).await.expect("in time").expect("it serves");
        (recorder, address)
    }

    /// All values of one key, one a call that has it.
    fn values(&self, key: &str) -> Vec<String> {
        let calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let values = calls.iter().filter_map(|metadata| metadata.get(key));
        values.map(|value| value.to_str().expect("it is text").to_owned()).collect()
    }
}

#[cfg(feature = "health")]
#[tokio::test]
async fn the_production_server_has_two_services_health_and_reflection_and_leaves() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    use crate::support::server::proto::goodbye::GoodbyeRequest;
    use crate::support::server::proto::goodbye::goodbye_client::GoodbyeClient;

    let etcd = Etcd::start().await;
    let mut server = run("production_server", &[&etcd.url()]);
    let published = server.expect_text("hello is published as ", LIMIT).await;
    let instance = only_server(&etcd, "hello").await;
    assert!(published.starts_with(&instance.address().to_string()), "{published}, and {instance:?}");
    assert!(instance.tags().contains("version"), "it says of which version it is: {instance:?}");

    let channel = registry(&etcd).channel("hello").timeout(LIMIT).build().expect("a good channel");
    let reply = HelloClient::new(channel.clone()).say_hello(hello()).await.expect("it says hello");
    assert_eq!(reply.into_inner().message, "Hello, test!");
    let goodbye = GoodbyeRequest { name: "test".to_owned() };
    let reply = GoodbyeClient::new(channel.clone()).say_goodbye(goodbye).await.expect("it says goodbye");
    assert_eq!(reply.into_inner().message, "Goodbye, test!");
    let request = HealthCheckRequest { service: "hello.Hello".to_owned() };
    let answer = HealthClient::new(channel.clone()).check(request).await.expect("it has a health service");
    assert_eq!(answer.into_inner().status, 1, "SERVING");
    let request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request: request };
    let mut client = ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(tokio_stream::iter([request])).await.expect("it has reflection");
    let answer = answers.into_inner().message().await.expect("an answer").expect("one");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"hello.Hello") && names.contains(&"goodbye.Goodbye"), "{names:?}");

    server.signal(Signal::TERM);
    server.expect_text("hello has left", LIMIT).await;
    assert!(server.wait(LIMIT).await.success(), "it ends in order");
    assert!(etcd.leases().await.is_empty(), "nothing is left in etcd");
}

#[cfg(feature = "tls-ring")]
#[tokio::test]
async fn tls_and_mutual_tls_let_in_those_with_the_right_certificates() {
    use crate::support::pki::Authority;

    let (etcd, servers, clients) = (Etcd::start().await, Authority::new(), Authority::new());
    let (url, ca) = (etcd.url(), servers.file());
    let ours = servers.issue_files("server", &["hello.internal"]);

    let server = run("tls_server", &[&url, &ours.cert, &ours.key]);
    only_server(&etcd, "hello").await;
    let mut client = run("tls_client", &[&url, &ca]);
    client.expect_text("Hello, unknown client!", LIMIT).await;
    ends(&mut client).await;
    let mut stranger = run("tls_client", &[&url, &clients.file()]);
    assert!(!stranger.wait(LIMIT).await.success(), "it does not trust the server");
    assert!(stranger.log().contains("invalid peer certificate"), "and says so: {}", stranger.log());
    leaves(&etcd, server).await;

    let server = run("tls_server", &[&url, &ours.cert, &ours.key, &clients.file()]);
    only_server(&etcd, "hello").await;
    let theirs = clients.issue_files("client", &["client"]);
    let mut client = run("tls_client", &[&url, &ca, &theirs.cert, &theirs.key]);
    client.expect_text("Hello, known client!", LIMIT).await;
    ends(&mut client).await;
    let mut anonymous = run("tls_client", &[&url, &ca]);
    assert!(!anonymous.wait(LIMIT).await.success(), "a client without a certificate is refused");
    // The reason is in an alert, which a reset of the connection may overtake.
    assert!(anonymous.log().contains("the call failed"), "and says so: {}", anonymous.log());
    leaves(&etcd, server).await;
}

#[tokio::test]
async fn an_interceptor_and_layers_put_a_token_and_an_id_into_each_call() {
    let etcd = Etcd::start().await;
    let (recorder, address) = Recorder::serve(&etcd).await;
    let mut client = run("layered_client", &[&etcd.url()]);
    for _ in 0..3 {
        client.expect_text("a response began after ", LIMIT).await;
        let from = client.expect_text("Hello, etcd! from ", LIMIT).await;
        assert_eq!(from, address.to_string(), "it says which server it was");
    }
    ends(&mut client).await;
    assert_eq!(recorder.values("authorization"), ["Bearer some-token"; 3]);
    let ids = recorder.values("x-request-id");
    assert_eq!((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()), (3, 3), "each call has its own: {ids:?}");
}

#[tokio::test]
async fn a_canary_gets_its_share_and_no_more() {
    let etcd = Etcd::start().await;
    let _servers = [echo_server(&etcd, &[]).await, echo_server(&etcd, &["--tag", "canary=yes"]).await];
    let mut client = run("canary", &[&etcd.url()]);
    let calls = client.expect_text("canaries answered ", LIMIT).await;
    let calls: u32 = calls.split(' ').next().and_then(|count| count.parse().ok()).expect("a number");
    // 100, with a standard deviation of 9.5, and those before both are connected.
    assert!((50..=170).contains(&calls), "ten of a hundred, not half of them: {calls}");
    ends(&mut client).await;
}

/// The server of the next call, none of which may fail.
async fn answered(client: &mut Process) -> String {
    loop {
        let line = client.expect_text("", LIMIT).await;
        assert!(!line.starts_with("the call failed"), "no call fails: {line}");
        if let Some(server) = line.strip_prefix("answered by ") {
            return server.to_owned();
        }
    }
}

#[tokio::test]
async fn a_policy_of_ones_own_spares_a_standby_until_it_is_needed() {
    let etcd = Etcd::start().await;
    let (_standby, standby) = echo_server(&etcd, &["--tag", "standby=yes"]).await;
    let (mut first, active) = echo_server(&etcd, &[]).await;
    let mut client = run("custom_policy", &[&etcd.url()]);
    eventually("it is connected to the active one", LIMIT, async || answered(&mut client).await == active).await;
    for _ in 0..8 {
        assert_eq!(answered(&mut client).await, active, "the standby is spared");
    }
    first.signal(Signal::TERM);
    let next = eventually("another one answers", LIMIT, async || {
        Some(answered(&mut client).await).filter(|server| *server != active)
    });
    assert_eq!(next.await, standby, "now it is needed");
    let (_second, active) = echo_server(&etcd, &[]).await;
    eventually("the new one answers", LIMIT, async || answered(&mut client).await == active).await;
    assert_eq!(answered(&mut client).await, active, "the standby is spared again");
}

/// Where each user is, by the next line of each.
async fn users(client: &mut Process) -> BTreeMap<String, String> {
    let mut users = BTreeMap::new();
    while users.len() < 8 {
        let line = client.expect_text("", LIMIT).await;
        if let Some((user, server)) = line.split_once(" is at ") {
            users.insert(user.to_owned(), server.to_owned());
        }
    }
    users
}

#[tokio::test]
async fn one_user_is_at_one_server_for_all_clients_and_only_those_of_a_gone_one_move() {
    let etcd = Etcd::start().await;
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(echo_server(&etcd, &[]).await);
    }
    let (mut one, mut other) = (run("sticky", &[&etcd.url()]), run("sticky", &[&etcd.url()]));
    // While a client is not connected to all of them, keys of the others are elsewhere: that is over with its first
    // round.
    let mut last = BTreeMap::new();
    let before = eventually("both agree, and go on to", LIMIT, async || {
        let (one, other) = (users(&mut one).await, users(&mut other).await);
        (one == other && std::mem::replace(&mut last, one.clone()) == one).then_some(one)
    })
    .await;

    let gone = before["anna"].clone();
    let (server, _) = servers.iter_mut().find(|(_, address)| *address == gone).expect("it is one of them");
    server.signal(Signal::TERM);
    let after = eventually("no user is at the server that left", LIMIT, async || {
        let now = users(&mut one).await;
        (!now.values().any(|server| *server == gone)).then_some(now)
    })
    .await;
    for (user, server) in before.iter().filter(|(_, server)| **server != gone) {
        assert_eq!(&after[user], server, "{user} does not move");
    }
}

#[tokio::test]
async fn a_trace_goes_on_through_a_server_in_the_middle() {
    let etcd = Etcd::start().await;
    let (recorder, _) = Recorder::serve(&etcd).await;
    let mut front = run("trace_context", &[&etcd.url()]);
    only_server(&etcd, "front").await;
    let channel = registry(&etcd).channel("front").timeout(LIMIT).build().expect("a good channel");
    let mut client = HelloClient::new(channel);

    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    for traceparent in [Some(parent), None, Some("nonsense")] {
        let mut request = hello();
        if let Some(traceparent) = traceparent {
            request.metadata_mut().insert("traceparent", traceparent.parse().expect("it is text"));
        }
        client.say_hello(request).await.expect("both servers answer");
    }
    let arrived = recorder.values("traceparent");
    assert_eq!(front.expect_text("a call within ", LIMIT).await, arrived[0], "it says what it passes on");
    let attempt = front.expect_text("DEBUG handle{trace=", LIMIT).await;
    assert!(attempt.starts_with(&format!("{}}}:rpc{{", arrived[0])), "its call is in the span of the trace: {attempt}");
    assert!(attempt.contains("}:attempt{attempt=1 ") && attempt.ends_with(": close"), "with its attempt: {attempt}");
    let parts: Vec<Vec<&str>> = arrived.iter().map(|it| it.split('-').collect()).collect();
    let [first, second, third] = &parts[..] else { panic!("each call has a trace: {arrived:?}") };
    assert_eq!((first[1], first[3]), ("4bf92f3577b34da6a3ce929d0e0e4736", "00"), "the trace and its flags arrive");
    assert_ne!(first[2], "00f067aa0ba902b7", "its parent is the server in the middle");
    for part in &parts {
        let lengths: Vec<usize> = part.iter().map(|it| it.len()).collect();
        assert_eq!(lengths, [2, 32, 16, 2], "as W3C has it: {part:?}");
    }
    assert!(second[1] != first[1] && third[1] != first[1] && third[1] != second[1], "new traces: {arrived:?}");
}

#[tokio::test]
async fn servers_and_clients_meet_on_unix_sockets() {
    let etcd = Etcd::start().await;
    let folder = tempfile::tempdir().expect("the temporary folder takes a folder");
    let mut server = run("unix_server", &[&etcd.url(), &folder.path()]);
    let line = server.expect_text("hello is served at ", LIMIT).await;
    let address = only_server(&etcd, "hello").await.address().to_string();
    assert!(line.ends_with(&format!("published as {address}")), "{line}, and {address}");

    let mut client = run("unix_client", &[&etcd.url(), &folder.path()]);
    for _ in 0..3 {
        client.expect_text("Hello, neighbour!", LIMIT).await;
    }
    ends(&mut client).await;
    leaves(&etcd, server).await;
    let left = std::fs::read_dir(folder.path()).expect("the folder is there").count();
    assert_eq!(left, 0, "the server takes its socket away");
}
