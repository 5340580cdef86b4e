//! The servers, each in a process of its own, and what is done to them.

use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::time;

use super::clients::Reports;
use super::journal::Fault;
use super::strangers::{Speaks, Stranger};
use crate::support::LIMIT;
use crate::support::etcd::{Cluster, free_port};
use crate::support::process::{Process, Signal, example};

/// A server in a process of its own, always at one address. Its connections end as planned all the time.
pub(super) struct Server {
    pub(super) address: String,
    urls: String,
    process: Process,
}

impl Server {
    pub(super) async fn start(cluster: &Cluster) -> Self {
        let (address, urls) = (format!("127.0.0.1:{}", free_port()), cluster.urls().join(","));
        let mut server = Self { process: Self::launch(&address, &urls, 0), address, urls };
        server.process.expect_event("registered", LIMIT).await;
        server
    }

    fn launch(address: &str, urls: &str, shed_percent: u32) -> Process {
        let (age, grace, drain) = (AGE.as_secs().to_string(), GRACE.as_secs().to_string(), DRAIN.as_secs().to_string());
        let mut command = example("echo_server");
        command.args(["--etcd", urls, "--listen", address, "--ttl", "15", "--drain", &drain]);
        command.args(["--max-connection-age", &age, "--max-connection-age-grace", &grace]);
        Process::start(command.args(["--shed-percent", &shed_percent.to_string()]))
    }

    async fn start_again(&mut self, shed_percent: u32) {
        self.process = Self::launch(&self.address, &self.urls, shed_percent);
        self.process.expect_event("listening", LIMIT).await;
    }

    async fn end_in_order(&mut self) {
        self.process.signal(Signal::TERM);
        let ended = self.process.wait(LIMIT).await;
        assert!(ended.success(), "it ends in order");
    }
}

/// What was done to the servers.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) killed_or_frozen: usize,
    pub(super) replaced: usize,
    /// How many calls began while a server shed.
    pub(super) calls_while_shedding: usize,
}

/// Disturbs one server after the other until `end`.
pub(super) async fn disturb_servers(mut rng: Rng, servers: &mut [Server], reports: &Reports, end: Instant) -> Done {
    let (mut done, journal) = (Done::default(), &reports.journal);
    while Instant::now() < end {
        time::sleep(Duration::from_millis(rng.u64(500..6_000))).await;
        let (index, lasts) = (rng.usize(..servers.len()), Duration::from_millis(rng.u64(500..20_000)));
        let server = &mut servers[index];
        let address = server.address.clone();
        match rng.u8(..6) {
            0 => {
                journal.note(format!("{address} is killed for {lasts:?}"));
                journal.disturb(&address, Fault::Killed);
                server.process.kill();
                time::sleep(lasts).await;
                server.start_again(0).await;
                done.killed_or_frozen += 1;
            }
            1 => {
                journal.note(format!("{address} is frozen for {lasts:?}"));
                journal.disturb(&address, Fault::Frozen);
                server.process.freeze();
                time::sleep(lasts).await;
                server.process.resume();
                done.killed_or_frozen += 1;
            }
            kind @ (2 | 3) => {
                // Most of the time its key is still in etcd.
                let (speaks, lasts) = (if kind == 2 { Speaks::Http2 } else { Speaks::Http1 }, lasts / 2);
                journal.note(format!("{address} is killed, and a stranger speaks {speaks:?} there for {lasts:?}"));
                journal.disturb(&address, Fault::Replaced);
                server.process.kill();
                let stranger = Stranger::start(&address, speaks).await;
                time::sleep(lasts).await;
                stranger.leave().await;
                server.start_again(0).await;
                done.replaced += 1;
            }
            4 => {
                let percent = rng.u32(50..=100);
                journal.note(format!("{address} is told to end, and sheds {percent} % for {lasts:?}"));
                journal.disturb(&address, Fault::Sheds);
                server.end_in_order().await;
                server.start_again(percent).await;
                let before = reports.calls_begun();
                time::sleep(lasts).await;
                // It sheds until its end, which takes as long as etcd is away, too.
                server.end_in_order().await;
                done.calls_while_shedding += reports.calls_begun() - before;
                server.start_again(0).await;
            }
            _ => {
                journal.note(format!("{address} is told to end"));
                journal.disturb(&address, Fault::Leaves);
                server.end_in_order().await;
                server.start_again(0).await;
            }
        }
        journal.set_recovered(&address);
        journal.note(format!("{address} is well"));
    }
    done
}

/// How old connections get before their servers announce their end.
const AGE: Duration = Duration::from_secs(8);

/// How long streams may take after that.
pub(super) const GRACE: Duration = Duration::from_secs(4);

/// How long streams may take to end when their server leaves.
const DRAIN: Duration = Duration::from_secs(3);
