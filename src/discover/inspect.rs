//! From keys, leases and members to what a program shows that looks for mistakes: nothing is left out or merged.

use std::fmt;
use std::ops::ControlFlow;

use super::membership::{Defect, segment};
use super::operate::service_in;
use super::watcher::Watchers;
use crate::error::{ConfigError, RegistryError};
use crate::etcd::{CALL_LIMIT, Kv, Lease, MAX_VALUE, MemberStatus, Range, Scan};
use crate::instance::{Instance, ServiceName};

/// Keys as they stand in etcd, all at one revision.
#[derive(Debug, Clone)]
pub struct StoredKeys {
    revision: i64,
    keys: Vec<StoredKey>,
    is_cut_off: bool,
}

impl StoredKeys {
    /// The store's revision that they show.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The keys, in their order in etcd.
    #[must_use]
    pub fn keys(&self) -> &[StoredKey] {
        &self.keys
    }

    /// Whether there are more than were read.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }
}

/// One key below the prefix, and what clients make of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    lease: i64,
    create_revision: i64,
    mod_revision: i64,
    service: Option<ServiceName>,
    reading: Result<Reading, Unusable>,
}

/// What a value that can be read says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reading {
    instance: Instance,
    is_draining: bool,
}

impl StoredKey {
    /// The whole key. Any program can have written it, and it need not be text.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Its value, which need not be text either; `None` where it is larger than 64 KiB, which no client reads.
    #[must_use]
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    /// The id of the lease that it hangs on; 0 for a key that was put without one.
    #[must_use]
    pub fn lease(&self) -> i64 {
        self.lease
    }

    /// The store's revision at which it was created.
    #[must_use]
    pub fn create_revision(&self) -> i64 {
        self.create_revision
    }

    /// The store's revision at which it was written the last time.
    #[must_use]
    pub fn mod_revision(&self) -> i64 {
        self.mod_revision
    }

    /// The service that it belongs to by its name; `None` for a key that belongs to none.
    #[must_use]
    pub fn service(&self) -> Option<&ServiceName> {
        self.service.as_ref()
    }

    /// The instance that clients read in it.
    ///
    /// # Errors
    ///
    /// Why they leave it out.
    pub fn instance(&self) -> Result<&Instance, &Unusable> {
        self.reading.as_ref().map(|reading| &reading.instance)
    }

    /// Whether it has the draining mark.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.reading.as_ref().is_ok_and(|reading| reading.is_draining)
    }
}

/// Why a key below the prefix is no instance to clients. `Display` says it in words.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unusable {
    /// Behind the prefix stands not the name of a service and one segment of text.
    ForeignKey,
    /// The value has more than 64 KiB, or the last segment of the key more than 512 bytes.
    TooLarge,
    /// The format cannot read the value, for this reason. It may quote the value, which can hold anything.
    Malformed(String),
    /// Clients must not be sent to the address, for this reason: it is unspecified, or its port is 0.
    Address(String),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignKey => f.write_str("the key does not end in the name of a service and one segment of text"),
            Self::TooLarge => f.write_str("the value has more than 64 KiB, or the key ends in more than 512 bytes"),
            Self::Malformed(reason) | Self::Address(reason) => f.write_str(reason),
        }
    }
}

/// The keys of a list under way.
#[derive(Default)]
struct Taken {
    keys: Vec<StoredKey>,
    bytes: usize,
    is_cut_off: bool,
}

impl Taken {
    fn add(&mut self, key: StoredKey) -> ControlFlow<()> {
        let bytes = self.bytes + size_of::<StoredKey>() + key.key.len() + 2 * key.value.as_ref().map_or(0, Vec::len);
        if self.keys.len() == MOST_KEYS || bytes > MOST_BYTES {
            self.is_cut_off = true;
            return ControlFlow::Break(());
        }
        self.bytes = bytes;
        self.keys.push(key);
        ControlFlow::Continue(())
    }
}

impl Watchers {
    /// Every key below the prefix.
    pub(crate) async fn keys(&self) -> Result<StoredKeys, RegistryError> {
        self.keys_in(self.everything()?).await
    }

    /// Every key of a service.
    pub(crate) async fn keys_of(&self, service: &ServiceName) -> Result<StoredKeys, RegistryError> {
        self.keys_in(Range::below(self.layout.range(service))).await
    }

    async fn keys_in(&self, range: Range) -> Result<StoredKeys, RegistryError> {
        let range = &range;
        let take = |taken: &mut Taken, kv: Kv| taken.add(self.inspected(kv));
        let list = self.ask(|member| async move { member.list_until(range, Scan::new, CALL_LIMIT, take).await });
        let (revision, Taken { keys, is_cut_off, .. }) = list.await?;
        Ok(StoredKeys { revision, keys, is_cut_off })
    }

    fn inspected(&self, kv: Kv) -> StoredKey {
        let service = service_in(&kv.key, self.prefix());
        let reading = match &service {
            Some(service) => self.reading(service, &kv),
            None => Err(Unusable::ForeignKey),
        };
        let Kv { key, value, lease, create_revision, mod_revision, .. } = kv;
        let value = (value.len() <= MAX_VALUE).then_some(value);
        StoredKey { key, value, lease, create_revision, mod_revision, service, reading }
    }

    fn reading(&self, service: &ServiceName, kv: &Kv) -> Result<Reading, Unusable> {
        let segment = segment(&kv.key, &self.layout.range(service)).ok_or(Unusable::ForeignKey)?;
        match self.layout.decode(segment, &kv.value) {
            Ok(decoded) => {
                let is_draining = decoded.draining;
                Ok(Reading { instance: self.layout.instance(service, decoded), is_draining })
            }
            Err((Defect::TooLarge, _)) => Err(Unusable::TooLarge),
            Err((Defect::BadAddress, reason)) => Err(Unusable::Address(reason)),
            Err((_, reason)) => Err(Unusable::Malformed(reason)),
        }
    }

    /// A lease with its keys; `None` if there is none.
    pub(crate) async fn lease(&self, id: i64) -> Result<Option<Lease>, RegistryError> {
        if id == 0 {
            let (option, value) = ("lease", "0".to_owned());
            return Err(ConfigError::Option { option, value, expected: "the id of a lease; 0 means none" }.into());
        }
        Ok(self.ask(|member| async move { member.lease(id, CALL_LIMIT).await }).await?)
    }

    /// The ids of all leases.
    pub(crate) async fn leases(&self) -> Result<Vec<i64>, RegistryError> {
        Ok(self.ask(|member| async move { member.leases(CALL_LIMIT).await }).await?)
    }

    /// What each member reports of itself, under its URL.
    pub(crate) async fn members(&self) -> Vec<(String, Result<MemberStatus, RegistryError>)> {
        let members = self.cluster.current();
        let reports = members.call_each(CALL_LIMIT, |member| async move { member.status(CALL_LIMIT).await }).await;
        reports.into_iter().map(|(url, report)| (url, report.map_err(RegistryError::from))).collect()
    }
}

/// The most keys that are read at once: what ten services of the largest size have.
const MOST_KEYS: usize = 100_000;

/// About how much memory they take at most, with their values and what is read in these.
const MOST_BYTES: usize = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(value: usize) -> StoredKey {
        StoredKey {
            key: b"p/echo/a".to_vec(),
            value: Some(vec![b' '; value]),
            lease: 0,
            create_revision: 1,
            mod_revision: 1,
            service: None,
            reading: Err(Unusable::ForeignKey),
        }
    }

    #[test]
    fn keys_beyond_their_number_or_memory_end_the_list() {
        let mut taken = Taken::default();
        let most = (0..MOST_KEYS).take_while(|_| taken.add(key(MAX_VALUE)).is_continue()).count();
        assert!(taken.is_cut_off && taken.keys.len() == most);
        assert!((1_000..MOST_KEYS).contains(&most), "memory counts: {most} keys");
        let mut taken = Taken { bytes: 0, is_cut_off: false, keys: vec![key(0); MOST_KEYS] };
        assert!(taken.add(key(0)).is_break() && taken.is_cut_off, "and so does the number");
    }
}
