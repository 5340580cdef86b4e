//! One server of ten is fifty times slower than the others: how much of that the callers feel.

use std::time::Duration;

use crate::load;
use crate::processes::Servers;
use crate::results::{Line, Results, Row, Unit};
use crate::rounds::{Plan, milliseconds, mirrored};
use crate::subject::Subject;

/// 2,000 calls a second; 1 of 10 servers takes 50 ms, the others 1 ms.
pub(crate) async fn run(plan: Plan, results: &mut Results) {
    let mut servers = Servers::start(10);
    servers.delay_all(FAST);
    servers.delay(0, SLOW);
    let addresses = servers.addresses();
    let subjects = [Subject::tonic_etcd(addresses), Subject::tonic_balance(addresses)];
    // Twice the usual slot: a percentile of the slowest hundredth wants a thousand calls.
    let slot = plan.slot * 2;
    let rounds = plan.rounds.div_ceil(3) * 2;
    let courses = mirrored(&subjects, rounds, async |subject| {
        let calls = subject.open(RATE, slot, DEADLINE).await;
        load::sample(&calls, slot)
    })
    .await;
    for course in &courses {
        results.line(&Line {
            case: "p99_slow",
            instances: Some(addresses.len()),
            subject: course.subject,
            calls_per_s: Some(course.median(|figures| figures.calls_per_s)),
            p50_us: Some(course.median(|figures| figures.p50_us)),
            p99_us: Some(course.median(|figures| figures.p99_us)),
            calls: Some(course.calls()),
            failed: Some(course.failed()),
            deadline_ms: Some(milliseconds(DEADLINE)),
            rounds: Some(course.rounds()),
            ..Line::default()
        });
    }
    let ratio = courses[0].ratio(&courses[1], |figures| figures.p99_us);
    let case = format!("p99, 1 of 10 at 50 ms, others 1 ms, 2,000 calls/s / {}", courses[1].subject);
    results.row(Row::at_most(case, ratio, 0.2, Unit::Ratio));
}

const FAST: Duration = Duration::from_millis(1);
const SLOW: Duration = Duration::from_millis(50);
const RATE: u32 = 2_000;
const DEADLINE: Duration = Duration::from_secs(5);
