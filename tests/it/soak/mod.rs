//! Faults without end: `scripts/test.sh --soak` runs these, which take minutes.
//!
//! [`random_faults`] draws its faults from a seed, which it prints; `SOAK_SEED` repeats a run, and `SOAK_SECONDS` makes
//! it shorter or longer. Where something does not hold, everything that was done until then is printed.
//!
//! Clients make calls and keep streams open, and all connections end as planned again and again; a failure is explained
//! where something was done to the server that it names, and for streams also where their connection was old.

use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::time;
use tonic_etcd::Registry;
use tonic_etcd::snapshot::MemberState;

use crate::support::changes::Changes;
use crate::support::costs::Costs;
use crate::support::etcd::{Cluster, Etcd};
use crate::support::figures;
use crate::support::load::{Load, failed};
use crate::support::process::memory_of;
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

use clients::{Client, Reports, all_ready};
use etcd::disturb_etcd;
use journal::{Journal, Story};
use servers::{Server, disturb_servers};
use verdict::Verdict;

mod clients;
mod etcd;
mod journal;
mod large;
mod logins;
mod renewals;
mod servers;
mod strangers;
mod verdict;

const SERVERS: usize = 8;
const CLIENTS: usize = 4;

/// How soon everything must be in order when nothing disturbs it any more.
const SETTLED: Duration = Duration::from_secs(60);

const PREFIX: &str = "kitex/registry-etcd/echo/";

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
    let reports = Reports::new(journal.clone());
    let (mut clients, mut proxies) = (Vec::new(), Vec::new());
    for index in 0..CLIENTS {
        // Half of them behind proxies of their own.
        if index % 2 == 0 {
            let mut own = Vec::new();
            for member in 0..3 {
                own.push(Proxy::start(cluster.member(member).address()).await);
            }
            let urls = own.iter().map(Proxy::url).collect();
            clients.push(Client::start(urls, &reports).await);
            proxies.push(own);
        } else {
            clients.push(Client::start(cluster.urls(), &reports).await);
        }
    }
    time::sleep(Duration::from_secs(10)).await;
    let before = Footprint::now();

    let end = Instant::now() + length;
    let (first, second) = (rng.fork(), rng.fork());
    let etcd = disturb_etcd(first, &cluster, &proxies, &addresses, &journal, end);
    let ((), done) = tokio::join!(etcd, disturb_servers(second, &mut servers, &reports, end));

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

    assert!(clients.iter().all(Client::is_at_work), "a task of a client panicked");
    eventually("every call has ended", SETTLED, async || reports.calls_under_way() == 0).await;
    let verdict = Verdict::of(&reports, &addresses);
    println!("random faults: {done:?}, {} streams ended in order; {verdict:?}", reports.streams_ended());
    verdict.hold(&reports, &done);

    // Connections that were replaced end by and by.
    let is_as_before = async || {
        let now = Footprint::now();
        now.tasks <= before.tasks + 16 && now.files <= before.files + 16
    };
    eventually(&format!("tasks and files are as few as before: {before:?}"), SETTLED, is_as_before).await;
    let grown = Footprint::now().bytes.saturating_sub(before.bytes);
    let grown = usize::try_from(grown / 1024).expect("not that much");
    figures::at_most("memory that random faults leave behind", grown, 32 * 1024, "KiB");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: takes two minutes"]
async fn a_store_to_which_nothing_is_written_is_neither_watched_nor_listed_anew() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let mut changes = Changes::of(&registry, "echo");
    // And nothing is written: etcd gives signs of life on a watch once something was.
    eventually("the watch is open", LIMIT, async || Costs::of(&etcd).await.watchers() == 1).await;
    let before = Costs::of(&etcd).await;
    time::sleep(Duration::from_secs(110)).await;
    let spent = before.until_now().await;
    let calls = |method| usize::try_from(spent.calls(method)).expect("few of them");
    figures::at_most("watches opened in 110 s on a quiet store", calls("Watch"), 0, "watches");
    // The first two looks at the revision, after 20 and 55 s, and one by chance.
    figures::at_most("reads in 110 s on a quiet store", calls("Range"), 3, "reads");
    changes.expect_nothing_before(&etcd, "127.0.0.1:1").await;
}
