//! The unary calls that discovery and registration make, each safe to repeat.

use std::time::Duration;

use etcd_client::proto::PbTxnOpResponse;
use etcd_client::{
    Compare, CompareOp, GetOptions, LeaseGrantOptions, LeaseKeepAliveStream, LeaseKeeper, LeaseTimeToLiveOptions,
    PutOptions, Txn, TxnOp,
};

use super::connection::Connection;
use super::kv::Kv;
use super::range::Range;
use super::reports::{Lease, MOST_KEYS, MemberStatus};
use crate::error::{EtcdError, EtcdErrorKind};

/// What a guarded write found.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// The key was as expected and holds our value now, at this revision.
    Done(i64),
    /// The key holds something else, or nothing where something was expected.
    Found(Option<Kv>),
}

/// What happened to a range since a revision.
#[derive(Debug)]
pub(super) struct Changes {
    /// The revision of the store now.
    pub(super) store: i64,
    /// How many keys the range has now.
    pub(super) keys: i64,
    /// Whether one of them was written since.
    pub(super) any: bool,
}

impl Connection {
    /// What happened to a range since `revision`, linearizably: etcd sends one key at most.
    pub(super) async fn changes(&self, range: &Range, revision: i64, limit: Duration) -> Result<Changes, EtcdError> {
        let read = || {
            let mut kv = self.kv.clone();
            let options = GetOptions::new().with_range(range.end()).with_min_mod_revision(revision + 1);
            async move { kv.get(range.start(), Some(options.with_keys_only().with_limit(1))).await }
        };
        let answer = self.limited("check", range.name(), limit, read).await?.0;
        let store = answer.header.as_ref().map_or(0, |header| header.revision);
        Ok(Changes { store, keys: answer.count, any: !answer.kvs.is_empty() })
    }

    /// The store's present revision, linearizably.
    pub(crate) async fn revision(&self, range: &Range, limit: Duration) -> Result<i64, EtcdError> {
        let read = || {
            let mut kv = self.kv.clone();
            let options = GetOptions::new().with_range(range.end()).with_count_only();
            async move { kv.get(range.start(), Some(options)).await }
        };
        let answer = self.limited("read revision", range.name(), limit, read).await?.0;
        Ok(answer.header.as_ref().map_or(0, |header| header.revision))
    }

    /// Puts `value` under `lease` if the key's last change was at `seen` (0: the key is absent).
    pub(crate) async fn put_if(
        &self,
        key: &str,
        value: Vec<u8>,
        lease: i64,
        seen: i64,
        limit: Duration,
    ) -> Result<Claimed, EtcdError> {
        let guard = Compare::mod_revision(key, CompareOp::Equal, seen);
        self.guarded("claim", key, guard, put(key, value, lease), limit).await
    }

    /// Deletes the key if it is under `lease`.
    pub(crate) async fn delete_own(&self, key: &str, lease: i64, limit: Duration) -> Result<Claimed, EtcdError> {
        let guard = Compare::lease(key, CompareOp::Equal, lease);
        self.guarded("delete", key, guard, TxnOp::delete(key, None), limit).await
    }

    async fn guarded(
        &self,
        operation: &'static str,
        key: &str,
        guard: Compare,
        write: TxnOp,
        limit: Duration,
    ) -> Result<Claimed, EtcdError> {
        let txn = Txn::new().when([guard]).and_then([write]).or_else([TxnOp::get(key, None)]);
        let ask = || {
            let (mut kv, txn) = (self.kv.clone(), txn.clone());
            async move { kv.txn(txn).await }
        };
        let answer = self.limited(operation, key, limit, ask).await?.0;
        if answer.succeeded {
            return Ok(Claimed::Done(answer.header.as_ref().map_or(0, |header| header.revision)));
        }
        // Not `op_responses()`: it panics on an answer of an unknown kind.
        let found = answer.responses.into_iter().find_map(|response| match response.response {
            Some(PbTxnOpResponse::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => None,
        });
        Ok(Claimed::Found(found.map(Kv::from)))
    }

    /// Grants a lease with an id of our own choice, so that a repeated grant is recognised. Returns the TTL granted.
    pub(crate) async fn grant(&self, lease: i64, ttl: Duration, limit: Duration) -> Result<Duration, EtcdError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let grant = || {
            let (mut client, options) = (self.client.lease_client(), LeaseGrantOptions::new().with_id(lease));
            async move { client.grant(seconds, Some(options)).await }
        };
        let answer = self.limited("grant", &hex(lease), limit, grant).await?;
        Ok(seconds_from(answer.ttl()))
    }

    /// Revokes a lease. A lease that does not exist (any more) is a success.
    pub(crate) async fn revoke(&self, lease: i64, limit: Duration) -> Result<(), EtcdError> {
        let revoke = || {
            let mut client = self.client.lease_client();
            async move { client.revoke(lease).await }
        };
        match self.limited("revoke", &hex(lease), limit, revoke).await {
            Err(error) if error.kind != EtcdErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether a lease exists.
    pub(crate) async fn is_alive(&self, lease: i64, limit: Duration) -> Result<bool, EtcdError> {
        let read = || {
            let mut client = self.client.lease_client();
            async move { client.time_to_live(lease, None).await }
        };
        match self.limited("read lease", &hex(lease), limit, read).await {
            // Its last second counts as 0, and -1 means that there is none.
            Ok(answer) => Ok(answer.ttl() >= 0),
            Err(error) if error.kind == EtcdErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A lease with its keys; `None` if it does not exist (any more).
    pub(crate) async fn lease(&self, lease: i64, limit: Duration) -> Result<Option<Lease>, EtcdError> {
        let read = || {
            let mut client = self.client.lease_client();
            async move { client.time_to_live(lease, Some(LeaseTimeToLiveOptions::new().with_keys())).await }
        };
        let answer = match self.limited("read lease", &hex(lease), limit, read).await {
            Ok(answer) if answer.ttl() >= 0 => answer.0,
            Ok(_) => return Ok(None),
            Err(error) if error.kind == EtcdErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (key_count, mut keys) = (answer.keys.len(), answer.keys);
        keys.truncate(MOST_KEYS);
        keys.shrink_to_fit();
        let (granted, remaining) = (seconds_from(answer.granted_ttl), seconds_from(answer.ttl));
        Ok(Some(Lease { id: lease, granted, remaining, keys, key_count }))
    }

    /// The ids of all leases.
    pub(crate) async fn leases(&self, limit: Duration) -> Result<Vec<i64>, EtcdError> {
        let read = || {
            let mut client = self.client.lease_client();
            async move { client.leases().await }
        };
        let answer = self.limited("list leases", "", limit, read).await?;
        Ok(answer.leases().iter().map(etcd_client::LeaseStatus::id).collect())
    }

    /// What the member reports of itself.
    pub(crate) async fn status(&self, limit: Duration) -> Result<MemberStatus, EtcdError> {
        let read = || {
            let mut client = self.client.maintenance_client();
            async move { client.status().await }
        };
        let answer = self.limited("read status", "", limit, read).await?.0;
        let header = answer.header.unwrap_or_default();
        Ok(MemberStatus {
            cluster_id: header.cluster_id,
            member_id: header.member_id,
            leader: answer.leader,
            version: answer.version,
            db_size: u64::try_from(answer.db_size).unwrap_or(0),
            db_size_in_use: u64::try_from(answer.db_size_in_use).unwrap_or(0),
            is_learner: answer.is_learner,
            problems: answer.errors,
        })
    }

    /// The id of the member's cluster, which comes with every answer: here with one that nothing but a login is needed
    /// for.
    pub(super) async fn cluster_id(&self, limit: Duration) -> Result<u64, EtcdError> {
        const NO_LEASE: i64 = 1;
        let read = || {
            let mut client = self.client.lease_client();
            async move { client.time_to_live(NO_LEASE, None).await }
        };
        let answer = self.limited("read cluster id", "", limit, read).await?;
        Ok(answer.header().map_or(0, etcd_client::ResponseHeader::cluster_id))
    }

    /// Opens a stream of keepalives; `first` gets its first one by that.
    pub(crate) async fn keep_alive(
        &self,
        first: i64,
        limit: Duration,
    ) -> Result<(LeaseKeeper, LeaseKeepAliveStream), EtcdError> {
        let open = || {
            let mut client = self.client.lease_client();
            async move { client.keep_alive(first).await }
        };
        self.limited("keepalive", &hex(first), limit, open).await
    }
}

fn put(key: &str, value: Vec<u8>, lease: i64) -> TxnOp {
    TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
}

fn seconds_from(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

/// A lease's id as etcdctl shows it.
pub(crate) fn hex(lease: i64) -> String {
    format!("{lease:x}")
}
