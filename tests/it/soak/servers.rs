//! The servers, each in a process of its own, and what is done to them.

use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::time;

use super::journal::Journal;
use crate::support::LIMIT;
use crate::support::etcd::{Cluster, free_port};
use crate::support::process::{Process, Signal, example};

/// A server in a process of its own, always at one address.
pub(super) struct Server {
    pub(super) address: String,
    urls: String,
    process: Process,
}

impl Server {
    pub(super) async fn start(cluster: &Cluster) -> Self {
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

/// Disturbs one server after the other until `end`.
pub(super) async fn disturb_servers(mut rng: Rng, servers: &mut [Server], journal: &Journal, end: Instant) -> usize {
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
