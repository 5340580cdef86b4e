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

mod key_index;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use self::key_index::{Key, Roster, footprint};
use super::JUDGEMENT;
use crate::etcd::{Event, Kv, MAX_SEGMENT, MAX_VALUE};
use crate::format::{DecodeError, Decoded, Format};
use crate::instance::{Instance, MAX_TAGS, ServiceName};
use crate::snapshot::{Member, MemberState, Snapshot};

/// The most keys of one service that are kept.
const MAX_KEYS: usize = 10_000;

/// About how much memory the instances of one service may take with their keys: room for the largest service with 30 tags an instance.
const MAX_BYTES: usize = 32 * 1024 * 1024;

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
        if segment.len() > MAX_SEGMENT {
            return Err((Trouble::TooLarge, format!("its key ends in more than {MAX_SEGMENT} bytes")));
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
    roster: Roster,
    /// What a list that is under way showed so far.
    listed: Listed,
    /// When an instance in question came back the last time.
    comeback: Option<Instant>,
    complaints: Complaints,
}

#[derive(Default)]
struct Listed {
    /// In the list's order, so that every client cuts off the same ones where there are too many.
    keys: Vec<(String, Key)>,
    /// How many of them were not known before.
    fresh: usize,
    /// What those take that are not in the roster as they are.
    bytes: usize,
}

/// What was found wrong with keys, and when that was logged. Clones share it: one line a minute and kind for all.
#[derive(Debug, Clone, Default)]
pub(super) struct Complaints(Arc<Mutex<HashMap<Trouble, Count>>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Trouble {
    ForeignKey,
    TooLarge,
    Malformed,
    TooManyKeys,
    TooManyBytes,
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
        let (roster, listed) = (Roster::default(), Listed::default());
        Self { layout, service, range, roster, listed, comeback: None, complaints }
    }

    /// A list begins; one that was under way is void.
    pub(super) fn begin_list(&mut self) {
        self.listed = Listed::default();
    }

    /// Takes a key of a list.
    pub(super) fn list(&mut self, kv: &Kv, now: Instant) {
        let Some(segment) = self.segment(&kv.key, now) else { return };
        let Some(mut key) = self.read(&segment, kv, now) else { return };
        let known = self.roster.get(&segment).map(|known| &known.instance);
        if !known.is_some_and(|known| Arc::ptr_eq(known, &key.instance)) {
            let keys = if known.is_some() { 0 } else { self.listed.fresh };
            let bytes = self.listed.bytes + footprint(&segment, &key.instance);
            match known {
                _ if !self.is_too_much(bytes, keys, &kv.key, now) => self.listed.bytes = bytes,
                Some(known) => key.instance = known.clone(),
                None => return,
            }
        }
        self.listed.fresh += usize::from(self.roster.get(&segment).is_none());
        self.listed.keys.push((segment, key));
    }

    /// The list is complete, and the whole truth: what it did not show is gone.
    pub(super) fn listed(&mut self, now: Instant) {
        let listed = std::mem::take(&mut self.listed).keys;
        for segment in self.roster.present_but(&listed) {
            self.delete(&segment, now);
        }
        for (segment, key) in listed {
            self.put(segment, key, now);
        }
        self.settle(now);
    }

    /// Takes events in their order.
    pub(super) fn apply(&mut self, events: Vec<Event>, now: Instant) {
        for event in events {
            match event {
                Event::Put(kv) => {
                    if let Some(segment) = self.segment(&kv.key, now)
                        && let Some(key) = self.read(&segment, &kv, now)
                    {
                        self.put(segment, key, now);
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

    /// What is to be known of a key; `None` for nothing new. A key that was good before keeps its last good value, under
    /// the lease that it has now.
    fn read(&self, segment: &str, kv: &Kv, now: Instant) -> Option<Key> {
        let known = self.roster.get(segment);
        let (instance, draining) = match self.layout.decode(segment, &kv.value) {
            Ok(decoded) => {
                let draining = decoded.draining;
                let instance = self.instance(decoded, &kv.key, now);
                // Whoever has it can tell by a look at the pointer that it is the same.
                let same = known.filter(|known| *known.instance == instance);
                (same.map_or_else(|| Arc::new(instance), |known| known.instance.clone()), draining)
            }
            Err((trouble, detail)) => {
                self.trouble(trouble, &kv.key, &detail, now);
                let known = known.filter(|_| !self.roster.is_missing(segment))?;
                (known.instance.clone(), known.draining)
            }
        };
        Some(Key { instance, lease: kv.lease, mod_revision: kv.mod_revision, draining })
    }

    /// Whether one more key would be too many, or `bytes` would be.
    fn is_too_much(&self, bytes: usize, keys: usize, key: &[u8], now: Instant) -> bool {
        if keys >= MAX_KEYS {
            self.trouble(Trouble::TooManyKeys, key, "the service has 10,000 keys", now);
        } else if bytes > MAX_BYTES {
            self.trouble(Trouble::TooManyBytes, key, "the instances of the service have 32 MiB", now);
        }
        keys >= MAX_KEYS || bytes > MAX_BYTES
    }

    /// A known key for whose value there is no room keeps the one that it had.
    fn put(&mut self, segment: String, mut key: Key, now: Instant) {
        let known = self.roster.get(&segment).map(|known| &known.instance);
        let (keys, before) = known.map_or((self.roster.len(), 0), |known| (0, footprint(&segment, known)));
        let after = footprint(&segment, &key.instance);
        let bytes = self.roster.bytes() - before + after;
        if after > before && self.is_too_much(bytes, keys, segment.as_bytes(), now) {
            match known {
                Some(known) => key.instance = known.clone(),
                None => return,
            }
        }
        if self.roster.put(segment, key) {
            self.comeback = Some(now);
        }
    }

    fn delete(&mut self, segment: &str, now: Instant) {
        let Some(key) = self.roster.get(segment) else { return };
        if self.roster.is_missing(segment) {
            return;
        }
        if key.draining || key.lease == 0 {
            self.roster.remove(segment);
        } else if !self.roster.lose(segment, now) {
            self.comeback = Some(now);
        }
    }

    /// Judges what is in question, as far as its time has come.
    pub(super) fn settle(&mut self, now: Instant) {
        let most_are_missing = self.roster.most_are_missing();
        while let Some(since) = self.roster.missing_since()
            && now >= self.verdict_at(since, most_are_missing)
        {
            self.roster.remove_missing();
        }
        if self.roster.missing_since().is_none() {
            self.comeback = None;
        }
    }

    /// When [`settle`](Self::settle) has something to do next, if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        // The one that is missing for the longest time is judged first, whatever the judgement.
        let since = self.roster.missing_since()?;
        Some(self.verdict_at(since, self.roster.most_are_missing()))
    }

    /// When a key that is missing since then is removed, as things stand.
    fn verdict_at(&self, since: Instant, most_are_missing: bool) -> Instant {
        let judged = self.comeback.map_or(since, |comeback| comeback.max(since)) + JUDGEMENT;
        let held = since + self.layout.hold.max(JUDGEMENT);
        if most_are_missing { held } else { judged.min(held) }
    }

    /// Every instance once: with the newest of its keys for weight and tags, and draining only if all of them are.
    pub(super) fn snapshot(&self, revision: i64) -> Snapshot {
        let mut keys: Vec<(&Key, bool)> = self.roster.iter().collect();
        keys.sort_unstable_by(|(a, _), (b, _)| {
            let newest_first = || b.mod_revision.cmp(&a.mod_revision);
            a.instance.address.cmp(&b.instance.address).then_with(newest_first)
        });
        let members = keys.chunk_by(|(a, _), (b, _)| a.instance.address == b.instance.address).map(|keys| {
            let (newest, is_missing) = keys[0];
            let state = if is_missing {
                MemberState::InQuestion
            } else if keys.iter().all(|(key, _)| key.draining) {
                MemberState::Draining
            } else {
                MemberState::Live
            };
            Member::new(newest.instance.clone(), newest.lease, state)
        });
        Snapshot::new(revision, members.collect())
    }

    fn instance(&self, mut decoded: Decoded, key: &[u8], now: Instant) -> Instance {
        if decoded.tags.len() > MAX_TAGS {
            decoded.tags = decoded.tags.into_iter().take(MAX_TAGS).collect();
            self.trouble(Trouble::TooManyTags, key, "all but 64 tags are left out", now);
        }
        let weight = decoded.weight.filter(|weight| *weight > 0).unwrap_or(self.layout.default_weight);
        let mut instance = Instance::new(self.service.as_str(), decoded.address).weight(weight);
        instance.tags = decoded.tags;
        instance
    }

    /// The last segment of a key, if the key is one of this service.
    fn segment(&self, key: &[u8], now: Instant) -> Option<String> {
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
