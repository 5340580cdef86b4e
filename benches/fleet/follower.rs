//! A client in a process of its own, so that nothing else is in its CPU time and memory: it follows one service, and
//! reports as lines of JSON what it saw.

use std::env;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tokio::time::sleep;
use tonic_etcd::{Change, Registry};

use crate::fleet;
use crate::support::process::{Process, memory_of};

/// Starts one.
pub(crate) fn start(url: &str, service: &str, instances: usize) -> Process {
    let program = env::current_exe().expect("a program knows where it lies");
    Process::start(Command::new(program).args(["follow", url, service, &instances.to_string()]))
}

/// A moment, as every process of this machine tells it, in nanoseconds.
pub(crate) fn now() -> u128 {
    let time = clock_gettime(ClockId::Monotonic);
    u128::try_from(time.tv_sec).unwrap_or_default() * 1_000_000_000 + u128::try_from(time.tv_nsec).unwrap_or_default()
}

/// The body of such a process. It prints `listed` with the first list, `settled` with the memory that it took, and
/// `seen` once a change has the tag `last`, with what became of all that had the tag `at`, the time at which each was
/// begun.
pub(crate) async fn follow(url: &str, service: &str, instances: usize) {
    let (before, begin) = (memory_of("self").0, Instant::now());
    let registry = registry(url, instances);
    let mut watch = fleet::watch(&registry, service);
    let known = watch.ready().await.len();
    tell(&json!({ "event": "listed", "instances": known, "seconds": begin.elapsed().as_secs_f64() }));
    let mut left = known;
    while left > 0 && watch.next().await.is_some() {
        left -= 1;
    }
    // What was used to build the list is given back.
    sleep(SETTLE).await;
    let (now_, most) = memory_of("self");
    tell(&json!({ "event": "settled", "bytes": now_.saturating_sub(before), "most": most.saturating_sub(before) }));

    let mut seen: Vec<u128> = Vec::new();
    while let Some(Ok(change)) = watch.next().await {
        let Change::Insert(_, instance) = change else { continue };
        if let Some(at) = instance.tags().get("at").and_then(|at| at.parse().ok()) {
            seen.push(now().saturating_sub(at));
        }
        if instance.tags().contains("last") {
            seen.sort_unstable();
            let milliseconds = |part: usize| {
                let index = (seen.len() * part / 100).min(seen.len().saturating_sub(1));
                seen.get(index).and_then(|time| u64::try_from(*time).ok()).map(Duration::from_nanos)
            };
            let milliseconds = |part| milliseconds(part).map(|time| time.as_secs_f64() * 1e3);
            tell(
                &json!({ "event": "seen", "changes": seen.len(), "median": milliseconds(50), "p99": milliseconds(99) }),
            );
            seen.clear();
        }
    }
}

fn registry(url: &str, instances: usize) -> Registry {
    Registry::builder([url]).max_instances(instances).build().expect("a good URL")
}

fn tell(line: &serde_json::Value) {
    println!("{line}");
}

const SETTLE: Duration = Duration::from_secs(1);
