//! The keys of a service, by segment and by address, and which of them are missing; counted as they change.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tokio::time::Instant;

use crate::instance::{Address, Instance};

/// What is known of one key.
#[derive(Debug, Clone)]
pub(super) struct KnownKey {
    pub(super) instance: Arc<Instance>,
    pub(super) lease: i64,
    pub(super) mod_revision: i64,
    pub(super) draining: bool,
}

/// All keys, by their last segment. A missing key keeps what is known of it.
#[derive(Default)]
pub(super) struct KeyIndex {
    keys: HashMap<String, IndexedKey>,
    /// The missing keys, the one that is missing for the longest time first.
    missing: BTreeSet<(Instant, String)>,
    addresses: HashMap<Address, AddressKeys>,
    /// How many addresses have missing keys only.
    addresses_missing: usize,
    bytes: usize,
}

struct IndexedKey {
    key: KnownKey,
    missing: Option<Instant>,
}

/// The keys of one address.
#[derive(Default)]
struct AddressKeys {
    present: usize,
    missing: Vec<String>,
}

impl AddressKeys {
    fn is_missing(&self) -> bool {
        self.present == 0 && !self.missing.is_empty()
    }
}

impl KeyIndex {
    /// How many keys there are, missing ones included.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// About how much memory they and their instances take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&self, segment: &str) -> Option<&KnownKey> {
        self.keys.get(segment).map(|indexed| &indexed.key)
    }

    pub(super) fn is_missing(&self, segment: &str) -> bool {
        self.keys.get(segment).is_some_and(|indexed| indexed.missing.is_some())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&KnownKey, bool)> {
        self.keys.values().map(|indexed| (&indexed.key, indexed.missing.is_some()))
    }

    /// The segments of keys that are present and not among `others`.
    pub(super) fn present_but(&self, others: &[(String, KnownKey)]) -> Vec<String> {
        let others: HashSet<&String> = others.iter().map(|(segment, _)| segment).collect();
        let is_other =
            |(segment, indexed): &(&String, &IndexedKey)| indexed.missing.is_none() && !others.contains(segment);
        self.keys.iter().filter(is_other).map(|(segment, _)| segment.clone()).collect()
    }

    /// Since when the key is missing that is missing for the longest time.
    pub(super) fn missing_since(&self) -> Option<Instant> {
        self.missing.first().map(|(since, _)| *since)
    }

    /// Removes the key that is missing for the longest time.
    pub(super) fn remove_longest_missing(&mut self) {
        if let Some((_, segment)) = self.missing.first() {
            self.remove(&segment.clone());
        }
    }

    /// Whether more than half of all addresses are missing.
    pub(super) fn most_are_missing(&self) -> bool {
        self.addresses_missing > self.addresses.len() - self.addresses_missing
    }

    /// The key is present, which removes the missing keys of its address. Returns whether anything that was missing
    /// came back with it.
    pub(super) fn put(&mut self, segment: String, key: KnownKey) -> bool {
        let was_missing = self.is_missing(&segment);
        self.remove(&segment);
        let of_address = self.addresses.entry(key.instance.address.clone()).or_default();
        self.addresses_missing -= usize::from(of_address.is_missing());
        of_address.present += 1;
        let past = std::mem::take(&mut of_address.missing);
        for segment in &past {
            self.forget(segment);
        }
        self.bytes += footprint(&segment, &key.instance);
        self.keys.insert(segment, IndexedKey { key, missing: None });
        was_missing || !past.is_empty()
    }

    /// The key is missing from now on; or, where its address has another key that is present, removed. Returns whether
    /// it is missing.
    pub(super) fn lose(&mut self, segment: &str, now: Instant) -> bool {
        let Some(indexed) = self.keys.get_mut(segment) else { return false };
        let Some(of_address) = self.addresses.get_mut(&indexed.key.instance.address) else { return false };
        if of_address.present > 1 {
            self.remove(segment);
            return false;
        }
        indexed.missing = Some(now);
        of_address.present = 0;
        of_address.missing.push(segment.to_owned());
        self.addresses_missing += 1;
        self.missing.insert((now, segment.to_owned()));
        true
    }

    pub(super) fn remove(&mut self, segment: &str) {
        let Some(indexed) = self.forget(segment) else { return };
        let address = &indexed.key.instance.address;
        let Some(of_address) = self.addresses.get_mut(address) else { return };
        self.addresses_missing -= usize::from(of_address.is_missing());
        if indexed.missing.is_some() {
            of_address.missing.retain(|missing| missing != segment);
        } else {
            of_address.present -= 1;
        }
        self.addresses_missing += usize::from(of_address.is_missing());
        if of_address.present == 0 && of_address.missing.is_empty() {
            self.addresses.remove(address);
        }
    }

    /// Removes the key and leaves what is counted of its address.
    fn forget(&mut self, segment: &str) -> Option<IndexedKey> {
        let (segment, indexed) = self.keys.remove_entry(segment)?;
        self.bytes -= footprint(&segment, &indexed.key.instance);
        if let Some(since) = indexed.missing {
            self.missing.remove(&(since, segment));
        }
        Some(indexed)
    }
}

/// About how much memory an instance and its key take: their strings, what the allocator and the maps add to each, and
/// those of the key twice more, since it is kept three times while it is missing.
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

    fn key(address: u16) -> KnownKey {
        let address = SocketAddr::from(([127, 0, 0, 1], address + 1));
        KnownKey { instance: Arc::new(Instance::new("echo", address)), lease: 7, mod_revision: 1, draining: false }
    }

    /// Counts everything anew and compares.
    fn assert_counts(index: &KeyIndex) {
        let present: Vec<&Address> =
            index.iter().filter(|(_, is_missing)| !is_missing).map(|(key, _)| &key.instance.address).collect();
        let mut missing: Vec<&Address> = index.iter().map(|(key, _)| &key.instance.address).collect();
        missing.retain(|address| !present.contains(address));
        missing.sort();
        missing.dedup();
        let mut with_keys = present.clone();
        with_keys.sort();
        with_keys.dedup();
        assert_eq!(index.addresses_missing, missing.len());
        assert_eq!(index.addresses.len(), missing.len() + with_keys.len());
        assert_eq!(index.most_are_missing(), missing.len() > with_keys.len());
        assert_eq!(index.missing.len(), index.keys.len() - present.len());
        assert_eq!(
            index.bytes(),
            index.keys.iter().map(|(segment, indexed)| footprint(segment, &indexed.key.instance)).sum::<usize>()
        );
        for (key, is_missing) in index.iter() {
            assert!(!is_missing || !present.contains(&&key.instance.address), "{} is there", key.instance.address);
        }
    }

    proptest! {
        #[test]
        fn its_counts_are_those_of_a_fresh_count(history in proptest::collection::vec((0..4u8, 0..8u16, 0..5u16), 0..100)) {
            let (mut index, begin) = (KeyIndex::default(), Instant::now());
            for (n, (act, segment, address)) in (0..).zip(history) {
                let (segment, now) = (segment.to_string(), begin + Duration::from_secs(n));
                match act {
                    0 | 1 => _ = index.put(segment, key(address)),
                    2 if !index.is_missing(&segment) => _ = index.lose(&segment, now),
                    2 => index.remove_longest_missing(),
                    _ => index.remove(&segment),
                }
                assert_counts(&index);
            }
        }
    }
}
