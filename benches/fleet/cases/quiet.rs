//! A store to which nothing is written: what a watch costs it, and what a process costs it that serves and calls.

use std::net::SocketAddr;

use serde_json::json;
use tokio::time::sleep;
use tonic_etcd::{Discover, Instance};

use crate::fleet::{begins, listed, registry, watch};
use crate::outlook::Facts;
use crate::report::{Plan, Report, rounded};
use crate::support::costs::{Costs, figure};
use crate::support::etcd::Etcd;

/// Both at once, on an etcd each.
pub(crate) async fn run(plan: Plan) -> Report {
    let mut report = Report::default();
    let ((watches, lists), process) = tokio::join!(one_watch(plan), one_process(plan));
    report.lines.push(json!({ "case": "quiet", "seconds": WATCHED, "watches": watches, "lists": lists }));
    report.at_most("a quiet store, one watch, 205 s: Watch streams", figure(watches), 1.0, "");
    report.at_most("a quiet store, one watch, 205 s: Range calls", figure(lists), 2.0, "");
    report.lines.push(json!({
        "case": "quiet", "services": SERVICES, "seconds": OBSERVED,
        "streams": process.streams_of_a_process, "requests_a_second": process.requests_a_second,
        "lists_a_second": process.lists_a_second, "bytes_a_second": process.bytes_a_second,
    }));
    report.facts = process;
    report
}

async fn one_watch(plan: Plan) -> (u64, u64) {
    let etcd = Etcd::start().await;
    let before = Costs::of(&etcd).await;
    let known = watch(&registry(&[etcd.url()]), "echo");
    sleep(plan.seconds(WATCHED, 3)).await;
    let spent = before.until_now().await;
    drop(known);
    (spent.calls("Watch"), spent.calls("Range"))
}

/// A process that serves one service and calls fifty, from when it is in order on.
async fn one_process(plan: Plan) -> Facts {
    let etcd = Etcd::start().await;
    let registry = registry(&[etcd.url()]);
    let instance = Instance::new("own", SocketAddr::from(([127, 0, 0, 1], 1)));
    let registration = registry.registration(instance).build().expect("good options");
    registration.start();
    registration.registered().await.expect("it is not deregistered");
    let known: Vec<Discover> = (0..SERVICES).map(|number| watch(&registry, &format!("service-{number}"))).collect();
    begins("all services are listed", async || listed(&known) == known.len()).await;
    let watches = async || Costs::of(&etcd).await.watchers();
    begins("all services are watched", async || watches().await == u64::from(SERVICES) + 1).await;
    let before = Costs::of(&etcd).await;
    let time = plan.seconds(OBSERVED, 3);
    sleep(time).await;
    let spent = before.until_now().await;
    let a_second = |count: u64| Some(rounded(figure(count) / time.as_secs_f64()));
    registration.deregister().await;
    Facts {
        streams_of_a_process: Some(figure(spent.watch_streams())),
        requests_a_second: a_second(spent.requests()),
        lists_a_second: a_second(spent.calls("Range")),
        bytes_a_second: a_second(spent.bytes()),
        ..Facts::default()
    }
}

const WATCHED: u64 = 205;

/// Longer than the five minutes after which a watch is verified without any cause, for each of the services.
const OBSERVED: u64 = 400;

const SERVICES: u32 = 50;
