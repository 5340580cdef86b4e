//! Faults without end: `scripts/test.sh --soak` runs these, which take minutes.
//!
//! [`random_faults`] draws its faults from a seed, which it prints; `SOAK_SEED` repeats a run, and `SOAK_SECONDS` makes
//! it shorter or longer. Where something does not hold, everything that was done until then is printed.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::StreamExt;
use tokio::task::JoinHandle;
use tokio::time::{self, MissedTickBehavior};
use tonic::{Request, Status};
use tonic_etcd::channel::Connectivity;
use tonic_etcd::snapshot::MemberState;
use tonic_etcd::{BalancedChannel, Change, Discover, Registry};

use crate::support::changes::Changes;
use crate::support::etcd::{Cluster, Etcd, free_port};
use crate::support::figures;
use crate::support::load::{Load, failed};
use crate::support::process::{Process, Signal, example, memory_of};
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::{LIMIT, eventually};

const SERVERS: usize = 8;
const CLIENTS: usize = 4;

/// Calls a second of each client.
const RATE: u32 = 250;

/// How long a call may take.
const DEADLINE: Duration = Duration::from_secs(1);

/// For how long after a server is well again a call to it may fail: an ejection lasts 30 s at first, and then one call
/// tries whether it answers.
const PROBATION: Duration = Duration::from_secs(45);

/// For how long after a server was disturbed its removal may be reported: its TTL, and the hold of a suspect.
const REMOVAL: Duration = Duration::from_secs(15 + 60);

/// How soon everything must be in order when nothing disturbs it any more.
const SETTLED: Duration = Duration::from_secs(60);

const PREFIX: &str = "kitex/registry-etcd/echo/";

/// What is done to a server: from when on, and when it was over.
#[derive(Debug, Clone)]
struct Disturbance {
    address: String,
    begin: Instant,
    end: Option<Instant>,
    /// Whether calls to it may fail: not where it leaves in order.
    costs_calls: bool,
}

/// Everything that was done, in order.
#[derive(Clone)]
struct Journal {
    begin: Instant,
    lines: Arc<Mutex<Vec<String>>>,
    disturbances: Arc<Mutex<Vec<Disturbance>>>,
}

impl Journal {
    fn new() -> Self {
        Self { begin: Instant::now(), lines: Arc::default(), disturbances: Arc::default() }
    }

    fn note(&self, line: impl fmt::Display) {
        let line = format!("{:8.3} s  {line}", self.begin.elapsed().as_secs_f64());
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn disturb(&self, address: &str, costs_calls: bool) {
        let disturbance = Disturbance { address: address.to_owned(), begin: Instant::now(), end: None, costs_calls };
        self.disturbances.lock().unwrap_or_else(PoisonError::into_inner).push(disturbance);
    }

    fn set_recovered(&self, address: &str) {
        let mut disturbances = self.disturbances.lock().unwrap_or_else(PoisonError::into_inner);
        let last = disturbances.iter_mut().rev().find(|disturbance| disturbance.address == address);
        last.expect("it was disturbed").end = Some(Instant::now());
    }

    /// Whether something that was done to the server explains what was seen of it.
    fn explains(&self, address: &str, begin: Instant, end: Instant, after: Duration, with_leaves: bool) -> bool {
        let disturbances = self.disturbances.lock().unwrap_or_else(PoisonError::into_inner);
        disturbances.iter().any(|disturbance| {
            disturbance.address == address
                && (with_leaves || disturbance.costs_calls)
                && disturbance.begin <= end
                && disturbance.end.is_none_or(|well| begin <= well + after)
        })
    }
}

/// Prints what was done, if the test fails.
struct Story {
    seed: u64,
    journal: Journal,
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.journal.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
            eprintln!("SOAK_SEED={}; what was done:\n{lines}", self.seed);
        }
    }
}

/// A server in a process of its own, always at one address.
struct Server {
    address: String,
    urls: String,
    process: Process,
}

impl Server {
    async fn start(cluster: &Cluster) -> Self {
        let (address, urls) = (format!("127.0.0.1:{}", free_port()), cluster.urls().join(","));
        let mut server = Self { process: Self::launch(&address, &urls), address, urls };
        server.process.expect_event("registered", LIMIT).await;
        server
    }

    fn launch(address: &str, urls: &str) -> Process {
        Process::start(example("echo_server").args(["--etcd", urls, "--listen", address, "--ttl", "15"]))
    }

    async fn start_again(&mut self) {
        self.process = Self::launch(&self.address, &self.urls);
        self.process.expect_event("listening", LIMIT).await;
    }
}

/// A client: its calls, and what its stream reports.
struct Client {
    registry: Registry,
    channel: BalancedChannel,
    known: Discover,
    failures: Arc<Mutex<Vec<Failure>>>,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Debug)]
struct Failure {
    begin: Instant,
    end: Instant,
    status: Status,
}

impl Client {
    async fn start(urls: Vec<String>, journal: &Journal, removals: &Arc<Mutex<Vec<(Instant, String)>>>) -> Self {
        let registry = Registry::builder(urls).build().expect("a good registry");
        let channel = registry.channel("echo").build().expect("a good channel");
        let known = registry.discover("echo").expect("a good name");
        let mut told = registry.discover("echo").expect("a good name");
        all_ready(&channel).await;
        let failures: Arc<Mutex<Vec<Failure>>> = Arc::default();
        let calls = tokio::spawn(call(channel.clone(), failures.clone()));
        let (journal, removals) = (journal.clone(), removals.clone());
        let removed = tokio::spawn(async move {
            while let Some(Ok(change)) = told.next().await {
                if let Change::Remove(address) = change {
                    journal.note(format!("a client is told of the removal of {address}"));
                    let mut removals = removals.lock().unwrap_or_else(PoisonError::into_inner);
                    removals.push((Instant::now(), address.to_string()));
                }
            }
        });
        Self { registry, channel, known, failures, tasks: [calls, removed] }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn all_ready(channel: &BalancedChannel) {
    let ready = async || {
        let instances = channel.instances();
        let is_ready = |status: &tonic_etcd::channel::InstanceStatus| {
            status.state() == Connectivity::Ready && !status.is_ejected()
        };
        instances.len() == SERVERS && instances.iter().all(is_ready)
    };
    eventually("all servers are connected and in use", SETTLED, ready).await;
}

async fn call(channel: BalancedChannel, failures: Arc<Mutex<Vec<Failure>>>) {
    let client = EchoClient::new(channel);
    let mut due = time::interval(Duration::from_secs(1) / RATE);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let (mut client, failures) = (client.clone(), failures.clone());
        tokio::spawn(async move {
            let mut request = Request::new(EchoRequest { message: "hi".into() });
            request.set_timeout(DEADLINE);
            let begin = Instant::now();
            if let Err(status) = client.unary_echo(request).await {
                let failure = Failure { begin, end: Instant::now(), status };
                failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
            }
        });
    }
}

/// Disturbs etcd and what stands in it until `end`.
async fn disturb_etcd(
    mut rng: Rng,
    cluster: &Cluster,
    proxies: &[Vec<Proxy>],
    addresses: &[String],
    journal: &Journal,
    end: Instant,
) {
    while Instant::now() < end {
        time::sleep(Duration::from_millis(rng.u64(500..4_000))).await;
        let (index, lasts) = (rng.usize(..3), Duration::from_millis(rng.u64(500..12_000)));
        let (member, address) = (cluster.member(index), &addresses[rng.usize(..addresses.len())]);
        let key = format!("{PREFIX}{address}");
        match rng.u8(..8) {
            0 => {
                journal.note(format!("member {index} is frozen for {lasts:?}"));
                member.freeze();
                time::sleep(lasts).await;
                member.resume();
            }
            1 => {
                journal.note(format!("member {index} is killed for {lasts:?}"));
                member.kill();
                time::sleep(lasts).await;
                member.restart().await;
            }
            2 => {
                journal.note(format!("all members are frozen for {lasts:?}"));
                (0..3).for_each(|index| cluster.member(index).freeze());
                time::sleep(lasts).await;
                (0..3).for_each(|index| cluster.member(index).resume());
            }
            3 => {
                journal.note(format!("all members are killed for {lasts:?}"));
                (0..3).for_each(|index| cluster.member(index).kill());
                time::sleep(lasts).await;
                tokio::join!(cluster.member(0).restart(), cluster.member(1).restart(), cluster.member(2).restart());
            }
            4 => {
                let client = rng.usize(..proxies.len());
                journal.note(format!("client {client} finds a black hole for {lasts:?}"));
                proxies[client].iter().for_each(Proxy::black_hole);
                time::sleep(lasts).await;
                proxies[client].iter().for_each(Proxy::forward);
            }
            5 => {
                let client = rng.usize(..proxies.len());
                journal.note(format!("client {client} has no connection for {lasts:?}, and etcd compacts"));
                proxies[client].iter().for_each(Proxy::reset);
                cluster.leader().await;
                member.compact().await;
                time::sleep(lasts).await;
                proxies[client].iter().for_each(Proxy::forward);
            }
            6 => {
                journal.note(format!("the key of {address} is deleted"));
                cluster.leader().await;
                member.delete(key).await;
            }
            _ => {
                journal.note(format!("the key of {address} is overwritten"));
                cluster.leader().await;
                member.put(key, "nothing that can be read").await;
            }
        }
        cluster.leader().await;
    }
}

/// Disturbs one server after the other until `end`.
async fn disturb_servers(mut rng: Rng, servers: &mut [Server], journal: &Journal, end: Instant) -> usize {
    let mut costly = 0;
    while Instant::now() < end {
        time::sleep(Duration::from_millis(rng.u64(500..6_000))).await;
        let (index, lasts) = (rng.usize(..servers.len()), Duration::from_millis(rng.u64(500..20_000)));
        let server = &mut servers[index];
        let address = server.address.clone();
        match rng.u8(..3) {
            0 => {
                journal.note(format!("{address} is killed for {lasts:?}"));
                journal.disturb(&address, true);
                server.process.kill();
                time::sleep(lasts).await;
                server.start_again().await;
                costly += 1;
            }
            1 => {
                journal.note(format!("{address} is frozen for {lasts:?}"));
                journal.disturb(&address, true);
                server.process.freeze();
                time::sleep(lasts).await;
                server.process.resume();
                costly += 1;
            }
            _ => {
                journal.note(format!("{address} is told to end"));
                journal.disturb(&address, false);
                server.process.signal(Signal::TERM);
                let ended = server.process.wait(LIMIT).await;
                assert!(ended.success(), "it ends in order");
                server.start_again().await;
            }
        }
        journal.set_recovered(&address);
        journal.note(format!("{address} is well"));
    }
    costly
}

/// What this process has open and how large it is: tasks, files, and bytes.
#[derive(Debug, Clone, Copy)]
struct Footprint {
    tasks: usize,
    files: usize,
    bytes: u64,
}

impl Footprint {
    fn now() -> Self {
        Self {
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            files: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            bytes: memory_of("self").0,
        }
    }
}

fn from_environment<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: takes ten minutes"]
async fn random_faults() {
    let seed = from_environment("SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    let length = Duration::from_secs(from_environment("SOAK_SECONDS").unwrap_or(600));
    println!("SOAK_SEED={seed}");
    let mut rng = Rng::with_seed(seed);

    let cluster = Cluster::start().await;
    let mut servers = Vec::new();
    for _ in 0..SERVERS {
        servers.push(Server::start(&cluster).await);
    }
    let addresses: Vec<String> = servers.iter().map(|server| server.address.clone()).collect();
    let journal = Journal::new();
    let _story = Story { seed, journal: journal.clone() };
    let removals = Arc::default();
    let (mut clients, mut proxies) = (Vec::new(), Vec::new());
    for index in 0..CLIENTS {
        // Half of them behind proxies of their own.
        if index % 2 == 0 {
            let mut own = Vec::new();
            for member in 0..3 {
                own.push(Proxy::start(cluster.member(member).address()).await);
            }
            let urls = own.iter().map(Proxy::url).collect();
            clients.push(Client::start(urls, &journal, &removals).await);
            proxies.push(own);
        } else {
            clients.push(Client::start(cluster.urls(), &journal, &removals).await);
        }
    }
    time::sleep(Duration::from_secs(10)).await;
    let before = Footprint::now();

    let end = Instant::now() + length;
    let (first, second) = (rng.fork(), rng.fork());
    let etcd = disturb_etcd(first, &cluster, &proxies, &addresses, &journal, end);
    let ((), costly) = tokio::join!(etcd, disturb_servers(second, &mut servers, &journal, end));

    journal.note("nothing is disturbed any more");
    let healed = Instant::now();
    let registered = async || {
        let (keys, leases) = (cluster.member(0).keys(PREFIX).await, cluster.member(0).leases().await);
        keys.len() == SERVERS && keys.iter().all(|(_, _, lease)| leases.contains(lease))
    };
    eventually("every server is registered under a lease that lives", SETTLED, registered).await;
    for client in &mut clients {
        let known = async || {
            let snapshot = client.known.snapshot().expect("the first list came");
            snapshot.len() == SERVERS && snapshot.iter().all(|member| member.state() == MemberState::Live)
        };
        eventually("every client knows every server", SETTLED, known).await;
        all_ready(&client.channel).await;
        let asked = client.registry.instances("echo").await.expect("etcd answers");
        assert_eq!(asked.len(), SERVERS, "the list says the same as the watch");
    }
    figures::within("everything is in order after random faults", healed.elapsed(), SETTLED);

    let mut failures = 0_usize;
    let mut by_address: HashMap<String, usize> = HashMap::new();
    for client in &clients {
        for failure in client.failures.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            failures += 1;
            let Failure { begin, end, status } = failure;
            let at = begin.saturating_duration_since(journal.begin);
            let of = addresses.iter().find(|address| status.message().contains(*address));
            let Some(address) = of else { panic!("at {at:?} a call failed that names no server: {status}") };
            let is_explained = journal.explains(address, *begin, *end, PROBATION, false);
            assert!(is_explained, "at {at:?} a call failed to a server that was well: {status}");
            *by_address.entry(address.clone()).or_default() += 1;
        }
    }
    // In flight on it, what was sent until that showed, and one each time that it is tried again.
    let promise = "calls that fail for each kill and freeze of one of eight servers, four clients";
    figures::at_most(promise, failures.div_ceil(costly.max(1)), 40, "calls");
    for (at, address) in removals.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if !journal.explains(address, *at, *at, REMOVAL, true) {
            let at = at.saturating_duration_since(journal.begin);
            panic!("at {at:?} {address} was removed, and nothing was done to it");
        }
    }

    // Connections that were replaced end by and by.
    let is_as_before = async || {
        let now = Footprint::now();
        now.tasks <= before.tasks + 16 && now.files <= before.files + 16
    };
    eventually(&format!("tasks and files are as few as before: {before:?}"), SETTLED, is_as_before).await;
    let grown = Footprint::now().bytes.saturating_sub(before.bytes);
    let grown = usize::try_from(grown / 1024).expect("not that much");
    figures::at_most("memory that random faults leave behind", grown, 32 * 1024, "KiB");
    println!("random faults: {failures} calls failed, by server: {by_address:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: takes three minutes"]
async fn an_etcd_dead_for_three_minutes_costs_neither_a_call_nor_an_instance() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let servers = [EchoServer::registered(&registry, "echo").await, EchoServer::registered(&registry, "echo").await];
    let mut changes = Changes::of(&registry, "echo");
    for _ in &servers {
        changes.next().await;
    }
    let channel = registry.channel("echo").build().expect("a good channel");
    let load = Load::start(&channel).await;
    etcd.kill();
    time::sleep(Duration::from_secs(180)).await;
    etcd.restart().await;
    let back = Instant::now();
    changes.expect_nothing_before(&etcd, "127.0.0.1:1").await;
    figures::within("an etcd that was dead for minutes is followed", back.elapsed(), Duration::from_secs(3));
    let calls = load.finish().await;
    figures::at_most("calls that fail while etcd is dead for three minutes", failed(&calls).len(), 0, "calls");
    for server in servers {
        server.stop().await;
    }
}
