//! Every instance of a service at one etcd revision: what the watcher publishes and everything else reads.
//!
//! # Layout
//!
//! | file | what flows through it |
//! | --- | --- |
//! | this file | what users see |
//! | `member` | one instance in it |
//! | `member_list` | a list and what changed to the next list, which shares the rest |
//! | `diff` | two snapshots to their difference |

mod diff;
mod member;
mod member_list;

use std::fmt;
use std::iter::FusedIterator;

use crate::instance::Address;

pub(crate) use self::diff::Difference;
pub use self::member::{Member, MemberState};
pub(crate) use self::member_list::MemberList;

/// Every instance of a service at one etcd revision, ordered by address.
///
/// A clone shares its members, and so does a snapshot with the next one: of 100,000 instances each one that changed
/// costs about a hundredth of a millisecond.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    revision: i64,
    members: MemberList,
    cut_off: usize,
}

impl Snapshot {
    /// `members` must be ordered by address, each address once.
    pub(crate) fn new(revision: i64, members: Vec<Member>) -> Self {
        Self::of_list(revision, MemberList::from_sorted(members), 0)
    }

    pub(crate) fn of_list(revision: i64, members: MemberList, cut_off: usize) -> Self {
        Self { revision, members, cut_off }
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
        self.len() == 0
    }

    /// The number of keys of the service that are left out, because it has more instances than
    /// [`max_instances`](crate::RegistryBuilder::max_instances) or they take more memory than
    /// [`max_service_bytes`](crate::RegistryBuilder::max_service_bytes): 0 unless the log warns of it.
    ///
    /// It counts keys that could be used: good ones, as far as they were looked at, and once each. The count ends at
    /// `max_instances`, so that keys without end take no memory either. Over several registries, the sum of theirs.
    #[must_use]
    pub fn cut_off(&self) -> usize {
        self.cut_off
    }

    /// The instance at `address`.
    #[must_use]
    pub fn get(&self, address: &Address) -> Option<&Member> {
        self.members.get(address)
    }

    /// All instances, ordered by address.
    #[must_use = "an iterator does nothing unless it is used"]
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.members.iter())
    }

    pub(crate) fn members(&self) -> &MemberList {
        &self.members
    }

    /// What changed from an older one to this, ordered by address.
    pub(crate) fn changes_since<'a>(&'a self, old: &'a Self) -> impl Iterator<Item = Difference<'a>> {
        diff::diff(&old.members, &self.members)
    }

    /// Whether both say the same, at whatever revision.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.members == other.members && self.cut_off == other.cut_off
    }
}

impl<'a> IntoIterator for &'a Snapshot {
    type Item = &'a Member;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// The instances of a snapshot, ordered by address: made by [`Snapshot::iter`].
#[derive(Debug, Clone)]
pub struct Iter<'a>(member_list::Iter<'a>);

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Member;

    fn next(&mut self) -> Option<&'a Member> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl FusedIterator for Iter<'_> {}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("revision", &self.revision)
            .field("members", &self.members)
            .field("cut_off", &self.cut_off)
            .finish()
    }
}

#[cfg(test)]
mod tests;
