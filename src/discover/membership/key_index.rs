//! The keys of a service, and which of them are missing: who is there, counted as it changes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tokio::time::Instant;

use crate::instance::{Address, Instance};

/// What stands in one key.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) instance: Arc<Instance>,
    pub(super) lease: i64,
    pub(super) mod_revision: i64,
    pub(super) draining: bool,
}

/// All keys, by their last segment. A key that is missing keeps what stood in it.
#[derive(Default)]
pub(super) struct Roster {
    keys: HashMap<String, Place>,
    /// Those that are missing, the longest first.
    missing: BTreeSet<(Instant, String)>,
    addresses: HashMap<Address, Standing>,
    /// How many addresses have missing keys only.
    addresses_missing: usize,
    bytes: usize,
}

struct Place {
    key: Key,
    missing: Option<Instant>,
}

/// The keys of one address.
#[derive(Default)]
struct Standing {
    present: usize,
    missing: Vec<String>,
}

impl Standing {
    fn is_missing(&self) -> bool {
        self.present == 0 && !self.missing.is_empty()
    }
}

impl Roster {
    /// How many keys there are, missing ones included.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// About how much memory they and their instances take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&self, segment: &str) -> Option<&Key> {
        self.keys.get(segment).map(|place| &place.key)
    }

    pub(super) fn is_missing(&self, segment: &str) -> bool {
        self.keys.get(segment).is_some_and(|place| place.missing.is_some())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, bool)> {
        self.keys.values().map(|place| (&place.key, place.missing.is_some()))
    }

    /// The keys that are there and not among these.
    pub(super) fn present_but(&self, others: &[(String, Key)]) -> Vec<String> {
        let others: HashSet<&String> = others.iter().map(|(segment, _)| segment).collect();
        let is_other = |(segment, place): &(&String, &Place)| place.missing.is_none() && !others.contains(segment);
        self.keys.iter().filter(is_other).map(|(segment, _)| segment.clone()).collect()
    }

    /// Since when the key is missing that is missing for the longest time.
    pub(super) fn missing_since(&self) -> Option<Instant> {
        self.missing.first().map(|(since, _)| *since)
    }

    /// Removes the key that is missing for the longest time.
    pub(super) fn remove_missing(&mut self) {
        if let Some((_, segment)) = self.missing.first() {
            self.remove(&segment.clone());
        }
    }

    /// Whether more than half of all addresses are missing.
    pub(super) fn most_are_missing(&self) -> bool {
        self.addresses_missing > self.addresses.len() - self.addresses_missing
    }

    /// The key is there. Missing keys of its address are of the past then. Returns whether anything that was missing came
    /// back with it.
    pub(super) fn put(&mut self, segment: String, key: Key) -> bool {
        let was_missing = self.is_missing(&segment);
        self.remove(&segment);
        let standing = self.addresses.entry(key.instance.address.clone()).or_default();
        self.addresses_missing -= usize::from(standing.is_missing());
        standing.present += 1;
        let past = std::mem::take(&mut standing.missing);
        for segment in &past {
            self.forget(segment);
        }
        self.bytes += footprint(&segment, &key.instance);
        self.keys.insert(segment, Place { key, missing: None });
        was_missing || !past.is_empty()
    }

    /// The key is missing from now on; unless its address has another key that is there, in which case it is just removed.
    /// Returns whether it is missing.
    pub(super) fn lose(&mut self, segment: &str, now: Instant) -> bool {
        let Some(place) = self.keys.get_mut(segment) else { return false };
        let Some(standing) = self.addresses.get_mut(&place.key.instance.address) else { return false };
        if standing.present > 1 {
            self.remove(segment);
            return false;
        }
        place.missing = Some(now);
        standing.present = 0;
        standing.missing.push(segment.to_owned());
        self.addresses_missing += 1;
        self.missing.insert((now, segment.to_owned()));
        true
    }

    pub(super) fn remove(&mut self, segment: &str) {
        let Some(place) = self.forget(segment) else { return };
        let address = &place.key.instance.address;
        let Some(standing) = self.addresses.get_mut(address) else { return };
        self.addresses_missing -= usize::from(standing.is_missing());
        if place.missing.is_some() {
            standing.missing.retain(|missing| missing != segment);
        } else {
            standing.present -= 1;
        }
        self.addresses_missing += usize::from(standing.is_missing());
        if standing.present == 0 && standing.missing.is_empty() {
            self.addresses.remove(address);
        }
    }

    /// Without its address.
    fn forget(&mut self, segment: &str) -> Option<Place> {
        let (segment, place) = self.keys.remove_entry(segment)?;
        self.bytes -= footprint(&segment, &place.key.instance);
        if let Some(since) = place.missing {
            self.missing.remove(&(since, segment));
        }
        Some(place)
    }
}

/// About how much memory an instance and its key take: their strings, what the allocator and the maps add to each, and those
/// of the key twice more, since it is kept three times while it is missing.
pub(super) fn footprint(segment: &str, instance: &Instance) -> usize {
    const EACH: usize = 96;
    const AROUND: usize = 512;
    let tags = instance.tags.iter().map(|(name, value)| EACH + name.len() + value.len());
    AROUND + 3 * segment.len() + tags.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn key(address: u16) -> Key {
        let address = SocketAddr::from(([127, 0, 0, 1], address + 1));
        Key { instance: Arc::new(Instance::new("echo", address)), lease: 7, mod_revision: 1, draining: false }
    }

    /// What is counted as it changes, counted anew.
    fn assert_counts(roster: &Roster) {
        let present: Vec<&Address> =
            roster.iter().filter(|(_, is_missing)| !is_missing).map(|(key, _)| &key.instance.address).collect();
        let mut missing: Vec<&Address> = roster.iter().map(|(key, _)| &key.instance.address).collect();
        missing.retain(|address| !present.contains(address));
        missing.sort();
        missing.dedup();
        let mut there = present.clone();
        there.sort();
        there.dedup();
        assert_eq!(roster.addresses_missing, missing.len());
        assert_eq!(roster.addresses.len(), missing.len() + there.len());
        assert_eq!(roster.most_are_missing(), missing.len() > there.len());
        assert_eq!(roster.missing.len(), roster.keys.len() - present.len());
        assert_eq!(
            roster.bytes(),
            roster.keys.iter().map(|(segment, place)| footprint(segment, &place.key.instance)).sum::<usize>()
        );
        for (key, is_missing) in roster.iter() {
            assert!(!is_missing || !present.contains(&&key.instance.address), "{} is there", key.instance.address);
        }
    }

    proptest! {
        #[test]
        fn it_counts_as_one_would(history in proptest::collection::vec((0..4u8, 0..8u16, 0..5u16), 0..100)) {
            let (mut roster, begin) = (Roster::default(), Instant::now());
            for (n, (act, segment, address)) in (0..).zip(history) {
                let (segment, now) = (segment.to_string(), begin + Duration::from_secs(n));
                match act {
                    0 | 1 => _ = roster.put(segment, key(address)),
                    2 if !roster.is_missing(&segment) => _ = roster.lose(&segment, now),
                    2 => roster.remove_missing(),
                    _ => roster.remove(&segment),
                }
                assert_counts(&roster);
            }
        }
    }
}
