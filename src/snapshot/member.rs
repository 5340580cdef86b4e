//! One instance in a snapshot: as it was read, under its lease, and how sure it is.

use std::fmt;
use std::sync::Arc;

use crate::instance::{Address, Instance};

/// One instance in a [`Snapshot`](super::Snapshot).
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

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "live",
            Self::Draining => "draining",
            Self::Suspect => "suspect",
        })
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

    /// Whether new calls may go to it, as far as the registry knows.
    pub(crate) fn is_open(&self) -> bool {
        self.state != MemberState::Draining
    }

    pub(crate) fn address(&self) -> &Address {
        &self.instance.address
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
