//! Random candidates by weight in constant time, whatever the weights.

use super::candidate::Candidate;

/// Draws candidates, each as often as its weight says.
pub(crate) enum Sampler {
    /// All weights are equal: no table, so a draw touches no memory.
    Uniform { len: u32 },
    /// One slot a candidate, drawn uniformly; a slot belongs to its candidate up to a threshold and to one other beyond
    /// it (Walker's alias method). Small slots: the table of 10,000 candidates takes 80 KB.
    Weighted { slots: Box<[Slot]> },
}

impl Sampler {
    pub(crate) fn new(candidates: &[Candidate]) -> Self {
        let weights: Vec<u64> = candidates.iter().map(|candidate| u64::from(candidate.share())).collect();
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self::Uniform { len: u32::try_from(weights.len()).unwrap_or(u32::MAX) };
        }
        Self::Weighted { slots: slots(&weights) }
    }

    /// One candidate.
    pub(crate) fn one(&self) -> usize {
        let random = fastrand::u64(..);
        match self {
            Self::Uniform { len } => scale(random, *len),
            Self::Weighted { slots } => draw(slots, random),
        }
    }

    /// Two different candidates; the same twice where there is only one.
    ///
    /// The first is drawn by weight, the second by weight from the others.
    pub(crate) fn two(&self) -> (usize, usize) {
        let random = fastrand::u64(..);
        match self {
            Self::Uniform { len: 0 | 1 } => (0, 0),
            Self::Uniform { len } => {
                let first = scale(random, *len);
                let second = scale(random << 32, *len - 1);
                (first, second + usize::from(second >= first))
            }
            Self::Weighted { slots } => {
                let first = draw(slots, random);
                for _ in 0..REDRAWS {
                    let second = draw(slots, fastrand::u64(..));
                    if second != first {
                        return (first, second);
                    }
                }
                // One outweighs all others together by far, so which of them is second hardly matters.
                let second = scale(fastrand::u64(..), u32::try_from(slots.len() - 1).unwrap_or(u32::MAX));
                (first, second + usize::from(second >= first))
            }
        }
    }
}

/// What a slot's random number is compared with, and whose it is beyond that.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    threshold: u32,
    alias: u32,
}

fn draw(slots: &[Slot], random: u64) -> usize {
    let index = scale(random, u32::try_from(slots.len()).unwrap_or(u32::MAX));
    let slot = slots[index];
    if random & u64::from(u32::MAX) < u64::from(slot.threshold) { index } else { slot.alias as usize }
}

/// The upper half of a random number as an index below `len`.
fn scale(random: u64, len: u32) -> usize {
    usize::try_from(((random >> 32) * u64::from(len)) >> 32).unwrap_or(usize::MAX)
}

/// Fills each slot that is too small for an equal share from one that is too large, in whole numbers until the end.
fn slots(weights: &[u64]) -> Box<[Slot]> {
    let total: u64 = weights.iter().sum();
    let index = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    let mut shares: Vec<u64> = weights.iter().map(|weight| weight * weights.len() as u64).collect();
    let mut slots: Vec<Slot> = (0..weights.len()).map(|own| Slot { threshold: u32::MAX, alias: index(own) }).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..weights.len()).partition(|&own| shares[own] < total);
    while let (Some(taker), Some(&giver)) = (small.pop(), large.last()) {
        let threshold = (u128::from(shares[taker]) << 32) / u128::from(total);
        slots[taker] = Slot { threshold: u32::try_from(threshold).unwrap_or(u32::MAX), alias: index(giver) };
        shares[giver] -= total - shares[taker];
        if shares[giver] < total {
            large.pop();
            small.push(giver);
        }
    }
    slots.into()
}

/// How often a second draw that hit the first candidate again is repeated.
const REDRAWS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::policy::tests::candidates;

    #[test]
    fn the_slots_of_each_candidate_add_up_to_its_weight() {
        for weights in [vec![1, 2, 3], vec![1, 65_535], vec![65_535, 1, 1, 1, 7, 9_000], (1..=1_000).collect()] {
            let slots = slots(&weights);
            let total: u64 = weights.iter().sum();
            let mut shares = vec![0_u64; weights.len()];
            for (own, slot) in slots.iter().enumerate() {
                shares[own] += u64::from(slot.threshold);
                shares[slot.alias as usize] += (1 << 32) - u64::from(slot.threshold);
            }
            let whole = weights.len() as u64 * (1 << 32);
            for (weight, share) in weights.iter().zip(shares) {
                let ideal =
                    u64::try_from(u128::from(whole) * u128::from(*weight) / u128::from(total)).expect("it fits");
                let slack = weights.len() as u64 + 1;
                assert!(share.abs_diff(ideal) <= slack, "weight {weight} of {total} has {share}, not {ideal}");
            }
        }
    }

    #[test]
    fn two_draws_are_of_different_candidates() {
        for weights in [vec![1, 1], vec![3, 1], vec![1, 65_535], vec![65_535, 1, 1], vec![2; 100]] {
            let sampler = Sampler::new(&candidates(&weights));
            for _ in 0..1_000 {
                let (first, second) = sampler.two();
                assert!(first != second && first.max(second) < weights.len(), "{first} and {second} of {weights:?}");
            }
        }
        assert_eq!(Sampler::new(&candidates(&[9])).two(), (0, 0), "there is only one");
    }

    #[test]
    fn every_pair_of_equals_is_drawn_equally_often() {
        let sampler = Sampler::new(&candidates(&[7; 4]));
        let mut pairs = [[0_u32; 4]; 4];
        for _ in 0..120_000 {
            let (first, second) = sampler.two();
            pairs[first][second] += 1;
        }
        for (first, row) in pairs.iter().enumerate() {
            for (second, &times) in row.iter().enumerate().filter(|&(second, _)| second != first) {
                assert!((9_300..=10_700).contains(&times), "{first} and {second} came {times} times of 10,000");
            }
        }
    }
}
