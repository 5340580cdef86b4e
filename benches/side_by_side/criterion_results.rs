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
    let mut found = BTreeMap::new();
    collect(folder, &mut found);
    for goal in GOALS {
        let (Some(ours), Some(theirs)) = (found.get(goal.ours), found.get(goal.theirs)) else {
            results.row(Row::missing(goal.name, format!("`{}` or `{}` did not run", goal.ours, goal.theirs)));
            continue;
        };
        for (case, subject, figures) in [(goal.ours, goal.subjects[0], ours), (goal.theirs, goal.subjects[1], theirs)] {
            results.line(&Line { case, subject, median_ns: Some(rounded(figures.median)), ..Line::default() });
        }
        let (measured, unit) = match goal.compared {
            Compared::Quotient => (quotient(ours, theirs), Unit::Ratio),
            Compared::Difference => (difference(ours, theirs), Unit::Nanoseconds),
        };
        results.row(Row::at_most(goal.name, measured, goal.at_most, unit));
    }
}

struct Goal {
    name: &'static str,
    ours: &'static str,
    theirs: &'static str,
    subjects: [&'static str; 2],
    compared: Compared,
    at_most: f64,
}

enum Compared {
    Quotient,
    Difference,
}

const GOALS: [Goal; 6] = [
    Goal {
        name: "pick, least request, 100 instances / tower's Buffer over p2c",
        ours: "pick/least_request/100",
        theirs: "pick/buffer_p2c/100",
        subjects: [TONIC_ETCD, "tower"],
        compared: Compared::Quotient,
        at_most: 0.15,
    },
    Goal {
        name: "pick, least request, 10,000 instances / 10 instances",
        ours: "pick/least_request/10000",
        theirs: "pick/least_request/10",
        subjects: [TONIC_ETCD, TONIC_ETCD],
        compared: Compared::Quotient,
        at_most: 1.8,
    },
    Goal {
        name: "pick, weighted round robin / least request, 1,000 instances",
        ours: "pick/weighted_round_robin/1000",
        theirs: "pick/least_request/1000",
        subjects: [TONIC_ETCD, TONIC_ETCD],
        compared: Compared::Quotient,
        at_most: 2.0,
    },
    Goal {
        name: "pick, peak EWMA / least request, 1,000 instances",
        ours: "pick/peak_ewma/1000",
        theirs: "pick/least_request/1000",
        subjects: [TONIC_ETCD, TONIC_ETCD],
        compared: Compared::Quotient,
        at_most: 2.0,
    },
    Goal {
        name: "pick, ring hash / least request, 1,000 instances",
        ours: "pick/ring_hash/1000",
        theirs: "pick/least_request/1000",
        subjects: [TONIC_ETCD, TONIC_ETCD],
        compared: Compared::Quotient,
        at_most: 3.0,
    },
    Goal {
        name: "the server's registration layer, a call",
        ours: "call/counted",
        theirs: "call/bare",
        subjects: [TONIC_ETCD, "bare"],
        compared: Compared::Difference,
        at_most: 150.0,
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

/// Reads the newest estimate of each benchmark below `folder`, by its full name.
fn collect(folder: &Path, found: &mut BTreeMap<String, Estimate>) {
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
