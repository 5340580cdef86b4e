//! All instances become those that a channel uses, where it does not use all: a different set per client, and for one
//! client the same set as long as its instances are there.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::zone::Zone;
use crate::error::ConfigError;
use crate::instance::Address;
use crate::snapshot::{Difference, Member, MemberState, Snapshot};

/// How many instances a client uses, and how it ranks them.
///
/// Each seed lays the instances on a circle, and the client uses those that follow its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subset {
    size: usize,
    seed: u64,
    start: u64,
    /// Whether it is the subset of a client with an empty name.
    has_empty_name: bool,
}

impl Subset {
    /// The subset of a client without a name.
    pub(crate) fn anonymous(size: usize) -> Self {
        Self { size, seed: fastrand::u64(..), start: 0, has_empty_name: false }
    }

    /// The subset of the client of this name. Clients whose names differ in the number at the end alone share circles,
    /// and start on each at even distances; all others have circles of their own.
    pub(crate) fn of(size: usize, client: &str) -> Self {
        let has_empty_name = client.is_empty();
        let name = client.trim_end_matches(|char: char| char.is_ascii_digit());
        match client[name.len()..].parse::<u64>() {
            Ok(number) => {
                let start = (number / ORDERS).wrapping_mul(GOLDEN);
                Self { size, seed: xxh3_64_with_seed(name.as_bytes(), number % ORDERS), start, has_empty_name }
            }
            Err(_) => Self { size, seed: xxh3_64(client.as_bytes()), start: 0, has_empty_name },
        }
    }

    pub(crate) fn check(self) -> Result<(), ConfigError> {
        if self.size == 0 {
            let expected = "at least 1; None uses all instances";
            return Err(ConfigError::Option { option: "subset", value: "0".into(), expected });
        }
        if self.has_empty_name {
            let (value, expected) = ("an empty name".into(), "the client's own name, or subset(..) where it has none");
            return Err(ConfigError::Option { option: "subset_as", value, expected });
        }
        Ok(())
    }

    pub(crate) fn size(self) -> usize {
        self.size
    }

    /// The rank of an instance for this client: the highest ones are used. It follows from both names alone, so nothing
    /// that happens to one instance changes the order of the others.
    pub(crate) fn rank(self, address: &Address) -> u64 {
        !xxh3_64_with_seed(address.to_string().as_bytes(), self.seed).wrapping_sub(self.start)
    }
}

/// The instances that may be selected, in that order: live ones, and all that were selected before.
#[derive(Default)]
pub(super) struct SubsetOrder(BTreeSet<Place>);

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    is_elsewhere: bool,
    rank: Reverse<u64>,
    address: Address,
}

impl SubsetOrder {
    /// The list of instances is another one.
    pub(super) fn on_snapshot(
        &mut self,
        subset: Subset,
        zone: Option<&Zone>,
        was_selected: impl Fn(&Address) -> bool,
        (before, after): (&Snapshot, &Snapshot),
    ) {
        let place = |member: &Member| Place {
            is_elsewhere: zone.is_some_and(|zone| !zone.is_own(member.instance())),
            rank: Reverse(subset.rank(member.address())),
            address: member.address().clone(),
        };
        // One that drains or is in question is no replacement.
        let may_be_selected = |member: &Member| member.state() == MemberState::Live || was_selected(member.address());
        if before.is_empty() {
            self.0 = after.iter().filter(|member| may_be_selected(member)).map(place).collect();
            return;
        }
        for difference in after.changes_since(before) {
            let (old, new) = match difference {
                Difference::Left(old) => (Some(old), None),
                Difference::Joined(new) => (None, Some(new)),
                Difference::Changed(old, new) => (Some(old), Some(new)),
            };
            if let Some(old) = old {
                self.0.remove(&place(old));
            }
            if let Some(new) = new.filter(|new| may_be_selected(new)) {
                self.0.insert(place(new));
            }
        }
    }

    /// Their addresses, the one that is selected first in front.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Address> {
        self.0.iter().map(|place| &place.address)
    }
}

/// The number of circles among which clients with numbers take turns: with one, instances that happen to lie close
/// together have few clients each; with many, few clients share a circle and spread evenly over it.
const ORDERS: u64 = 32;

/// The golden part of the whole: steps of it spread evenly over a circle, however many there are.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::instance::Instance;

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
        fn one_that_goes_costs_one_replacement_and_one_that_comes_at_most_one(
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

    fn snapshot(members: &BTreeMap<u16, (u8, bool)>) -> Snapshot {
        let members = members.iter().map(|(n, (state, is_near))| {
            let instance = Instance::new("echo", address(*n)).with_tag("zone", if *is_near { "a" } else { "b" });
            let state = [MemberState::Live, MemberState::Draining, MemberState::Suspect][usize::from(*state)];
            Member::new(Arc::new(instance), 7, state)
        });
        Snapshot::new(1, members.collect())
    }

    proptest! {
        #[test]
        fn an_order_that_follows_the_changes_is_the_one_made_from_scratch(
            history in prop::collection::vec(prop::collection::btree_map(0..40_u16, (0..3_u8, any::<bool>()), 0..30), 1..8),
            used in prop::collection::btree_set(0..40_u16, 0..5),
        ) {
            let (subset, zone) = (Subset::of(3, "client"), Zone { tag: "zone".into(), own: "a".into() });
            let used: BTreeSet<Address> = used.into_iter().map(address).collect();
            let was_selected = |address: &Address| used.contains(address);
            let (mut order, mut known) = (SubsetOrder::default(), snapshot(&BTreeMap::new()));
            for members in history {
                let next = snapshot(&members);
                order.on_snapshot(subset, Some(&zone), was_selected, (&known, &next));
                known = next;
                let may_be_selected = |member: &&Member| member.state() == MemberState::Live || was_selected(member.address());
                let mut expected: Vec<&Member> = known.iter().filter(may_be_selected).collect();
                expected.sort_by_key(|member| (!zone.is_own(member.instance()), Reverse(subset.rank(member.address()))));
                let expected: Vec<&Address> = expected.into_iter().map(Member::address).collect();
                prop_assert_eq!(order.iter().collect::<Vec<_>>(), expected);
            }
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
