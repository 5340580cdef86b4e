//! What tests of policies share, and trials of whole minutes.

mod quota;
mod trials;
mod wrapping;

use std::net::SocketAddr;

use super::*;
use crate::channel::picks::ready_set::ReadySet;
use crate::channel::policy::load::Load;
use crate::instance::Instance;

/// Candidates of these weights with room for any number of calls, on ports 1, 2, 3, ...
pub(crate) fn candidates(weights: &[u16]) -> Vec<Candidate> {
    let candidate = |(port, &weight)| {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let instance = Instance::new("echo", address).with_weight(weight);
        Candidate::new(Arc::new(Load::new(u32::MAX)), Arc::new(instance))
    };
    (1..).zip(weights).map(candidate).collect()
}

/// How many of `calls` calls, each over before the next begins, each candidate gets.
pub(crate) fn share(choice: &ReadySet<()>, calls: u32) -> Vec<u32> {
    let mut shares = vec![0; choice.candidates().len()];
    for _ in 0..calls {
        let taken = choice.take(&[]).expect("one has room");
        taken.load().quota().release();
        shares[usize::from(taken.instance().address.port()) - 1] += 1;
    }
    shares
}

/// Asserts that calls are shared by weight, within six standard deviations: a good policy fails once in 10^8 runs.
pub(crate) fn assert_shared_by_weight(policy: &dyn Policy, weights: &[u16]) {
    let calls = 100_000;
    let shares = share(&ReadySet::of(candidates(weights), policy), calls);
    let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    for (&weight, &got) in weights.iter().zip(&shares) {
        let chance = f64::from(weight) / total;
        let ideal = f64::from(calls) * chance;
        let bound = 6.0 * (ideal * (1.0 - chance)).sqrt() + 1.0;
        assert!((f64::from(got) - ideal).abs() <= bound, "{policy:?}: {weights:?} were called {shares:?} times");
    }
}
