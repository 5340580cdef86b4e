//! Every instance of a service at one etcd revision: what the watcher publishes and everything else reads.

use std::fmt;
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
    /// Its key went without an announcement. A lease that was revoked and one that ran out with all others, because etcd
    /// itself stood still, look the same, so it stays known until that is clear.
    InQuestion,
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
