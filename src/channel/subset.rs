//! Which instances a channel holds connections to, where that is not all of them: for each client others, and for a client
//! the same ones as long as they are there.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::error::ConfigError;
use crate::instance::Address;

/// From so many instances on, each client of a service that is connected to all of them costs too many connections.
pub(super) const MANY: usize = 1_000;

/// How many instances a client uses, and what it ranks them by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subset {
    size: usize,
    seed: u64,
}

impl Subset {
    /// Of a client that nobody gave a name.
    pub(super) fn anonymous(size: usize) -> Self {
        Self { size, seed: fastrand::u64(..) }
    }

    /// Of the client of this name.
    pub(super) fn of(size: usize, client: &str) -> Self {
        Self { size, seed: xxh3_64(client.as_bytes()) }
    }

    pub(super) fn check(self) -> Result<(), ConfigError> {
        if self.size == 0 {
            return Err(ConfigError::Option { option: "subset", value: "0".into(), expected: "at least 1" });
        }
        Ok(())
    }

    pub(super) fn size(self) -> usize {
        self.size
    }

    /// The rank of an instance for this client: the highest ones are used. It follows from both names alone, so nothing that
    /// happens to one instance changes the order of the others.
    pub(super) fn rank(self, address: &Address) -> u64 {
        xxh3_64_with_seed(address.to_string().as_bytes(), self.seed)
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
            client in ".{1,12}",
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

    #[test]
    fn a_thousand_clients_spread_evenly_over_two_hundred_instances() {
        let there: BTreeSet<u16> = (0..200).collect();
        let mut clients: BTreeMap<u16, u32> = BTreeMap::new();
        for client in 0..1_000 {
            for instance in chosen(Subset::of(20, &format!("client-{client}")), &there) {
                *clients.entry(instance).or_default() += 1;
            }
        }
        // Clients know nothing of each other, so the counts are binomial, with a standard deviation of 9.5 around 100.
        let (least, most) = (clients.values().min().expect("some"), clients.values().max().expect("some"));
        assert_eq!(clients.len(), 200, "everybody is used");
        assert!((65..=135).contains(least) && (65..=135).contains(most), "between {least} and {most} clients each");
    }

    #[test]
    fn a_client_without_a_name_is_like_no_other() {
        let there: BTreeSet<u16> = (0..200).collect();
        let (one, other) = (Subset::anonymous(20), Subset::anonymous(20));
        assert_ne!(chosen(one, &there), chosen(other, &there));
        assert!(Subset::anonymous(0).check().is_err());
    }
}
