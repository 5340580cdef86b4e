//! One instance for all calls, as long as it is there.

use std::sync::{Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::candidate::Candidate;
use crate::channel::policy::{Needs, PickArgs, Picker, Policy};
use crate::instance::Address;

/// One instance for all calls: the first by address, or a random one where the addresses are
/// [shuffled](Self::shuffled), and then that one until it is no longer READY.
///
/// With a [preferred zone](crate::ChannelBuilder::prefer_zone) it is one in the own zone, and one elsewhere for calls
/// that spill. Where both an earlier choice and others could follow the present one, it is the earlier choice.
///
/// For services with one active server, or where a warm cache matters more than an even load. Weights say nothing here.
/// Calls beyond what the instance takes at once go to any other. One that sheds calls keeps them: where only one server
/// is active, the others have no answer to give.
///
/// A clone makes its own choice; an [`Arc`](std::sync::Arc) of one policy given to two channels is one choice for both.
#[derive(Debug, Default)]
pub struct PickFirst {
    /// The latest one first.
    chosen: Mutex<Vec<Address>>,
    /// What decides which instance is the first, where it is not the address.
    seed: Option<u64>,
}

impl PickFirst {
    /// The policy, with no choice made.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The policy with an order of the instances that is random for each channel, and stays for its life: gRPC's
    /// `shuffleAddressList`. Each client has one instance for all of its calls, and the clients share the instances.
    #[must_use]
    pub fn shuffled() -> Self {
        Self { seed: Some(fastrand::u64(..)), ..Self::default() }
    }

    /// Where an instance stands in the order.
    fn rank<'a>(&self, address: &'a Address) -> (u64, &'a Address) {
        (self.seed.map_or(0, |seed| xxh3_64_with_seed(address.to_string().as_bytes(), seed)), address)
    }
}

/// The clone makes its own choice, and shuffles anew.
impl Clone for PickFirst {
    fn clone(&self) -> Self {
        if self.seed.is_some() { Self::shuffled() } else { Self::new() }
    }
}

impl Policy for PickFirst {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        let place =
            |address: &Address| candidates.iter().position(|candidate| candidate.instance().address == *address);
        let first = || (0..candidates.len()).min_by_key(|&index| self.rank(&candidates[index].instance().address));
        let index = chosen.iter().find_map(place).or_else(first).unwrap_or_default();
        if let Some(candidate) = candidates.get(index) {
            let address = &candidate.instance().address;
            chosen.retain(|earlier| earlier != address);
            chosen.insert(0, address.clone());
            chosen.truncate(REMEMBERED);
        }
        Box::new(Always(index))
    }

    fn needs(&self) -> Needs {
        Needs::new().with_full_weights()
    }
}

/// One choice in the own zone, and one elsewhere.
const REMEMBERED: usize = 2;

struct Always(usize);

impl Picker for Always {
    fn pick(&self, _: &[Candidate], _: &PickArgs<'_>) -> Option<usize> {
        Some(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::policy::tests::candidates;

    fn port(policy: &PickFirst, candidates: &[Candidate]) -> u16 {
        let picked = policy.picker(candidates).pick(candidates, &PickArgs::default());
        candidates[picked.expect("it always picks one")].instance().address.port()
    }

    #[test]
    fn the_pick_stays_until_its_instance_leaves() {
        let policy = PickFirst::new();
        let all = candidates(&[1, 1, 65_535, 1]);
        assert_eq!(port(&policy, &[all[2].clone(), all[1].clone(), all[3].clone()]), 2, "the first by address");
        assert_eq!(port(&policy, &all), 2, "an address before it changes nothing");
        let without: Vec<_> = [3, 0, 2].map(|index| all[index].clone()).into();
        assert_eq!(port(&policy, &without), 1, "once it has left, the first by address again");
        assert_eq!(port(&policy, &all), 1, "its return changes nothing");
    }

    #[test]
    fn shuffled_clients_share_the_instances_and_each_keeps_its_own() {
        let all = candidates(&[1; 4]);
        let mut clients = [0_u32; 4];
        for _ in 0..4_000 {
            let policy = PickFirst::shuffled();
            let first = policy.picker(&all).pick(&all, &PickArgs::default());
            clients[first.expect("one is picked")] += 1;
            assert_eq!(policy.picker(&all).pick(&all, &PickArgs::default()), first, "the order stays");
        }
        assert!(clients.iter().all(|clients| (850..=1_150).contains(clients)), "of 4,000 clients: {clients:?}");
        let original = PickFirst::shuffled();
        let first = original.picker(&all).pick(&all, &PickArgs::default());
        assert!(
            (0..100).any(|_| original.clone().picker(&all).pick(&all, &PickArgs::default()) != first),
            "a clone shuffles anew"
        );
    }

    #[test]
    fn a_clone_makes_its_own_pick() {
        let policy = PickFirst::new();
        let all = candidates(&[1, 1]);
        assert_eq!(port(&policy, &all[1..]), 2);
        assert_eq!(port(&policy.clone(), &all), 1, "the clone begins anew");
        assert_eq!(port(&policy, &all), 2, "and leaves the original alone");
    }
}
