//! Calls of all kinds: one at a time, streams in each direction and both, and large messages.

use crate::load::{Figures, Shape};
use crate::processes::Servers;
use crate::results::{Line, Results, Row, Unit};
use crate::rounds::{Course, Plan, mirrored};
use crate::subject::Subject;

/// One call at a time over ten instances; the others four at a time, on one connection.
pub(crate) async fn run(plan: Plan, results: &mut Results) {
    let servers = Servers::start(10);
    let ten = servers.addresses();
    let over_ten = [Subject::tonic_etcd(ten), Subject::tonic_balance(ten)];
    let over_one = [Subject::tonic_etcd(&ten[..1]), Subject::tonic_channel(ten[0])];
    for kind in KINDS {
        let subjects = if kind.instances == 1 { &over_one } else { &over_ten };
        kind.measure(subjects, plan, results).await;
    }
}

/// A kind of call, and what it is compared by.
struct Kind {
    words: &'static str,
    shape: Shape,
    instances: usize,
    in_flight: usize,
    goals: &'static [Goal],
}

struct Goal {
    of: &'static str,
    figure: fn(&Figures) -> f64,
    is_of_tail: bool,
    at_most: f64,
}

impl Kind {
    async fn measure(&self, subjects: &[Subject], plan: Plan, results: &mut Results) {
        let slot = async |subject: &Subject| subject.closed(self.shape, self.in_flight, plan.slot).await;
        let courses = mirrored(subjects, plan.rounds.div_ceil(2), slot).await;
        for course in &courses {
            results.line(&self.line(course));
        }
        let [ours, theirs] = &courses[..] else { unreachable!("two subjects are compared") };
        for Goal { of, figure, is_of_tail, at_most } in self.goals {
            let case = format!("{of} {} / {}", self.words, theirs.subject);
            let ratio = if *is_of_tail { ours.tail_ratio(theirs, figure) } else { ours.ratio(theirs, figure) };
            results.row(Row::at_most(case, ratio, *at_most, Unit::Ratio));
        }
    }

    fn line(&self, course: &Course) -> Line {
        Line {
            case: "kinds",
            instances: Some(self.instances),
            in_flight: Some(self.in_flight),
            shape: Some(self.words),
            subject: course.subject,
            cpu_us_per_call: Some(course.median(|figures| figures.cpu_us_per_call)),
            calls_per_s: Some(course.median(|figures| figures.calls_per_s)),
            p50_us: Some(course.median(|figures| figures.p50_us)),
            p99_us: Some(course.median(|figures| figures.p99_us)),
            calls: Some(course.calls()),
            failed: Some(course.failed()),
            rounds: Some(course.rounds()),
            ..Line::default()
        }
    }
}

const fn cpu(at_most: f64) -> Goal {
    Goal { of: "client CPU of", figure: |figures| figures.cpu_us_per_call, is_of_tail: false, at_most }
}

const fn p50(at_most: f64) -> Goal {
    Goal { of: "p50 of", figure: |figures| figures.p50_us, is_of_tail: false, at_most }
}

const fn p99(at_most: f64) -> Goal {
    Goal { of: "p99 of", figure: |figures| figures.p99_us, is_of_tail: true, at_most }
}

const KINDS: [Kind; 6] = [
    Kind {
        words: "a unary call, 10 instances, 1 in flight",
        shape: Shape::Short(None),
        instances: 10,
        in_flight: 1,
        goals: &[cpu(0.95), p50(0.95)],
    },
    Kind {
        words: "a server stream of 1,000 messages, 4 in flight",
        shape: Shape::ServerStream(1_000),
        instances: 1,
        in_flight: 4,
        goals: &[cpu(1.0), p99(1.0)],
    },
    Kind {
        words: "a client stream of 1,000 messages, 4 in flight",
        shape: Shape::ClientStream(1_000),
        instances: 1,
        in_flight: 4,
        goals: &[cpu(1.0), p99(1.0)],
    },
    Kind {
        words: "a ping-pong of 100 messages, 4 in flight",
        shape: Shape::PingPong(100),
        instances: 1,
        in_flight: 4,
        goals: &[cpu(1.0), p99(1.0)],
    },
    Kind {
        words: "a unary call of 64 KiB, 4 in flight",
        shape: Shape::Long(64 * 1024),
        instances: 1,
        in_flight: 4,
        goals: &[cpu(1.0), p99(1.0)],
    },
    Kind {
        words: "a unary call of 1 MiB, 4 in flight",
        shape: Shape::Long(1024 * 1024),
        instances: 1,
        in_flight: 4,
        goals: &[cpu(1.0), p99(1.0)],
    },
];
