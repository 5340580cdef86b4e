//! What was done, and when: printed where a test fails, and asked whether it explains what was seen.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is done to a server: from when on, and when it was over.
#[derive(Debug, Clone)]
struct Disturbance {
    address: String,
    begin: Instant,
    end: Option<Instant>,
    /// Whether calls to it may fail: not where it leaves in order.
    costs_calls: bool,
}

/// Everything that was done, in order.
#[derive(Clone)]
pub(super) struct Journal {
    pub(super) begin: Instant,
    lines: Arc<Mutex<Vec<String>>>,
    disturbances: Arc<Mutex<Vec<Disturbance>>>,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self { begin: Instant::now(), lines: Arc::default(), disturbances: Arc::default() }
    }

    pub(super) fn note(&self, line: impl fmt::Display) {
        let line = format!("{:8.3} s  {line}", self.begin.elapsed().as_secs_f64());
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    pub(super) fn disturb(&self, address: &str, costs_calls: bool) {
        let disturbance = Disturbance { address: address.to_owned(), begin: Instant::now(), end: None, costs_calls };
        self.disturbances.lock().unwrap_or_else(PoisonError::into_inner).push(disturbance);
    }

    pub(super) fn set_recovered(&self, address: &str) {
        let mut disturbances = self.disturbances.lock().unwrap_or_else(PoisonError::into_inner);
        let last = disturbances.iter_mut().rev().find(|disturbance| disturbance.address == address);
        last.expect("it was disturbed").end = Some(Instant::now());
    }

    /// Whether something that was done to the server explains what was seen of it.
    pub(super) fn explains(
        &self,
        address: &str,
        begin: Instant,
        end: Instant,
        after: Duration,
        with_leaves: bool,
    ) -> bool {
        let disturbances = self.disturbances.lock().unwrap_or_else(PoisonError::into_inner);
        disturbances.iter().any(|disturbance| {
            disturbance.address == address
                && (with_leaves || disturbance.costs_calls)
                && disturbance.begin <= end
                && disturbance.end.is_none_or(|well| begin <= well + after)
        })
    }
}

/// Prints what was done, if the test fails.
pub(super) struct Story {
    pub(super) seed: u64,
    pub(super) journal: Journal,
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.journal.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
            eprintln!("SOAK_SEED={}; what was done:\n{lines}", self.seed);
        }
    }
}
