//! A process that follows many services: its streams and connections, and what etcd needs to remember of each.

use serde_json::json;
use tokio::time::sleep;
use tonic_etcd::{Discover, Registry};

use crate::fleet::{begins, listed, registry, watch};
use crate::outlook::Facts;
use crate::report::{Plan, Report, rounded};
use crate::support::costs::{Costs, figure};
use crate::support::etcd::{Cluster, Etcd};

/// Fifty services of a cluster, then what more of them and more clients take of an etcd's memory.
pub(crate) async fn run(plan: Plan) -> Report {
    let mut report = Report::default();
    let cluster = Cluster::start().await;
    let before = Costs::of(&cluster).await;
    let client = registry(&cluster.urls());
    let known = follow(&client, 0..FIFTY);
    begins("all services are listed", async || listed(&known) == FIFTY).await;
    begins("all services are watched", async || Costs::of(&cluster).await.watchers() >= FIFTY as u64).await;
    sleep(plan.seconds(5, 1)).await;
    let spent = before.until_now().await;
    let connections = connections(&before, &spent);
    report.lines.push(json!({
        "case": "services", "services": FIFTY, "streams": spent.watch_streams(), "opened": spent.calls("Watch"),
        "connections": connections,
    }));
    report.at_most("50 services in one process: Watch streams", figure(spent.watch_streams()), 1.0, "");
    if let Some(most) = connections.and_then(|each| each.into_iter().max()) {
        let goal_of = "50 services in one process: connections to the member that has most of them";
        report.at_most(goal_of, figure(most), 1.0, "");
    }
    drop((known, client, cluster));

    let (a_watch, a_client) = memory(plan).await;
    report.lines.push(json!({ "case": "services", "etcd_bytes_a_watch": a_watch, "etcd_bytes_a_client": a_client }));
    report.facts = Facts { bytes_of_a_watch: Some(a_watch), bytes_of_a_client: Some(a_client), ..Facts::default() };
    report
}

/// How many connections each member has more than before.
fn connections(before: &Costs, after: &Costs) -> Option<Vec<u64>> {
    let each = before.each().zip(after.each());
    each.map(|(before, after)| Some(after.connections()?.saturating_sub(before.connections()?))).collect()
}

/// The memory by which an etcd grows for each further watch of one client, and for each further client with one watch.
async fn memory(plan: Plan) -> (f64, f64) {
    let (more, clients) = (plan.size(2_000, 100), plan.size(300, 20));
    let etcd = Etcd::start().await;
    let client = registry(&[etcd.url()]);
    let mut known = follow(&client, 0..FIFTY);
    let weighed = async |known: &[Discover]| {
        let count = known.len();
        begins("all services are listed", async || listed(known) == count).await;
        begins("all services are watched", async || Costs::of(&etcd).await.watchers() == count as u64).await;
        // Lists are garbage by then.
        sleep(plan.seconds(10, 1)).await;
        figure(Costs::of(&etcd).await.memory())
    };
    let few = weighed(&known).await;
    known.extend(follow(&client, FIFTY..FIFTY + more));
    let many = weighed(&known).await;
    known.extend((0..clients).map(|_| watch(&registry(&[etcd.url()]), "echo")));
    let crowded = weighed(&known).await;
    let each = |grown: f64, count: usize| rounded(grown.max(0.0) / figure(count as u64)).round();
    (each(many - few, more), each(crowded - many, clients))
}

fn follow(client: &Registry, numbers: std::ops::Range<usize>) -> Vec<Discover> {
    numbers.map(|number| watch(client, &format!("service-{number}"))).collect()
}

const FIFTY: usize = 50;
