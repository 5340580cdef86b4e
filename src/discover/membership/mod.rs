//! What is known of a service: keys in, snapshots out. Pure: time comes in as an argument.
//!
//! Between the keys and the snapshot stands the removal policy. In a watch, a lease that was revoked and one that ran
//! out look the same, and leases that run out together arrive one by one, so a DELETE alone does not tell whether a
//! server left or etcd stood still. The states of a key:
//!
//! ```text
//! present --DELETE, announced or without a lease--------------------------> removed
//!    ^  |--DELETE, otherwise--> missing --after 2 s, few are missing-----> removed
//!    |                            |  |--most of the service is missing--> held --60 s--> removed
//!    |<-------put back------------+<-----------------------------------------+
//! ```
//!
//! An instance is in question while all of its keys are missing. While instances come back, the others are given the
//! same two seconds again: what returns after a mass expiry returns over a while.

mod cut_off;
mod defects;
mod key_index;

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use self::cut_off::CutOff;
pub(super) use self::defects::{Defect, Defects};
use self::key_index::{KeyIndex, KnownKey, footprint};
use crate::etcd::{Event, Kv, MAX_SEGMENT, MAX_VALUE};
use crate::format::{DecodeError, Decoded, Format};
use crate::instance::{Instance, MAX_TAGS, ServiceName};
use crate::log_limit::LogLimit;
use crate::snapshot::{MemberList, Snapshot};
use crate::targets::DISCOVERY;

/// Where a registry keeps instances in etcd and how they are read.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// What stands before the service's name: empty, or ending in a slash.
    pub(crate) base: String,
    pub(crate) format: Arc<dyn Format>,
    pub(crate) default_weight: u16,
    pub(crate) hold: Duration,
    pub(crate) limits: Limits,
}

/// What is kept of one service at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Its keys.
    pub(crate) instances: usize,
    /// About how much memory they and their instances take.
    pub(crate) bytes: usize,
}

impl Layout {
    /// What every key of a service begins with; ends in a slash.
    pub(crate) fn range(&self, service: &ServiceName) -> String {
        format!("{}{service}/", self.base)
    }

    /// An instance of what its value says, with as many tags as it may have.
    pub(super) fn instance(&self, service: &ServiceName, decoded: Decoded) -> Instance {
        let weight = decoded.weight.filter(|weight| *weight > 0).unwrap_or(self.default_weight);
        let tags = decoded.tags.iter().take(MAX_TAGS).collect();
        Instance { service: service.shared().clone(), address: decoded.address, weight, tags }
    }

    pub(super) fn decode(&self, segment: &str, value: &[u8]) -> Result<Decoded, (Defect, String)> {
        if value.len() > MAX_VALUE {
            return Err((Defect::TooLarge, format!("more than {MAX_VALUE} bytes")));
        }
        if segment.len() > MAX_SEGMENT {
            return Err((Defect::TooLarge, format!("its key ends in more than {MAX_SEGMENT} bytes")));
        }
        let malformed = |error: DecodeError| (Defect::Malformed, error.to_string());
        let decoded = self.format.decode(segment, value).map_err(malformed)?;
        decoded.address.check_dialable().map_err(|error| (Defect::BadAddress, error.to_string()))?;
        Ok(decoded)
    }
}

/// The keys of one service, and what the removal policy makes of them.
pub(super) struct Membership {
    layout: Layout,
    service: ServiceName,
    range: String,
    index: KeyIndex,
    /// What the last snapshot showed.
    members: MemberList,
    /// Keys for which there is no room.
    cut_off: CutOff,
    /// The list that is under way.
    listed: PartialList,
    /// When an instance in question came back the last time.
    last_return: Option<Instant>,
    /// What was read since it was taken.
    defects: Cell<Defects>,
    complaints: Complaints,
}

/// What a list has shown so far.
#[derive(Default)]
struct PartialList {
    /// In the list's order, so that every client cuts off the same keys where there are too many.
    keys: Vec<(Arc<str>, KnownKey)>,
    /// How many of them were not known before.
    fresh: usize,
    /// About how much memory those take that are not in the index as they are.
    bytes: usize,
    cut_off: CutOff,
}

/// What was found wrong with keys, and when that was logged. Clones share it: one line a minute and kind for all.
#[derive(Debug, Clone, Default)]
pub(super) struct Complaints(Arc<Mutex<HashMap<Defect, Count>>>);

#[derive(Debug, Default)]
struct Count {
    since_logged: u64,
    log: LogLimit,
}

impl Membership {
    pub(super) fn new(layout: Layout, service: ServiceName, complaints: Complaints) -> Self {
        let range = layout.range(&service);
        Self {
            layout,
            service,
            range,
            index: KeyIndex::default(),
            members: MemberList::default(),
            cut_off: CutOff::default(),
            listed: PartialList::default(),
            last_return: None,
            defects: Cell::default(),
            complaints,
        }
    }

    /// A list starts; one that was under way is void.
    pub(super) fn on_list_start(&mut self) {
        self.listed = PartialList::default();
    }

    /// The list that is under way shows a key.
    pub(super) fn on_listed_key(&mut self, kv: &Kv, now: Instant) {
        let Some(segment) = self.segment(&kv.key, now) else { return };
        let Some(mut key) = self.read(segment, kv, now) else { return };
        let known = self.index.get(segment).map(|known| &known.instance);
        if !known.is_some_and(|known| Arc::ptr_eq(known, &key.instance)) {
            let keys = if known.is_some() { 0 } else { self.listed.fresh };
            let after = footprint(segment, &key.instance);
            let bytes = self.listed.bytes + after;
            match known {
                _ if !self.is_too_much(bytes, keys, &kv.key, now) => self.listed.bytes = bytes,
                Some(known) => key.instance = known.clone(),
                None => return self.listed.cut_off.add(segment, after, self.layout.limits.instances),
            }
        }
        let known = self.index.shared(segment);
        self.listed.fresh += usize::from(known.is_none());
        self.listed.keys.push((known.unwrap_or_else(|| segment.into()), key));
    }

    /// The list is complete, and the whole truth: what it did not show is gone.
    pub(super) fn on_list_end(&mut self, now: Instant) {
        let PartialList { keys, fresh, cut_off, .. } = std::mem::take(&mut self.listed);
        self.cut_off = cut_off;
        self.index.reserve(fresh);
        for segment in self.index.present_but(&keys) {
            self.on_delete(&segment, now);
        }
        for (segment, key) in keys {
            self.on_put(&segment, key, now);
        }
        self.on_deadline(now);
    }

    /// Events come, in their order.
    pub(super) fn on_events(&mut self, events: Vec<Event>, now: Instant) {
        for event in events {
            match event {
                Event::Put(kv) => {
                    if let Some(segment) = self.segment(&kv.key, now)
                        && let Some(key) = self.read(segment, &kv, now)
                    {
                        self.on_put(&segment.into(), key, now);
                    }
                }
                Event::Delete { key, .. } => {
                    if let Some(segment) = self.segment(&key, now) {
                        self.on_delete(segment, now);
                    }
                }
            }
        }
        self.on_deadline(now);
    }

    /// Decodes a key; `None` if nothing is to be known of it. A key that was good before keeps its last good value,
    /// under the lease that it has now.
    fn read(&self, segment: &str, kv: &Kv, now: Instant) -> Option<KnownKey> {
        let known = self.index.get(segment);
        let (instance, draining) = match self.layout.decode(segment, &kv.value) {
            Ok(decoded) => {
                let draining = decoded.draining;
                let instance = self.instance(decoded, &kv.key, now);
                // Shared where it is equal, so that readers can compare pointers.
                let same = known.filter(|known| *known.instance == instance);
                (same.map_or_else(|| Arc::new(instance), |known| known.instance.clone()), draining)
            }
            Err((defect, detail)) => {
                self.defect(defect, &kv.key, &detail, now);
                let known = known.filter(|_| !self.index.is_missing(segment))?;
                (known.instance.clone(), known.draining)
            }
        };
        Some(KnownKey { instance, lease: kv.lease, mod_revision: kv.mod_revision, draining })
    }

    /// Whether one more key would be too many, or `bytes` would be.
    fn is_too_much(&self, bytes: usize, keys: usize, key: &[u8], now: Instant) -> bool {
        let limits = self.layout.limits;
        if keys >= limits.instances {
            self.defect(Defect::TooManyKeys, key, &format!("max_instances is {}", limits.instances), now);
        } else if bytes > limits.bytes {
            self.defect(Defect::TooManyBytes, key, &format!("max_service_bytes is {}", limits.bytes), now);
        }
        keys >= limits.instances || bytes > limits.bytes
    }

    /// A key is present. Where there is no room for its value, a known key keeps the one that it had.
    fn on_put(&mut self, segment: &Arc<str>, mut key: KnownKey, now: Instant) {
        let known = self.index.get(segment).map(|known| &known.instance);
        let (keys, before) = known.map_or((self.index.len(), 0), |known| (0, footprint(segment, known)));
        let after = footprint(segment, &key.instance);
        let bytes = self.index.bytes() - before + after;
        if after > before && self.is_too_much(bytes, keys, segment.as_bytes(), now) {
            match known {
                Some(known) => key.instance = known.clone(),
                None => return self.cut_off.add(segment, after, self.layout.limits.instances),
            }
        }
        self.cut_off.remove(segment);
        if self.index.put(segment, key) {
            self.last_return = Some(now);
        }
    }

    fn on_delete(&mut self, segment: &str, now: Instant) {
        let Some(key) = self.index.get(segment) else { return self.cut_off.remove(segment) };
        if self.index.is_missing(segment) {
            return;
        }
        if key.draining || key.lease == 0 {
            self.index.remove(segment);
        } else if !self.index.lose(segment, now) {
            self.last_return = Some(now);
        }
    }

    /// Removes missing keys whose time has come.
    pub(super) fn on_deadline(&mut self, now: Instant) {
        let most_are_missing = self.index.most_are_missing();
        while let Some(since) = self.index.missing_since()
            && now >= self.removal_at(since, most_are_missing)
        {
            self.index.remove_longest_missing();
        }
        if self.index.missing_since().is_none() {
            self.last_return = None;
        }
    }

    /// When [`on_deadline`](Self::on_deadline) has something to do next, if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        // The key that is missing for the longest time is removed first.
        let since = self.index.missing_since()?;
        Some(self.removal_at(since, self.index.most_are_missing()))
    }

    /// When a key that is missing since `since` is removed, unless anything changes.
    fn removal_at(&self, since: Instant, most_are_missing: bool) -> Instant {
        let soonest = self.last_return.map_or(since, |last_return| last_return.max(since)) + REMOVAL_DELAY;
        let held = since + self.layout.hold.max(REMOVAL_DELAY);
        if most_are_missing { held } else { soonest.min(held) }
    }

    /// Every instance once. It costs what changed since the last one, which shares the rest.
    pub(super) fn snapshot(&mut self, revision: i64) -> Snapshot {
        let touched = self.index.take_touched().into_iter();
        let updates = touched.map(|address| {
            let member = self.index.member(&address);
            (address, member)
        });
        self.members = self.members.updated(updates.collect());
        Snapshot::of_list(revision, self.members.clone(), self.cut_off.len())
    }

    /// Whether a list would let in a key that was cut off: watches never show such a key again by themselves.
    pub(super) fn has_room_again(&self) -> bool {
        let Limits { instances, bytes } = self.layout.limits;
        let has_room = |least| self.index.len() < instances && self.index.bytes() + least <= bytes;
        self.cut_off.least().is_some_and(has_room)
    }

    fn instance(&self, decoded: Decoded, key: &[u8], now: Instant) -> Instance {
        if decoded.tags.len() > MAX_TAGS {
            self.defect(Defect::TooManyTags, key, "all but 64 tags are left out", now);
        }
        self.layout.instance(&self.service, decoded)
    }

    /// The last segment of a key, if the key is one of this service.
    fn segment<'a>(&self, key: &'a [u8], now: Instant) -> Option<&'a str> {
        let segment = segment(key, &self.range);
        if segment.is_none() {
            self.defect(Defect::ForeignKey, key, "it does not end in one segment of text", now);
        }
        segment
    }

    /// How often keys were read that cannot be used, since the last time.
    pub(super) fn take_defects(&mut self) -> Defects {
        self.defects.take()
    }

    /// About how much memory the keys and their instances take.
    pub(super) fn bytes(&self) -> usize {
        self.index.bytes()
    }

    fn defect(&self, defect: Defect, key: &[u8], detail: &str, now: Instant) {
        self.defects.set(self.defects.get().with(defect));
        let mut counts = self.complaints.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(defect).or_default();
        count.since_logged += 1;
        if !count.log.admit(now) {
            return;
        }
        let skipped = std::mem::take(&mut count.since_logged);
        let key = cut(key.escape_ascii());
        let detail = cut(detail.escape_debug());
        tracing::warn!(
            target: DISCOVERY,
            service = %self.service,
            %key,
            %detail,
            kind = ?defect,
            count = skipped,
            "key in etcd cannot be used"
        );
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

impl Default for Limits {
    fn default() -> Self {
        Self { instances: DEFAULT_INSTANCES, bytes: DEFAULT_INSTANCES * BYTES_PER_INSTANCE }
    }
}

/// The most keys of one service that are kept: several times what a channel to all instances can use, and little enough
/// that keys written by mistake take no more than 32 MiB in each client.
const DEFAULT_INSTANCES: usize = 10_000;

/// About how much memory the instances of one service may take with their keys, for each of the most: room for 60
/// tags of 40 bytes an instance, and 32 MiB for 10,000.
pub(crate) const BYTES_PER_INSTANCE: usize = 3_355;

/// How long an instance whose key went without an announcement stays known before it is removed: longer than a server
/// needs to notice that its lease is gone and to register again (a quarter of a second of jitter, a grant, a claim).
const REMOVAL_DELAY: Duration = Duration::from_secs(2);

/// How long instances are held when more than half of a service went without an announcement: long enough for servers
/// that back off up to 10 s from an etcd that recovers, short enough that a dead service is called so within a minute.
pub(crate) const DEFAULT_HOLD: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
