//! Server processes that are stopped, signalled at the wrong moment and frozen, and a client process that idles.

use std::time::{Duration, Instant};

use tonic_etcd::channel::Connectivity;
use tonic_etcd::{BalancedChannel, Registry};

use crate::support::etcd::{Etcd, free_port};
use crate::support::figures;
use crate::support::load::{Load, failed, is_by};
use crate::support::process::{Process, Signal, example};
use crate::support::{LIMIT, eventually};

const PREFIX: &str = "kitex/registry-etcd/echo/";

fn start(etcd: &Etcd, flags: &[&str]) -> Process {
    Process::start(example("echo_server").args(["--etcd", &etcd.url()]).args(flags))
}

async fn address(server: &mut Process) -> String {
    let listening = server.expect_event("listening", LIMIT).await;
    server.expect_event("registered", LIMIT).await;
    listening["address"].as_str().expect("an address").to_owned()
}

fn channel(etcd: &Etcd) -> BalancedChannel {
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    registry.channel("echo").build().expect("a good channel")
}

async fn are_ready(channel: &BalancedChannel, count: usize) {
    let ready = async || {
        let instances = channel.instances();
        let is_ready = |status: &&tonic_etcd::channel::InstanceStatus| {
            status.state() == Connectivity::Ready && !status.is_ejected()
        };
        instances.iter().filter(is_ready).count() == count
    };
    eventually("they are READY", LIMIT, ready).await;
}

#[tokio::test]
async fn a_server_paused_beyond_its_ttl_is_registered_again_within_a_second() {
    let etcd = Etcd::start().await;
    let mut server = start(&etcd, &["--ttl", "2"]);
    address(&mut server).await;
    for _ in 0..3 {
        server.freeze();
        eventually("its lease ends", LIMIT, async || etcd.keys(PREFIX).await.is_empty()).await;
        server.resume();
        let since = Instant::now();
        eventually("it is registered again", LIMIT, async || etcd.keys(PREFIX).await.len() == 1).await;
        figures::within("a server that was paused is registered again", since.elapsed(), Duration::from_secs(1));
    }
}

#[tokio::test]
async fn sigterm_at_any_moment_of_registering_leaves_nothing_behind() {
    let etcd = Etcd::start().await;
    for moment in 0..16 {
        let mut server = start(&etcd, &["--pause", "0", "--ttl", "2"]);
        server.expect_event("listening", LIMIT).await;
        tokio::time::sleep(Duration::from_millis(moment)).await;
        server.signal(Signal::TERM);
        assert!(server.wait(LIMIT).await.success(), "it ends in order, after {moment} ms");
        eventually("no key is left", Duration::from_secs(1), async || etcd.keys(PREFIX).await.is_empty()).await;
    }
    // A grant that was on its way can overtake its revocation, and then has no key.
    let nothing = async || etcd.keys(PREFIX).await.is_empty() && etcd.leases().await.is_empty();
    eventually("nothing is left", LIMIT, nothing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_the_servers_may_freeze_and_calls_succeed_after_four_seconds() {
    let etcd = Etcd::start().await;
    let mut servers: Vec<Process> = (0..4).map(|_| start(&etcd, &["--ttl", "60"])).collect();
    let mut addresses = Vec::new();
    for server in &mut servers {
        addresses.push(address(server).await);
    }
    let channel = channel(&etcd);
    are_ready(&channel, 4).await;
    let load = Load::with_deadlines(200, Duration::from_secs(1), &channel).await;

    let frozen = Instant::now();
    servers[..2].iter_mut().for_each(Process::freeze);
    tokio::time::sleep(Duration::from_secs(12)).await;
    servers[..2].iter_mut().for_each(Process::resume);
    let resumed = Instant::now();
    for address in &addresses {
        load.reaches(address).await;
    }
    are_ready(&channel, 4).await;
    figures::within("instances that were frozen are back", resumed.elapsed(), Duration::from_secs(30));

    let calls = load.finish().await;
    let later: Vec<_> = calls.iter().filter(|call| call.begin >= frozen + Duration::from_secs(4)).cloned().collect();
    let lost = failed(&later);
    let promise = "calls that fail from the fourth second on, with half of the servers frozen";
    figures::at_most(promise, lost.len(), later.len() / 1000, "calls");
    let early = failed(&calls).len() - lost.len();
    // Half of what is called until the first deadline is missed.
    assert!(early <= 100, "{early} calls failed at first");
}

#[tokio::test]
async fn an_idle_client_stays_small_and_up_to_date_through_5000_changes() {
    let etcd = Etcd::start().await;
    let mut first = start(&etcd, &[]);
    address(&mut first).await;
    let mut client = Process::start(example("echo_client").args(["--etcd", &etcd.url(), "--rps", "1"]));
    client.expect("calls that succeed", LIMIT, |line| line["ok"].as_u64() > Some(0)).await;

    // Nothing listens on any of these, so that each of them is dialled.
    let dead: Vec<u16> = (0..20).map(|_| free_port()).collect();
    let mut etcd_client = etcd.client().await;
    let mut change = async |n: usize| {
        let address = format!("127.0.0.1:{}", dead[n % dead.len()]);
        let key = format!("{PREFIX}{address}");
        let value = format!(r#"{{"network":"tcp","address":"{address}","weight":{},"tags":null}}"#, 1 + n % 99);
        if n % 3 == 2 {
            etcd_client.delete(key, None).await.expect("a delete");
        } else {
            etcd_client.put(key, value, None).await.expect("a put");
        }
    };
    for n in 0..1_000 {
        change(n).await;
    }
    let (before, sockets) = (client.memory().0, client.sockets());
    for n in 1_000..6_000 {
        change(n).await;
    }
    for port in &dead {
        etcd.delete(format!("{PREFIX}127.0.0.1:{port}")).await;
    }
    // The only other server: a client that lags behind would call the first.
    let mut second = start(&etcd, &[]);
    let there = address(&mut second).await;
    first.signal(Signal::TERM);
    first.expect_event("deregistered", LIMIT).await;
    let since = Instant::now();
    let is_there = |line: &serde_json::Value| line["by_instance"].get(&there).is_some();
    client.expect("calls to the second one", LIMIT, is_there).await;
    assert!(since.elapsed() <= Duration::from_secs(3), "it was called after {:?}", since.elapsed());
    let failures = client.seen().iter().filter(|line| line["failed"].as_u64() > Some(0)).count();
    assert_eq!(failures, 0, "no call failed: {:?}", client.seen());
    let grown = client.memory().0.saturating_sub(before);
    let grown = usize::try_from(grown / 1024).expect("not that much");
    figures::at_most("memory that 5,000 changes leave behind in an idle client", grown, 8 * 1024, "KiB");
    let no_other_socket = async || client.sockets() <= sockets;
    eventually("it keeps no other sockets than before", LIMIT, no_other_socket).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_five_thousand_changes_is_known_within_a_second() {
    let etcd = Etcd::start().await;
    let mut server = start(&etcd, &[]);
    let there = address(&mut server).await;
    let channel = channel(&etcd);
    are_ready(&channel, 1).await;
    let mut client = etcd.client().await;
    let dead = format!("127.0.0.1:{}", free_port());
    for n in 0..5_000_u16 {
        let value = format!(r#"{{"network":"tcp","address":"{dead}","weight":{},"tags":null}}"#, n + 1);
        client.put(format!("{PREFIX}{dead}"), value, None).await.expect("a put");
    }
    let since = Instant::now();
    let known = async || channel.instances().iter().any(|status| status.instance().weight() == 5_000);
    eventually("the last one is known", LIMIT, known).await;
    figures::within("the last of 5,000 changes is known", since.elapsed(), Duration::from_secs(1));
    let load = Load::start(&channel).await;
    let calls = load.finish().await;
    assert!(calls.iter().all(|call| is_by(call, &there)), "{:?}", failed(&calls));
}
