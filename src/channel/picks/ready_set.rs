//! What the control task publishes and every call reads: the candidates and the picker over them.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use crate::channel::policy::candidate::Candidate;
use crate::channel::policy::{Picker, Policy};
use crate::instance::Instance;

/// The candidates of the moment, and what chooses among them.
pub(crate) struct Choice {
    candidates: Box<[Candidate]>,
    picker: Box<dyn Picker>,
    /// So many of the first ones are preferred: those of the own zone.
    near: usize,
}

impl Choice {
    /// What `policy` makes of these candidates. It is not asked when there are none.
    pub(crate) fn new(candidates: Vec<Candidate>, policy: &dyn Policy) -> Self {
        let picker = if candidates.is_empty() { Box::new(Nothing) } else { policy.picker(&candidates) };
        Self::of(candidates, picker, 0)
    }

    /// What `picker`, which was made of these candidates, chooses among. Where it finds no room, the first `near` of them are
    /// asked before the others.
    pub(crate) fn of(candidates: Vec<Candidate>, picker: Box<dyn Picker>, near: usize) -> Self {
        Self { candidates: candidates.into(), picker, near }
    }

    pub(crate) fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Picks a candidate and takes a call's place there, which the caller gives back by [`Load::release`].
    ///
    /// Those to `avoid`, who just refused this call or failed it, are taken only while no other has room, on whatever
    /// connection. `None`: none at all has room.
    pub(crate) fn take(&self, avoid: &[Arc<Instance>], key: u64) -> Option<&Candidate> {
        for _ in 0..WORDS {
            // Anybody can write a policy: one that panics or points beyond the candidates must not end whoever asks it, which
            // may be a call that just ended and serves those that wait.
            let picked = panic::catch_unwind(AssertUnwindSafe(|| self.picker.pick(&self.candidates, key)));
            let Some(candidate) = picked.ok().and_then(|index| self.candidates.get(index)) else { break };
            if !is(candidate, avoid) && candidate.load().acquire() {
                return Some(candidate);
            }
        }
        self.scan(avoid)
    }

    /// Asks all of them, beginning anywhere, so that calls in a row do not crowd into the same one.
    #[cold]
    fn scan(&self, avoid: &[Arc<Instance>]) -> Option<&Candidate> {
        let (near, far) = self.candidates.split_at(self.near.min(self.candidates.len()));
        let all = || from_anywhere(near).chain(from_anywhere(far));
        let others = all().filter(|candidate| !is(candidate, avoid));
        let avoided = all().filter(|candidate| is(candidate, avoid));
        others.chain(avoided).find(|candidate| candidate.load().acquire())
    }
}

fn from_anywhere(candidates: &[Candidate]) -> impl Iterator<Item = &Candidate> {
    let (before, after) = candidates.split_at(fastrand::usize(..candidates.len().max(1)));
    after.iter().chain(before)
}

fn is(candidate: &Candidate, instances: &[Arc<Instance>]) -> bool {
    instances.iter().any(|instance| instance.address == candidate.instance().address)
}

/// The picker where there is nothing to pick.
struct Nothing;

impl Picker for Nothing {
    fn pick(&self, _: &[Candidate], _: u64) -> usize {
        0
    }
}

/// How often the policy is asked before all candidates are: a few, so that while some are full the others are still chosen
/// as the policy would, and few, because a policy may give the same answer each time.
const WORDS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::policy::tests::{candidates, share};
    use crate::channel::policy::{LeastRequest, PickFirst, WeightedRandom, WeightedRoundRobin};

    fn policies() -> [Box<dyn Policy>; 4] {
        [
            Box::new(LeastRequest::new()),
            Box::new(WeightedRoundRobin::new()),
            Box::new(WeightedRandom::new()),
            Box::new(PickFirst::new()),
        ]
    }

    #[derive(Debug)]
    struct Beyond;

    impl Policy for Beyond {
        fn picker(&self, _: &[Candidate]) -> Box<dyn Picker> {
            Box::new(Self)
        }
    }

    impl Picker for Beyond {
        fn pick(&self, _: &[Candidate], _: u64) -> usize {
            usize::MAX
        }
    }

    #[test]
    fn full_and_closed_candidates_are_never_taken_and_none_with_room_is_missed() {
        for policy in policies() {
            let choice = Choice::new(candidates(&[1, 2, 65_535, 4, 5, 6]), &policy);
            for (index, candidate) in choice.candidates().iter().enumerate() {
                match index {
                    1 => candidate.load().close(),
                    3 => candidate.load().set_limit(1),
                    _ => candidate.load().set_limit(0),
                }
            }
            for _ in 0..100 {
                let taken = choice.take(&[], 0).expect("the fourth has room");
                assert!(std::ptr::eq(taken, &raw const choice.candidates()[3]), "{policy:?} took one without room");
                assert!(choice.take(&[], 0).is_none(), "{policy:?} took one while all are full");
                taken.load().release();
            }
        }
    }

    #[test]
    fn the_one_that_refused_is_taken_only_while_no_other_has_room() {
        for policy in policies() {
            let choice = Choice::new(candidates(&[65_535, 1]), &policy);
            let refused = [choice.candidates()[0].shared_instance().clone()];
            choice.candidates()[1].load().set_limit(1);
            for _ in 0..100 {
                let other = choice.take(&refused, 0).expect("the other has room");
                assert!(!is(other, &refused), "{policy:?} took the one to avoid");
                let last = choice.take(&refused, 0).expect("the one to avoid has room");
                assert!(is(last, &refused), "{policy:?} took a full one");
                other.load().release();
                last.load().release();
            }
        }
    }

    #[test]
    fn whoever_finds_no_room_where_the_policy_sends_it_stays_near_while_somebody_there_has_some() {
        let candidates = candidates(&[1; 10]);
        let picker = PickFirst::new().picker(&candidates);
        let choice = Choice::of(candidates, picker, 3);
        let refused = [choice.candidates()[0].shared_instance().clone()];
        let place = |taken: &Candidate| choice.candidates().iter().position(|it| std::ptr::eq(it, taken));
        for _ in 0..100 {
            let taken = choice.take(&refused, 0).expect("nine have room");
            assert!(matches!(place(taken), Some(1 | 2)), "it stays near");
            taken.load().release();
        }
        choice.candidates()[1..3].iter().for_each(|candidate| candidate.load().close());
        assert!(
            place(choice.take(&refused, 0).expect("seven have room")) > Some(2),
            "others are better than who refused"
        );
    }

    #[test]
    fn a_choice_of_one_takes_it_and_a_choice_of_none_takes_nothing() {
        for policy in policies() {
            let choice = Choice::new(candidates(&[7]), &policy);
            for calls in 1..=100 {
                assert_eq!(choice.take(&[], 0).map(Candidate::in_flight), Some(calls), "{policy:?} has only one");
            }
            assert!(
                choice.take(&[choice.candidates()[0].shared_instance().clone()], 0).is_some(),
                "{policy:?} has no other"
            );
            assert!(Choice::new(Vec::new(), &policy).take(&[], 0).is_none(), "{policy:?} has none");
        }
    }

    #[test]
    fn a_policy_that_points_beyond_the_candidates_still_finds_all_of_them() {
        let choice = Choice::new(candidates(&[1, 1, 1]), &Beyond);
        let shares = share(&choice, 3_000);
        assert!(shares.iter().all(|&calls| calls > 500), "the calls spread: {shares:?}");
    }

    #[test]
    fn calls_that_find_their_choice_full_spread_over_the_others() {
        let choice = Choice::new(candidates(&[1; 10]), &PickFirst::new());
        choice.candidates()[0].load().close();
        let shares = share(&choice, 9_000);
        assert_eq!(shares[0], 0, "the closed one takes none");
        assert!(shares[1..].iter().all(|&calls| calls > 500), "the others take some each: {shares:?}");
    }
}
