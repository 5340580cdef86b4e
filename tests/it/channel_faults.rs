//! What callers of the balanced channel notice when servers leave, crash and return, and when etcd does: little.

use std::time::{Duration, Instant};

use tonic::{Code, Request, Status};
use tonic_etcd::channel::{Connectivity, InstanceStatus};
use tonic_etcd::retry::RetryPolicy;
use tonic_etcd::{BalancedChannel, Registry};

use crate::support::etcd::{Etcd, free_port};
use crate::support::load::{Load, failed, is_by};
use crate::support::process::{Process, Signal, example};
use crate::support::server::EchoServer;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::{LIMIT, eventually};

/// Where the instances of these tests are.
const PREFIX: &str = "kitex/registry-etcd";

/// "At once" for a call that fails: far more than it needs, and far less than any back-off, deadline or patience of the
/// channel.
const AT_ONCE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_server_that_joins_gets_calls_and_one_that_leaves_gets_none() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let first = EchoServer::registered(&registry, "echo").await;
    let channel = channel(&registry);
    let load = Load::start(&channel).await;

    let second = EchoServer::registered(&registry, "echo").await;
    load.reaches(&second.address().to_string()).await;

    let gone = first.address().to_string();
    let told = Instant::now();
    first.stop().await;
    load.goes_on_for(Duration::from_millis(100)).await;

    let calls = load.finish().await;
    assert!(failed(&calls).is_empty(), "no call fails: {:?}", failed(&calls));
    let last = calls.iter().filter(|call| is_by(call, &gone)).map(|call| call.begin).max();
    let after = last.expect("it had calls").saturating_duration_since(told);
    assert!(after < Duration::from_secs(1), "it was called for {after:?} after it began to leave");
    assert_eq!(channel.instances().len(), 1, "it is forgotten");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_fails_no_call() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let mut servers = [Server::start(&etcd).await, Server::start(&etcd).await, Server::start(&etcd).await];
    let channel = channel(&registry);
    let load = Load::start(&channel).await;

    for server in &mut servers {
        server.process.signal(Signal::TERM);
        server.process.expect_event("stopped", LIMIT).await;
        server.start_again(&etcd).await;
        load.reaches(&server.address).await;
    }

    let calls = load.finish().await;
    assert!(failed(&calls).is_empty(), "of {} calls failed {:?}", calls.len(), failed(&calls));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_costs_the_calls_in_flight_on_it_and_no_later_one() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let mut servers = [Server::start(&etcd).await, Server::start(&etcd).await, Server::start(&etcd).await];
    let channel = channel(&registry);
    let load = Load::start(&channel).await;
    until_all(&channel, |status| status.state() == Connectivity::Ready).await;
    load.reaches(&servers[0].address).await;

    let on_it = |status: &InstanceStatus| {
        if status.instance().address().to_string() == servers[0].address { status.in_flight() } else { 0 }
    };
    let counted = Instant::now();
    let in_flight: u32 = channel.instances().iter().map(on_it).sum();
    servers[0].process.kill();
    let killed = Instant::now();
    load.goes_on_for(Duration::from_secs(1)).await;

    let keys = etcd.keys(&format!("{PREFIX}/echo/")).await;
    assert_eq!(keys.len(), 3, "etcd still believes in it");
    let calls = load.finish().await;
    // The system takes a moment to reset the connections of a process that is killed.
    let reset = killed + Duration::from_millis(50);
    let joined = calls.iter().filter(|call| call.begin >= counted && call.begin <= reset).count();
    let failed = failed(&calls);
    let most = in_flight as usize + joined;
    assert!(failed.len() <= most, "{} calls failed, and {most} were in flight: {failed:?}", failed.len());
    let late = failed.iter().filter(|call| call.begin > killed + Duration::from_millis(250)).count();
    assert_eq!(late, 0, "no call goes to a server whose connection ended: {failed:?}");
    assert!(failed.iter().all(|call| code(&call.answer) == Some(Code::Unavailable)), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_costs_no_call_where_calls_are_retried() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let mut servers = [Server::start(&etcd).await, Server::start(&etcd).await, Server::start(&etcd).await];
    let channel = registry.channel("echo").retry(RetryPolicy::new([Code::Unavailable])).build();
    let channel = channel.expect("a good channel");
    let load = Load::start(&channel).await;

    for server in &mut servers {
        load.reaches(&server.address).await;
        let on_it = |status: &InstanceStatus| status.instance().address().to_string() == server.address;
        let busy = || channel.instances().iter().any(|status| on_it(status) && status.in_flight() > 0);
        eventually("it has a call in flight", LIMIT, async || busy()).await;
        server.process.kill();
        load.goes_on_for(Duration::from_secs(1)).await;
        server.start_again(&etcd).await;
        load.reaches(&server.address).await;
    }

    let calls = load.finish().await;
    assert!(failed(&calls).is_empty(), "of {} calls failed {:?}", calls.len(), failed(&calls));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_killed_and_comes_back_fails_no_call() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let servers = [EchoServer::registered(&registry, "echo").await, EchoServer::registered(&registry, "echo").await];
    let channel = channel(&registry);
    let load = Load::start(&channel).await;

    etcd.kill();
    // Longer than it takes both sides to notice and to have tried again.
    load.goes_on_for(Duration::from_secs(3)).await;
    etcd.restart().await;
    let third = EchoServer::registered(&registry, "echo").await;
    load.reaches(&third.address().to_string()).await;

    let calls = load.finish().await;
    assert!(failed(&calls).is_empty(), "of {} calls failed {:?}", calls.len(), failed(&calls));
    for server in servers.into_iter().chain([third]) {
        server.stop().await;
    }
}

#[tokio::test]
async fn calls_fail_at_once_while_the_only_server_restarts_then_succeed_in_1_s() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let mut server = Server::start(&etcd).await;
    let channel = channel(&registry);
    assert_eq!(call(&channel, LIMIT).await.expect("the server is there"), server.address);

    for signal in [Signal::TERM, Signal::KILL] {
        server.process.signal(signal);
        server.process.wait(LIMIT).await;
        // The process is gone a moment before its connection is seen to end.
        until_none(&channel, |status| status.state() == Connectivity::Ready).await;
        fails_at_once(&channel).await;

        server.start_again(&etcd).await;
        let back = Instant::now();
        let answered = async || call(&channel, LIMIT).await.is_ok();
        eventually("a call succeeds", LIMIT, answered).await;
        let after = back.elapsed();
        assert!(after < Duration::from_secs(1), "the first call came {after:?} after the return from {signal:?}");
    }
}

#[tokio::test]
async fn without_etcd_at_the_start_calls_end_with_a_reason_and_succeed_later() {
    let etcd = Etcd::start().await;
    let server = EchoServer::unregistered();
    let address = server.address().to_string();
    etcd.put(format!("{PREFIX}/echo/{address}"), value(&address)).await;
    etcd.kill();
    let channel = channel(&registry(&etcd));

    let (deadline, begin) = (Duration::from_millis(300), Instant::now());
    let status = call(&channel, deadline).await.expect_err("no server is known");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(begin.elapsed() < deadline + AT_ONCE, "its deadline counts: it took {:?}", begin.elapsed());

    let status = call(&channel, LIMIT).await.expect_err("no server is known");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(begin.elapsed() < Duration::from_secs(5) + AT_ONCE, "it waited for {:?}", begin.elapsed());
    names_the_place(&status);
    fails_at_once(&channel).await;

    etcd.restart().await;
    let back = Instant::now();
    channel.ready_within(LIMIT).await.expect("the channel gets ready");
    assert!(back.elapsed() < Duration::from_secs(3), "it was ready after {:?}", back.elapsed());
    assert_eq!(call(&channel, LIMIT).await.expect("the server is known now"), address);
}

#[tokio::test]
async fn killed_servers_are_no_longer_called_although_the_list_keeps_them_all() {
    let etcd = Etcd::start().await;
    let mut servers = [Server::start(&etcd).await, Server::start(&etcd).await, Server::start(&etcd).await];
    let channel = channel(&registry(&etcd));
    until_all(&channel, |status| status.state() == Connectivity::Ready).await;

    for server in &mut servers {
        server.process.kill();
    }
    let empty = async || channel.state() == Connectivity::TransientFailure;
    eventually("the channel has no server to call", LIMIT, empty).await;
    assert_eq!(etcd.keys(&format!("{PREFIX}/echo/")).await.len(), 3, "etcd still believes in them");
    fails_at_once(&channel).await;

    let ended = async || etcd.keys(&format!("{PREFIX}/echo/")).await.is_empty();
    eventually("their leases end", LIMIT, ended).await;
    let emptied = async || fails_at_once(&channel).await.message().contains("no instance is registered");
    eventually("a list that was kept does not count without connections", LIMIT, emptied).await;
}

fn registry(etcd: &Etcd) -> Registry {
    Registry::builder([etcd.url()]).build().expect("a good registry")
}

fn channel(registry: &Registry) -> BalancedChannel {
    registry.channel("echo").build().expect("a good channel")
}

/// An instance as a Kitex server writes it.
fn value(address: &str) -> String {
    format!(r#"{{"network":"tcp","address":"{address}","weight":10,"tags":null}}"#)
}

/// The address that answered.
async fn call(channel: &BalancedChannel, deadline: Duration) -> Result<String, Status> {
    let mut request = Request::new(EchoRequest { message: "hi".into() });
    request.set_timeout(deadline);
    let reply = EchoClient::new(channel.clone()).unary_echo(request).await;
    reply.map(|reply| reply.into_inner().address)
}

fn code(answer: &Result<String, Status>) -> Option<Code> {
    answer.as_ref().err().map(Status::code)
}

/// A call that no server can answer, and that waits for nothing.
async fn fails_at_once(channel: &BalancedChannel) -> Status {
    let begin = Instant::now();
    let status = call(channel, LIMIT).await.expect_err("no server is there");
    assert!(begin.elapsed() < AT_ONCE, "it took {:?}", begin.elapsed());
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    names_the_place(&status);
    status
}

fn names_the_place(status: &Status) {
    let place = format!("echo under {PREFIX}/: ");
    let reason = status.message().strip_prefix(&place);
    assert!(reason.is_some_and(|reason| !reason.is_empty()), "it says where it looked, and why: {status}");
}

async fn until_none(channel: &BalancedChannel, holds: impl Fn(&InstanceStatus) -> bool) {
    eventually("it holds for no instance", LIMIT, async || !channel.instances().iter().any(&holds)).await;
}

async fn until_all(channel: &BalancedChannel, holds: impl Fn(&InstanceStatus) -> bool) {
    let all = async || {
        let instances = channel.instances();
        !instances.is_empty() && instances.iter().all(&holds)
    };
    eventually("it holds for all instances", LIMIT, all).await;
}

/// A server in a process of its own, always on one address.
struct Server {
    address: String,
    process: Process,
}

impl Server {
    /// Starts it, and waits until it is registered.
    async fn start(etcd: &Etcd) -> Self {
        // Not a port that the kernel picks: that could be another's while the server is down.
        let address = format!("127.0.0.1:{}", free_port());
        let process = Self::launch(etcd, &address).await;
        Self { address, process }
    }

    /// Starts it again after its end.
    async fn start_again(&mut self, etcd: &Etcd) {
        self.process = Self::launch(etcd, &self.address).await;
    }

    async fn launch(etcd: &Etcd, address: &str) -> Process {
        let flags = ["--etcd", &etcd.url(), "--listen", address, "--ttl", "4", "--delay", "20"];
        let mut process = Process::start(example("echo_server").args(flags));
        process.expect_event("registered", LIMIT).await;
        process
    }
}
