//! What is known of a service: keys in, snapshots out. Pure: time comes in as an argument.
//!
//! Between the keys and the snapshot stands the removal policy. In a watch, a lease that was revoked and one that ran out
//! look the same, and leases that run out together arrive one by one, so a DELETE alone does not tell whether a server
//! left or etcd stood still. A key's way:
//!
//! ```text
//! present --DELETE, announced or without a lease--------------------------> removed
//!    ^  |--DELETE, otherwise--> missing --judged after 2 s: few are-------> removed
//!    |                            |  |--judged: most of the service is--> held --60 s--> removed
//!    |<-------put back------------+<-----------------------------------------+
//! ```
//!
//! An instance is in question while all of its keys are missing. While instances come back, the others are given the same
//! two seconds again: what returns after a mass expiry returns over a while.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::JUDGEMENT;
use crate::etcd::{Event, Kv, Listing, MAX_VALUE};
use crate::format::{DecodeError, Decoded, Format};
use crate::instance::{Address, Instance, MAX_TAGS, ServiceName};
use crate::snapshot::{Member, MemberState, Snapshot};

/// The most keys of one service that are kept.
const MAX_KEYS: usize = 10_000;

/// How often one kind of trouble is logged at most.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Where instances stand in etcd and how they are read.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// What stands before the service's name: empty, or ending in a slash.
    pub(crate) base: String,
    pub(crate) format: Arc<dyn Format>,
    pub(crate) default_weight: u16,
    pub(crate) hold: Duration,
}

impl Layout {
    /// What every key of a service begins with; ends in a slash.
    pub(crate) fn range(&self, service: &ServiceName) -> String {
        format!("{}{service}/", self.base)
    }

    pub(super) fn decode(&self, segment: &str, value: &[u8]) -> Result<Decoded, (Trouble, String)> {
        if value.len() > MAX_VALUE {
            return Err((Trouble::TooLarge, format!("more than {MAX_VALUE} bytes")));
        }
        let malformed = |error: DecodeError| (Trouble::Malformed, error.to_string());
        let decoded = self.format.decode(segment, value).map_err(malformed)?;
        decoded.address.check_dialable().map_err(|error| malformed(error.into()))?;
        Ok(decoded)
    }
}

pub(super) struct Membership {
    layout: Layout,
    service: ServiceName,
    range: String,
    /// By the last segment of the key.
    keys: HashMap<String, Key>,
    /// Keys that are gone without an announcement, and since when.
    missing: HashMap<String, Instant>,
    /// When an instance in question came back the last time.
    comeback: Option<Instant>,
    complaints: Complaints,
}

/// What was found wrong with keys, and when that was logged. Clones share it: one line a minute and kind for all.
#[derive(Debug, Clone, Default)]
pub(super) struct Complaints(Arc<Mutex<HashMap<Trouble, Count>>>);

struct Key {
    instance: Arc<Instance>,
    lease: i64,
    mod_revision: i64,
    draining: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Trouble {
    ForeignKey,
    TooLarge,
    Malformed,
    TooManyKeys,
    TooManyTags,
}

#[derive(Debug, Default)]
struct Count {
    since_logged: u64,
    logged: Option<Instant>,
}

impl Membership {
    pub(super) fn new(layout: Layout, service: ServiceName, complaints: Complaints) -> Self {
        let range = layout.range(&service);
        let (keys, missing) = (HashMap::new(), HashMap::new());
        Self { layout, service, range, keys, missing, comeback: None, complaints }
    }

    /// Takes a list as the whole truth: what it does not show is gone.
    pub(super) fn replace(&mut self, listing: Listing, now: Instant) {
        let mut listed: Vec<(String, Kv)> = Vec::with_capacity(listing.kvs.len());
        for kv in listing.kvs {
            if let Some(segment) = self.segment(&kv.key, now) {
                listed.push((segment, kv));
            }
        }
        let present: HashSet<&str> = listed.iter().map(|(segment, _)| segment.as_str()).collect();
        let gone: Vec<String> =
            self.keys.keys().filter(|segment| !present.contains(segment.as_str())).cloned().collect();
        for segment in gone {
            self.delete(&segment, now);
        }
        // In the list's order, so that every client cuts off the same ones where there are too many.
        for (segment, kv) in listed {
            self.put(segment, &kv, now);
        }
        self.settle(now);
    }

    /// Takes events in their order.
    pub(super) fn apply(&mut self, events: Vec<Event>, now: Instant) {
        for event in events {
            match event {
                Event::Put(kv) => {
                    if let Some(segment) = self.segment(&kv.key, now) {
                        self.put(segment, &kv, now);
                    }
                }
                Event::Delete { key, .. } => {
                    if let Some(segment) = self.segment(&key, now) {
                        self.delete(&segment, now);
                    }
                }
            }
        }
        self.settle(now);
    }

    fn put(&mut self, segment: String, kv: &Kv, now: Instant) {
        let mut decoded = match self.layout.decode(&segment, &kv.value) {
            Ok(decoded) => decoded,
            Err((trouble, detail)) => {
                // A key that was good before keeps its last good value, under the lease that it has now.
                let is_missing = self.missing.contains_key(&segment);
                if let Some(key) = self.keys.get_mut(&segment).filter(|_| !is_missing) {
                    key.lease = kv.lease;
                    key.mod_revision = kv.mod_revision;
                }
                self.trouble(trouble, &kv.key, &detail, now);
                return;
            }
        };
        if !self.keys.contains_key(&segment) && self.keys.len() >= MAX_KEYS {
            self.trouble(Trouble::TooManyKeys, &kv.key, "the service has 10,000 keys", now);
            return;
        }
        if decoded.tags.len() > MAX_TAGS {
            decoded.tags = decoded.tags.into_iter().take(MAX_TAGS).collect();
            self.trouble(Trouble::TooManyTags, &kv.key, "all but 64 tags are left out", now);
        }
        if self.missing.remove(&segment).is_some() {
            self.comeback = Some(now);
        }
        let draining = decoded.draining;
        let instance = Arc::new(self.instance(decoded));
        self.keys.insert(segment, Key { instance, lease: kv.lease, mod_revision: kv.mod_revision, draining });
    }

    fn delete(&mut self, segment: &str, now: Instant) {
        let Some(key) = self.keys.get(segment) else { return };
        if self.missing.contains_key(segment) {
            return;
        }
        if key.draining || key.lease == 0 {
            self.keys.remove(segment);
        } else {
            self.missing.insert(segment.to_owned(), now);
        }
    }

    /// Judges what is in question, as far as its time has come.
    pub(super) fn settle(&mut self, now: Instant) {
        let (returned, expired) = self.verdicts(now);
        if !returned.is_empty() {
            self.comeback = Some(now);
        }
        for segment in returned.into_iter().chain(expired) {
            self.keys.remove(&segment);
            self.missing.remove(&segment);
        }
        if self.missing.is_empty() {
            self.comeback = None;
        }
    }

    /// The missing keys whose address is registered under another key, and those whose time is up.
    fn verdicts(&self, now: Instant) -> (Vec<String>, Vec<String>) {
        if self.missing.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let present = self.present();
        let is_present = |segment: &&String| present.contains(&self.keys[*segment].instance.address);
        let (returned, gone): (Vec<&String>, Vec<&String>) = self.missing.keys().partition(is_present);
        let most_are_missing = self.most_are_missing(&present);
        let expired =
            gone.into_iter().filter(|segment| now >= self.verdict_at(self.missing[*segment], most_are_missing));
        (returned.into_iter().cloned().collect(), expired.cloned().collect())
    }

    /// When [`settle`](Self::settle) has something to do next, if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        // The one that is missing for the longest time is judged first, whatever the judgement.
        let since = *self.missing.values().min()?;
        Some(self.verdict_at(since, self.most_are_missing(&self.present())))
    }

    /// When a key that is missing since then is removed, as things stand.
    fn verdict_at(&self, since: Instant, most_are_missing: bool) -> Instant {
        let judged = self.comeback.map_or(since, |comeback| comeback.max(since)) + JUDGEMENT;
        let held = since + self.layout.hold.max(JUDGEMENT);
        if most_are_missing { held } else { judged.min(held) }
    }

    /// Whether more than half of all known instances are in question.
    fn most_are_missing(&self, present: &HashSet<&Address>) -> bool {
        let missing = self.missing.keys().map(|segment| &self.keys[segment].instance.address);
        missing.filter(|address| !present.contains(address)).collect::<HashSet<_>>().len() > present.len()
    }

    /// The addresses with a key that is there.
    fn present(&self) -> HashSet<&Address> {
        let present = self.keys.iter().filter(|(segment, _)| !self.missing.contains_key(*segment));
        present.map(|(_, key)| &key.instance.address).collect()
    }

    /// Every instance once: with the newest of its keys for weight and tags, and draining only if all of them are.
    pub(super) fn snapshot(&self, revision: i64) -> Snapshot {
        let mut keys: Vec<(&String, &Key)> = self.keys.iter().collect();
        keys.sort_unstable_by(|(_, a), (_, b)| {
            let newest_first = || b.mod_revision.cmp(&a.mod_revision);
            a.instance.address.cmp(&b.instance.address).then_with(newest_first)
        });
        let members = keys.chunk_by(|(_, a), (_, b)| a.instance.address == b.instance.address).map(|keys| {
            let (segment, newest) = keys[0];
            let state = if self.missing.contains_key(segment) {
                MemberState::InQuestion
            } else if keys.iter().all(|(_, key)| key.draining) {
                MemberState::Draining
            } else {
                MemberState::Live
            };
            Member::new(newest.instance.clone(), newest.lease, state)
        });
        Snapshot::new(revision, members.collect())
    }

    fn instance(&self, decoded: Decoded) -> Instance {
        let weight = decoded.weight.filter(|weight| *weight > 0).unwrap_or(self.layout.default_weight);
        let mut instance = Instance::new(self.service.as_str(), decoded.address).weight(weight);
        instance.tags = decoded.tags;
        instance
    }

    /// The last segment of a key, if the key is one of this service.
    fn segment(&mut self, key: &[u8], now: Instant) -> Option<String> {
        let segment = segment(key, &self.range);
        if segment.is_none() {
            self.trouble(Trouble::ForeignKey, key, "it does not end in one segment of text", now);
        }
        segment.map(str::to_owned)
    }

    fn trouble(&self, trouble: Trouble, key: &[u8], detail: &str, now: Instant) {
        let mut counts = self.complaints.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(trouble).or_default();
        count.since_logged += 1;
        if count.logged.is_some_and(|at| now < at + LOG_INTERVAL) {
            return;
        }
        count.logged = Some(now);
        let skipped = std::mem::take(&mut count.since_logged);
        let key = cut(key.escape_ascii());
        let detail = cut(detail.escape_debug());
        tracing::warn!(service = %self.service, %key, %detail, kind = ?trouble, count = skipped, "key in etcd cannot be used");
    }
}

/// What follows `range` in a key, if that is one segment of text.
pub(super) fn segment<'a>(key: &'a [u8], range: &str) -> Option<&'a str> {
    let segment = std::str::from_utf8(key.strip_prefix(range.as_bytes())?).ok()?;
    (!segment.is_empty() && !segment.contains('/')).then_some(segment)
}

/// Text from etcd for a log line.
fn cut(text: impl fmt::Display) -> String {
    text.to_string().chars().take(256).collect()
}

#[cfg(test)]
mod tests;
