//! What a connected instance weighs, here and in tonic's balanced channel.

use std::collections::HashSet;
use std::env;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum;
use tokio::time::{sleep, timeout};

use crate::machine::resident_memory;
use crate::processes::Servers;
use crate::results::{Line, Results, Row, Unit};
use crate::rounds::Plan;
use crate::statistics::{estimate, median, rounded};
use crate::subject::{Subject, TONIC_BALANCE, TONIC_ETCD};

/// The channels that are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "kebab-case")]
pub(crate) enum Weighed {
    TonicEtcd,
    TonicBalance,
}

impl Weighed {
    fn name(self) -> &'static str {
        match self {
            Self::TonicEtcd => TONIC_ETCD,
            Self::TonicBalance => TONIC_BALANCE,
        }
    }

    fn channel(self, addresses: &[SocketAddr]) -> Subject {
        match self {
            Self::TonicEtcd => Subject::tonic_etcd(addresses),
            Self::TonicBalance => Subject::tonic_balance(addresses),
        }
    }
}

/// Each channel in processes of its own, in turns.
pub(crate) fn run(plan: Plan, results: &mut Results) {
    let goal_of = format!("memory a connected instance / {TONIC_BALANCE}");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..plan.faults * 2 {
        for (weighed, bytes) in [(Weighed::TonicEtcd, &mut ours), (Weighed::TonicBalance, &mut theirs)] {
            let Some(figure) = weighed_elsewhere(weighed) else {
                results.row(Row::missing(goal_of, "this system does not tell a process's resident memory"));
                return;
            };
            bytes.push(figure);
        }
    }
    for (weighed, bytes) in [(Weighed::TonicEtcd, &ours), (Weighed::TonicBalance, &theirs)] {
        results.line(&Line {
            case: "connected",
            instances: Some(COUNT),
            subject: weighed.name(),
            bytes_per_instance: Some(rounded(median(bytes))),
            rounds: Some(bytes.len()),
            ..Line::default()
        });
    }
    let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
    results.row(Row::at_most(goal_of, estimate(&ratios), 0.8, Unit::Ratio));
}

fn weighed_elsewhere(weighed: Weighed) -> Option<f64> {
    let servers = Servers::start(WARM + COUNT);
    let addresses = serde_json::to_string(servers.addresses()).expect("addresses are plain JSON");
    let program = env::current_exe().expect("a program knows where it lies");
    let output = Command::new(program).args(["connected", weighed.name(), &addresses]).output();
    let output = output.expect("this program can be started again");
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

/// The body of such a process: prints the bytes an instance by which the resident memory has grown.
///
/// # Panics
///
/// If the addresses are no JSON array, or one of the servers does not answer.
pub(crate) async fn weigh(weighed: Weighed, addresses: &str) {
    let addresses: Vec<SocketAddr> = serde_json::from_str(addresses).expect("addresses are a JSON array");
    let (warm, counted) = addresses.split_at(WARM);
    // What a process allocates once comes with the first channel.
    let first = connected(weighed, warm).await;
    let Some(before) = resident_memory() else { return };
    let second = connected(weighed, counted).await;
    let grown = resident_memory().unwrap_or(before).saturating_sub(before);
    println!("{}", f64::from(u32::try_from(grown).unwrap_or(u32::MAX)) / f64::from(u32::try_from(COUNT).unwrap_or(1)));
    drop((first, second));
}

/// A channel whose servers have all answered a call.
async fn connected(weighed: Weighed, addresses: &[SocketAddr]) -> Subject {
    let channel = weighed.channel(addresses);
    let mut missing: HashSet<SocketAddr> = addresses.iter().copied().collect();
    let answered = async {
        while !missing.is_empty() {
            missing.remove(&channel.call().await.expect("the servers answer"));
        }
    };
    timeout(LIMIT, answered).await.expect("each server is called in time");
    sleep(SETTLE).await;
    channel
}

/// With as many sockets again at the servers, below the usual limit of 1,024 open files.
const WARM: usize = 50;
const COUNT: usize = 400;
const SETTLE: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(20);
