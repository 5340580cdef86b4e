//! Picks that pass over instances that shed calls or are silent, as long as others are found. Silent ones are tried
//! with one call a second, unless a ping is on its way to them.

use tokio::time::Instant;

use super::candidate::Candidate;

/// The better one of the two that `draw` returns, better one first; the other one if that is shunned; and the pick of a
/// new draw if both are. Tells the load of the chosen one.
pub(super) fn better_of_two(candidates: &[Candidate], mut draw: impl FnMut(Instant) -> (usize, usize)) -> usize {
    let now = Instant::now();
    let (better, worse) = draw(now);
    let Some(candidate) = candidates.get(better) else { return better };
    let load = candidate.load();
    if load.is_shunned(now) && !load.claim_probe(now) {
        let chosen = elsewhere(candidates, (better, worse), now, draw);
        candidates[chosen].load().on_pick(now);
        return chosen;
    }
    load.on_pick(now);
    better
}

#[cold]
fn elsewhere(
    candidates: &[Candidate],
    (better, worse): (usize, usize),
    now: Instant,
    mut draw: impl FnMut(Instant) -> (usize, usize),
) -> usize {
    let is_fit = |index: usize| {
        candidates.get(index).is_some_and(|other| !other.load().is_saturated() && !other.load().is_shunned(now))
    };
    if is_fit(worse) {
        return worse;
    }
    for _ in 0..REDRAWS {
        let (one, other) = draw(now);
        if let Some(fit) = [one, other].into_iter().find(|&index| is_fit(index)) {
            return fit;
        }
    }
    better
}

/// The first candidate that `draw` returns and that is not penalized, or the first one where many are.
pub(super) fn unpenalized(candidates: &[Candidate], mut draw: impl FnMut() -> usize) -> usize {
    let first = draw();
    let is_penalized = |index: usize| candidates.get(index).is_some_and(|candidate| candidate.load().is_penalized());
    if !is_penalized(first) || candidates[first].load().claim_probe(Instant::now()) {
        return first;
    }
    (0..REDRAWS).map(|_| draw()).find(|&next| !is_penalized(next)).unwrap_or(first)
}

/// How often another draw is made: where most instances shed, the others should not get all of their calls.
const REDRAWS: usize = 8;
