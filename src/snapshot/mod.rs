//! Every instance of a service at one etcd revision: what the watcher publishes and everything else reads.

use std::cmp::Ordering;
use std::fmt;
use std::iter::{self, Peekable};
use std::sync::Arc;

use crate::instance::{Address, Instance};

/// Every instance of a service at one etcd revision, ordered by address.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    revision: i64,
    members: Vec<Member>,
}

/// One instance in a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    instance: Arc<Instance>,
    lease: i64,
    state: MemberState,
}

/// How sure it is that an instance serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberState {
    /// It is registered.
    Live,
    /// It announced that it leaves; it gets no new calls while others can take them.
    Draining,
    /// Its key went without an announcement. A lease that was revoked and one that ran out with all others, because
    /// etcd itself stood still, look the same, so it stays known until that is clear.
    Suspect,
}

impl Snapshot {
    /// `members` must be ordered by address, each address once.
    pub(crate) fn new(revision: i64, members: Vec<Member>) -> Self {
        debug_assert!(
            members.is_sorted_by(|a, b| a.instance.address < b.instance.address),
            "members are ordered by address and unique"
        );
        Self { revision, members }
    }

    /// The etcd revision at which this was the truth; over several registries, the highest of theirs.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The number of instances, in whatever state.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether no instance is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The instance at `address`.
    #[must_use]
    pub fn get(&self, address: &Address) -> Option<&Member> {
        let found = self.members.binary_search_by(|member| member.instance.address.cmp(address));
        found.ok().map(|index| &self.members[index])
    }

    /// All instances, ordered by address.
    #[must_use = "an iterator does nothing unless it is used"]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.members.iter()
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("revision", &self.revision).field("members", &self.members).finish()
    }
}

impl Member {
    pub(crate) fn new(instance: Arc<Instance>, lease: i64, state: MemberState) -> Self {
        Self { instance, lease, state }
    }

    /// The instance as it was read.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    pub(crate) fn shared_instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// The id of the lease that its key hangs on; 0 for a key that was put without one.
    #[must_use]
    pub fn lease(&self) -> i64 {
        self.lease
    }

    /// How sure it is that the instance serves.
    #[must_use]
    pub fn state(&self) -> MemberState {
        self.state
    }
}

/// What has an address and can be compared by it.
pub(crate) trait HasAddress {
    fn address(&self) -> &Address;
}

impl HasAddress for &Address {
    fn address(&self) -> &Address {
        self
    }
}

impl HasAddress for &Member {
    fn address(&self) -> &Address {
        &self.instance.address
    }
}

/// What became of one address between an old set and a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Difference<O, N> {
    /// The old set alone has it.
    Left(O),
    /// The new set alone has it.
    Joined(N),
    /// Both have it; whether anything else about it changed is for the caller to compare.
    Kept(O, N),
}

/// The difference between two sets that are both ordered by address, each address once: a merge join, lazy and without
/// allocation, that yields every address of either set in order.
pub(crate) fn diff<O, N>(
    old: impl IntoIterator<Item = O>,
    new: impl IntoIterator<Item = N>,
) -> impl Iterator<Item = Difference<O, N>>
where
    O: HasAddress,
    N: HasAddress,
{
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    iter::from_fn(move || {
        let order = first(&mut old, &mut new)?;
        match (old.next_if(|_| order.is_le()), new.next_if(|_| order.is_ge())) {
            (Some(left), None) => Some(Difference::Left(left)),
            (None, Some(joined)) => Some(Difference::Joined(joined)),
            (Some(old), Some(new)) => Some(Difference::Kept(old, new)),
            (None, None) => None,
        }
    })
}

/// Which of two sets has the smallest address that is left; `None` at the end of both.
fn first<O, N>(
    old: &mut Peekable<impl Iterator<Item = O>>,
    new: &mut Peekable<impl Iterator<Item = N>>,
) -> Option<Ordering>
where
    O: HasAddress,
    N: HasAddress,
{
    match (old.peek(), new.peek()) {
        (None, None) => None,
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (Some(old), Some(new)) => Some(old.address().cmp(new.address())),
    }
}

/// Whether new calls may go to a member, as far as the registry knows.
pub(crate) fn is_open(member: &Member) -> bool {
    member.state() != MemberState::Draining
}

/// The members of a snapshot that new calls may go to, ordered by address.
pub(crate) fn open(snapshot: &Snapshot) -> impl Iterator<Item = &Member> {
    snapshot.iter().filter(|member| is_open(member))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::Difference::{Joined, Kept, Left};
    use super::*;

    fn address(n: u16) -> Address {
        Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], n)))
    }

    fn member(n: u16, weight: u16, state: MemberState) -> Member {
        Member::new(Arc::new(Instance::new("echo", address(n)).weight(weight)), 7, state)
    }

    /// A set whose ports are in the order of their addresses.
    fn set(ports: &[u16]) -> BTreeSet<Address> {
        ports.iter().copied().map(address).collect()
    }

    #[test]
    fn each_address_of_either_set_is_told_once_and_in_order() {
        let (old, new) = (set(&[10, 11, 13]), set(&[11, 12, 13, 14]));
        let at = [10, 11, 12, 13, 14].map(address);
        let told: Vec<_> = diff(&old, &new).collect();
        assert_eq!(told, [Left(&at[0]), Kept(&at[1], &at[1]), Joined(&at[2]), Kept(&at[3], &at[3]), Joined(&at[4])]);
    }

    #[test]
    fn an_empty_set_differs_by_all_that_the_other_has() {
        let (none, some) = (set(&[]), set(&[10, 11]));
        let [a, b] = [10, 11].map(address);
        assert_eq!(diff(&none, &some).collect::<Vec<_>>(), [Joined(&a), Joined(&b)]);
        assert_eq!(diff(&some, &none).collect::<Vec<_>>(), [Left(&a), Left(&b)]);
        assert_eq!(diff(&none, &none).next(), None, "nothing differs");
    }

    #[test]
    fn members_and_bare_addresses_meet_by_address_with_both_sides_at_hand() {
        let members = [member(10, 3, MemberState::Live), member(11, 5, MemberState::Live)];
        let told = set(&[11, 12]);
        let [_, b, c] = [10, 11, 12].map(address);
        let found: Vec<_> = diff(&told, &members).collect();
        assert_eq!(found, [Joined(&members[0]), Kept(&b, &members[1]), Left(&c)]);
    }

    #[test]
    fn a_member_is_open_unless_it_drains() {
        let members = vec![
            member(10, 1, MemberState::Live),
            member(11, 1, MemberState::Draining),
            member(12, 1, MemberState::Suspect),
        ];
        let snapshot = Snapshot::new(1, members);
        let ports: Vec<_> = open(&snapshot).map(|member| member.instance().address.clone()).collect();
        assert_eq!(ports, [address(10), address(12)], "in question stays, draining goes");
    }

    proptest! {
        #[test]
        fn a_diff_is_what_set_operations_make_of_both(
            old in prop::collection::btree_set(1000..1060_u16, 0..40),
            new in prop::collection::btree_set(1000..1060_u16, 0..40),
        ) {
            let all = |ports: &BTreeSet<u16>| ports.iter().copied().map(address).collect::<BTreeSet<_>>();
            let (old, new) = (all(&old), all(&new));
            let (mut left, mut joined, mut kept, mut order) = (vec![], vec![], vec![], vec![]);
            for difference in diff(&old, &new) {
                match difference {
                    Left(address) => left.push(address),
                    Joined(address) => joined.push(address),
                    Kept(old, new) => {
                        prop_assert_eq!(old, new);
                        kept.push(old);
                    }
                }
                order.push(match difference {
                    Left(address) | Joined(address) | Kept(address, _) => address,
                });
            }
            prop_assert_eq!(left, old.difference(&new).collect::<Vec<_>>());
            prop_assert_eq!(joined, new.difference(&old).collect::<Vec<_>>());
            prop_assert_eq!(kept, old.intersection(&new).collect::<Vec<_>>());
            prop_assert_eq!(order, old.union(&new).collect::<Vec<_>>());
        }
    }
}
