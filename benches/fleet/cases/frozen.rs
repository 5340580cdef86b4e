//! An etcd stands still until all leases have ended: how soon every registration is back, and what etcd has to take
//! then.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;
use tonic_etcd::{Instance, Registration, RegistrationStatus};

use crate::fleet::{begins, peak, registry, until_etcd};
use crate::report::{Plan, Report, rounded, seconds};
use crate::support::costs::{Costs, figure};
use crate::support::etcd::Etcd;

/// Twenty registries with a hundred registrations each.
pub(crate) async fn run(plan: Plan) -> Report {
    let mut report = Report::default();
    let (programs, each) = (20, plan.size(100, 5));
    let count = programs * each;
    let etcd = Etcd::start().await;
    let mut registrations: Vec<Registration> = Vec::new();
    for program in 0..programs {
        let registry = registry(&[etcd.url()]);
        registrations.extend((0..each).map(|number| {
            let [_, _, high, low] = u32::try_from(program * each + number).unwrap_or_default().to_be_bytes();
            let instance = Instance::new("echo", SocketAddr::from(([127, 1, high, low], 80)));
            registry.registration(instance).ttl(TTL).build().expect("good options")
        }));
    }
    registrations.iter().for_each(Registration::start);
    let is_registered = |one: &Registration| matches!(one.status(), RegistrationStatus::Registered { .. });
    begins("all are registered", async || registrations.iter().all(is_registered)).await;
    begins("each watches its key", async || Costs::of(&etcd).await.watchers() >= count as u64).await;
    let old: HashSet<i64> = etcd.leases().await.into_iter().collect();
    let before = Costs::of(&etcd).await;

    etcd.freeze();
    sleep(TTL + BEYOND).await;
    etcd.resume();
    let leased = async || {
        let keys = etcd.keys(PREFIX).await;
        keys.iter().filter(|(_, _, lease)| *lease != 0 && !old.contains(lease)).count()
    };
    let back = Box::pin(until_etcd(GIVEN_UP, async || leased().await == count));
    let (back, backlog) = peak(&etcd, Costs::backlog, back).await;
    let spent = before.until_now().await;
    let there = leased().await;
    let a_registration = |calls: u64| rounded(figure(calls) / figure(count as u64));
    report.lines.push(json!({
        "case": "frozen", "registrations": count, "back_after_s": seconds(back), "back": there, "backlog": backlog,
        "grants_each": a_registration(spent.calls("LeaseGrant")), "claims_each": a_registration(spent.calls("Txn")),
        "watches_each": a_registration(spent.calls("Watch")), "lists_each": a_registration(spent.calls("Range")),
    }));
    let words = format!("{count} registrations of {programs} registries, etcd frozen beyond the TTL");
    let missing = format!("{there} of {count} after {} s", GIVEN_UP.as_secs());
    report.within(format!("{words}: all back, each under a lease"), back, Duration::from_secs(10), missing);
    report.at_most(format!("{words}: most entries that etcd has to apply"), figure(backlog), LIMIT_OF_ETCD, "");
    report
}

const PREFIX: &str = "kitex/registry-etcd/echo/";

const TTL: Duration = Duration::from_secs(6);
const BEYOND: Duration = Duration::from_secs(4);

const GIVEN_UP: Duration = Duration::from_secs(60);

/// From then on it refuses requests as too many.
const LIMIT_OF_ETCD: f64 = 5_000.0;
