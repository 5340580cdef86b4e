//! A server and a client behind `etcd grpc-proxy`, as fleets use it to have fewer watches at etcd itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;
use tonic_etcd::{Instance, RegistrationStatus};

use crate::fleet::{begins, knowing, put_each, registry, until, watch};
use crate::report::{Plan, Report, seconds};
use crate::support::costs::{Costs, figure};
use crate::support::etcd::Etcd;
use crate::support::grpc_proxy::GrpcProxy;
use crate::support::proxy::Proxy;

/// One registration and one watch of one program. Its connects are counted by a TCP proxy in front.
pub(crate) async fn run(plan: Plan) -> Report {
    let mut report = Report::default();
    let etcd = Etcd::start().await;
    let grpc_proxy = GrpcProxy::start(etcd.url()).await;
    let proxy = Proxy::start(grpc_proxy.address()).await;
    let client = registry(&[proxy.url()]);
    let instance = Instance::new("own", SocketAddr::from(([127, 0, 0, 1], 1)));
    let registration = client.registration(instance).ttl(Duration::from_secs(15)).build().expect("good options");
    let (begin, before) = (Instant::now(), Costs::of(&etcd).await);
    registration.start();
    let known = [watch(&client, "echo")];
    let lease = || match registration.status() {
        RegistrationStatus::Registered { lease, .. } => Some(lease),
        _ => None,
    };
    begins("it is registered and watches", async || lease().is_some() && known[0].snapshot().is_some()).await;
    let first = lease();

    sleep((begin + plan.seconds(60, 3)).saturating_duration_since(Instant::now())).await;
    let early = grpc_proxy.log().len();
    sleep((begin + plan.seconds(150, 6)).saturating_duration_since(Instant::now())).await;
    let (spent, connects) = (before.until_now().await, proxy.accepted());
    let errors: Vec<String> = grpc_proxy.log().into_iter().skip(early).filter(|line| is_error(line)).collect();
    let lost = spent.calls("LeaseGrant").saturating_sub(1) + u64::from(lease() != first);
    let change = Instant::now();
    put_each(&mut etcd.client().await, &["echo".to_owned()], ADDRESS).await;
    let seen = until(GIVEN_UP, async || knowing(&known, ADDRESS) == 1).await.map(|_| change.elapsed());

    report.lines.push(json!({
        "case": "proxy", "connects": connects, "leases_lost": lost, "error_lines": errors.len(),
        "first_error_line": errors.first(), "change_seen_after_s": seconds(seen), "watches": spent.calls("Watch"),
        "lists": spent.calls("Range"),
    }));
    let goal_of = |what: &str| format!("one program behind etcd grpc-proxy, 150 s: {what}");
    report.at_most(goal_of("its connects"), figure(connects as u64), 1.0, "");
    report.at_most(goal_of("leases lost"), figure(lost), 0.0, "");
    report.at_most(goal_of("error lines of the proxy after the first minute"), figure(errors.len() as u64), 0.0, "");
    let missing = format!("not within {} s", GIVEN_UP.as_secs());
    report.within(goal_of("a change is seen"), seen, Duration::from_secs(1), missing);
    registration.deregister().await;
    report
}

/// In the words of etcd's loggers: JSON with a level, and lines with a letter before the package.
fn is_error(line: &str) -> bool {
    let is_marked = |mark: &str| line.contains(mark);
    ["\"level\":\"error\"", "\"level\":\"fatal\"", "\"level\":\"panic\"", " E | ", " C | "].into_iter().any(is_marked)
}

const ADDRESS: &str = "10.255.0.1:80";

const GIVEN_UP: Duration = Duration::from_secs(10);
