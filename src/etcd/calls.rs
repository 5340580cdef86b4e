//! The unary calls that discovery and registration make, each safe to repeat.

use std::time::Duration;

use etcd_client::proto::{PbKeyValue, PbTxnOpResponse};
use etcd_client::{
    Compare, CompareOp, GetOptions, LeaseGrantOptions, LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp,
};

use super::{Connection, Range};
use crate::error::{EtcdError, EtcdErrorKind};

/// How many keys a list asks for at once: 500 values of 2 KB are 1 MB.
const PAGE: i64 = 500;

/// The largest value that is looked at: an instance with 64 tags of 500 bytes fits twice.
pub(crate) const MAX_VALUE: usize = 64 * 1024;

/// How often a list starts over because its revision was compacted under it.
const LIST_ATTEMPTS: usize = 3;

/// One key and what stands in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kv {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) lease: i64,
    pub(crate) mod_revision: i64,
}

impl From<PbKeyValue> for Kv {
    fn from(mut kv: PbKeyValue) -> Self {
        if kv.value.len() > MAX_VALUE {
            // One byte more tells that it was too large; the rest would only fill the memory.
            kv.value.truncate(MAX_VALUE + 1);
            kv.value.shrink_to_fit();
        }
        Self { key: kv.key, value: kv.value, lease: kv.lease, mod_revision: kv.mod_revision }
    }
}

/// All keys of a range at one revision.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) revision: i64,
    pub(crate) kvs: Vec<Kv>,
}

/// What a guarded write found.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// The key was as expected and holds our value now, at this revision.
    Done(i64),
    /// The key holds something else, or nothing where something was expected.
    Found(Option<Kv>),
}

impl Connection {
    /// Lists every key of `range` linearizably, in pages that all show the revision of the first. `limit` is for each page.
    pub(crate) async fn list(&self, range: &Range, limit: Duration) -> Result<Listing, EtcdError> {
        let take = |kvs: &mut Vec<Kv>, page: Vec<PbKeyValue>| kvs.extend(page.into_iter().map(Kv::from));
        let (revision, kvs) = self.scan(range, &GetOptions::new(), limit, take).await?;
        Ok(Listing { revision, kvs })
    }

    /// Shows `take` every key of `range` without its value, at one revision and page by page. `limit` is for each page.
    pub(crate) async fn keys<T: Default>(
        &self,
        range: &Range,
        limit: Duration,
        take: impl Fn(&mut T, &[u8]),
    ) -> Result<T, EtcdError> {
        let take = |taken: &mut T, page: Vec<PbKeyValue>| page.iter().for_each(|kv| take(taken, &kv.key));
        let (_, taken) = self.scan(range, &GetOptions::new().with_keys_only(), limit, take).await?;
        Ok(taken)
    }

    /// Starts over, with nothing taken, where the revision of the first page is compacted before the last one came.
    async fn scan<T: Default>(
        &self,
        range: &Range,
        options: &GetOptions,
        limit: Duration,
        take: impl Fn(&mut T, Vec<PbKeyValue>),
    ) -> Result<(i64, T), EtcdError> {
        let mut attempt = 1;
        loop {
            match self.scan_once(range, options, limit, &take).await {
                Err(error) if error.kind == EtcdErrorKind::Compacted && attempt < LIST_ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    async fn scan_once<T: Default>(
        &self,
        range: &Range,
        options: &GetOptions,
        limit: Duration,
        take: &impl Fn(&mut T, Vec<PbKeyValue>),
    ) -> Result<(i64, T), EtcdError> {
        let mut from = range.start().to_vec();
        let mut size = PAGE;
        let mut pinned: Option<i64> = None;
        let mut taken = T::default();
        loop {
            let mut options = options.clone().with_range(range.end()).with_limit(size);
            if let Some(revision) = pinned {
                options = options.with_revision(revision);
            }
            let get = || {
                let (mut kv, from, options) = (self.kv.clone(), from.clone(), options.clone());
                async move { kv.get(from, Some(options)).await }
            };
            let page = self.limited("list", range.name(), limit, get).await;
            let page = match page {
                Err(error) if error.kind == EtcdErrorKind::TooLarge && size > 1 => {
                    size = (size / 2).max(1);
                    continue;
                }
                page => page?.0,
            };
            let revision = *pinned.get_or_insert(page.header.as_ref().map_or(0, |header| header.revision));
            let last = page.kvs.last().map(|kv| kv.key.clone());
            take(&mut taken, page.kvs);
            match last {
                Some(last) if page.more => {
                    from = last;
                    from.push(0);
                }
                _ => return Ok((revision, taken)),
            }
        }
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
