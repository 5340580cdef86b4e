//! The less busy one of two.

use super::candidate::Candidate;
use super::load::Load;
use super::sampler::Sampler;
use super::shunning;
use crate::channel::policy::{PickArgs, Picker, Policy};

/// The less busy one of two instances drawn by weight: the default.
///
/// Busy means calls in flight for its weight. Two random instances are enough to keep all of them about equally busy,
/// and unlike the least busy of all, they do not send every client to the same instance at once. While nothing is in
/// flight, calls are shared by weight.
///
/// An instance that fails is not idle. A call that failed at once counts as in flight for about as long as calls take
/// elsewhere. An instance that [sheds](crate::policy#shedding) calls, or is silent, is passed over: silent is one that
/// was sent a call and has answered none since, for 16 ms and for twice as long as it usually takes, and one whose
/// calls missed their deadlines. It is tried with one call a second until it answers, but for the time in which a ping
/// is on its way to it.
///
/// Calls in flight alone do not show a slow instance while there are few calls: mostly none is in flight anywhere. So
/// of the two, one whose responses take at least four times as long to begin counts as having one call more in flight,
/// and one more for each further doubling. An instance that is 50 times slower than nine others gets at most a few
/// calls in a thousand, enough to see when it has become faster: what was measured more than a second ago is overlooked
/// now and then. While it has answered only a few times, or has just changed, what was measured is old the sooner the
/// less there is of it: an instance that is cold at first gets its share once it is warm.
#[derive(Clone, Copy, Debug)]
pub struct LeastRequest {
    choices: u32,
}

impl LeastRequest {
    /// The policy with its default: two choices.
    #[must_use]
    pub fn new() -> Self {
        Self { choices: MIN_CHOICES }
    }

    /// How many instances are drawn, of which the least busy one gets the call: 2 to 10. Fewer count as 2 and more as
    /// 10, as in gRPC (`choiceCount`). Defaults to 2.
    ///
    /// Each further choice costs each call a little, and the clients follow each other a little more: with very many
    /// choices all of them send their next call to the same instance.
    #[must_use]
    pub fn choices(mut self, count: u32) -> Self {
        self.choices = count.clamp(MIN_CHOICES, MAX_CHOICES);
        self
    }
}

impl Default for LeastRequest {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for LeastRequest {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        let sampler = Sampler::new(candidates);
        let weights = match &sampler {
            Sampler::Uniform { .. } => None,
            Sampler::Weighted { .. } => Some(candidates.iter().map(Candidate::share).collect()),
        };
        Box::new(LeastRequestPicker { sampler, weights, further: self.choices - MIN_CHOICES })
    }
}

struct LeastRequestPicker {
    sampler: Sampler,
    /// A copy of the weights, side by side: those in the instances lie all over the memory. `None` where they are
    /// equal.
    weights: Option<Box<[u32]>>,
    /// How many candidates are drawn beyond two.
    further: u32,
}

impl LeastRequestPicker {
    /// The two least busy candidates of those that are drawn, the less busy one first.
    fn draw(&self, candidates: &[Candidate]) -> (usize, usize) {
        let (first, second) = self.sampler.two();
        let mut best = self.in_order(candidates, first, second);
        for _ in 0..self.further {
            let next = self.sampler.one();
            if next != best.0 {
                best = self.in_order(candidates, best.0, next);
            }
        }
        best
    }

    /// Both, the less busy one first; `first`, which was drawn first, where they are equal.
    fn in_order(&self, candidates: &[Candidate], first: usize, second: usize) -> (usize, usize) {
        let (Some(one), Some(other)) = (candidates.get(first), candidates.get(second)) else { return (first, second) };
        let weights = match &self.weights {
            Some(weights) => (u64::from(weights[first]), u64::from(weights[second])),
            None => (1, 1),
        };
        let is_second_better = is_better((other.load(), weights.1), (one.load(), weights.0));
        if is_second_better { (second, first) } else { (first, second) }
    }
}

impl Picker for LeastRequestPicker {
    fn pick(&self, candidates: &[Candidate], _: &PickArgs<'_>) -> Option<usize> {
        Some(shunning::better_of_two(candidates, |_| self.draw(candidates)))
    }
}

/// Whether a call should go to `other` rather than to `one`, which was drawn first.
///
/// It should if `other` would still be no busier for its weight than `one` is now. So `one`, which comes up as often as
/// its weight says, keeps the call where both are idle, and a heavy instance with one call in flight does not lose the
/// next to a light one.
fn is_better((other, other_weight): (&Load, u64), (one, weight): (&Load, u64)) -> bool {
    if one.is_saturated() || other.is_saturated() {
        return !other.is_saturated();
    }
    let (latency, other_latency) = (one.latency_micros(), other.latency_micros());
    let (calls, other_calls) = (u64::from(one.outstanding(other_latency)), u64::from(other.outstanding(latency)));
    let plain = (other_calls + 1) * weight <= calls * other_weight;
    let (handicap, other_handicap) = (handicap(latency, other_latency), handicap(other_latency, latency));
    if handicap == other_handicap {
        return plain;
    }
    // Counted in calls of the heavier one, or its weight would outdo any handicap.
    let heavier = weight.max(other_weight);
    let handicapped =
        (other_calls + 1) * weight + other_handicap * heavier <= calls * other_weight + handicap * heavier;
    let slower = if handicap > 0 { one } else { other };
    if handicapped != plain && slower.is_overlooked() { plain } else { handicapped }
}

/// The calls that an instance counts as having on top, for it takes `latency` where another takes `other`.
fn handicap(latency: u32, other: u32) -> u64 {
    if other == 0 || latency / 4 < other {
        return 0;
    }
    u64::from((latency / other).ilog2() - 1)
}

/// The power of two choices: one alone would be random.
const MIN_CHOICES: u32 = 2;

/// gRPC's limit.
const MAX_CHOICES: u32 = 10;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::channel::picks::ready_set::ReadySet;
    use crate::channel::policy::tests::{assert_shared_by_weight, candidates};

    #[test]
    fn idle_instances_are_called_by_weight() {
        for weights in [vec![1; 10], vec![1, 2, 3, 4], vec![1, 65_535], vec![1, 1, 1, 65_535, 30_000]] {
            assert_shared_by_weight(&LeastRequest::new(), &weights);
        }
    }

    #[test]
    fn calls_that_stay_in_flight_spread_by_weight_and_evenly() {
        for weights in [vec![1; 10], vec![1, 2, 3, 4], vec![10, 1_000]] {
            let choice = ReadySet::of(candidates(&weights), &LeastRequest::new());
            let total: u32 = weights.iter().map(|&weight| u32::from(weight)).sum();
            for _ in 0..total * 100 {
                choice.take(&[]).expect("one has room");
            }
            for (candidate, &weight) in choice.candidates().iter().zip(&weights) {
                let (calls, ideal) = (candidate.in_flight(), u32::from(weight) * 100);
                assert!(calls.abs_diff(ideal) <= 10 + ideal / 20, "weight {weight} has {calls} of {ideal} in flight");
            }
        }
    }

    #[test]
    fn calls_that_stay_in_flight_spread_by_the_weights_of_slow_start() {
        let shares = [1_000, 1_000, 100, 550];
        let slowly =
            candidates(&[10; 4]).into_iter().zip(shares).map(|(candidate, share)| candidate.with_percent(share / 10));
        let choice = ReadySet::of(slowly.collect(), &LeastRequest::new());
        for _ in 0..2_650 {
            choice.take(&[]).expect("one has room");
        }
        for (candidate, ideal) in choice.candidates().iter().zip(shares) {
            let calls = candidate.in_flight();
            assert!(calls.abs_diff(ideal) <= 10 + ideal / 20, "a share of {ideal} has {calls} calls in flight");
        }
    }

    #[test]
    fn of_two_the_less_busy_one_is_taken() {
        let both = candidates(&[1, 1]);
        both[0].load().quota().acquire();
        let choice = ReadySet::of(both, &LeastRequest::new());
        for _ in 0..100 {
            let taken = choice.take(&[]).expect("one has room");
            assert_eq!(taken.instance().address.port(), 2, "the first has a call in flight");
            taken.load().quota().release();
        }
    }

    #[test]
    fn more_choices_find_the_one_idle_instance_more_often() {
        let all = candidates(&[1; 20]);
        all[1..].iter().for_each(|busy| assert!(busy.load().quota().acquire(), "it has room"));
        let found = |choices| {
            let picker = LeastRequest::new().choices(choices).picker(&all);
            (0..4_000).filter(|_| picker.pick(&all, &PickArgs::default()) == Some(0)).count()
        };
        // Two different ones of twenty hold the idle one in 10 % of all cases; eight more draws make that 40 %.
        let (two, ten) = (found(2), found(10));
        assert!((300..=500).contains(&two), "two choices found it {two} times of 4,000");
        assert!((1_400..=1_800).contains(&ten), "ten choices found it {ten} times of 4,000");
        assert!((300..=500).contains(&found(0)), "fewer than two count as two");
        assert!((1_400..=1_800).contains(&found(1_000)), "more than ten count as ten");
    }

    #[test]
    fn idle_instances_are_called_by_weight_whatever_the_number_of_choices() {
        assert_shared_by_weight(&LeastRequest::new().choices(10), &[1, 2, 3, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_instance_is_passed_over_until_it_answers() {
        let both = candidates(&[1, 1]);
        let (frozen, busy) = (both[0].load().clone(), both[1].load().clone());
        let answers = |load: &Load| {
            load.on_answer();
            load.on_latency(Instant::now(), Duration::from_millis(1));
        };
        answers(&frozen);
        answers(&busy);
        frozen.quota().acquire();
        busy.on_pick(Instant::now());
        (0..5).for_each(|_| assert!(busy.quota().acquire(), "it has room"));
        let picker = LeastRequest::new().picker(&both);
        let all_go_to = |index| (0..100).all(|_| picker.pick(&both, &PickArgs::default()) == Some(index));
        assert!(all_go_to(0), "it has fewer calls in flight");
        tokio::time::advance(Duration::from_millis(33)).await;
        assert!(all_go_to(0), "both have been silent for as long");
        answers(&busy);
        assert!(all_go_to(1), "the other one answers");
        frozen.on_response_begin();
        assert!(all_go_to(0), "a call whose response has begun waits for nothing");
        frozen.on_response_end();
        answers(&frozen);
        assert!(all_go_to(0), "it answers again");
    }

    #[test]
    fn a_full_one_is_passed_over_although_it_has_fewer_calls() {
        let both = candidates(&[1, 1]);
        both[0].load().quota().set_limit(0);
        both[1].load().quota().acquire();
        let picker = LeastRequest::new().picker(&both);
        assert!((0..100).all(|_| picker.pick(&both, &PickArgs::default()) == Some(1)), "the first has no room");
    }

    #[test]
    fn a_handicap_begins_at_four_times_and_grows_with_each_doubling() {
        let of = |latency, other| handicap(latency, other);
        assert_eq!([of(100, 100), of(399, 100), of(100, 400)], [0, 0, 0]);
        assert_eq!([of(400, 100), of(799, 100), of(800, 100), of(5_000, 100)], [1, 1, 2, 4]);
        assert_eq!([of(400, 0), of(0, 400), of(u32::MAX, 1)], [0, 0, 30], "what is not known says nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_handicap_is_counted_in_calls_of_the_heavier_one_whichever_is_drawn_first() {
        for (heavy, light) in [(10, 10), (1_000, 10)] {
            let [fast, slow] = [1, 16].map(|millis| {
                let load = Load::new(100);
                load.on_latency(Instant::now(), Duration::from_millis(millis));
                load
            });
            // Three calls on top for 16 times the time: with three in flight the fast one is as busy as the slow one.
            for (calls, fast_is_chosen) in [(0, true), (1, true), (2, true), (5, false)] {
                while fast.in_flight() < calls {
                    assert!(fast.quota().acquire(), "it has room");
                }
                let slow_is_better = is_better((&slow, light), (&fast, heavy));
                let fast_is_better = is_better((&fast, heavy), (&slow, light));
                if heavy == light {
                    assert_eq!((fast_is_better, slow_is_better), (fast_is_chosen, !fast_is_chosen), "{calls} calls");
                } else {
                    assert!(fast_is_better && !slow_is_better, "{calls} calls: it is heavier, too");
                }
            }
        }
    }

    /// Calls about `rate` times a second, one of ten instances answering after 50 ms and the others after one, and
    /// returns which share of the calls the slow one got after the first second.
    async fn share_of_the_slow_one(rate: u32, calls: u32) -> f64 {
        let choice = ReadySet::of(candidates(&[10; 10]), &LeastRequest::new());
        let begin = Instant::now();
        let mut open: Vec<(Instant, Duration, &Candidate)> = Vec::new();
        let (mut slow, mut all) = (0_u32, 0_u32);
        for _ in 0..calls {
            let pause = -(1.0 - fastrand::f64()).ln() / f64::from(rate);
            let next = Instant::now() + Duration::from_secs_f64(pause);
            open.sort_by_key(|&(end, ..)| end);
            while let Some(&(end, latency, candidate)) = open.first().filter(|&&(end, ..)| end <= next) {
                tokio::time::advance(end.duration_since(Instant::now())).await;
                candidate.load().on_latency(Instant::now(), latency);
                candidate.load().quota().release();
                open.remove(0);
            }
            tokio::time::advance(next.duration_since(Instant::now())).await;
            let taken = choice.take(&[]).expect("one has room");
            let is_slow = taken.instance().address.port() == 1;
            let latency = Duration::from_millis(if is_slow { 50 } else { 1 });
            open.push((next + latency, latency, taken));
            if next.duration_since(begin) > Duration::from_secs(1) {
                all += 1;
                slow += u32::from(is_slow);
            }
        }
        f64::from(slow) / f64::from(all)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_instance_gets_far_less_than_1_percent_of_the_calls_at_any_rate() {
        for rate in [10, 100, 2_000] {
            let share = share_of_the_slow_one(rate, 20_000).await;
            assert!(share < 0.006, "at {rate} calls a second the slow one got {share} of them");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_has_become_faster_gets_its_share_again() {
        let both = candidates(&[1, 1]);
        both[0].load().on_latency(Instant::now(), Duration::from_millis(50));
        both[1].load().on_latency(Instant::now(), Duration::from_millis(1));
        let choice = ReadySet::of(both, &LeastRequest::new());
        let call = || {
            let taken = choice.take(&[]).expect("one has room");
            taken.load().on_latency(Instant::now(), Duration::from_millis(1));
            taken.load().quota().release();
            taken.instance().address.port()
        };
        assert!((0..500).all(|_| call() == 2), "what was measured within the second is held against it");
        tokio::time::advance(Duration::from_millis(1_100)).await;
        let calls = (0..2_000).filter(|_| call() == 1).count();
        assert!(calls > 500, "a second later it is tried, and found fast: {calls} of 2000 calls");
    }

    /// Ten instances have ten calls each, which take `mean` seconds on average; an eleventh joins. How many calls it
    /// has after each tenth of the mean.
    async fn calls_of_one_that_joins(mean: f64) -> Vec<u32> {
        let all = candidates(&[1; 11]);
        let (before, after) =
            (ReadySet::of(all[..10].to_vec(), &LeastRequest::new()), ReadySet::of(all.clone(), &LeastRequest::new()));
        let begin = Instant::now();
        let joined = begin + Duration::from_secs_f64(mean * 5.0);
        let (mut next, mut open, mut seen) = (begin, Vec::<(Instant, Instant, &Candidate)>::new(), Vec::new());
        while next < joined + Duration::from_secs_f64(mean) {
            next += Duration::from_secs_f64(-(1.0 - fastrand::f64()).ln() * mean / 100.0);
            open.sort_by_key(|&(end, ..)| std::cmp::Reverse(end));
            while let Some((end, at, candidate)) = open.pop_if(|&mut (end, ..)| end <= next) {
                tokio::time::advance(end.duration_since(Instant::now())).await;
                candidate.load().on_answer();
                candidate.load().on_latency(end, end - at);
                candidate.load().quota().release();
            }
            tokio::time::advance(next.duration_since(Instant::now())).await;
            let taken = if next < joined { &before } else { &after }.take(&[]).expect("all have room");
            open.push((next + Duration::from_secs_f64(mean * (0.5 + fastrand::f64())), next, taken));
            let tenths = seen.len();
            if next
                >= joined + Duration::from_secs_f64(mean / 10.0).mul_f64(f64::from(u32::try_from(tenths).expect("few")))
            {
                seen.push(all[10].in_flight());
            }
        }
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_joins_gets_its_share_at_once() {
        for mean in [0.1, 2.0, 20.0] {
            let seen = calls_of_one_that_joins(mean).await;
            assert!(seen[8] >= 4, "it has ten calls in the end, in tenths of {mean} s: {seen:?}");
        }
    }
}
