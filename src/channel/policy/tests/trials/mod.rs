//! Policies against instances that shed, fail, are cold or freeze: whole minutes of calls under paused time.

mod failing;
mod freezing;
mod shedding;
mod streaming;
mod warming;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, advance};

use super::candidates;
use crate::channel::picks::ready_set::ReadySet;
use crate::channel::policy::candidate::Candidate;
use crate::channel::policy::load::Load;
use crate::channel::policy::{LeastRequest, PeakEwma, PickArgs, Policy, WeightedRandom, WeightedRoundRobin};

/// How a call ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Answered,
    /// With `RESOURCE_EXHAUSTED`, and without a push-back.
    Shed,
    /// With INTERNAL.
    Failed,
    /// Its deadline passes.
    Missed,
    Never,
}

/// A call that was sent: when, and to which instance.
#[derive(Clone, Copy)]
struct Call {
    at: Duration,
    to: usize,
}

/// A policy over equal instances that get `rate` calls a second at random times.
struct Trial {
    choice: ReadySet<()>,
    rate: f64,
}

impl Trial {
    fn new(policy: &dyn Policy, instances: usize, rate: u32) -> Self {
        let load = || Arc::new(Load::new(u32::MAX).measuring_peaks(policy.needs().peak_latency()));
        let fresh = |candidate: &Candidate| Candidate::new(load(), candidate.shared_instance().clone());
        let candidates = candidates(&vec![10; instances]).iter().map(fresh).collect();
        Self { choice: ReadySet::of(candidates, policy), rate: f64::from(rate) }
    }

    /// Calls for so many seconds. `behave` says of each call, by its time, its instance, and the number of the call
    /// among those of its instance, after how many milliseconds it ends and how.
    async fn run(&self, seconds: u64, mut behave: impl FnMut(Duration, usize, usize) -> (u64, End)) -> Vec<Call> {
        let begin = Instant::now();
        let mut open: Vec<(Instant, Instant, usize, End)> = Vec::new();
        let mut numbers = vec![0; self.choice.candidates().len()];
        let mut calls = Vec::new();
        let mut next = begin;
        while next < begin + Duration::from_secs(seconds) {
            next += Duration::from_secs_f64(-(1.0 - fastrand::f64()).ln() / self.rate);
            open.sort_by_key(|&(at, ..)| std::cmp::Reverse(at));
            while let Some((at, sent, to, end)) = open.pop_if(|&mut (at, ..)| at <= next) {
                advance(at.duration_since(Instant::now())).await;
                count(self.choice.candidate(to).load(), at - sent, end);
            }
            advance(next.duration_since(Instant::now())).await;
            let to = self.choice.acquire(&PickArgs::default()).expect("all have room");
            let at = next - begin;
            calls.push(Call { at, to });
            let (after, end) = behave(at, to, numbers[to]);
            numbers[to] += 1;
            if end != End::Never {
                open.push((next + Duration::from_millis(after), next, to, end));
            }
        }
        calls
    }
}

/// Counts the end of a call as a channel does.
fn count(load: &Load, after: Duration, end: End) {
    let now = Instant::now();
    if end != End::Missed {
        load.on_answer();
    }
    match end {
        End::Answered => load.on_latency(now, after),
        End::Shed => load.on_shed(now, Duration::from_millis(500)),
        End::Failed => load.on_fast_failure(now),
        End::Missed => load.on_missed(now),
        End::Never => {}
    }
    load.quota().release();
}

fn measuring() -> [Box<dyn Policy>; 2] {
    [Box::new(LeastRequest::new()), Box::new(PeakEwma::new())]
}

fn blind() -> [Box<dyn Policy>; 2] {
    [Box::new(WeightedRoundRobin::new()), Box::new(WeightedRandom::new())]
}

fn all_policies() -> impl Iterator<Item = Box<dyn Policy>> {
    measuring().into_iter().chain(blind())
}

/// Which part of these calls the first instance got.
fn share_of_first<'a>(calls: impl IntoIterator<Item = &'a Call>) -> f64 {
    let (mut first, mut all) = (0_u32, 0_u32);
    for call in calls {
        first += u32::from(call.to == 0);
        all += 1;
    }
    f64::from(first) / f64::from(all.max(1))
}
