//! The members of a cluster are restarted one after the other, as for a new version: where its clients are then.

use serde_json::json;
use tokio::time::sleep;
use tonic_etcd::Discover;

use crate::fleet::{begins, listed, registry, watch};
use crate::report::{Plan, Report, rounded};
use crate::support::costs::Costs;
use crate::support::etcd::Cluster;
use crate::table::Row;

/// A fleet large enough for the goal, and a larger one in which chance counts for less; each in both orders.
pub(crate) async fn run(plan: Plan) -> Report {
    let mut report = Report::default();
    for (order, members) in [("in URL order", [0, 1, 2]), ("in reverse", [2, 1, 0])] {
        let few = shares(plan.size(30, 6), members, plan);
        let many = shares(plan.size(150, 12), members, plan);
        let (few, many) = tokio::join!(few, many);
        for (clients, before, after) in [few, many] {
            let [then, now] = [&before, &after].map(shown);
            report.lines.push(json!({
                "case": "restart", "clients": clients, "order": order,
                "shares_before": before.map(rounded), "shares_after": after.map(rounded),
            }));
            let is_held = after.iter().all(|share| (LEAST..=MOST).contains(share));
            report.rows.push(Row::counted(
                format!(
                    "{clients} clients of 3 members, restarted one by one {order}: Watch streams of each 60 s after"
                ),
                format!("{now} (before: {then})"),
                "20 % to 47 % each",
                is_held,
            ));
        }
    }
    report
}

async fn shares(clients: usize, order: [usize; 3], plan: Plan) -> (usize, [f64; 3], [f64; 3]) {
    let cluster = Cluster::start().await;
    let watches: Vec<Discover> = (0..clients).map(|_| watch(&registry(&cluster.urls()), "echo")).collect();
    begins("all clients have a list", async || listed(&watches) == clients).await;
    let streams = async || Costs::of(&cluster).await;
    begins("all clients watch", async || streams().await.watchers() >= clients as u64).await;
    let before = streams().await.shares(Costs::watch_streams);
    for member in order {
        cluster.member(member).restart_in_order().await;
        sleep(plan.seconds(9, 1)).await;
    }
    // With the last pause, a minute.
    sleep(plan.seconds(51, 2)).await;
    let after = streams().await.shares(Costs::watch_streams);
    let three = |shares: Vec<f64>| <[f64; 3]>::try_from(shares).expect("three members");
    (clients, three(before), three(after))
}

fn shown(shares: &[f64; 3]) -> String {
    shares.map(|share| format!("{:.0} %", share * 100.0)).join(" / ")
}

/// For 30 clients that choose by chance, a share lies outside of these one time in six or so; for 150, hardly ever.
const LEAST: f64 = 0.20;
const MOST: f64 = 0.47;
