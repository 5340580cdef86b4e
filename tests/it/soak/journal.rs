//! What was done, and when: printed where a test fails, and asked whether it explains what was seen.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::Code;

/// What several tasks write down.
#[derive(Debug)]
pub(super) struct List<T>(Arc<Mutex<Vec<T>>>);

impl<T: Clone> List<T> {
    pub(super) fn push(&self, item: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(item);
    }

    pub(super) fn read(&self) -> Vec<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<T> Clone for List<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// What is done to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Killed,
    Frozen,
    /// Killed, and another program answers at its address.
    Replaced,
    /// Restarted in order as a server that sheds load.
    Sheds,
    /// Restarted in order.
    Leaves,
}

impl Fault {
    /// Whether calls may fail with this code because of it.
    pub(super) fn may_cost(self, code: Code) -> bool {
        match self {
            Self::Killed | Self::Frozen | Self::Replaced => code != Code::ResourceExhausted,
            Self::Sheds => code == Code::ResourceExhausted,
            Self::Leaves => false,
        }
    }

    /// Whether clients may eject the server because of it.
    pub(super) fn may_eject(self) -> bool {
        matches!(self, Self::Killed | Self::Frozen | Self::Replaced)
    }
}

/// A fault of a server: from when on, and when it was over.
#[derive(Debug, Clone)]
struct Disturbance {
    address: String,
    fault: Fault,
    begin: Instant,
    end: Option<Instant>,
}

/// Everything that was done, in order.
#[derive(Clone)]
pub(super) struct Journal {
    pub(super) begin: Instant,
    lines: List<String>,
    disturbances: Arc<Mutex<Vec<Disturbance>>>,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self { begin: Instant::now(), lines: List::default(), disturbances: Arc::default() }
    }

    pub(super) fn note(&self, line: impl fmt::Display) {
        self.lines.push(format!("{:8.3} s  {line}", self.begin.elapsed().as_secs_f64()));
    }

    pub(super) fn disturb(&self, address: &str, fault: Fault) {
        let disturbance = Disturbance { address: address.to_owned(), fault, begin: Instant::now(), end: None };
        self.disturbances.lock().unwrap_or_else(PoisonError::into_inner).push(disturbance);
    }

    pub(super) fn set_recovered(&self, address: &str) {
        let mut disturbances = self.disturbances.lock().unwrap_or_else(PoisonError::into_inner);
        let last = disturbances.iter_mut().rev().find(|disturbance| disturbance.address == address);
        last.expect("it was disturbed").end = Some(Instant::now());
    }

    /// The latest fault of the server that explains what was seen of it from `begin` to `end`, if there is one: a fault
    /// that `may` do this, and that was over for at most `after`.
    pub(super) fn explanation(
        &self,
        address: &str,
        (begin, end): (Instant, Instant),
        after: Duration,
        may: impl Fn(Fault) -> bool,
    ) -> Option<Fault> {
        let disturbances = self.disturbances.lock().unwrap_or_else(PoisonError::into_inner);
        let explains = |disturbance: &&Disturbance| {
            disturbance.address == address
                && may(disturbance.fault)
                && disturbance.begin <= end
                && disturbance.end.is_none_or(|well| begin <= well + after)
        };
        disturbances.iter().rev().find(explains).map(|disturbance| disturbance.fault)
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
            eprintln!("SOAK_SEED={}; what was done:\n{}", self.seed, self.journal.lines.read().join("\n"));
        }
    }
}
