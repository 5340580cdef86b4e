//! The keys of a service, by segment and by address, and which of them are missing; counted as they change.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::mem;
use std::slice;
use std::sync::Arc;

use tokio::time::Instant;

use crate::instance::{Address, Host, Instance};
use crate::snapshot::{Member, MemberState};

/// What is known of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownKey {
    pub(super) instance: Arc<Instance>,
    pub(super) lease: i64,
    pub(super) mod_revision: i64,
    pub(super) draining: bool,
}

/// All keys, by their last segment. A missing key keeps what is known of it.
#[derive(Default)]
pub(super) struct KeyIndex {
    keys: HashMap<Arc<str>, IndexedKey>,
    /// The missing keys, the one that is missing for the longest time first.
    missing: BTreeSet<(Instant, Arc<str>)>,
    addresses: HashMap<Address, AddressKeys>,
    /// How many addresses have missing keys only.
    addresses_missing: usize,
    bytes: usize,
    /// The addresses whose keys changed since the last [`take_touched`](Self::take_touched), some of them more than
    /// once.
    touched: Vec<Address>,
}

struct IndexedKey {
    key: KnownKey,
    missing: Option<Instant>,
}

/// The keys of one address: one that is missing, or any number that are present.
enum AddressKeys {
    Missing(Arc<str>),
    /// Most addresses have one key.
    One(Arc<str>),
    Several(Vec<Arc<str>>),
}

impl AddressKeys {
    fn segments(&self) -> &[Arc<str>] {
        match self {
            Self::Missing(segment) | Self::One(segment) => slice::from_ref(segment),
            Self::Several(segments) => segments,
        }
    }

    fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
    }

    /// These and one more that is present.
    fn with(self, segment: Arc<str>) -> Self {
        match self {
            Self::Missing(_) => Self::One(segment),
            Self::One(first) => Self::Several(vec![first, segment]),
            Self::Several(mut segments) => {
                segments.push(segment);
                Self::Several(segments)
            }
        }
    }

    /// These without one of them; `None` if there is no other.
    fn without(self, segment: &str) -> Option<Self> {
        match self {
            Self::Missing(_) | Self::One(_) => None,
            Self::Several(mut segments) => {
                segments.retain(|other| **other != *segment);
                match segments.len() {
                    0 | 1 => segments.pop().map(Self::One),
                    _ => Some(Self::Several(segments)),
                }
            }
        }
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

    /// The segment as it is kept, if it is.
    pub(super) fn shared(&self, segment: &str) -> Option<Arc<str>> {
        self.keys.get_key_value(segment).map(|(segment, _)| segment.clone())
    }

    /// So many keys come, most of them of other addresses.
    pub(super) fn reserve(&mut self, keys: usize) {
        self.keys.reserve(keys);
        self.addresses.reserve(keys);
        self.touched.reserve(keys);
    }

    pub(super) fn is_missing(&self, segment: &str) -> bool {
        self.keys.get(segment).is_some_and(|indexed| indexed.missing.is_some())
    }

    #[cfg(test)]
    pub(super) fn touch(&mut self, address: &Address) {
        self.touched.push(address.clone());
    }

    /// The addresses whose keys changed since the last time, in order, each once.
    pub(super) fn take_touched(&mut self) -> Vec<Address> {
        let mut touched = mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// The instance at an address: with the newest of its keys for weight, tags and lease, and draining only if all of
    /// them are.
    pub(super) fn member(&self, address: &Address) -> Option<Member> {
        let of_address = self.addresses.get(address)?;
        let keys = || of_address.segments().iter().filter_map(|segment| self.keys.get_key_value(segment));
        // Of two that were put in one transaction, the segment decides.
        let (_, newest) = keys().max_by_key(|(segment, indexed)| (indexed.key.mod_revision, *segment))?;
        let state = if of_address.is_missing() {
            MemberState::Suspect
        } else if keys().all(|(_, indexed)| indexed.key.draining) {
            MemberState::Draining
        } else {
            MemberState::Live
        };
        Some(Member::new(newest.key.instance.clone(), newest.key.lease, state))
    }

    /// The segments of keys that are present and not among `others`.
    pub(super) fn present_but(&self, others: &[(Arc<str>, KnownKey)]) -> Vec<Arc<str>> {
        let others: HashSet<&str> = others.iter().map(|(segment, _)| &**segment).collect();
        let is_other =
            |(segment, indexed): &(&Arc<str>, &IndexedKey)| indexed.missing.is_none() && !others.contains(&***segment);
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

    /// The key is present, which removes the missing key of its address. Returns whether anything that was missing came
    /// back with it.
    pub(super) fn put(&mut self, segment: &Arc<str>, key: KnownKey) -> bool {
        // A list shows mostly what is known.
        if self.keys.get(&**segment).is_some_and(|known| known.missing.is_none() && known.key == key) {
            return false;
        }
        let mut is_return = self.is_missing(segment);
        self.remove(segment);
        let (segment, address) = (segment.clone(), key.instance.address.clone());
        let of_address = match self.addresses.remove(&address) {
            Some(others) => {
                if let AddressKeys::Missing(past) = &others {
                    self.forget(past);
                    self.addresses_missing -= 1;
                    is_return = true;
                }
                others.with(segment.clone())
            }
            None => AddressKeys::One(segment.clone()),
        };
        self.addresses.insert(address.clone(), of_address);
        self.touched.push(address);
        self.bytes += footprint(&segment, &key.instance);
        self.keys.insert(segment, IndexedKey { key, missing: None });
        is_return
    }

    /// The key is missing from now on; or, where its address has another key that is present, removed. Returns whether
    /// it is missing.
    pub(super) fn lose(&mut self, segment: &str, now: Instant) -> bool {
        let Some((segment, indexed)) = self.keys.get_key_value(segment) else { return false };
        let (segment, address) = (segment.clone(), indexed.key.instance.address.clone());
        let Some(of_address @ AddressKeys::One(_)) = self.addresses.get_mut(&address) else {
            self.remove(&segment);
            return false;
        };
        *of_address = AddressKeys::Missing(segment.clone());
        if let Some(indexed) = self.keys.get_mut(&segment) {
            indexed.missing = Some(now);
        }
        self.addresses_missing += 1;
        self.missing.insert((now, segment));
        self.touched.push(address);
        true
    }

    pub(super) fn remove(&mut self, segment: &str) {
        let Some(indexed) = self.forget(segment) else { return };
        let Some((address, of_address)) = self.addresses.remove_entry(&indexed.key.instance.address) else { return };
        self.addresses_missing -= usize::from(of_address.is_missing());
        self.touched.push(address.clone());
        if let Some(others) = of_address.without(segment) {
            self.addresses.insert(address, others);
        }
    }

    /// Removes the key and leaves what is known of its address.
    fn forget(&mut self, segment: &str) -> Option<IndexedKey> {
        let (segment, indexed) = self.keys.remove_entry(segment)?;
        self.bytes -= footprint(&segment, &indexed.key.instance);
        if let Some(since) = indexed.missing {
            self.missing.remove(&(since, segment));
        }
        Some(indexed)
    }
}

/// About how much memory an instance and its key take: their strings, what the allocator and the maps add, and what
/// each string needs beside its text.
pub(super) fn footprint(segment: &str, instance: &Instance) -> usize {
    const EACH: usize = 8;
    const AROUND: usize = 432;
    let name = match instance.address.host() {
        Host::Ip(_) => 0,
        Host::Name(name) => EACH + name.len(),
    };
    let tags = instance.tags.iter().map(|(name, value)| EACH + name.len() + value.len());
    AROUND + segment.len() + name + tags.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::net::SocketAddr;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::MemberList;

    fn key(address: u16) -> KnownKey {
        let address = SocketAddr::from(([127, 0, 0, 1], address + 1));
        KnownKey { instance: Arc::new(Instance::new("echo", address)), lease: 7, mod_revision: 1, draining: false }
    }

    /// Counts everything anew and compares.
    fn assert_counts(index: &KeyIndex) {
        let iter = || index.keys.values().map(|indexed| (&indexed.key, indexed.missing.is_some()));
        let present: Vec<&Address> =
            iter().filter(|(_, is_missing)| !is_missing).map(|(key, _)| &key.instance.address).collect();
        let mut missing: Vec<&Address> = iter().map(|(key, _)| &key.instance.address).collect();
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
        for (key, is_missing) in iter() {
            assert!(!is_missing || !present.contains(&&key.instance.address), "{} is there", key.instance.address);
        }
    }

    /// Made of all keys.
    fn members(index: &KeyIndex) -> MemberList {
        let mut keys: Vec<(&Arc<str>, &IndexedKey)> = index.keys.iter().collect();
        keys.sort_by_key(|(segment, indexed)| {
            (&indexed.key.instance.address, -indexed.key.mod_revision, Reverse(*segment))
        });
        let members = keys.chunk_by(|(_, a), (_, b)| a.key.instance.address == b.key.instance.address).map(|keys| {
            let (_, newest) = keys[0];
            let state = match newest.missing {
                Some(_) => MemberState::Suspect,
                None if keys.iter().all(|(_, indexed)| indexed.key.draining) => MemberState::Draining,
                None => MemberState::Live,
            };
            Member::new(newest.key.instance.clone(), newest.key.lease, state)
        });
        MemberList::from_sorted(members.collect())
    }

    proptest! {
        #[test]
        fn what_was_touched_makes_the_next_list_of_the_one_before(
            history in proptest::collection::vec((0..5u8, 0..8u16, 0..5u16, 1..4i64, any::<bool>()), 0..100),
        ) {
            let (mut index, begin, mut list) = (KeyIndex::default(), Instant::now(), MemberList::default());
            for (n, (act, segment, address, mod_revision, draining)) in (0..).zip(history) {
                let (segment, now) = (segment.to_string(), begin + Duration::from_secs(n));
                match act {
                    0 | 1 => _ = index.put(&segment.as_str().into(), KnownKey { mod_revision, draining, ..key(address) }),
                    2 if !index.is_missing(&segment) => _ = index.lose(&segment, now),
                    2 => index.remove_longest_missing(),
                    3 => index.remove(&segment),
                    _ => {
                        let touched = index.take_touched();
                        let member = |address: &Address| index.member(address);
                        list = list.updated(touched.iter().map(|address| (address.clone(), member(address))).collect());
                        prop_assert_eq!(&list, &members(&index));
                    }
                }
            }
        }

        #[test]
        fn its_counts_are_those_of_a_fresh_count(history in proptest::collection::vec((0..4u8, 0..8u16, 0..5u16), 0..100)) {
            let (mut index, begin) = (KeyIndex::default(), Instant::now());
            for (n, (act, segment, address)) in (0..).zip(history) {
                let (segment, now) = (segment.to_string(), begin + Duration::from_secs(n));
                match act {
                    0 | 1 => _ = index.put(&segment.as_str().into(), key(address)),
                    2 if !index.is_missing(&segment) => _ = index.lose(&segment, now),
                    2 => index.remove_longest_missing(),
                    _ => index.remove(&segment),
                }
                assert_counts(&index);
            }
        }
    }
}
