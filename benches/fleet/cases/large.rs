//! One service with a hundred thousand instances: how soon it is listed, how soon a change is seen, what it weighs.

use std::time::Duration;

use serde_json::json;

use crate::fleet::{address, fill, key, value};
use crate::follower;
use crate::report::{Plan, Report, rounded};
use crate::support::costs::figure;
use crate::support::etcd::Etcd;

/// Values of 150 bytes; then one of them changes, five times.
pub(crate) async fn run(plan: Plan) -> Report {
    let mut report = Report::default();
    let instances: usize = plan.size(100_000, 2_000);
    let etcd = Etcd::start().await;
    fill(&etcd, "echo", instances, 150).await;
    let mut follower = follower::start(&etcd.url(), "echo", instances);
    let listed = follower.expect_event("listed", LIMIT).await;
    let settled = follower.expect_event("settled", LIMIT).await;
    let mut times = Vec::new();
    let mut client = etcd.client().await;
    for _ in 0..5 {
        let address = address(0);
        for tag in ["at", "last"] {
            let value = value(&address, tag, &follower::now().to_string());
            client.put(key("echo", &address), value, None).await.expect("etcd takes a key");
            if tag == "at" {
                tokio::time::sleep(APART).await;
            }
        }
        let seen = follower.expect_event("seen", LIMIT).await;
        times.push(seen["median"].as_f64().unwrap_or(f64::INFINITY));
    }
    times.sort_by(f64::total_cmp);

    let (known, took) = (listed["instances"].as_u64().unwrap_or_default(), listed["seconds"].as_f64());
    let mebibytes = |bytes: &serde_json::Value| figure(bytes.as_u64().unwrap_or_default()) / (1024.0 * 1024.0);
    let (now, most) = (mebibytes(&settled["bytes"]), mebibytes(&settled["most"]));
    report.lines.push(json!({
        "case": "large", "instances": instances, "listed": known, "listed_after_s": took.map(rounded),
        "change_seen_ms": times[2], "mebibytes": rounded(now), "most_mebibytes": rounded(most),
    }));
    let words = format!("{instances} instances of one service");
    let took = took.filter(|_| known == instances as u64).map(Duration::from_secs_f64);
    report.within(format!("{words}: listed"), took, Duration::from_secs(10), "");
    report.at_most(format!("{words}: median time until one change is seen"), times[2], 100.0, "ms");
    report.at_most(format!("{words}, with values of 150 B: memory of a client"), now, 60.0, "MiB");
    report
}

/// Later than what a client publishes at once.
const APART: Duration = Duration::from_millis(200);

const LIMIT: Duration = Duration::from_secs(120);
