//! Unary calls at fixed rates, from light load to much: how long they take from when they are due.

use std::time::Duration;

use crate::load;
use crate::processes::Servers;
use crate::results::{Line, Results, Row, Unit};
use crate::rounds::{Plan, milliseconds, mirrored};
use crate::subject::Subject;

/// Ten instances, 1,000 to 20,000 calls a second.
pub(crate) async fn run(plan: Plan, results: &mut Results) {
    let servers = Servers::start(10);
    let addresses = servers.addresses();
    let subjects = [Subject::tonic_etcd(addresses), Subject::tonic_balance(addresses)];
    let (slot, rounds) = (plan.slot, plan.rounds.div_ceil(2));
    for rate in RATES {
        let courses = mirrored(&subjects, rounds, async |subject| {
            let calls = subject.open(rate, slot, DEADLINE).await;
            load::sample(&calls, slot)
        })
        .await;
        for course in &courses {
            results.line(&Line {
                case: "paced",
                instances: Some(addresses.len()),
                subject: course.subject,
                calls_per_s: Some(course.median(|figures| figures.calls_per_s)),
                p50_us: Some(course.median(|figures| figures.p50_us)),
                p99_us: Some(course.median(|figures| figures.p99_us)),
                p999_us: Some(course.median(|figures| figures.p999_us)),
                calls: Some(course.calls()),
                failed: Some(course.failed()),
                deadline_ms: Some(milliseconds(DEADLINE)),
                rounds: Some(course.rounds()),
                ..Line::default()
            });
        }
        let case =
            |quantile| format!("{quantile} at {},000 calls/s, 10 instances / {}", rate / 1000, courses[1].subject);
        let p99 = courses[0].tail_ratio(&courses[1], |figures| figures.p99_us);
        results.row(Row::at_most(case("p99"), p99, GOAL, Unit::Ratio));
        let p999 = courses[0].tail_ratio(&courses[1], |figures| figures.p999_us);
        results.row(Row::at_most(case("p99.9"), p999, GOAL, Unit::Ratio));
    }
}

const RATES: [u32; 4] = [1_000, 5_000, 10_000, 20_000];
const DEADLINE: Duration = Duration::from_secs(5);
const GOAL: f64 = 0.95;
