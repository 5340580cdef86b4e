//! The leases and keys of a registration that may exist in etcd, and the calls that make and unmake them. Each is
//! recorded before the call that makes it, since an answer can be lost: the leave then finds it.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::orders::{Order, Published, Reweigh};
use super::pace::Pace;
use super::streams::KeepalivePool;
use crate::backoff::Backoff;
use crate::error::{EtcdError, EtcdErrorKind, chain};
use crate::etcd::{CLAIM_LIMIT, Claimed, Cluster, Kv, hex};
use crate::format::{Entry, Format};
use crate::instance::{Instance, ServiceName};
use crate::targets::REGISTRATION;

/// What all registrations of a registry share.
#[derive(Debug)]
pub(crate) struct Registrar {
    pub(crate) cluster: Arc<Cluster>,
    /// The part of keys before the service's name: empty, or ending in a slash.
    base: String,
    pub(crate) format: Arc<dyn Format>,
    pub(super) keepalives: Arc<KeepalivePool>,
    pace: Mutex<Pace>,
}

impl Registrar {
    pub(crate) fn new(cluster: Arc<Cluster>, base: String, format: Arc<dyn Format>) -> Arc<Self> {
        let keepalives = Arc::new(KeepalivePool::new(cluster.clone()));
        Arc::new(Self { cluster, base, format, keepalives, pace: Mutex::new(Pace::new()) })
    }

    /// Paces the grants of all registrations that lost their leases.
    pub(super) fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What does not change while a registration lives.
#[derive(Debug)]
pub(crate) struct ClaimConfig {
    pub(crate) service: ServiceName,
    pub(crate) ttl: Duration,
    /// Whether the first claim may take over a key although its owner seems alive.
    pub(crate) takes_over: bool,
    /// The registration's own number, for formats that name keys so.
    pub(crate) id: u128,
}

/// All of one registration that may exist in etcd.
#[derive(Debug)]
pub(crate) struct Claims {
    pub(super) registrar: Arc<Registrar>,
    config: ClaimConfig,
    /// The newest last.
    leases: Vec<i64>,
    /// Own leases that etcd reported dead, the newest last. The report may have been wrong, and a key under one of them
    /// is ours.
    retired: VecDeque<i64>,
    /// The key that may hold our value.
    key: Option<ClaimedKey>,
    /// Keys that may still hold an older value, from before the key changed: some formats name it after the lease.
    former: VecDeque<ClaimedKey>,
    /// What the server wrote, to recognize orders by; `None` while a draining mark may be our own.
    published: Option<Published>,
    /// Whether any claim has succeeded.
    was_registered: bool,
    /// Whether a claim was made, so that clients may know of the instance.
    was_claimed: Arc<AtomicBool>,
}

/// A key that may hold our value.
#[derive(Debug)]
struct ClaimedKey {
    key: String,
    lease: i64,
    /// The revision of our write, if it was answered.
    revision: Option<i64>,
}

/// What a claim writes.
#[derive(Clone, Copy)]
pub(super) struct Write<'a> {
    pub(super) key: &'a str,
    pub(super) value: &'a [u8],
    /// The weight in the value.
    pub(super) weight: u16,
    pub(super) lease: i64,
    /// The order that it answers: it replaces nothing but that.
    pub(super) order: Option<Reweigh>,
}

/// The result of a grant.
pub(super) enum GrantOutcome {
    /// The lease lives for this long without keepalives.
    New(Duration),
    /// The lease exists since an earlier attempt, whose answer was lost, and needs a keepalive at once.
    Existing(Duration),
    /// The id belongs to a lease that is dead.
    Dead,
}

/// The result of a claim.
pub(super) enum ClaimOutcome {
    /// The key holds our value since this revision.
    Claimed(i64),
    /// The key is under this lease of another server, and the lease is alive.
    Foreign(i64),
    /// An operator put the draining mark on our value.
    Drained,
    /// An operator set another weight in the value that the claim was to replace.
    Reweigh(Reweigh),
    /// The order that the claim was to answer stands no more.
    Withdrawn,
    /// The key changed under each attempt.
    Contended,
}

impl Claims {
    /// `was_claimed` tells others that a claim was made.
    pub(crate) fn new(registrar: Arc<Registrar>, config: ClaimConfig, was_claimed: Arc<AtomicBool>) -> Self {
        Self {
            registrar,
            config,
            leases: Vec::new(),
            retired: VecDeque::new(),
            key: None,
            former: VecDeque::new(),
            published: None,
            was_registered: false,
            was_claimed,
        }
    }

    pub(super) fn service(&self) -> &ServiceName {
        &self.config.service
    }

    /// Our key and value under this lease.
    pub(super) fn entry(&self, instance: &Instance, lease: i64, draining: bool) -> (String, Vec<u8>) {
        let Registrar { base, format, .. } = &*self.registrar;
        let ClaimConfig { service, id, .. } = &self.config;
        let entry = Entry::new(service, instance, lease, *id).draining(draining);
        (format!("{base}{service}/{}", format.segment(&entry)), format.encode(&entry))
    }

    /// A new id, for a grant that follows.
    pub(super) fn new_lease(&mut self) -> i64 {
        // Positive: etcdctl and Kitex take no other ids.
        let id = i64::try_from(random() >> 1).unwrap_or(i64::MAX).max(1);
        self.leases.push(id);
        id
    }

    pub(super) fn on_lease_dead(&mut self, lease: i64) {
        self.leases.retain(|known| *known != lease);
        self.retired.push_back(lease);
        if self.retired.len() > RETIRED {
            self.retired.pop_front();
        }
    }

    pub(super) fn is_own_lease(&self, lease: i64) -> bool {
        self.leases.contains(&lease) || self.retired.contains(&lease)
    }

    /// Grants the lease. A second grant of the same id, after a lost answer, cannot make two.
    pub(super) async fn grant(&self, lease: i64) -> Result<GrantOutcome, EtcdError> {
        let (ttl, begin) = (self.config.ttl, Instant::now());
        let grant = self
            .registrar
            .cluster
            .call(CLAIM_LIMIT, |member| async move { member.grant(lease, ttl, CLAIM_LIMIT).await });
        match grant.await {
            Ok(ttl) => {
                self.registrar.pace().on_granted(begin.elapsed());
                Ok(GrantOutcome::New(ttl))
            }
            Err(error) if error.kind == EtcdErrorKind::AlreadyExists => {
                Ok(if self.is_alive(lease).await? { GrantOutcome::Existing(ttl) } else { GrantOutcome::Dead })
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the lease exists.
    pub(super) async fn is_alive(&self, lease: i64) -> Result<bool, EtcdError> {
        self.registrar
            .cluster
            .call(CLAIM_LIMIT, |member| async move { member.is_alive(lease, CLAIM_LIMIT).await })
            .await
    }

    /// Puts our value, unless the key belongs to another server that is alive, and then deletes former keys.
    pub(super) async fn claim(&mut self, write: Write<'_>) -> Result<ClaimOutcome, EtcdError> {
        // Its answer may be lost.
        self.was_claimed.store(true, Ordering::Relaxed);
        self.set_key(ClaimedKey { key: write.key.to_owned(), lease: write.lease, revision: None });
        let outcome = self.put(write).await?;
        // A failure costs only time: the next claim deletes them, or they end with their leases.
        if !matches!(outcome, ClaimOutcome::Contended)
            && let Err(error) = self.remove_former().await
        {
            tracing::debug!(target: REGISTRATION, error = chain(&error), "a former key could not be deleted");
        }
        Ok(outcome)
    }

    async fn put(&mut self, write: Write<'_>) -> Result<ClaimOutcome, EtcdError> {
        let Write { key, value, weight, lease, order } = write;
        let mut seen = order.map_or(0, |order| order.revision);
        for _ in 0..CLAIM_ATTEMPTS {
            let put = self.registrar.cluster.call(CLAIM_LIMIT, |member| async move {
                member.put_if(key, value.to_vec(), lease, seen, CLAIM_LIMIT).await
            });
            let found = match put.await? {
                Claimed::Done(revision) => return Ok(self.on_claimed(revision)),
                Claimed::Found(None) if order.is_some() => return Ok(ClaimOutcome::Withdrawn),
                Claimed::Found(None) => {
                    seen = 0;
                    continue;
                }
                Claimed::Found(Some(found)) => found,
            };
            if found.lease == lease && found.value == value {
                return Ok(self.on_claimed(found.mod_revision));
            }
            match self.order(&found) {
                Some(Order::Drain) => return Ok(ClaimOutcome::Drained),
                Some(Order::Reweigh(newer)) if order.is_some() => return Ok(ClaimOutcome::Reweigh(newer)),
                // A weight that the program set since the last claim is the later one.
                Some(Order::Reweigh(newer)) if newer.from == weight && newer.to != weight => {
                    return Ok(ClaimOutcome::Reweigh(newer));
                }
                None if order.is_some() => return Ok(ClaimOutcome::Withdrawn),
                Some(Order::Reweigh(_)) | None => {}
            }
            if !self.may_replace(&found).await? {
                self.key = None;
                return Ok(ClaimOutcome::Foreign(found.lease));
            }
            seen = found.mod_revision;
        }
        Ok(ClaimOutcome::Contended)
    }

    /// The key holds our value, at this revision, although no claim was answered.
    pub(super) fn on_key_seen(&mut self, key: String, lease: i64, revision: i64) {
        self.set_key(ClaimedKey { key, lease, revision: Some(revision) });
    }

    fn set_key(&mut self, key: ClaimedKey) {
        self.former.extend(self.key.take());
        self.former.retain(|former| former.key != key.key);
        if self.former.len() > FORMER {
            self.former.pop_front();
        }
        self.key = Some(key);
    }

    /// Whether a key may hold our value.
    pub(super) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Whether clients may know of the instance: a key may hold our value, or held it.
    pub(super) fn may_be_known(&self) -> bool {
        self.has_key() || !self.former.is_empty() || self.was_registered()
    }

    /// Whether any claim has succeeded.
    pub(super) fn was_registered(&self) -> bool {
        self.was_registered
    }

    fn on_claimed(&mut self, revision: i64) -> ClaimOutcome {
        self.was_registered = true;
        if let Some(key) = &mut self.key {
            key.revision = Some(revision);
        }
        ClaimOutcome::Claimed(revision)
    }

    /// Recognizes from now on what an operator writes on the key of the claimed instance.
    pub(super) fn expect_orders(&mut self, instance: &Instance, lease: i64) {
        let carries_draining = self.registrar.format.carries_draining();
        self.published = Some(Published {
            weight: instance.weight,
            value: self.entry(instance, lease, false).1,
            drained: carries_draining.then(|| self.entry(instance, lease, true).1),
        });
    }

    /// The order in a key that holds our own value under our own lease, changed by nothing but that order.
    pub(super) fn order(&self, found: &Kv) -> Option<Order> {
        let published = self.published.as_ref().filter(|_| self.is_own_lease(found.lease))?;
        published.order(&*self.registrar.format, found)
    }

    /// This order, or the later one that the key is seen to hold.
    pub(super) fn newest(&self, order: Reweigh, seen: Option<Kv>) -> Reweigh {
        match seen.and_then(|seen| self.order(&seen)) {
            Some(Order::Reweigh(later)) if later.revision > order.revision => later,
            _ => order,
        }
    }

    /// Whether the key is ours, has no lease or a dead one, or its owner cannot be listening on our address any more.
    async fn may_replace(&self, found: &Kv) -> Result<bool, EtcdError> {
        if found.lease == 0 || self.is_own_lease(found.lease) {
            return Ok(true);
        }
        Ok((self.config.takes_over && !self.was_registered()) || !self.is_alive(found.lease).await?)
    }

    /// Deletes the former keys that still exist. Without it they end with their leases.
    async fn remove_former(&mut self) -> Result<(), EtcdError> {
        while let Some(former) = self.former.back() {
            self.delete(former).await?;
            self.former.pop_back();
        }
        Ok(())
    }

    /// Announces that the instance leaves, and deletes its key. The lease stays.
    pub(super) async fn withdraw(&mut self, instance: &Instance) -> Result<(), EtcdError> {
        self.published = None;
        if let Some(key) = &self.key {
            self.announce(instance, key).await;
            self.delete(key).await?;
        }
        self.key = None;
        self.remove_former().await
    }

    /// Announces that the instance leaves, and revokes every lease that may exist. Returns whether nothing is left in
    /// etcd.
    pub(super) async fn take_out(&mut self, instance: &Instance) -> bool {
        if let Some(key) = &self.key {
            self.announce(instance, key).await;
        }
        let mut is_out = true;
        while let Some(lease) = self.leases.last().copied() {
            is_out &= self.revoke(lease).await;
            self.leases.pop();
        }
        // Most former keys ended with a lease.
        is_out && self.remove_former().await.is_ok()
    }

    /// The leases that may still exist, as etcdctl shows them.
    pub(super) fn left_over(&self) -> Vec<String> {
        self.leases.iter().copied().map(hex).collect()
    }

    /// Puts the draining mark on our key, with retries until the time is up. Leaving goes on without it: the mark is a
    /// courtesy.
    async fn announce(&self, instance: &Instance, claimed: &ClaimedKey) {
        if !self.registrar.format.carries_draining() {
            return;
        }
        let value = self.entry(instance, claimed.lease, true).1;
        let mark = async {
            while let Err(error) = self.mark(&value, claimed).await {
                tracing::debug!(target: REGISTRATION, error = chain(&error), "leave could not be announced");
                if error.is_final() || error.kind == EtcdErrorKind::NotFound {
                    return;
                }
                sleep(ANNOUNCE_RETRY).await;
            }
        };
        if timeout(ANNOUNCE_LIMIT, mark).await.is_err() {
            tracing::debug!(target: REGISTRATION, "leave could not be announced in time");
        }
    }

    /// Compares with the revision that is marked, so that a mark that arrives late cannot overwrite a newer claim.
    async fn mark(&self, value: &[u8], claimed: &ClaimedKey) -> Result<(), EtcdError> {
        let ClaimedKey { key, lease, revision } = claimed;
        let mut seen = revision.unwrap_or(NO_REVISION);
        for _ in 0..CLAIM_ATTEMPTS {
            let put = self.registrar.cluster.call(LEAVE_CALL_LIMIT, |member| async move {
                member.put_if(key, value.to_vec(), *lease, seen, LEAVE_CALL_LIMIT).await
            });
            match put.await? {
                Claimed::Found(Some(kv)) if kv.lease == *lease && kv.value != value => seen = kv.mod_revision,
                // Marked, or no longer ours.
                Claimed::Done(_) | Claimed::Found(_) => return Ok(()),
            }
        }
        Ok(())
    }

    async fn delete(&self, claimed: &ClaimedKey) -> Result<(), EtcdError> {
        let ClaimedKey { key, lease, .. } = claimed;
        let delete = self
            .registrar
            .cluster
            .call(LEAVE_CALL_LIMIT, |member| async move { member.delete_own(key, *lease, LEAVE_CALL_LIMIT).await });
        delete.await.map(drop)
    }

    /// Revokes until etcd confirms that the lease is gone, or refuses. Returns whether our key is gone with it.
    async fn revoke(&self, lease: i64) -> bool {
        let mut backoff = Backoff::new(REVOKE_RETRY_FIRST, REVOKE_RETRY_MAX);
        loop {
            let revoke = self
                .registrar
                .cluster
                .call(LEAVE_CALL_LIMIT, |member| async move { member.revoke(lease, LEAVE_CALL_LIMIT).await });
            let Err(error) = revoke.await else { return true };
            tracing::debug!(target: REGISTRATION, error = chain(&error), "lease could not be revoked");
            if error.is_final() {
                // Some roles may change keys, but not leases.
                return match &self.key {
                    Some(key) => self.delete(key).await.is_ok(),
                    None => true,
                };
            }
            sleep(backoff.next()).await;
        }
    }
}

/// A number that no other process draws. Not from the clock, which hosts that boot together and clones of one machine
/// share.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// How often one claim reads the key again because it changed.
const CLAIM_ATTEMPTS: usize = 8;

/// How long a member may take for a call of a server that leaves: three members fit into the 3 s that a leave may take.
const LEAVE_CALL_LIMIT: Duration = Duration::from_millis(700);

/// How much time the announcement may take: the revocation matters more.
const ANNOUNCE_LIMIT: Duration = Duration::from_secs(1);

/// The wait before an announcement is tried again.
const ANNOUNCE_RETRY: Duration = Duration::from_millis(50);

/// A revision that no key has: a put compared with it fails and returns the key.
const NO_REVISION: i64 = -1;

/// How many of our dead leases are remembered.
const RETIRED: usize = 8;

/// How many former keys are remembered.
const FORMER: usize = 8;

/// The first wait before a revocation is tried again.
const REVOKE_RETRY_FIRST: Duration = Duration::from_millis(100);

/// The longest wait before a revocation is tried again.
const REVOKE_RETRY_MAX: Duration = Duration::from_millis(500);
