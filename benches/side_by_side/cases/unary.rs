//! Unary calls, as many at once as the case says: what each costs the client in CPU time.

use std::time::Duration;

use crate::load::Shape;
use crate::processes::Servers;
use crate::results::{Line, Results, Row, Unit};
use crate::rounds::{Course, Plan, milliseconds, mirrored};
use crate::subject::Subject;

/// Ten instances, 64 and 512 calls in flight; the same 64 with a deadline each; one instance, 64 calls in flight.
pub(crate) async fn run(plan: Plan, results: &mut Results) {
    let servers = Servers::start(10);
    let ten = servers.addresses();
    let subjects = [Subject::tonic_etcd(ten), Subject::tonic_balance(ten), Subject::floor(ten).await];
    for in_flight in [64, 512] {
        let load = Load { instances: 10, in_flight, deadline: None };
        let courses = load.measure(&subjects, plan, results).await;
        load.compare(&courses[0], &courses[1], 0.86, results);
        load.compare(&courses[0], &courses[2], 1.08, results);
    }
    // The floor keeps no deadlines.
    let load = Load { instances: 10, in_flight: 64, deadline: Some(DEADLINE) };
    let courses = load.measure(&subjects[..2], plan, results).await;
    load.compare(&courses[0], &courses[1], 0.86, results);

    let one = &ten[..1];
    let subjects = [Subject::tonic_etcd(one), Subject::tonic_channel(one[0])];
    let load = Load { instances: 1, in_flight: 64, deadline: None };
    let courses = load.measure(&subjects, plan, results).await;
    load.compare(&courses[0], &courses[1], 1.0, results);
}

struct Load {
    instances: usize,
    in_flight: usize,
    deadline: Option<Duration>,
}

impl Load {
    async fn measure(&self, subjects: &[Subject], plan: Plan, results: &mut Results) -> Vec<Course> {
        let slot =
            async |subject: &Subject| subject.closed(Shape::Short(self.deadline), self.in_flight, plan.slot).await;
        let courses = mirrored(subjects, plan.rounds, slot).await;
        for course in &courses {
            results.line(&Line {
                case: "unary",
                instances: Some(self.instances),
                in_flight: Some(self.in_flight),
                subject: course.subject,
                cpu_us_per_call: Some(course.median(|figures| figures.cpu_us_per_call)),
                calls_per_s: Some(course.median(|figures| figures.calls_per_s)),
                p50_us: Some(course.median(|figures| figures.p50_us)),
                p99_us: Some(course.median(|figures| figures.p99_us)),
                calls: Some(course.calls()),
                failed: Some(course.failed()),
                deadline_ms: self.deadline.map(milliseconds),
                rounds: Some(course.rounds()),
                ..Line::default()
            });
        }
        courses
    }

    fn compare(&self, ours: &Course, theirs: &Course, goal: f64, results: &mut Results) {
        let Self { instances, in_flight, deadline } = self;
        let instances = if *instances == 1 { "1 instance".to_owned() } else { format!("{instances} instances") };
        let deadline = if deadline.is_some() { ", a deadline each" } else { "" };
        let case =
            format!("client CPU a unary call, {instances}, {in_flight} in flight{deadline} / {}", theirs.subject);
        let ratio = ours.ratio(theirs, |figures| figures.cpu_us_per_call);
        results.row(Row::at_most(case, ratio, goal, Unit::Ratio));
    }
}

const DEADLINE: Duration = Duration::from_secs(5);
