//! One policy becomes two pickers: calls stay in the client's own zone while enough of it is READY, and the shortfall
//! spills over to the other zones.

use std::collections::HashSet;

use crate::channel::policy::candidate::Candidate;
use crate::channel::policy::{PickArgs, Picker, Policy};
use crate::error::ConfigError;
use crate::instance::Instance;

/// The zone that a client is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Zone {
    pub(crate) tag: String,
    pub(crate) own: String,
}

impl Zone {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let empty = [("an empty tag", &self.tag), ("an empty zone", &self.own)];
        let Some((value, _)) = empty.into_iter().find(|(_, part)| part.is_empty()) else { return Ok(()) };
        let expected = "the name of a tag, and the client's own zone; leave prefer_zone out where there is none";
        Err(ConfigError::Option { option: "prefer_zone", value: value.to_owned(), expected })
    }

    /// Whether an instance is in the client's own zone.
    pub(super) fn is_own(&self, instance: &Instance) -> bool {
        instance.tags.get(&self.tag) == Some(self.own.as_str())
    }

    /// Moves the members of the own zone to the front and returns their number.
    pub(super) fn sort<C>(&self, members: &mut [(Candidate, C)]) -> usize {
        members.sort_by_cached_key(|(candidate, _)| !self.is_own(candidate.instance()));
        members.partition_point(|(candidate, _)| self.is_own(candidate.instance()))
    }

    /// The picker that prefers the first `near` candidates, those of the own zone. `known` are all instances, READY or
    /// not, each with its weight in hundredths: the fair share of a zone is all weights divided by the number of
    /// zones. Without any, all calls stay.
    pub(super) fn picker<'a>(
        &self,
        policy: &dyn Policy,
        candidates: &[Candidate],
        near: usize,
        known: impl Iterator<Item = (&'a Instance, u32)>,
    ) -> Box<dyn Picker> {
        let (own, others) = candidates.split_at(near);
        if own.is_empty() || others.is_empty() {
            return policy.picker(candidates);
        }
        let share = self.share(own, known);
        Box::new(ZonePicker {
            near: policy.picker(own),
            far: (share < 1 << 32).then(|| policy.picker(others)),
            len: near,
            share: u32::try_from(share).unwrap_or(u32::MAX),
        })
    }

    /// Of 2^32 calls, those that stay in the own zone.
    fn share<'a>(&self, own: &[Candidate], known: impl Iterator<Item = (&'a Instance, u32)>) -> u128 {
        let ready: u128 = own.iter().map(|candidate| u128::from(candidate.share())).sum();
        let (mut total, mut zones) = (0_u128, HashSet::new());
        for (instance, weight) in known {
            total += u128::from(weight);
            // Instances that name no zone are a zone of their own.
            zones.insert(instance.tags.get(&self.tag));
        }
        // The part of a fair share that is READY, and of that as many tenths as are enough.
        let share = ((ready * zones.len() as u128 * WHOLE) << 32).checked_div(total * ENOUGH).unwrap_or(1 << 32);
        share.min(1 << 32)
    }
}

struct ZonePicker {
    near: Box<dyn Picker>,
    /// `None` where all calls stay.
    far: Option<Box<dyn Picker>>,
    len: usize,
    share: u32,
}

impl Picker for ZonePicker {
    fn pick(&self, candidates: &[Candidate], call: &PickArgs<'_>) -> Option<usize> {
        let (near, far) = candidates.split_at(self.len.min(candidates.len()));
        match &self.far {
            Some(picker) if part_of(call.key()) >= self.share => {
                pick_within(&**picker, far, call).map(|index| near.len() + index)
            }
            _ => pick_within(&*self.near, near, call),
        }
    }
}

/// The picker's choice, or any where it leaves the choice to the channel: elsewhere the call would lose its zone.
fn pick_within(picker: &dyn Picker, part: &[Candidate], call: &PickArgs<'_>) -> Option<usize> {
    let chosen = picker.pick(part, call).filter(|index| *index < part.len());
    chosen.or_else(|| (!part.is_empty()).then(|| fastrand::usize(..part.len())))
}

/// The position of a call among all, from 0 to 2^32: with a key always the same, so that it finds the same instance.
fn part_of(key: Option<u64>) -> u32 {
    let spread = key.map_or_else(|| fastrand::u64(..), |key| xxhash_rust::xxh3::xxh3_64(&key.to_le_bytes()));
    u32::try_from(spread >> 32).unwrap_or(u32::MAX)
}

/// How much of its fair share a zone must have to take all calls of its clients, in tenths: below seven of them, the
/// rest of the zone would have to bear half as much again as usual.
const ENOUGH: u128 = 7;
const WHOLE: u128 = 10;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::*;
    use crate::channel::policy::load::Load;
    use crate::channel::policy::{LeastRequest, PickFirst, RingHash, WeightedRandom, WeightedRoundRobin};

    /// Of 40,000 calls, how many stay in zone `a`.
    fn stay(policy: &dyn Policy, ready: &[Instance], known: &[Instance]) -> f64 {
        let candidate = |instance: &Instance| Candidate::new(Arc::new(Load::new(u32::MAX)), Arc::new(instance.clone()));
        let mut candidates: Vec<Candidate> = ready.iter().map(candidate).collect();
        let zone = Zone { tag: "zone".into(), own: "a".into() };
        let picker = picker(&zone, policy, &mut candidates, known);
        let stays = |key: Option<u64>| {
            let index = picker.pick(&candidates, &PickArgs::new(key, &[])).expect("each policy picks one");
            zone.is_own(candidates[index].instance())
        };
        let count = (1..=40_000_u64).filter(|call| stays((call % 2 == 1).then_some(*call))).count();
        f64::from(u32::try_from(count).expect("few")) / 40_000.0
    }

    fn instances(zone: Option<&str>, count: u16, weight: u16) -> Vec<Instance> {
        let instance = |port| {
            let first = zone.map_or(0, |zone| zone.as_bytes()[0]);
            let instance = Instance::new("echo", SocketAddr::from(([127, 0, first, 1], port))).with_weight(weight);
            zone.map_or(instance.clone(), |zone| instance.with_tag("zone", zone))
        };
        (1..=count).map(instance).collect()
    }

    /// The picker over the candidates, which it sorts.
    fn picker(
        zone: &Zone,
        policy: &dyn Policy,
        candidates: &mut Vec<Candidate>,
        known: &[Instance],
    ) -> Box<dyn Picker> {
        let mut members: Vec<_> = candidates.drain(..).map(|candidate| (candidate, ())).collect();
        let near = zone.sort(&mut members);
        candidates.extend(members.into_iter().map(|(candidate, ())| candidate));
        zone.picker(policy, candidates, near, known.iter().map(weighed))
    }

    fn weighed(instance: &Instance) -> (&Instance, u32) {
        (instance, Candidate::full_share_of(instance))
    }

    fn near(seen: f64, expected: f64) -> bool {
        (seen - expected).abs() < 0.015
    }

    #[test]
    fn calls_stay_while_70_percent_of_a_fair_share_is_ready_and_spill_below() {
        let policies: [Box<dyn Policy>; 4] = [
            Box::new(LeastRequest::new()),
            Box::new(WeightedRoundRobin::new()),
            Box::new(WeightedRandom::new()),
            Box::new(RingHash::by_header(http::HeaderName::from_static("key"))),
        ];
        let (own, others) = (instances(Some("a"), 10, 10), instances(Some("b"), 10, 10));
        let known = [own.clone(), others.clone()].concat();
        for policy in &policies {
            // A fair share is ten instances: seven are enough, and of fewer each is worth a seventh.
            for (ready, expected) in [(10, 1.0), (7, 1.0), (6, 6.0 / 7.0), (3, 3.0 / 7.0), (1, 1.0 / 7.0), (0, 0.0)] {
                let seen = stay(policy, &[own[..ready].to_vec(), others.clone()].concat(), &known);
                assert!(near(seen, expected), "{policy:?}: of {ready} READY ones stay {seen} instead of {expected}");
            }
            assert!(near(stay(policy, &own[..1], &known), 1.0), "{policy:?}: without another zone they stay");
        }
    }

    /// A policy that leaves each choice to the channel, or makes one that is none.
    #[derive(Debug, Clone, Copy)]
    struct Chooses(Option<usize>);

    impl Policy for Chooses {
        fn picker(&self, _: &[Candidate]) -> Box<dyn Picker> {
            Box::new(*self)
        }
    }

    impl Picker for Chooses {
        fn pick(&self, _: &[Candidate], _: &PickArgs<'_>) -> Option<usize> {
            self.0
        }
    }

    #[test]
    fn calls_spill_where_the_policy_leaves_the_choice_to_the_channel() {
        let (own, others) = (instances(Some("a"), 100, 10), instances(Some("b"), 100, 10));
        let known = [own.clone(), others.clone()].concat();
        for policy in [Chooses(None), Chooses(Some(usize::MAX))] {
            let seen = stay(&policy, &[own[..35].to_vec(), others.clone()].concat(), &known);
            assert!(near(seen, 0.5), "{policy:?}: of 35 READY ones stay {seen}");
        }
    }

    #[test]
    fn a_fair_share_goes_by_weight_and_those_without_a_zone_are_one() {
        let (own, b) = (instances(Some("a"), 2, 10), instances(Some("b"), 2, 30));
        let none = instances(None, 2, 20);
        // 120 of three zones is a fair share of 40, and 20 of it is half, of which seven tenths would be enough.
        let known = [own, b, none].concat();
        let seen = stay(&LeastRequest::new(), &known, &known);
        assert!(near(seen, 0.5 / 0.7), "{seen} stay");
    }

    #[test]
    fn pick_first_keeps_its_pick_in_either_zone_while_a_part_spills() {
        let known = [instances(Some("a"), 10, 10), instances(Some("b"), 10, 10)].concat();
        let candidate = |index: usize| Candidate::new(Arc::new(Load::new(u32::MAX)), Arc::new(known[index].clone()));
        let zone = Zone { tag: "zone".into(), own: "a".into() };
        let policy = PickFirst::new();
        let chosen = |ready: &[usize]| {
            let mut candidates: Vec<Candidate> = ready.iter().copied().map(candidate).collect();
            let picker = picker(&zone, &policy, &mut candidates, &known);
            let pick = || picker.pick(&candidates, &PickArgs::default()).expect("it always picks one");
            let picks = (0..1_000).map(|_| candidates[pick()].instance().address.clone());
            picks.collect::<std::collections::BTreeSet<_>>()
        };
        let before = chosen(&[5, 6, 15, 16]);
        assert_eq!(before, [5, 15].map(|index| known[index].address.clone()).into());
        assert_eq!(chosen(&[4, 5, 6, 14, 15, 16]), before, "instances before them change nothing");
        assert_eq!(chosen(&[4, 5, 14, 16]), [5, 14].map(|index| known[index].address.clone()).into());
    }

    #[test]
    fn calls_stay_where_nothing_is_known_of_fair_shares() {
        let ready = [instances(Some("a"), 2, 10), instances(Some("b"), 2, 10)].concat();
        assert!(near(stay(&LeastRequest::new(), &ready, &[]), 1.0));
    }

    #[test]
    fn a_key_finds_the_same_instance_also_while_a_part_spills() {
        let known = [instances(Some("a"), 10, 10), instances(Some("b"), 10, 10)].concat();
        let ready: Vec<Instance> = known[6..].to_vec();
        let candidate = |instance: &Instance| Candidate::new(Arc::new(Load::new(u32::MAX)), Arc::new(instance.clone()));
        let mut candidates: Vec<Candidate> = ready.iter().map(candidate).collect();
        let zone = Zone { tag: "zone".into(), own: "a".into() };
        let policy = RingHash::by_header(http::HeaderName::from_static("key"));
        let picker = picker(&zone, &policy, &mut candidates, &known);
        for key in 1..1_000 {
            let call = PickArgs::new(Some(key), &[]);
            assert_eq!(picker.pick(&candidates, &call), picker.pick(&candidates, &call));
        }
    }
}
