//! The leases of keys, and leases without any, to findings: looked at twice where the first look may mislead.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::{Instant, timeout_at};
use tonic_etcd::inspect::{Lease, StoredKey, StoredKeys};
use tonic_etcd::{Registry, RegistryError};

use super::etcd::causes;
use super::finding::Finding;
use super::keys::key_name;
use super::kind::Kind;

/// What the first look at the leases came to.
#[derive(Default)]
pub(super) struct Leases {
    /// Those that keys hang on.
    of_keys: BTreeMap<i64, Lease>,
    without_keys: BTreeSet<i64>,
    /// What could not be looked at, and why.
    gaps: Vec<String>,
}

impl Leases {
    /// Reads the leases of all keys, and then others until there were enough or the deadline comes.
    pub(super) async fn of(registry: &Registry, keys: &StoredKeys, deadline: Instant) -> Self {
        let mut leases = Self::default();
        let own: BTreeSet<i64> = keys.keys().iter().map(StoredKey::lease).filter(|lease| *lease != 0).collect();
        leases.of_keys = leases.read(registry, &own, deadline, "leases", |_| true).await;
        leases.read_others(registry, &own, deadline).await;
        leases
    }

    async fn read_others(&mut self, registry: &Registry, own: &BTreeSet<i64>, deadline: Instant) {
        let others = match timeout_at(deadline, registry.leases()).await {
            Ok(Ok(all)) => all.into_iter().filter(|id| *id != 0 && !own.contains(id)).take(MOST_OTHERS).collect(),
            // Some versions of etcd keep this for its administrators.
            Ok(Err(RegistryError::Denied { .. })) => return,
            Ok(Err(error)) => return self.gaps.push(format!("leases without keys: {}", causes(&error))),
            Err(_) => return self.gaps.push("leases without keys were not read in time".to_owned()),
        };
        let others = self.read(registry, &others, deadline, "leases of other keys or none", has_failed).await;
        let without_keys = others.values().filter(|lease| lease.key_count() == 0);
        self.without_keys.extend(without_keys.map(Lease::id));
    }

    /// Reads these leases until the deadline. What fails is a gap of the name `what`, as far as `is_gap` has it count.
    async fn read(
        &mut self,
        registry: &Registry,
        ids: &BTreeSet<i64>,
        deadline: Instant,
        what: &str,
        is_gap: fn(&RegistryError) -> bool,
    ) -> BTreeMap<i64, Lease> {
        let (mut answers, mut failures, mut reason) = (0, 0, String::new());
        let mut leases = BTreeMap::new();
        let mut reads = stream::iter(ids.iter().copied())
            .map(|id| async move { registry.lease(id).await })
            .buffer_unordered(MOST_AT_ONCE);
        while let Ok(Some(read)) = timeout_at(deadline, reads.next()).await {
            answers += 1;
            match read {
                Ok(lease) => leases.extend(lease.map(|lease| (lease.id(), lease))),
                Err(error) if is_gap(&error) => (failures, reason) = (failures + 1, causes(&error)),
                Err(_) => {}
            }
        }
        if failures > 0 {
            self.gaps.push(format!("{failures} {what}: {reason}"));
        }
        if answers < ids.len() {
            self.gaps.push(format!("{} {what} were not read in time", ids.len() - answers));
        }
        leases
    }

    /// Whether a second look may clear something: a registration that has just begun has no key yet.
    pub(super) fn are_in_doubt(&self) -> bool {
        !self.without_keys.is_empty() || self.of_keys.values().any(is_running_out)
    }

    /// The findings that a second look confirms.
    pub(super) async fn findings(mut self, registry: &Registry, keys: &StoredKeys, deadline: Instant) -> Vec<Finding> {
        let mut findings = Vec::new();
        let in_doubt = self.of_keys.values().filter(|lease| is_running_out(lease)).map(Lease::id).collect();
        let again = self.read(registry, &in_doubt, deadline, "leases at the second look", |_| true).await;
        let mut running_out = BTreeMap::new();
        for second in again.values().filter(|second| second.remaining() <= self.of_keys[&second.id()].remaining()) {
            running_out.insert(second.id(), time_left(second));
        }
        let long = self.of_keys.values().filter(|lease| lease.granted() > LONG);
        let long = long.map(|lease| (lease.id(), format!("lease {:x} of {} s", lease.id(), lease.granted().as_secs())));
        findings.extend(at_keys(Kind::LeaseRunningOut, keys, &running_out));
        findings.extend(at_keys(Kind::LeaseLong, keys, &long.collect()));

        let in_doubt = self.without_keys.iter().copied().take(MOST_AGAIN).collect();
        let what = "leases without keys at the second look";
        let again = self.read(registry, &in_doubt, deadline, what, has_failed).await;
        let again = again.values().filter(|lease| lease.key_count() == 0);
        let without_keys: Vec<String> = again.map(time_left).collect();
        if !without_keys.is_empty() {
            findings.push(Finding::new(Kind::LeaseWithoutKeys, None, without_keys));
        }
        if !self.gaps.is_empty() {
            findings.push(Finding::new(Kind::CheckIncomplete, None, self.gaps));
        }
        findings
    }
}

fn time_left(lease: &Lease) -> String {
    let (left, all) = (lease.remaining().as_secs(), lease.granted().as_secs());
    format!("lease {:x} has {left} s of {all} s left", lease.id())
}

/// Leases of other programs, with keys that the user may not read, are none of ours.
fn has_failed(error: &RegistryError) -> bool {
    !matches!(error, RegistryError::Denied { .. })
}

/// Keepalives come when a third of the time is over: with a third left, two of them were missed.
fn is_running_out(lease: &Lease) -> bool {
    lease.remaining() * 3 < lease.granted()
}

/// A finding for each service with keys on these leases.
fn at_keys(kind: Kind, keys: &StoredKeys, leases: &BTreeMap<i64, String>) -> Vec<Finding> {
    let mut names: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for key in keys.keys() {
        if let (Some(service), Some(lease)) = (key.service(), leases.get(&key.lease())) {
            names.entry(service.as_str()).or_default().push(format!("{}: {lease}", key_name(key)));
        }
    }
    names.into_iter().map(|(service, names)| Finding::new(kind, Some(service), names)).collect()
}

/// How many leases are asked for at once: etcd answers some 10,000 of these in a second.
const MOST_AT_ONCE: usize = 32;

/// How many leases of no key below the prefix are looked at: other programs may have any number of them.
const MOST_OTHERS: usize = 2_000;

/// How many of those without keys are looked at again.
const MOST_AGAIN: usize = 100;

/// Beyond this a lease is no sign of life any more.
const LONG: Duration = Duration::from_secs(600);
