//! What an operator reads and orders, without a watch: the services and instances that are registered now, and the
//! draining mark on the key of one of them.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::membership::{Membership, segment};
use super::watcher::Watchers;
use crate::error::{ConfigError, EtcdError, EtcdErrorKind, RegistryError};
use crate::etcd::{CALL_LIMIT, Claimed, Connection, Kv, MAX_VALUE, Range, Scan, hex};
use crate::format::Decoded;
use crate::instance::{Address, ServiceName};
use crate::snapshot::Snapshot;
use crate::targets::DISCOVERY;

/// The services that keys name, and how many keys each has.
#[derive(Default)]
struct ServiceCounts {
    keys: BTreeMap<ServiceName, usize>,
    /// How many keys were left out because the services are too many.
    cut_off: usize,
}

impl ServiceCounts {
    fn add(&mut self, service: ServiceName) {
        if self.keys.len() >= MAX_SERVICES && !self.keys.contains_key(&service) {
            self.cut_off += 1;
            return;
        }
        *self.keys.entry(service).or_default() += 1;
    }
}

impl Watchers {
    /// The services below the prefix, and how many keys each has.
    pub(crate) async fn services(&self) -> Result<BTreeMap<ServiceName, usize>, RegistryError> {
        let base = self.prefix();
        let range = &self.everything()?;
        let take = |counts: &mut ServiceCounts, kv: Kv| {
            if let Some(service) = service_in(&kv.key, base) {
                counts.add(service);
            }
        };
        let (_, counts) =
            self.ask(|member| async move { member.list(range, Scan::keys_only, CALL_LIMIT, take).await }).await?;
        if counts.cut_off > 0 {
            tracing::warn!(
                target: DISCOVERY,
                prefix = base,
                count = counts.cut_off,
                "keys of all but 10,000 services are left out"
            );
        }
        Ok(counts.keys)
    }

    /// Every key below the prefix.
    ///
    /// # Errors
    ///
    /// Where the prefix is empty.
    pub(super) fn everything(&self) -> Result<Range, ConfigError> {
        let base = self.prefix();
        // Of slashes alone, too: the keys of many programs begin with one.
        if base.trim_matches('/').is_empty() {
            let reason = "services can be listed below a prefix only: without one this would read whatever is in etcd";
            return Err(ConfigError::Prefix { prefix: base.to_owned(), reason });
        }
        Ok(Range::below(base.to_owned()))
    }

    /// The instances of a service.
    pub(crate) async fn instances(&self, service: &ServiceName) -> Result<Snapshot, RegistryError> {
        let now = Instant::now();
        let read = |membership: &mut Option<Membership>, kv: Kv| {
            let new = || Membership::new(self.layout.clone(), service.clone(), self.complaints.clone());
            membership.get_or_insert_with(new).on_listed_key(&kv, now);
        };
        let (revision, membership) = self.list(service, read).await?;
        let Some(mut membership) = membership else { return Ok(Snapshot::new(revision, [].into())) };
        membership.on_list_end(now);
        Ok(membership.snapshot(revision))
    }

    /// Puts the draining mark on every key of an instance, or on those of one lease alone, each under the lease that it
    /// has. A key that has the mark already stays as it is.
    pub(crate) async fn drain(
        &self,
        service: &ServiceName,
        address: &Address,
        lease: Option<i64>,
    ) -> Result<(), RegistryError> {
        let mut keys = self.keys_at(service, address).await?;
        keys.retain(|kv| is_of(kv, lease));
        if keys.is_empty() {
            return Err(unknown(service, address));
        }
        for kv in keys {
            self.mark(service, address, lease, kv).await?;
        }
        Ok(())
    }

    /// Writes only against the revision that was seen, so that the mark never meets another value or another server's
    /// lease.
    async fn mark(
        &self,
        service: &ServiceName,
        address: &Address,
        wanted: Option<i64>,
        mut seen: Kv,
    ) -> Result<(), RegistryError> {
        let key = String::from_utf8_lossy(&seen.key).into_owned();
        for _ in 0..MARK_ATTEMPTS {
            if !is_of(&seen, wanted) {
                // The successor has come meanwhile.
                return Err(unknown(service, address));
            }
            let decoded = self.decode(service, &seen.key, &seen.value);
            if !decoded.is_some_and(|decoded| decoded.address == *address && !decoded.draining) {
                // It is marked by now, or not this instance's any more.
                return Ok(());
            }
            let format = &self.layout.format;
            let Some(marked) = format.mark_draining(&seen.value) else {
                return Err(RegistryError::NoDrainingMark { format: format!("{format:?}") });
            };
            if marked.len() > MAX_VALUE {
                // Readers would not look at it.
                return Err(RegistryError::NoDrainingMark { format: format!("{format:?}, in a value of this size") });
            }
            let Kv { lease, mod_revision, .. } = seen;
            let (key, value) = (&key, &marked);
            let put = self
                .ask(|member| async move { member.put_if(key, value.clone(), lease, mod_revision, CALL_LIMIT).await });
            match put.await {
                Ok(Claimed::Done(_)) => {
                    tracing::info!(
                        target: DISCOVERY,
                        %service,
                        %address,
                        key,
                        lease = hex(lease),
                        "instance is told to leave"
                    );
                    return Ok(());
                }
                Ok(Claimed::Found(Some(kv))) => seen = kv,
                // It left by itself, or has obeyed a mark whose answer was lost.
                Ok(Claimed::Found(None)) => return Ok(()),
                // Its lease is dead, and its key about to go.
                Err(error) if error.kind == EtcdErrorKind::NotFound => sleep(MARK_RETRY).await,
                Err(error) => return Err(error.into()),
            }
        }
        Err(RegistryError::Contended { key })
    }

    /// The keys whose values have this address.
    pub(super) async fn keys_at(&self, service: &ServiceName, address: &Address) -> Result<Vec<Kv>, RegistryError> {
        let keep = |kvs: &mut Vec<Kv>, kv: Kv| {
            if self.decode(service, &kv.key, &kv.value).is_some_and(|decoded| decoded.address == *address) {
                kvs.push(kv);
            }
        };
        Ok(self.list(service, keep).await?.1)
    }

    /// The value of a key of the service, if it can be read.
    pub(super) fn decode(&self, service: &ServiceName, key: &[u8], value: &[u8]) -> Option<Decoded> {
        let segment = segment(key, &self.layout.range(service))?;
        self.layout.decode(segment, value).ok()
    }

    async fn list<T: Default>(
        &self,
        service: &ServiceName,
        take: impl Fn(&mut T, Kv),
    ) -> Result<(i64, T), RegistryError> {
        let (range, take) = (&Range::below(self.layout.range(service)), &take);
        Ok(self.ask(|member| async move { member.list(range, Scan::new, CALL_LIMIT, take).await }).await?)
    }

    /// Makes a call, again where its token was not valid any more.
    pub(super) async fn ask<T, F, Fut>(&self, call: F) -> Result<T, EtcdError>
    where
        F: Fn(Arc<Connection>) -> Fut,
        Fut: Future<Output = Result<T, EtcdError>>,
    {
        let mut attempt = 1;
        loop {
            match self.cluster.call(CALL_LIMIT, &call).await {
                Err(error) if error.kind == EtcdErrorKind::Token && attempt < TOKEN_ATTEMPTS => attempt += 1,
                answer => return answer,
            }
        }
    }
}

/// Whether a key hangs on this lease; any does where none is asked for.
fn is_of(kv: &Kv, lease: Option<i64>) -> bool {
    lease.is_none_or(|lease| lease == kv.lease)
}

fn unknown(service: &ServiceName, address: &Address) -> RegistryError {
    RegistryError::UnknownAddress { service: service.to_string(), address: address.to_string() }
}

/// The service that a key belongs to: the only segment between `base` and the last one.
pub(super) fn service_in(key: &[u8], base: &str) -> Option<ServiceName> {
    let key = std::str::from_utf8(key).ok()?.strip_prefix(base)?;
    let (service, segment) = key.split_once('/')?;
    if segment.is_empty() || segment.contains('/') {
        return None;
    }
    service.parse().ok()
}

/// The most services that are listed.
const MAX_SERVICES: usize = 10_000;

/// How often a call whose token is not valid is made: once or twice is normal, after permissions have changed.
const TOKEN_ATTEMPTS: usize = 3;

/// How often a key is looked at again because it changed before it was marked.
pub(super) const MARK_ATTEMPTS: usize = 8;

/// The wait before a key is looked at again.
pub(super) const MARK_RETRY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_belongs_to_a_service_if_one_segment_follows_its_name() {
        let service = |key: &str| service_in(key.as_bytes(), "a/b/").map(|service| service.to_string());
        assert_eq!(service("a/b/echo/10.0.0.1:80").as_deref(), Some("echo"));
        for other in ["a/b/echo", "a/b/echo/", "a/b/echo/x/y", "a/b//x", "a/b/no good/x", "a/c/echo/x", "a/b", ""] {
            assert_eq!(service(other), None, "{other:?} is no service's key");
        }
        assert_eq!(service_in(b"a/b/echo/\xff", "a/b/"), None, "keys are text");
    }

    #[test]
    fn services_beyond_the_limit_are_counted_and_left_out() {
        let mut counts = ServiceCounts::default();
        for n in 0..=MAX_SERVICES {
            counts.add(format!("s{n}").parse().expect("a good name"));
        }
        counts.add("s0".parse().expect("a good name"));
        assert_eq!(counts.keys.len(), MAX_SERVICES, "so many and no more");
        assert_eq!(counts.keys[&"s0".parse::<ServiceName>().expect("a good name")], 2, "known ones go on counting");
        assert_eq!(counts.cut_off, 1, "one key too many");
    }
}
