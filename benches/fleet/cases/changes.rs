//! A large service in which much changes: what a client spends on following it, and how soon it sees a change.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::fleet::{address, fill, key, value};
use crate::follower;
use crate::report::{Plan, Report, rounded};
use crate::support::etcd::Etcd;
use crate::table::Row;

/// Values of one instance after the other change at even intervals. This process writes, and another one follows.
pub(crate) async fn run(plan: Plan) -> Report {
    let mut report = Report::default();
    let (instances, time) = (plan.size(10_000, 300), plan.seconds(20, 2));
    let etcd = Etcd::start().await;
    fill(&etcd, "echo", instances, 150).await;
    let mut follower = follower::start(&etcd.url(), "echo", instances);
    follower.expect_event("settled", LIMIT).await;

    let (before, begin) = (follower.cpu(), Instant::now());
    let mut puts = JoinSet::new();
    let client = etcd.client().await;
    let mut number = 0;
    while begin.elapsed() < time {
        sleep_until((begin + INTERVAL * number).into()).await;
        let (mut client, address) = (client.clone(), address(number as usize % instances));
        puts.spawn(async move {
            let value = value(&address, "at", &follower::now().to_string());
            client.put(key("echo", &address), value, None).await.expect("etcd takes a key");
        });
        number += 1;
    }
    puts.join_all().await;
    let (after, took) = (follower.cpu(), begin.elapsed());
    let last = address(0);
    etcd.put(key("echo", &last), value(&last, "last", "")).await;
    let seen = follower.expect_event("seen", LIMIT).await;

    let words = format!("{instances} instances, 300 changes a second");
    let cpu = after.zip(before).map(|(after, before)| after.saturating_sub(before).as_secs_f64() / took.as_secs_f64());
    report.lines.push(json!({
        "case": "changes", "instances": instances, "changes": number, "seconds": rounded(took.as_secs_f64()),
        "cpu": cpu.map(rounded), "seen": seen["changes"], "median_ms": seen["median"], "p99_ms": seen["p99"],
    }));
    let goal_of = format!("{words}: CPU of the client");
    match cpu {
        Some(cpu) => report.at_most(goal_of, cpu * 100.0, 15.0, "% of a core"),
        None => report.rows.push(Row::missing(goal_of, "this system does not tell the CPU time of another process")),
    }
    let goal_of = format!("{words}: median time from the put until the client sees it");
    report.at_most(goal_of, seen["median"].as_f64().unwrap_or(f64::INFINITY), 50.0, "ms");
    report
}

const INTERVAL: Duration = Duration::from_micros(3_333);

const LIMIT: Duration = Duration::from_secs(60);
