//! Random by weight.

use super::candidate::Candidate;
use super::sampler::Sampler;
use super::shunning;
use crate::channel::policy::{PickArgs, Picker, Policy};

/// Any instance, each as often as its weight says.
///
/// It knows nothing of how busy an instance is. Its use is that calls of very many clients spread evenly although the
/// clients do not know of each other, and that nothing about a choice can be foreseen. While an instance
/// [sheds](crate::policy#shedding) calls, or after calls have missed their deadlines there, others are drawn instead.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct WeightedRandom;

impl WeightedRandom {
    /// The policy; there is nothing to set.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl Policy for WeightedRandom {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        Box::new(RandomPicker { sampler: Sampler::new(candidates) })
    }
}

struct RandomPicker {
    sampler: Sampler,
}

impl Picker for RandomPicker {
    fn pick(&self, candidates: &[Candidate], _: &PickArgs<'_>) -> Option<usize> {
        Some(shunning::unpenalized(candidates, || self.sampler.one()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::policy::tests::assert_shared_by_weight;

    #[test]
    fn calls_are_shared_by_weight() {
        for weights in [vec![1; 10], vec![1, 2, 3, 4], vec![1, 65_535], vec![1, 1, 1, 65_535, 30_000]] {
            assert_shared_by_weight(&WeightedRandom::new(), &weights);
        }
    }
}
