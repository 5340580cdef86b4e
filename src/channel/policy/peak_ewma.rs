//! The one of two that promises the sooner answer.

use tokio::time::Instant;

use super::candidate::Candidate;
use super::load::Load;
use super::sampler::Sampler;
use super::shunning;
use crate::channel::policy::{Needs, PickArgs, Picker, Policy};

/// Of two instances drawn by weight, the one that promises the sooner answer: its latency times its calls in flight.
///
/// The latency is a [peak](Candidate::peak_latency): a slower answer counts at once and in full, and less and less over
/// some ten seconds; each failure doubles it. So an instance that stumbles loses its calls with the first slow answer,
/// where [`LeastRequest`](crate::policy::LeastRequest) would wait until calls pile up there; in return a single slow
/// call, which says little about the next one, costs its instance load for seconds. Made for many short calls of one
/// kind, over instances or networks that differ. linkerd and tower balance like this.
///
/// Calls in flight count for the heavier of the two less than for the lighter one, as much as their weights differ. So
/// equally fast instances share by weight, also those that [start slowly](crate::ChannelBuilder::slow_start), whether
/// each has many calls in flight or hardly one.
///
/// An instance that has answered nothing yet gets calls as one that answers at once, one at a time, and another one
/// each second: the first may be a stream that stays quiet for hours. One with a high peak still gets a few calls in a
/// thousand, and where such a probe is fast, the peak is forgotten.
///
/// An instance that fails is neither idle nor fast: one that fails calls at once promises no sooner answer than others,
/// and such a call counts as in flight for about as long as calls take there. One that [sheds](crate::policy#shedding)
/// calls or is silent is passed over, as [`LeastRequest`](crate::policy::LeastRequest) says.
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
        let weights = candidates.iter().map(Candidate::share).collect();
        Box::new(PeakEwmaPicker { sampler: Sampler::new(candidates), weights })
    }

    fn needs(&self) -> Needs {
        Needs::new().with_peak_latency()
    }
}

struct PeakEwmaPicker {
    sampler: Sampler,
    /// Side by side: those in the instances lie all over the memory.
    weights: Box<[u32]>,
}

impl PeakEwmaPicker {
    /// Two candidates, the one that promises the sooner answer first.
    fn draw(&self, candidates: &[Candidate], now: Instant) -> (usize, usize) {
        let (first, second) = self.sampler.two();
        let (Some(one), Some(other)) = (candidates.get(first), candidates.get(second)) else { return (first, second) };
        let (one, other) = (one.load(), other.load());
        let is_second_better = if one.is_saturated() || other.is_saturated() {
            !other.is_saturated()
        } else {
            is_sooner((other, self.weights[second]), (one, self.weights[first]), now)
        };
        if is_second_better { (second, first) } else { (first, second) }
    }
}

impl Picker for PeakEwmaPicker {
    fn pick(&self, candidates: &[Candidate], _: &PickArgs<'_>) -> Option<usize> {
        Some(shunning::better_of_two(candidates, |now| self.draw(candidates, now)))
    }
}

/// Whether `other` promises a sooner answer than `one`, which was drawn first and keeps a tie.
fn is_sooner((other, other_weight): (&Load, u32), (one, weight): (&Load, u32), now: Instant) -> bool {
    let (weight, other_weight) = (f64::from(weight), f64::from(other_weight));
    // Each multiplied by both weights, instead of divided by its own: where both are idle, the sooner answer decides
    // alone.
    let (both, heavier) = (weight * other_weight, weight.max(other_weight));
    let (peak, other_peak) = (one.peak_micros(now), other.peak_micros(now));
    let promised = promise(one, (peak, other_peak), both, heavier * other_weight);
    let sooner = promise(other, (other_peak, peak), both, heavier * weight) < promised;
    let is_tried = || match peak {
        0 => one.claim_first_answer(now),
        peak => peak / SLOWER > other_peak && one.is_overlooked(),
    };
    sooner && !(other_peak > 0 && is_tried())
}

/// How long an answer would take here, in microseconds times `both`, if each call in flight weighs `each`. Where
/// answers fail at once, they promise none that is sooner than `elsewhere`.
fn promise(load: &Load, (peak, elsewhere): (u32, u32), both: f64, each: f64) -> f64 {
    let peak = if load.is_failing() { peak.max(elsewhere).max(1) } else { peak };
    let waiting = f64::from(load.outstanding(elsewhere)) * each;
    match peak {
        // Nothing is known: the first call is to find out, the next ones wait for that.
        0 => waiting * UNKNOWN,
        micros => f64::from(micros) * (both + waiting),
    }
}

/// How many times as long an instance must promise to take as the other, for a probe to go there.
const SLOWER: u32 = 2;

/// What a second call to an instance of which nothing is known is taken to take: a second, in microseconds.
const UNKNOWN: f64 = 1_000_000.0;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::channel::picks::ready_set::ReadySet;
    use crate::channel::picks::tester::{PolicyTester, TestPick};
    use crate::channel::policy::tests::{assert_shared_by_weight, candidates};
    use crate::instance::Instance;

    fn tester<const N: usize>(weights: [u16; N]) -> PolicyTester {
        let instance =
            |(port, weight)| Instance::new("echo", SocketAddr::from(([127, 0, 0, 1], port))).with_weight(weight);
        PolicyTester::new(PeakEwma::new(), (1..).zip(weights).map(instance))
    }

    fn port(call: &TestPick) -> u16 {
        call.instance().address.port()
    }

    /// Candidates whose peaks are measured.
    fn measured(weights: &[u16]) -> Vec<Candidate> {
        let load = || Arc::new(Load::new(u32::MAX).measuring_peaks(true));
        candidates(weights)
            .iter()
            .map(|candidate| Candidate::new(load(), candidate.shared_instance().clone()))
            .collect()
    }

    /// Calls until both have answered: the first after 1 ms, and the second after that many.
    fn warmed_up(tester: &PolicyTester, second: u64) {
        let calls = [tester.pick().expect("two"), tester.pick().expect("two")];
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
        let tester = tester([10, 10]);
        warmed_up(&tester, 5);
        let calls: Vec<_> = (0..6).map(|_| tester.pick().expect("both have room")).collect();
        let ports: Vec<_> = calls.iter().map(port).collect();
        assert_eq!(ports[..4], [1; 4], "four calls at a millisecond each are sooner than one at five: {ports:?}");
        assert_eq!(ports.iter().filter(|&&port| port == 2).count(), 1, "then it is the other one's turn: {ports:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_slow_answer_counts_at_once_and_is_taken_back_in_time() {
        let tester = tester([10, 10]);
        warmed_up(&tester, 1);
        let slow = tester.pick().expect("both have room");
        slow.answered(Duration::from_millis(500));
        let slow_one = port(&slow);
        drop(slow);
        assert!((0..100).all(|_| port(&tester.pick().expect("both have room")) != slow_one), "the other one is sooner");
        let mut calls = 0;
        for second in 0..200 {
            tokio::time::advance(Duration::from_secs(1)).await;
            let call = tester.pick().expect("both have room");
            call.answered(Duration::from_millis(1));
            calls += usize::from(second >= 100 && port(&call) == slow_one);
        }
        assert!(calls > 20, "after ten times ten seconds nothing is left of it: {calls} of 100");
    }

    #[tokio::test(start_paused = true)]
    async fn each_failure_doubles_what_is_promised() {
        let tester = tester([10, 10]);
        warmed_up(&tester, 1);
        let failed = tester.pick().expect("both have room");
        failed.failed();
        let failing = port(&failed);
        drop(failed);
        assert!((0..100).all(|_| port(&tester.pick().expect("both have room")) != failing), "it is passed over");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_stay_in_flight_spread_by_the_weights_of_slow_start() {
        let shares = [1_000, 1_000, 100, 550];
        let slowly =
            measured(&[10; 4]).into_iter().zip(shares).map(|(candidate, share)| candidate.with_percent(share / 10));
        let choice = ReadySet::of(slowly.collect(), &PeakEwma::new());
        for candidate in choice.candidates() {
            candidate.load().on_latency(Instant::now(), Duration::from_millis(1));
        }
        for _ in 0..2_650 {
            choice.take(&[]).expect("one has room");
        }
        for (candidate, ideal) in choice.candidates().iter().zip(shares) {
            let calls = candidate.in_flight();
            assert!(calls.abs_diff(ideal) <= 10 + ideal / 20, "a share of {ideal} has {calls} calls in flight");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn equally_fast_instances_share_single_calls_by_weight() {
        let tester = tester([10, 100]);
        warmed_up(&tester, 1);
        let light = (0..11_000)
            .filter(|_| {
                let call = tester.pick().expect("both have room");
                call.answered(Duration::from_millis(1));
                port(&call) == 1
            })
            .count();
        assert!((850..1_150).contains(&light), "of 11,000 calls it has {light}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_heavier_instance_may_be_slower_or_busier() {
        let tester = tester([10, 100]);
        warmed_up(&tester, 5);
        let calls: Vec<_> = (0..30).map(|_| tester.pick().expect("both have room")).collect();
        let heavy = calls.iter().filter(|call| port(call) == 2).count();
        // Ten times the weight and five times the time: two of three.
        assert!((18..=22).contains(&heavy), "of 30 calls it has {heavy}");
    }
}
