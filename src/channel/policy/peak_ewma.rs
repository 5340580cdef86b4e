//! The one of two that promises the sooner answer.

use tokio::time::Instant;

use crate::channel::candidate::{Candidate, Seat};
use crate::channel::policy::sampler::Sampler;
use crate::channel::policy::{Picker, Policy};

/// Of two instances drawn by weight, the one that promises the sooner answer: its latency times its calls in flight.
///
/// The latency is a [peak](Candidate::peak_latency): a slower answer counts at once and in full, and less and less
/// over some ten seconds; each failure doubles it. So an instance that stumbles loses its calls with the first slow answer,
/// where [`LeastRequest`](crate::LeastRequest) would wait until calls pile up there; in return a single slow call, which says
/// little about the next one, costs its instance load for seconds. Made for many short calls of one kind, over instances or
/// networks that differ. linkerd and tower balance like this.
///
/// Weights, and the shares of instances that [start slowly](crate::ChannelBuilder::slow_start), are exact for calls in flight:
/// where each instance has some. While most have none, the sooner answer for its weight decides alone, and of equally fast
/// ones a lighter one gets less than its share.
///
/// An instance that has answered nothing yet gets calls as one that answers at once, one at a time.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct PeakEwma;

impl PeakEwma {
    /// The policy; there is nothing to set.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl Policy for PeakEwma {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        let weights = candidates.iter().map(Candidate::weight).collect();
        Box::new(PeakEwmaPicker { sampler: Sampler::new(candidates), weights })
    }

    fn measures_peaks(&self) -> bool {
        true
    }
}

struct PeakEwmaPicker {
    sampler: Sampler,
    /// Side by side: those in the instances lie all over the memory.
    weights: Box<[u32]>,
}

impl Picker for PeakEwmaPicker {
    fn pick(&self, candidates: &[Candidate], _: u64) -> usize {
        let (first, second) = self.sampler.two();
        let (Some(one), Some(other)) = (candidates.get(first), candidates.get(second)) else { return first };
        let (one, other) = (one.seat(), other.seat());
        if one.is_saturated() || other.is_saturated() {
            return if other.is_saturated() { first } else { second };
        }
        let now = Instant::now();
        let weight = |index: usize| u64::from(self.weights[index ^ first ^ second]);
        let promised = |seat: &Seat, index: usize| promise(seat, now).saturating_mul(weight(index));
        // Each multiplied by the other's weight, instead of divided by its own. The first, drawn by weight, keeps a tie.
        if promised(other, second) < promised(one, first) { second } else { first }
    }
}

/// How long an answer would take here, in microseconds: below 2^47. With the largest weight, which has 23 bits while instances
/// start slowly, two such numbers may be too large to compare; a minute with thousands of calls in flight is bad enough.
fn promise(seat: &Seat, now: Instant) -> u64 {
    let waiting = u64::from(seat.load().min(MOST_WAITING));
    match seat.peak_micros(now) {
        // Nothing is known: the first call is to find out, the next ones wait for that.
        0 => waiting * UNKNOWN,
        micros => u64::from(micros) * (waiting + 1),
    }
}

/// Beyond so many calls in flight all are equally busy.
const MOST_WAITING: u32 = (1 << 15) - 1;
/// What a second call to an instance of which nothing is known is taken to take: a second, in microseconds.
const UNKNOWN: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::channel::choice::Choice;
    use crate::channel::policy::tests::{assert_shared_by_weight, candidates};
    use crate::channel::trial::{Picked, Trial};
    use crate::instance::Instance;

    fn trial<const N: usize>(weights: [u16; N]) -> Trial {
        let instance = |(port, weight)| Instance::new("echo", SocketAddr::from(([127, 0, 0, 1], port))).weight(weight);
        Trial::new(PeakEwma::new(), (1..).zip(weights).map(instance))
    }

    fn port(call: &Picked) -> u16 {
        call.instance().address.port()
    }

    /// Calls until both have answered: the first after 1 ms, and the second after that many.
    fn warmed_up(trial: &Trial, second: u64) {
        let calls = [trial.pick().expect("two"), trial.pick().expect("two")];
        assert_ne!(port(&calls[0]), port(&calls[1]), "each is tried");
        for call in calls {
            call.answered(Duration::from_millis(if port(&call) == 1 { 1 } else { second }));
        }
    }

    #[test]
    fn instances_of_which_nothing_is_known_are_called_by_weight() {
        for weights in [vec![1; 10], vec![1, 2, 3, 4], vec![1, 65_535]] {
            assert_shared_by_weight(&PeakEwma::new(), &weights);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_sooner_answer_wins_until_as_many_calls_wait_there() {
        let trial = trial([10, 10]);
        warmed_up(&trial, 5);
        let calls: Vec<_> = (0..6).map(|_| trial.pick().expect("both have room")).collect();
        let ports: Vec<_> = calls.iter().map(port).collect();
        assert_eq!(ports[..4], [1; 4], "four calls at a millisecond each are sooner than one at five: {ports:?}");
        assert_eq!(ports.iter().filter(|&&port| port == 2).count(), 1, "then it is the other one's turn: {ports:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_slow_answer_counts_at_once_and_is_taken_back_in_time() {
        let trial = trial([10, 10]);
        warmed_up(&trial, 1);
        let slow = trial.pick().expect("both have room");
        slow.answered(Duration::from_millis(500));
        let slow_one = port(&slow);
        drop(slow);
        assert!((0..100).all(|_| port(&trial.pick().expect("both have room")) != slow_one), "the other one is sooner");
        let mut calls = 0;
        for second in 0..200 {
            tokio::time::advance(Duration::from_secs(1)).await;
            let call = trial.pick().expect("both have room");
            call.answered(Duration::from_millis(1));
            calls += usize::from(second >= 100 && port(&call) == slow_one);
        }
        assert!(calls > 20, "after ten times ten seconds nothing is left of it: {calls} of 100");
    }

    #[tokio::test(start_paused = true)]
    async fn each_failure_doubles_what_is_promised() {
        let trial = trial([10, 10]);
        warmed_up(&trial, 1);
        let failed = trial.pick().expect("both have room");
        failed.failed();
        let failing = port(&failed);
        drop(failed);
        assert!((0..100).all(|_| port(&trial.pick().expect("both have room")) != failing), "it is passed over");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_stay_in_flight_spread_by_the_shares_that_instances_have_by_now() {
        let shares = [1_000, 1_000, 100, 550];
        let slowly =
            candidates(&[10; 4]).into_iter().zip(shares).map(|(candidate, share)| candidate.with_weight(share));
        let choice = Choice::new(slowly.collect(), &PeakEwma::new());
        for candidate in choice.candidates() {
            candidate.seat().measure_peaks();
            candidate.seat().answered_at(Instant::now(), Duration::from_millis(1));
        }
        for _ in 0..2_650 {
            choice.take(&[], 0).expect("one has room");
        }
        for (candidate, ideal) in choice.candidates().iter().zip(shares) {
            let calls = candidate.in_flight();
            assert!(calls.abs_diff(ideal) <= 10 + ideal / 20, "a share of {ideal} has {calls} calls in flight");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_overflows_for_heavy_instances_that_are_very_slow_and_very_busy() {
        let heaviest = candidates(&[u16::MAX; 2]).into_iter().map(|candidate| candidate.with_weight(6_553_500));
        let candidates: Vec<_> = heaviest.collect();
        for candidate in &candidates {
            candidate.seat().measure_peaks();
            candidate.seat().answered_at(Instant::now(), Duration::from_secs(4_000));
            (0..MOST_WAITING).for_each(|_| assert!(candidate.seat().acquire(), "it has room"));
        }
        assert!(PeakEwma::new().picker(&candidates).pick(&candidates, 0) < 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_heavier_instance_may_be_slower_or_busier() {
        let trial = trial([10, 100]);
        warmed_up(&trial, 5);
        let calls: Vec<_> = (0..30).map(|_| trial.pick().expect("both have room")).collect();
        let heavy = calls.iter().filter(|call| port(call) == 2).count();
        // Ten times the weight and five times the time: two of three.
        assert!((18..=22).contains(&heavy), "of 30 calls it has {heavy}");
    }
}
