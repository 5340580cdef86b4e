//! Counts what became of calls.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time;
use tonic::Code;

use crate::shared;

/// What became of one call: the address of the server that answered, or the code of the failure.
pub(crate) struct Outcome {
    pub(crate) answer: Result<String, Code>,
    pub(crate) latency: Duration,
}

/// Counts all calls, and prints a line a second meanwhile.
pub(crate) async fn count(mut outcomes: mpsc::Receiver<Outcome>) -> io::Result<Summary> {
    let mut latencies = Histogram::new(LATENCY_DIGITS).expect("the number of digits is allowed");
    let mut total = Tally::default();
    let mut second = Tally::default();
    let mut seconds = time::interval(Duration::from_secs(1));
    seconds.tick().await;
    let mut t = 0;
    loop {
        tokio::select! {
            outcome = outcomes.recv() => match outcome {
                Some(Outcome { answer, latency }) => {
                    total.add(&answer);
                    second.add(&answer);
                    if answer.is_ok() {
                        latencies += u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
                    }
                }
                None => return Ok(total.into_summary(&latencies)),
            },
            _ = seconds.tick() => {
                t += 1;
                shared::print_line(&std::mem::take(&mut second).into_second(t))?;
            }
        }
    }
}

#[derive(Default)]
struct Tally {
    by_instance: BTreeMap<String, u64>,
    failed: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn add(&mut self, answer: &Result<String, Code>) {
        match answer {
            Ok(address) => match self.by_instance.get_mut(address) {
                Some(calls) => *calls += 1,
                None => drop(self.by_instance.insert(address.clone(), 1)),
            },
            Err(code) => *self.failed.entry(name(*code)).or_default() += 1,
        }
    }

    fn ok(&self) -> u64 {
        self.by_instance.values().sum()
    }

    fn failed(&self) -> u64 {
        self.failed.values().sum()
    }

    fn into_second(self, t: u64) -> Second {
        Second { event: "second", t, ok: self.ok(), failed: self.failed(), by_instance: self.by_instance }
    }

    fn into_summary(self, latencies: &Histogram<u64>) -> Summary {
        Summary {
            sent: self.ok() + self.failed(),
            ok: self.ok(),
            failed: self.failed,
            by_instance: self.by_instance,
            latency_us: Latency {
                p50: latencies.value_at_quantile(0.5),
                p90: latencies.value_at_quantile(0.9),
                p99: latencies.value_at_quantile(0.99),
                p999: latencies.value_at_quantile(0.999),
                max: latencies.max(),
            },
        }
    }
}

#[derive(Serialize)]
struct Second {
    event: &'static str,
    t: u64,
    ok: u64,
    failed: u64,
    by_instance: BTreeMap<String, u64>,
}

#[derive(Serialize)]
pub(crate) struct Summary {
    sent: u64,
    ok: u64,
    failed: BTreeMap<&'static str, u64>,
    by_instance: BTreeMap<String, u64>,
    latency_us: Latency,
}

#[derive(Serialize)]
struct Latency {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

/// A code as gRPC's specification writes it.
pub(crate) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Significant digits of a latency: three separate 1.00 ms from 1.01 ms.
const LATENCY_DIGITS: u8 = 3;
