//! What etcd reports of a lease and of a member, as programs that look into a registry show it.

use std::time::Duration;

/// A lease, as etcd reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub(super) id: i64,
    pub(super) granted: Duration,
    pub(super) remaining: Duration,
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) key_count: usize,
}

impl Lease {
    /// Its id; etcdctl shows it in hexadecimal.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.id
    }

    /// The time to live that it was granted with, and that each keepalive restores.
    #[must_use]
    pub fn granted(&self) -> Duration {
        self.granted
    }

    /// How long it lives without another keepalive, in whole seconds; zero in its last one.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.remaining
    }

    /// The keys that go when it does, under whatever prefix: 10,000 at most.
    #[must_use]
    pub fn keys(&self) -> &[Vec<u8>] {
        &self.keys
    }

    /// How many keys it has, all counted.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.key_count
    }
}

/// What an etcd member reports of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    pub(super) cluster_id: u64,
    pub(super) member_id: u64,
    pub(super) leader: u64,
    pub(super) version: String,
    pub(super) db_size: u64,
    pub(super) db_size_in_use: u64,
    pub(super) is_learner: bool,
    pub(super) problems: Vec<String>,
}

impl MemberStatus {
    /// The id of the member's cluster.
    #[must_use]
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// The member's id.
    #[must_use]
    pub fn member_id(&self) -> u64 {
        self.member_id
    }

    /// The id of the member that leads, as far as this one knows; `None` where it knows of none.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        (self.leader != 0).then_some(self.leader)
    }

    /// Its version: `3.5.16`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The size of its database's file in bytes.
    #[must_use]
    pub fn db_size(&self) -> u64 {
        self.db_size
    }

    /// How many bytes of its database are in use; a defragmentation frees the rest.
    #[must_use]
    pub fn db_size_in_use(&self) -> u64 {
        self.db_size_in_use
    }

    /// Whether it only follows and does not vote.
    #[must_use]
    pub fn is_learner(&self) -> bool {
        self.is_learner
    }

    /// The problems that it knows of, in its own words: alarms such as `NOSPACE`.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

/// The most keys of one lease that are kept.
pub(super) const MOST_KEYS: usize = 10_000;
