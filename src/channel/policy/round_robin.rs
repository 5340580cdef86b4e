//! Round robin by weight, exact over a cycle and smooth within it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::candidate::Candidate;
use super::shunning;
use crate::channel::policy::{PickArgs, Picker, Policy};

/// Each instance in turn, as often in a cycle as its weight says.
///
/// A cycle is as many calls as the weights add up to, divided by what divides all of them: with weights 20 and 10,
/// three. Any so many calls in a row are shared exactly by weight, and shorter rows nearly so: no instance gets all of
/// its calls at once. Its use is an even load where calls cost about the same; it does not see which instance is busy
/// or slow, and a frozen one only once calls have missed their deadlines there. Then, and while it
/// [sheds](crate::policy#shedding) calls, its turns go to the next ones.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct WeightedRoundRobin;

impl WeightedRoundRobin {
    /// The policy; there is nothing to set.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl Policy for WeightedRoundRobin {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        let cycle = Cycle::new(candidates.iter().map(Candidate::share));
        // Each client begins elsewhere, or a thousand of them that start together would march in step.
        let turn = AtomicU64::new(fastrand::u64(..cycle.len));
        Box::new(RoundRobinPicker { turn, cycle })
    }
}

struct RoundRobinPicker {
    /// Counts the calls. At a thousand million of them a second it would overflow after five centuries.
    turn: AtomicU64,
    cycle: Cycle,
}

impl Picker for RoundRobinPicker {
    fn pick(&self, candidates: &[Candidate], _: &PickArgs<'_>) -> Option<usize> {
        Some(shunning::unpenalized(candidates, || self.cycle.at(self.turn.fetch_add(1, Ordering::Relaxed))))
    }
}

/// Which candidate has its turn, for every turn of a cycle.
struct Cycle {
    len: u64,
    order: Order,
}

impl Cycle {
    fn new(weights: impl Iterator<Item = u32>) -> Self {
        let mut weights: Vec<u64> = weights.map(u64::from).collect();
        let divisor = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
        for weight in &mut weights {
            *weight /= divisor;
        }
        let len = weights.iter().sum::<u64>().max(1);
        let order = if len <= LISTED { Order::List(list(&weights)) } else { Order::Circle(Circle::new(&weights, len)) };
        Self { len, order }
    }

    /// The candidate of a turn; turns are counted on from one cycle to the next.
    fn at(&self, turn: u64) -> usize {
        let turn = turn % self.len;
        match &self.order {
            Order::List(list) => list[to_index(turn)] as usize,
            Order::Circle(circle) => circle.at(turn),
        }
    }
}

enum Order {
    /// A short cycle, turn by turn.
    List(Box<[u32]>),
    /// A long one, without a list as long as the cycle.
    Circle(Circle),
}

/// The turns of a short cycle: each candidate's turns at equal distances, and each one's first shifted by the golden
/// section against the one before, so that the turns of equals do not fall together.
fn list(weights: &[u64]) -> Box<[u32]> {
    let mut turns: Vec<(u64, u32)> = Vec::new();
    for (index, &weight) in (0_u32..).zip(weights) {
        let shift = u64::from(index.wrapping_mul(GOLDEN_SECTION));
        turns.extend((0..weight).map(|turn| ((((turn << 32) + shift) << 16) / weight, index)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, index)| index).collect()
}

/// A long cycle as a circle, on which each candidate has as many neighbouring positions as its weight.
///
/// A turn moves on by a fixed stride. The stride and the length of the circle have no divisor in common, so a cycle
/// visits each position once; and the stride is about the golden section of the circle, so that any few turns in a row
/// are spread over it as evenly as can be.
struct Circle {
    len: u64,
    stride: u64,
    /// Where each candidate's positions end.
    ends: Box<[u64]>,
    /// For each 2^`shift` positions the candidate that has the first of them, which leaves few `ends` to search.
    guide: Box<[u32]>,
    shift: u32,
}

impl Circle {
    fn new(weights: &[u64], len: u64) -> Self {
        let sum = |end: &mut u64, weight: &u64| {
            *end += weight;
            Some(*end)
        };
        let ends: Box<[u64]> = weights.iter().scan(0, sum).collect();
        let shift = (len / ends.len() as u64).ilog2();
        let mut owner = 0;
        let owners = (0..=(len - 1) >> shift).map(|part| {
            while ends[owner] <= part << shift {
                owner += 1;
            }
            u32::try_from(owner).unwrap_or(u32::MAX)
        });
        let guide = owners.collect();
        Self { len, stride: stride(len), ends, guide, shift }
    }

    fn at(&self, turn: u64) -> usize {
        let position = match turn.checked_mul(self.stride) {
            Some(product) => product % self.len,
            None => narrow(u128::from(turn) * u128::from(self.stride) % u128::from(self.len)),
        };
        let part = to_index(position >> self.shift);
        let first = self.guide[part] as usize;
        let last = self.guide.get(part + 1).map_or(self.ends.len() - 1, |&owner| owner as usize);
        first + self.ends[first..last].partition_point(|&end| end <= position)
    }
}

/// A stride over a circle of `len` positions that visits all of them, and any few in a row evenly.
///
/// How evenly shows in the quotients of Euclid's algorithm, as in a continued fraction: the golden section's are all 1,
/// and a large one means that some turns nearly repeat. So among the strides next to the golden section that share no
/// divisor with the length, the one with the smallest sum of quotients is taken.
fn stride(len: u64) -> u64 {
    let golden = narrow((u128::from(len) * u128::from(GOLDEN_SECTION)) >> 32);
    let strides = golden.saturating_sub(STRIDES).max(1)..(golden + STRIDES).min(len);
    let rated = strides.filter_map(|stride| unevenness(len, stride).map(|sum| (sum, stride)));
    rated.min().map_or(1, |(_, stride)| stride)
}

/// The sum of the quotients of Euclid's algorithm, or `None` where it finds a divisor.
fn unevenness(mut large: u64, mut small: u64) -> Option<u64> {
    let mut sum = 0;
    while small > 0 {
        sum += large / small;
        (large, small) = (small, large % small);
    }
    (large == 1).then_some(sum)
}

fn greatest_common_divisor(mut large: u64, mut small: u64) -> u64 {
    while small > 0 {
        (large, small) = (small, large % small);
    }
    large
}

fn to_index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn narrow(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// The longest cycle that is kept as a list: 4 KB. Short circles have few strides that visit all positions, or none
/// that spreads them; for long ones a list takes too long to make.
const LISTED: u64 = 1024;

/// The golden section of 2^32.
const GOLDEN_SECTION: u32 = 2_654_435_769;

/// How many strides on each side of the golden section are tried.
const STRIDES: u64 = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::channel::picks::ready_set::ReadySet;
    use crate::channel::policy::tests::{candidates, share};

    fn order(weights: &[u32]) -> Vec<usize> {
        let cycle = Cycle::new(weights.iter().copied());
        (0..cycle.len).map(|turn| cycle.at(turn)).collect()
    }

    /// By how many calls any row of turns from the first on differs from being shared by weight.
    fn deviation(weights: &[u32]) -> f64 {
        let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        let mut got = vec![0.0; weights.len()];
        let mut most = 0.0_f64;
        for (turn, index) in (1_u32..).zip(order(weights)) {
            got[index] += 1.0;
            for (got, &weight) in got.iter().zip(weights) {
                most = most.max((got - f64::from(turn) * f64::from(weight) / total).abs());
            }
        }
        most
    }

    fn assert_exact(weights: &[u32]) {
        let divisor = weights.iter().fold(0, |divisor, &weight| greatest_common_divisor(divisor, weight.into()));
        let mut got = vec![0_u64; weights.len()];
        for index in order(weights) {
            got[index] += 1;
        }
        for (&weight, got) in weights.iter().zip(got) {
            assert_eq!(got, u64::from(weight) / divisor, "weight {weight} of a cycle of {} instances", weights.len());
        }
    }

    #[test]
    fn a_short_cycle_never_gives_an_instance_all_of_its_turns_at_once() {
        assert_eq!(order(&[5, 1, 1]), [0, 0, 2, 0, 0, 1, 0]);
        assert_eq!(order(&[10, 20, 30]), [0, 2, 1, 2, 2, 1]);
        assert_eq!(order(&[7]), [0]);
        assert_eq!(order(&[50, 50, 50]), [0, 2, 1]);
    }

    #[test]
    fn cycles_are_exact_whatever_the_weights() {
        assert_exact(&[1, 65_535]);
        assert_exact(&vec![10; 10_000]);
        assert_exact(&[vec![1, 65_535], vec![3; 10_000]].concat());
        assert_exact(&(1..=500).collect::<Vec<_>>());
        for len in [LISTED - 1, LISTED, LISTED + 1] {
            assert_exact(&[1, u32::try_from(len).expect("it is small") - 1]);
        }
    }

    #[test]
    fn the_longest_cycles_are_counted_without_overflow() {
        let mut weights = vec![65_535; 100_000];
        weights[0] = 65_534;
        let cycle = Cycle::new(weights.iter().copied());
        let Order::Circle(circle) = &cycle.order else { panic!("so long a cycle is no list") };
        assert_eq!(cycle.len, 6_553_499_999);
        assert_eq!(greatest_common_divisor(circle.len, circle.stride), 1, "the stride visits every position");
        for turn in [0, 1, cycle.len - 1, cycle.len, u64::from(u32::MAX), u64::MAX] {
            assert!(cycle.at(turn) < weights.len(), "turn {turn} is an instance's");
        }
        let turns = 1_000_000;
        let mut got = vec![0_u32; weights.len()];
        (0..turns).for_each(|turn| got[cycle.at(turn)] += 1);
        assert!(got.iter().all(|got| (7..=13).contains(got)), "in ten rounds each one has about ten turns");
    }

    #[test]
    fn every_length_has_a_stride_that_spreads_its_turns() {
        for len in (LISTED + 1..60_000).step_by(7) {
            let unevenness = unevenness(len, stride(len)).expect("the stride visits every position");
            assert!(unevenness <= 2 * u64::from(len.ilog2()) + 4, "a circle of {len} has unevenness {unevenness}");
        }
    }

    #[test]
    fn calls_are_shared_exactly_over_any_cycle_of_a_channel() {
        let choice = ReadySet::of(candidates(&[50, 10, 30]), &WeightedRoundRobin::new());
        for _ in 0..20 {
            assert_eq!(share(&choice, 9), [5, 1, 3], "nine calls in a row are a cycle");
            share(&choice, 1);
        }
    }

    #[test]
    fn two_channels_begin_at_different_turns() {
        let all = candidates(&[1; 1_000]);
        let first = || WeightedRoundRobin::new().picker(&all).pick(&all, &PickArgs::default());
        let begin = first();
        assert!((0..10).any(|_| first() != begin), "ten out of ten would be one chance of 10^30");
    }

    proptest! {
        #[test]
        fn short_cycles_are_exact_and_smooth(weights in prop::collection::vec(1_u32..30, 1..60)) {
            assert_exact(&weights);
            let deviation = deviation(&weights);
            prop_assert!(deviation <= 3.0, "{deviation} calls off");
        }

        #[test]
        fn long_cycles_are_exact_and_smooth(weights in prop::collection::vec(1_u32..3_000, 1..12)) {
            assert_exact(&weights);
            let deviation = deviation(&weights);
            prop_assert!(deviation <= 8.0, "{deviation} calls off");
        }
    }
}
