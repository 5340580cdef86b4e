//! What a case leaves: lines of figures, rows of the table, and facts for the outlook.

use std::time::Duration;

use serde_json::Value;

use crate::outlook::Facts;
use crate::table::Row;

/// How large a run is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// A smoke run, whose figures mean nothing.
    pub(crate) is_quick: bool,
}

impl Plan {
    /// A size of the whole run, or of the smoke run.
    pub(crate) fn size<T>(self, whole: T, quick: T) -> T {
        if self.is_quick { quick } else { whole }
    }

    /// A time of so many seconds, or in the smoke run of so many.
    pub(crate) fn seconds(self, whole: u64, quick: u64) -> Duration {
        Duration::from_secs(self.size(whole, quick))
    }
}

/// What one case leaves.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// One object a result.
    pub(crate) lines: Vec<Value>,
    /// Goals.
    pub(crate) rows: Vec<Row>,
    /// What the outlook is computed of.
    pub(crate) facts: Facts,
}

impl Report {
    /// Adds a goal that is a limit.
    pub(crate) fn at_most(&mut self, goal_of: impl Into<String>, measured: f64, goal: f64, unit: &str) {
        let show = |figure: f64| {
            let digits = if figure.fract().abs() < 0.0005 { 0 } else { 2 };
            let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
            format!("{figure:.digits$}{unit}")
        };
        self.rows.push(Row::counted(goal_of, show(measured), format!("≤ {}", show(goal)), measured <= goal));
    }

    /// Adds a goal that is a time limit; `took` is `None` where the limit of the case came first.
    pub(crate) fn within(
        &mut self,
        goal_of: impl Into<String>,
        took: Option<Duration>,
        goal: Duration,
        otherwise: impl Into<String>,
    ) {
        let measured = took.map_or_else(|| otherwise.into(), |took| format!("{:.2} s", took.as_secs_f64()));
        let is_held = took.is_some_and(|took| took <= goal);
        self.rows.push(Row::counted(goal_of, measured, format!("≤ {:.2} s", goal.as_secs_f64()), is_held));
    }
}

/// A time in seconds for a line.
pub(crate) fn seconds(took: Option<Duration>) -> Option<f64> {
    took.map(|took| rounded(took.as_secs_f64()))
}

/// A figure without the digits that mean nothing.
pub(crate) fn rounded(figure: f64) -> f64 {
    (figure * 1e3).round() / 1e3
}
