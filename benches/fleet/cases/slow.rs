//! An etcd that answers late, and is not dead: what a process with many watches does about it.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;
use tonic_etcd::Discover;

use crate::fleet::{begins, knowing, listed, put_each, registry, until, watch};
use crate::report::{Plan, Report, seconds};
use crate::support::costs::{Costs, figure};
use crate::support::etcd::Etcd;
use crate::support::proxy::Proxy;

/// All answers and events come late for a while, and those to HTTP/2's pings in time: etcd is busy, and not dead.
pub(crate) async fn run(plan: Plan) -> Report {
    let mut report = Report::default();
    let count = plan.size(100, 10);
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let client = registry(&[proxy.url()]);
    let services: Vec<String> = (0..count).map(|number| format!("service-{number}")).collect();
    let known: Vec<Discover> = services.iter().map(|service| watch(&client, service)).collect();
    begins("all services are listed", async || listed(&known) == count).await;
    begins("all services are watched", async || Costs::of(&etcd).await.watchers() == count as u64).await;

    let (before, accepted) = (Costs::of(&etcd).await, proxy.accepted());
    proxy.delay(LATE);
    sleep(plan.seconds(30, 9)).await;
    proxy.delay(Duration::ZERO);
    // What the slowness has begun comes to its end.
    sleep(plan.seconds(10, 1)).await;
    let (spent, connects) = (before.until_now().await, proxy.accepted() - accepted);
    let (streams, lists) = (spent.calls("Watch"), spent.calls("Range"));
    put_each(&mut etcd.client().await, &services, ADDRESS).await;
    let current = until(Duration::from_secs(30), async || knowing(&known, ADDRESS) == count).await;

    let lists_a_watch = figure(lists) / figure(count as u64);
    report.lines.push(json!({
        "case": "slow", "watches": count, "streams": streams, "lists": lists, "lists_a_watch": lists_a_watch,
        "connects": connects, "requests": spent.requests(), "current_after_s": seconds(current),
    }));
    let goal_of = |what: &str| format!("etcd answers 7 s late for 30 s, {count} watches in one process: {what}");
    report.at_most(goal_of("new Watch streams"), figure(streams), 2.0, "");
    report.at_most(goal_of("lists a watch"), lists_a_watch, 0.1, "");
    report.at_most(goal_of("connects"), figure(connects as u64), 2.0, "");
    report
}

const LATE: Duration = Duration::from_secs(7);

const ADDRESS: &str = "10.255.0.1:80";
