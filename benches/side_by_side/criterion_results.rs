//! The microbenchmarks' estimates, as criterion left them on disk, become rows of the table.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::results::{Line, Results, Row, Unit};
use crate::statistics::{Estimate, rounded};
use crate::subject::TONIC_ETCD;

/// Adds the rows of all microbenchmarks that have a goal, read from criterion's folder.
pub(crate) fn report(folder: &Path, results: &mut Results) {
    let mut found = Found::new();
    collect(folder, &mut found);
    for goal in GOALS {
        for (case, subject) in goal.benchmarks() {
            if let Some(figures) = found.get(case) {
                results.line(&Line { case, subject, median_ns: Some(rounded(figures.median)), ..Line::default() });
            }
        }
        results.row(match goal.measured(&found) {
            Ok((measured, unit)) => Row::at_most(goal.name, measured, goal.at_most, unit),
            Err(name) => Row::missing(goal.name, format!("`{name}` did not run")),
        });
    }
}

struct Goal {
    name: &'static str,
    ours: &'static str,
    compared: Compared,
    at_most: f64,
}

/// The benchmark that a goal compares with, and its subject.
enum Compared {
    Quotient((&'static str, &'static str)),
    Difference((&'static str, &'static str)),
    Alone,
}

type Found = BTreeMap<String, Estimate>;

impl Goal {
    /// The benchmarks behind a goal, and their subjects.
    fn benchmarks(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let theirs = match self.compared {
            Compared::Quotient(theirs) | Compared::Difference(theirs) => Some(theirs),
            Compared::Alone => None,
        };
        [(self.ours, TONIC_ETCD)].into_iter().chain(theirs)
    }

    /// What they say together; or the one that did not run.
    fn measured(&self, found: &Found) -> Result<(Estimate, Unit), &'static str> {
        let estimate = |name| found.get(name).ok_or(name);
        let ours = estimate(self.ours)?;
        Ok(match self.compared {
            Compared::Quotient((theirs, _)) => (quotient(ours, estimate(theirs)?), Unit::Ratio),
            Compared::Difference((theirs, _)) => (difference(ours, estimate(theirs)?), Unit::Nanoseconds),
            Compared::Alone => (in_milliseconds(ours), Unit::Milliseconds),
        })
    }
}

const GOALS: [Goal; 9] = [
    Goal {
        name: "pick, least request, 100 instances / tower's Buffer over p2c",
        ours: "pick/least_request/100",
        compared: Compared::Quotient(("pick/buffer_p2c/100", "tower")),
        at_most: 0.15,
    },
    Goal {
        name: "pick, least request, 10,000 instances / 10 instances",
        ours: "pick/least_request/10000",
        compared: Compared::Quotient(("pick/least_request/10", TONIC_ETCD)),
        at_most: 1.8,
    },
    Goal {
        name: "pick, weighted round robin / least request, 1,000 instances",
        ours: "pick/weighted_round_robin/1000",
        compared: Compared::Quotient(("pick/least_request/1000", TONIC_ETCD)),
        at_most: 2.0,
    },
    Goal {
        name: "pick, peak EWMA / least request, 1,000 instances",
        ours: "pick/peak_ewma/1000",
        compared: Compared::Quotient(("pick/least_request/1000", TONIC_ETCD)),
        at_most: 2.0,
    },
    Goal {
        name: "pick, ring hash / least request, 1,000 instances",
        ours: "pick/ring_hash/1000",
        compared: Compared::Quotient(("pick/least_request/1000", TONIC_ETCD)),
        at_most: 3.0,
    },
    Goal {
        name: "ring hash, 10,000 instances: a new ring",
        ours: "pick/ring_of/10000",
        compared: Compared::Alone,
        at_most: 50.0,
    },
    Goal {
        name: "the server's registration layer around a service that does nothing",
        ours: "call/nothing/counted",
        compared: Compared::Difference(("call/nothing/bare", "bare")),
        at_most: 150.0,
    },
    Goal {
        name: "the server's registration layer around tonic's hello service",
        ours: "call/hello/counted",
        compared: Compared::Difference(("call/hello/bare", "bare")),
        at_most: 350.0,
    },
    Goal {
        name: "a unary call of tonic's through the registration layer / through tower-http's InFlightRequests",
        ours: "call/hello/counted",
        compared: Compared::Quotient(("call/hello/in_flight_only", "tower-http")),
        at_most: 1.5,
    },
];

/// The quotient of two medians that were not measured in pairs: its interval takes the worst of both.
fn quotient(ours: &Estimate, theirs: &Estimate) -> Estimate {
    Estimate { median: ours.median / theirs.median, low: ours.low / theirs.high, high: ours.high / theirs.low }
}

/// The difference of two medians, likewise.
fn difference(ours: &Estimate, theirs: &Estimate) -> Estimate {
    Estimate { median: ours.median - theirs.median, low: ours.low - theirs.high, high: ours.high - theirs.low }
}

fn in_milliseconds(ours: &Estimate) -> Estimate {
    let millis = |nanos: f64| nanos / 1_000_000.0;
    Estimate { median: millis(ours.median), low: millis(ours.low), high: millis(ours.high) }
}

/// Reads the newest estimate of each benchmark below `folder`, by its full name.
fn collect(folder: &Path, found: &mut Found) {
    let read = |name: &str| fs::read_to_string(folder.join("new").join(name)).ok();
    if let (Some(benchmark), Some(estimates)) = (read("benchmark.json"), read("estimates.json")) {
        let name =
            serde_json::from_str::<Value>(&benchmark).ok().and_then(|it| Some(it["full_id"].as_str()?.to_owned()));
        let estimates = serde_json::from_str::<Estimates>(&estimates);
        if let (Some(name), Ok(Estimates { median })) = (name, estimates) {
            let Interval { lower_bound: low, upper_bound: high } = median.confidence_interval;
            found.insert(name, Estimate { median: median.point_estimate, low, high });
        }
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            collect(&entry.path(), found);
        }
    }
}

/// What is read of `estimates.json`; times are in nanoseconds.
#[derive(Deserialize)]
struct Estimates {
    median: Median,
}

#[derive(Deserialize)]
struct Median {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}
