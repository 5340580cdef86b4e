//! An etcd is killed and restarted under many watches: how soon all of them are current again, and what they ask for
//! that.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;
use tonic_etcd::Discover;

use crate::fleet::{begins, knowing, listed, peak, put_each, registry, until, watch};
use crate::outlook::Facts;
use crate::report::{Plan, Report, rounded, seconds};
use crate::support::costs::{Costs, figure};
use crate::support::etcd::Etcd;

/// Fifty clients with four services each.
pub(crate) async fn run(plan: Plan) -> Report {
    let mut report = Report::default();
    let clients = plan.size(50, 5);
    let etcd = Etcd::start().await;
    let services: Vec<String> = (0..4).map(|number| format!("service-{number}")).collect();
    let mut known: Vec<Discover> = Vec::new();
    for _ in 0..clients {
        let client = registry(&[etcd.url()]);
        known.extend(services.iter().map(|service| watch(&client, service)));
    }
    let count = known.len();
    begins("all services are listed", async || listed(&known) == count).await;
    begins("all services are watched", async || Costs::of(&etcd).await.watchers() == count as u64).await;

    etcd.restart().await;
    let answered = Instant::now();
    put_each(&mut etcd.client().await, &services, ADDRESS).await;
    let current = async {
        let current = until(GIVEN_UP, async || knowing(&known, ADDRESS) == count).await;
        current.map(|_| answered.elapsed())
    };
    let (current, backlog) = peak(&etcd, Costs::backlog, current).await;
    // Lists that verify what the watches saw come later, spread.
    sleep(plan.seconds(20, 1)).await;
    let spent = Costs::of(&etcd).await;
    let (lists, streams) = (spent.calls("Range"), spent.calls("Watch"));
    let lists_a_watch = rounded(figure(lists) / figure(count as u64));
    report.lines.push(json!({
        "case": "return", "watches": count, "clients": clients, "current_after_s": seconds(current), "lists": lists,
        "lists_a_watch": lists_a_watch, "streams": streams, "backlog": backlog,
    }));
    let goal_of = |what: &str| format!("etcd restarts under {count} watches of {clients} clients: {what}");
    let missing = format!("{} of {count} after {} s", knowing(&known, ADDRESS), GIVEN_UP.as_secs());
    report.within(goal_of("all current after its answer"), current, Duration::from_secs(3), missing);
    report.at_most(goal_of("lists a watch"), lists_a_watch, 2.0, "");
    report.facts = Facts {
        lists_a_watch: Some(lists_a_watch),
        seconds_to_return: current.map(|took| rounded(took.as_secs_f64())),
        ..Facts::default()
    };
    report
}

const ADDRESS: &str = "10.255.0.1:80";

const GIVEN_UP: Duration = Duration::from_secs(60);
