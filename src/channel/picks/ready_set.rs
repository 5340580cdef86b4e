//! What the balancer publishes and every call reads: the candidates, the connections to them, and the picker.

use std::panic::{self, AssertUnwindSafe};

use crate::channel::policy::candidate::Candidate;
use crate::channel::policy::{PickArgs, Picker};
use crate::targets::CHANNEL;

/// The READY instances of the moment, each with a connection `C`, and the picker over them. Candidates and connections
/// lie in two slices under one index, so that policies work on candidates alone.
pub(crate) struct ReadySet<C> {
    candidates: Box<[Candidate]>,
    connections: Box<[C]>,
    picker: Guarded,
    /// The number of candidates, at the front, that are preferred: those in the client's own zone.
    near: usize,
}

impl<C> ReadySet<C> {
    /// The picker that `policy` makes of these candidates. The policy is not asked when there are none.
    ///
    /// A policy is the user's code. If it panics, calls go to any candidate that has room until the next ready set.
    pub(crate) fn new(
        members: Vec<(Candidate, C)>,
        near: usize,
        picker: impl FnOnce(&[Candidate]) -> Box<dyn Picker>,
    ) -> Self {
        let (candidates, connections): (Vec<_>, Vec<_>) = members.into_iter().unzip();
        let picker = if candidates.is_empty() { Guarded::nothing() } else { Guarded::new(|| picker(&candidates)) };
        Self { candidates: candidates.into(), connections: connections.into(), picker, near }
    }

    pub(crate) fn candidate(&self, index: usize) -> &Candidate {
        &self.candidates[index]
    }

    pub(crate) fn connection(&self, index: usize) -> &C {
        &self.connections[index]
    }

    pub(crate) fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Picks a candidate and takes a place for one call there, which the caller gives back to its quota. Returns its
    /// index, or `None` where no candidate has room.
    ///
    /// Instances that the call [has tried](PickArgs::has_tried) are taken only while no other has room, on whatever
    /// connection.
    pub(crate) fn acquire(&self, call: &PickArgs<'_>) -> Option<usize> {
        for _ in 0..PICKS_BEFORE_SCAN {
            let Some(index) = self.picker.pick(&self.candidates, call) else { break };
            let Some(candidate) = self.candidates.get(index) else { break };
            if !call.has_tried(candidate) && candidate.load().quota().acquire() {
                return Some(index);
            }
        }
        self.scan(call)
    }

    /// Asks all candidates, beginning anywhere, so that calls in a row do not crowd into the same one.
    #[cold]
    fn scan(&self, call: &PickArgs<'_>) -> Option<usize> {
        let near = self.near.min(self.candidates.len());
        let all = || from_anywhere(0, near).chain(from_anywhere(near, self.candidates.len()));
        let is_avoided = |index: &usize| call.has_tried(&self.candidates[*index]);
        let others = all().filter(|index| !is_avoided(index));
        others.chain(all().filter(is_avoided)).find(|&index| self.candidates[index].load().quota().acquire())
    }
}

/// The indices from `begin` to `end`, from a random one on.
fn from_anywhere(begin: usize, end: usize) -> impl Iterator<Item = usize> {
    let middle = begin + fastrand::usize(..(end - begin).max(1));
    (middle..end).chain(begin..middle)
}

/// A picker, which is the user's code. Wherever it panics, made, asked or dropped, the task at hand goes on: it may be
/// the balancer, a connection, or a call that just ended and serves those that wait.
struct Guarded(Option<Box<dyn Picker>>);

impl Guarded {
    fn nothing() -> Self {
        Self(None)
    }

    fn new(make: impl FnOnce() -> Box<dyn Picker>) -> Self {
        let picker = panic::catch_unwind(AssertUnwindSafe(make)).inspect_err(|_| {
            tracing::error!(
                target: CHANNEL,
                "the policy panicked while it made a picker; calls go to any instance that has room"
            );
        });
        Self(picker.ok())
    }

    /// The picker's choice, if there is a picker that can choose.
    fn pick(&self, candidates: &[Candidate], call: &PickArgs<'_>) -> Option<usize> {
        let picker = self.0.as_ref()?;
        panic::catch_unwind(AssertUnwindSafe(|| picker.pick(candidates, call))).ok().flatten()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let picker = self.0.take();
        if panic::catch_unwind(AssertUnwindSafe(|| drop(picker))).is_err() {
            tracing::error!(target: CHANNEL, "a picker panicked when it was dropped");
        }
    }
}

/// How often the picker is asked before all candidates are: a few times, so that while some are full the others are
/// still chosen as the policy would, and no more, because a policy may give the same answer each time.
const PICKS_BEFORE_SCAN: usize = 4;

/// Ready sets without connections, for tests of policies.
#[cfg(test)]
impl ReadySet<()> {
    pub(crate) fn of(candidates: Vec<Candidate>, policy: &dyn crate::channel::policy::Policy) -> Self {
        let members = candidates.into_iter().map(|candidate| (candidate, ())).collect();
        Self::new(members, 0, |candidates| policy.picker(candidates))
    }

    pub(crate) fn take(&self, tried: &[std::sync::Arc<crate::instance::Instance>]) -> Option<&Candidate> {
        self.acquire(&PickArgs::new(None, tried)).map(|index| self.candidate(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::policy::tests::{candidates, share};
    use crate::channel::policy::{LeastRequest, PickFirst, Policy, WeightedRandom, WeightedRoundRobin};

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
        fn pick(&self, _: &[Candidate], _: &PickArgs<'_>) -> Option<usize> {
            Some(usize::MAX)
        }
    }

    #[test]
    fn full_and_closed_candidates_are_never_taken_and_room_is_never_missed() {
        for policy in policies() {
            let set = ReadySet::of(candidates(&[1, 2, 65_535, 4, 5, 6]), &policy);
            for (index, candidate) in set.candidates().iter().enumerate() {
                match index {
                    1 => candidate.load().quota().close(),
                    3 => candidate.load().quota().set_limit(1),
                    _ => candidate.load().quota().set_limit(0),
                }
            }
            for _ in 0..100 {
                let taken = set.take(&[]).expect("the fourth has room");
                assert!(std::ptr::eq(taken, &raw const set.candidates()[3]), "{policy:?} took one without room");
                assert!(set.take(&[]).is_none(), "{policy:?} took one while all are full");
                taken.load().quota().release();
            }
        }
    }

    #[test]
    fn the_one_that_refused_is_taken_only_while_no_other_has_room() {
        for policy in policies() {
            let set = ReadySet::of(candidates(&[65_535, 1]), &policy);
            let refused = [set.candidates()[0].shared_instance().clone()];
            set.candidates()[1].load().quota().set_limit(1);
            for _ in 0..100 {
                let other = set.take(&refused).expect("the other has room");
                assert!(!PickArgs::new(None, &refused).has_tried(other), "{policy:?} took the one to avoid");
                let last = set.take(&refused).expect("the one to avoid has room");
                assert!(PickArgs::new(None, &refused).has_tried(last), "{policy:?} took a full one");
                other.load().quota().release();
                last.load().quota().release();
            }
        }
    }

    #[test]
    fn a_call_without_room_at_the_policys_pick_stays_near_if_it_can() {
        let candidates = candidates(&[1; 10]);
        let members = candidates.into_iter().map(|candidate| (candidate, ())).collect();
        let set = ReadySet::new(members, 3, |candidates| PickFirst::new().picker(candidates));
        let refused = [set.candidates()[0].shared_instance().clone()];
        let place = |taken: &Candidate| set.candidates().iter().position(|it| std::ptr::eq(it, taken));
        for _ in 0..100 {
            let taken = set.take(&refused).expect("nine have room");
            assert!(matches!(place(taken), Some(1 | 2)), "it stays near");
            taken.load().quota().release();
        }
        set.candidates()[1..3].iter().for_each(|candidate| candidate.load().quota().close());
        assert!(
            place(set.take(&refused).expect("seven have room")) > Some(2),
            "others are better than the one that refused"
        );
    }

    #[test]
    fn a_ready_set_of_one_takes_it_and_one_of_none_takes_nothing() {
        for policy in policies() {
            let set = ReadySet::of(candidates(&[7]), &policy);
            for calls in 1..=100 {
                assert_eq!(set.take(&[]).map(Candidate::in_flight), Some(calls), "{policy:?} has only one");
            }
            assert!(set.take(&[set.candidates()[0].shared_instance().clone()]).is_some(), "{policy:?} has no other");
            assert!(ReadySet::of(Vec::new(), &policy).take(&[]).is_none(), "{policy:?} has none");
        }
    }

    #[derive(Debug)]
    struct Panics;

    impl Policy for Panics {
        fn picker(&self, _: &[Candidate]) -> Box<dyn Picker> {
            panic!("a policy with a bug");
        }
    }

    #[test]
    fn a_policy_that_panics_still_leaves_all_candidates_to_calls() {
        let set = ReadySet::of(candidates(&[1, 1, 1]), &Panics);
        let shares = share(&set, 3_000);
        assert!(shares.iter().all(|&calls| calls > 500), "the calls spread: {shares:?}");
    }

    #[test]
    fn a_policy_that_points_beyond_the_candidates_still_finds_all_of_them() {
        let set = ReadySet::of(candidates(&[1, 1, 1]), &Beyond);
        let shares = share(&set, 3_000);
        assert!(shares.iter().all(|&calls| calls > 500), "the calls spread: {shares:?}");
    }

    #[test]
    fn calls_that_find_their_pick_full_spread_over_the_others() {
        let set = ReadySet::of(candidates(&[1; 10]), &PickFirst::new());
        set.candidates()[0].load().quota().close();
        let shares = share(&set, 9_000);
        assert_eq!(shares[0], 0, "the closed one takes none");
        assert!(shares[1..].iter().all(|&calls| calls > 500), "the others take some each: {shares:?}");
    }
}
