//! Which instances a channel holds connections to, where that is not all of them: for each client others, and for a client
//! the same ones as long as they are there.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::error::ConfigError;
use crate::instance::Address;

/// From so many instances on, each client of a service that is connected to all of them costs too many connections.
pub(crate) const MANY: usize = 1_000;

/// Among how many orders clients with numbers take turns: with one, where instances happen to lie close together each has few
/// clients; with many, few clients share one and spread evenly over it.
const ORDERS: u64 = 32;

/// The golden part of the whole: steps of it spread evenly over a circle, however many there are.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// How many instances a client uses, and what it ranks them by.
///
/// Each seed lays the instances on a circle, and the client uses those that follow its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subset {
    size: usize,
    seed: u64,
    start: u64,
}

impl Subset {
    /// Of a client that nobody gave a name.
    pub(crate) fn anonymous(size: usize) -> Self {
        Self { size, seed: fastrand::u64(..), start: 0 }
    }

    /// Of the client of this name. Clients whose names differ in the number at the end alone share circles, and start on each
    /// at even distances; all others have circles of their own.
    pub(crate) fn of(size: usize, client: &str) -> Self {
        let name = client.trim_end_matches(|char: char| char.is_ascii_digit());
        match client[name.len()..].parse::<u64>() {
            Ok(number) => {
                let start = (number / ORDERS).wrapping_mul(GOLDEN);
                Self { size, seed: xxh3_64_with_seed(name.as_bytes(), number % ORDERS), start }
            }
            Err(_) => Self { size, seed: xxh3_64(client.as_bytes()), start: 0 },
        }
    }

    pub(crate) fn check(self) -> Result<(), ConfigError> {
        if self.size == 0 {
            return Err(ConfigError::Option { option: "subset", value: "0".into(), expected: "at least 1" });
        }
        Ok(())
    }

    pub(crate) fn size(self) -> usize {
        self.size
    }

    /// The rank of an instance for this client: the highest ones are used. It follows from both names alone, so nothing that
    /// happens to one instance changes the order of the others.
    pub(crate) fn rank(self, address: &Address) -> u64 {
        !xxh3_64_with_seed(address.to_string().as_bytes(), self.seed).wrapping_sub(self.start)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn address(n: u16) -> Address {
        std::net::SocketAddr::from(([10, 0, 0, 1], n + 1)).into()
    }

    fn chosen(subset: Subset, there: &BTreeSet<u16>) -> BTreeSet<u16> {
        let mut ranked: Vec<u16> = there.iter().copied().collect();
        ranked.sort_by_key(|n| std::cmp::Reverse(subset.rank(&address(*n))));
        ranked.into_iter().take(subset.size()).collect()
    }

    proptest! {
        #[test]
        fn one_that_goes_is_replaced_by_one_and_one_that_comes_replaces_one_at_most(
            client in prop_oneof![".{1,12}", "[a-z]{1,3}-[0-9]{1,25}"],
            size in 1..30_usize,
            there in prop::collection::btree_set(0..500_u16, 1..200),
            one in 0..500_u16,
        ) {
            let subset = Subset::of(size, &client);
            let (mut without, mut with) = (there.clone(), there);
            without.remove(&one);
            with.insert(one);
            let (before, after) = (chosen(subset, &with), chosen(subset, &without));
            let lost: Vec<_> = before.difference(&after).collect();
            let won: Vec<_> = after.difference(&before).collect();
            prop_assert!(lost.iter().all(|lost| **lost == one), "only the one that went is lost: {:?}", lost);
            prop_assert!(won.len() <= 1 && (won.is_empty() || !lost.is_empty()), "one takes its place: {:?}", won);
        }
    }

    /// The fewest and the most clients that one of 200 instances has.
    fn extremes(clients: impl Iterator<Item = String>) -> (u32, u32) {
        let there: BTreeSet<u16> = (0..200).collect();
        let mut used: BTreeMap<u16, u32> = there.iter().map(|instance| (*instance, 0)).collect();
        for client in clients {
            for instance in chosen(Subset::of(20, &client), &there) {
                *used.entry(instance).or_default() += 1;
            }
        }
        (*used.values().min().expect("some"), *used.values().max().expect("some"))
    }

    #[test]
    fn each_instance_has_about_as_many_of_a_thousand_clients_with_numbers() {
        for name in ["client-", "", "pod-7-"] {
            let (least, most) = extremes((0..1_000).map(|number| format!("{name}{number}")));
            assert!(least >= 75 && most <= 125, "{name}: from {least} to {most} clients, and 100 are the mean");
        }
    }

    #[test]
    fn clients_with_other_names_spread_as_by_chance() {
        // Counts are binomial then, with a standard deviation of 9.5 around 100.
        let clients = (0..1_000_u32).map(|number| format!("{:x}-x", xxh3_64(&number.to_le_bytes())));
        let (least, most) = extremes(clients);
        assert!(least >= 60 && most <= 145, "from {least} to {most} clients");
    }

    #[test]
    fn a_client_without_a_name_is_like_no_other() {
        let there: BTreeSet<u16> = (0..200).collect();
        let (one, other) = (Subset::anonymous(20), Subset::anonymous(20));
        assert_ne!(chosen(one, &there), chosen(other, &there));
        assert!(Subset::anonymous(0).check().is_err());
    }
}
