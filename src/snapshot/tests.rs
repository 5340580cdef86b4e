//! Lists that share their chunks, and what differs between them.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::instance::Instance;

fn address(n: u16) -> Address {
    Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], n)))
}

fn member(n: u16, weight: u16, state: MemberState) -> Member {
    Member::new(Arc::new(Instance::new("echo", address(n)).with_weight(weight)), 7, state)
}

/// Members whose ports are in the order of their addresses.
fn members(weights: &BTreeMap<u16, u16>) -> Vec<Member> {
    weights.iter().map(|(port, weight)| member(*port, *weight, MemberState::Live)).collect()
}

fn told(old: &Snapshot, new: &Snapshot) -> Vec<String> {
    let tell = |difference| match difference {
        Difference::Left(old) => format!("-{}", old.address().port()),
        Difference::Joined(new) => format!("+{}={}", new.address().port(), new.instance().weight),
        Difference::Changed(old, new) => {
            assert_eq!(old.address(), new.address());
            format!("{}={}", new.address().port(), new.instance().weight)
        }
    };
    new.changes_since(old).map(tell).collect()
}

/// What set operations make of both.
fn expected(old: &BTreeMap<u16, u16>, new: &BTreeMap<u16, u16>) -> Vec<String> {
    let mut ports: Vec<&u16> = old.keys().chain(new.keys()).collect();
    ports.sort();
    ports.dedup();
    let tell = |port: &u16| match (old.get(port), new.get(port)) {
        (Some(_), None) => Some(format!("-{port}")),
        (None, Some(weight)) => Some(format!("+{port}={weight}")),
        (before, Some(weight)) => (before != Some(weight)).then(|| format!("{port}={weight}")),
        (None, None) => None,
    };
    ports.into_iter().filter_map(tell).collect()
}

fn apply(list: &MemberList, changes: &BTreeMap<u16, Option<u16>>) -> MemberList {
    let update = |(port, weight): (&u16, &Option<u16>)| {
        (address(*port), weight.map(|weight| member(*port, weight, MemberState::Live)))
    };
    list.updated(changes.iter().map(update).collect())
}

#[test]
fn a_member_is_open_unless_it_drains() {
    let members =
        [member(10, 1, MemberState::Live), member(11, 1, MemberState::Draining), member(12, 1, MemberState::Suspect)];
    let open: Vec<bool> = members.iter().map(Member::is_open).collect();
    assert_eq!(open, [true, false, true], "in question stays, draining goes");
}

#[test]
fn a_change_of_one_of_thousands_copies_one_chunk() {
    let weights: BTreeMap<u16, u16> = (1..=50_000).map(|port| (port, 1)).collect();
    let before = MemberList::from_sorted(members(&weights));
    for change in [(25_000, Some(2)), (25_000, None), (60_000, Some(1))] {
        let after = apply(&before, &[change].into());
        let is_shared = |chunk: &&Arc<[Member]>| !before.chunks().iter().any(|old| Arc::ptr_eq(old, chunk));
        assert_eq!(after.chunks().iter().filter(is_shared).count(), 1, "{change:?}");
    }
    let after = apply(&before, &[(25_000, Some(1))].into());
    let is_shared = before.chunks().iter().zip(after.chunks()).all(|(old, new)| Arc::ptr_eq(old, new));
    assert!(is_shared && after.len() == before.len(), "what is as it was copies none");
}

#[test]
fn lists_that_grow_and_shrink_one_by_one_keep_chunks_of_a_useful_size() {
    let mut list = MemberList::default();
    let sizes = |list: &MemberList| list.chunks().iter().map(|chunk| chunk.len()).collect::<Vec<_>>();
    // 7 is no divisor of 5,000: every port comes once, in a wild order.
    for n in 0..5_000_u32 {
        list = apply(&list, &[(u16::try_from(n * 7 % 5_000).expect("small") + 1, Some(1))].into());
    }
    assert!(list.len() == 5_000 && sizes(&list).len() <= 5_000 / 48, "{:?}", sizes(&list));
    assert!(sizes(&list).iter().all(|size| *size <= 128), "{:?}", sizes(&list));
    for n in 0..4_900_u32 {
        list = apply(&list, &[(u16::try_from(n * 7 % 5_000).expect("small") + 1, None)].into());
    }
    assert!(list.len() == 100 && sizes(&list).len() <= 8, "{:?}", sizes(&list));
}

proptest! {
    #[test]
    fn an_updated_list_is_the_one_made_from_scratch(
        first in prop::collection::btree_map(1..2_000_u16, 1..4_u16, 0..600),
        updates in prop::collection::vec(
            prop::collection::btree_map(1..2_000_u16, prop::option::of(1..4_u16), 0..200),
            0..6,
        ),
    ) {
        let mut weights = first;
        let mut list = MemberList::from_sorted(members(&weights));
        for changes in updates {
            let (old, before) = (Snapshot::of_list(1, list.clone(), 0), weights.clone());
            list = apply(&list, &changes);
            for (port, weight) in &changes {
                match weight {
                    Some(weight) => _ = weights.insert(*port, *weight),
                    None => _ = weights.remove(port),
                }
            }
            let new = Snapshot::of_list(2, list.clone(), 0);
            let scratch = Snapshot::new(2, members(&weights));
            prop_assert_eq!(&new, &scratch);
            prop_assert_eq!(list.iter().collect::<Vec<_>>(), scratch.iter().collect::<Vec<_>>());
            prop_assert_eq!(list.len(), weights.len());
            prop_assert_eq!(list.iter().len(), weights.len());
            prop_assert!(list.chunks().iter().all(|chunk| (1..=128).contains(&chunk.len())));
            prop_assert_eq!(told(&old, &new), expected(&before, &weights), "where chunks are shared");
            prop_assert_eq!(told(&old, &scratch), expected(&before, &weights), "where none is");
            for port in changes.keys() {
                let weight = new.get(&address(*port)).map(|member| member.instance().weight);
                prop_assert_eq!(weight, weights.get(port).copied());
            }
        }
    }
}
