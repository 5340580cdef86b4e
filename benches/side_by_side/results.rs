//! Results as this benchmark has them: lines of figures of calls, and rows with intervals.

use serde::Serialize;

use crate::statistics::Estimate;

pub(crate) use crate::table::{Results, Row};

/// One result: a case and a subject. What a case does not measure is left out.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Line {
    /// The case.
    pub(crate) case: &'static str,
    /// How many instances the channel knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) instances: Option<usize>,
    /// How many calls are kept going, where that is fixed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) in_flight: Option<usize>,
    /// What a call carries, where that is not one short message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shape: Option<&'static str>,
    /// The subject.
    pub(crate) subject: &'static str,
    /// User and system time of the client's process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_us_per_call: Option<f64>,
    /// How many calls ended in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) calls_per_s: Option<f64>,
    /// The median latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50_us: Option<f64>,
    /// The latency that one call in a hundred exceeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99_us: Option<f64>,
    /// The latency that one call in a thousand exceeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p999_us: Option<f64>,
    /// How many calls were made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) calls: Option<usize>,
    /// How many of them failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<usize>,
    /// How many of these began so late that the fault should have been known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed_late: Option<usize>,
    /// How many calls were in flight on the servers that the fault befell, when it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) in_flight_on_lost: Option<u32>,
    /// The most that were in flight on each of them at a time, from just before until the fault was known, summed up,
    /// and what that counting may have missed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) most_in_flight_on_lost: Option<u32>,
    /// The deadline of each call; none where this is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deadline_ms: Option<f64>,
    /// A time that is no latency of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) median_ms: Option<f64>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes_per_instance: Option<f64>,
    /// A time of the microbenchmarks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) median_ns: Option<f64>,
    /// How many rounds, or runs with a fault, these figures are of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rounds: Option<usize>,
}

/// What a goal is measured in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unit {
    /// A quotient of two figures of this run; 0.03 above the goal counts as held, for what noise is left.
    Ratio,
    /// Milliseconds.
    Milliseconds,
    /// Nanoseconds.
    Nanoseconds,
    /// Bytes.
    Bytes,
}

impl Unit {
    fn show(self, figure: f64) -> String {
        match self {
            Self::Ratio => format!("{figure:.3}"),
            Self::Milliseconds => format!("{figure:.2} ms"),
            Self::Nanoseconds => format!("{figure:.0} ns"),
            Self::Bytes => format!("{figure:.0} B"),
        }
    }

    fn allowance(self) -> f64 {
        match self {
            Self::Ratio => 0.03,
            Self::Milliseconds | Self::Nanoseconds | Self::Bytes => 0.0,
        }
    }
}

impl Row {
    /// A goal for a figure: held if the upper end of its interval is at most the goal, and for a ratio 0.03 more.
    pub(crate) fn at_most(goal_of: impl Into<String>, measured: Estimate, goal: f64, unit: Unit) -> Self {
        let Estimate { median, low, high } = measured;
        let [median, low, upper] = [median, low, high].map(|figure| unit.show(figure));
        Self {
            goal_of: goal_of.into(),
            measured: format!("{median} ({low} to {upper})"),
            goal: format!("≤ {}", unit.show(goal)),
            held: Some(high <= goal + unit.allowance()),
        }
    }
}
