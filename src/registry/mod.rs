//! The registry: an etcd cluster, a key prefix and a format, and the one place that ties the two sides together.
//!
//! # Layout
//!
//! | file | what flows through it |
//! | --- | --- |
//! | this file | a registry to registrations, channels and streams |
//! | `builder` | options to a registry |
//! | `environment` | etcdctl's environment variables to options |
//! | `registries` | several registries as one, for clients |
//! | `lookup` | watchers to channels and streams, for one registry and for several |

mod builder;
mod environment;
mod lookup;
mod registries;

use std::collections::BTreeMap;
use std::fmt;
use std::slice;
use std::sync::Arc;

use crate::channel::ChannelBuilder;
use crate::discover::{Discover, StoredKeys, Watchers};
use crate::error::{ConfigError, RegistryError};
use crate::etcd::{Lease, MemberStatus};
use crate::instance::{Address, Instance, ServiceName};
use crate::register::{Registrar, RegistrationBuilder};
use crate::snapshot::Snapshot;

pub use self::builder::RegistryBuilder;
pub use self::registries::RegistrySet;

/// An etcd cluster, a key prefix and a format: where servers register and clients look. Clones share everything, and
/// one is enough for a process.
#[derive(Clone)]
pub struct Registry {
    registrar: Arc<Registrar>,
    watchers: Arc<Watchers>,
}

impl Registry {
    /// The options of a registration of this instance. Nothing is registered before the server starts to serve.
    pub fn registration(&self, instance: Instance) -> RegistrationBuilder {
        RegistrationBuilder::new(self.registrar.clone(), instance)
    }

    /// A channel for any generated client, balanced over the instances of a service: gives a builder for options.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use tonic_etcd::Registry;
    /// use tonic_etcd::policy::WeightedRoundRobin;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::builder(["http://127.0.0.1:2379"]).build()?;
    /// let channel = registry.channel("echo").policy(WeightedRoundRobin::new()).timeout(Duration::from_secs(5)).build()?;
    /// // let mut client = EchoClient::new(channel);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// All channels and streams of one registry and service share one watch in etcd. A bad service name is an error of
    /// [`build`](ChannelBuilder::build).
    pub fn channel(&self, service: impl AsRef<str>) -> ChannelBuilder {
        lookup::channel(vec![self.watchers.clone()], service.as_ref())
    }

    /// The instances of a service, as a stream of changes, for a balancer of your own or for tonic's
    /// ([`Discover::balance_channel`]). The watch in etcd begins now and is shared by all channels and
    /// streams of this registry and service.
    ///
    /// # Errors
    ///
    /// A bad service name, or no tokio runtime on this thread. An etcd that is unreachable is no error: the stream
    /// waits.
    pub fn discover(&self, service: impl AsRef<str>) -> Result<Discover, ConfigError> {
        lookup::discover(slice::from_ref(&self.watchers), service.as_ref())
    }

    /// The services that are registered below the prefix right now, each with how many keys it has: one an instance, as
    /// a rule.
    ///
    /// Keys are read without their values, in pages of 128 to 4,096, all at the revision of the first page. Keys that
    /// do not look like a service's are skipped, and at most 10,000 services are listed.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Config`] under an empty prefix or `/`, which would mean everything in etcd, or the keys of
    /// every program; otherwise what the call failed with. Every member is asked before it fails, for at most 5 s each,
    /// or 5 s a page.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only looks.
    pub async fn services(&self) -> Result<BTreeMap<ServiceName, usize>, RegistryError> {
        self.watchers.services().await
    }

    /// The instances of a service that are registered right now. Nothing is remembered and nothing watched: a program
    /// that wants to follow them uses [`discover`](Self::discover).
    ///
    /// It reads as `discover` does, with the same limits: values that cannot be read are left out and logged, several
    /// keys of one address are one instance, and no more are read than
    /// [`max_instances`](RegistryBuilder::max_instances) says. A service without instances is an empty snapshot.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Config`] for a bad service name; otherwise what the call failed with. Every member is asked
    /// before it fails, for at most 5 s each, or 5 s a page.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only looks.
    pub async fn instances(&self, service: impl AsRef<str>) -> Result<Snapshot, RegistryError> {
        let service = service.as_ref().parse().map_err(RegistryError::Config)?;
        self.watchers.instances(&service).await
    }

    /// Every key below the prefix as it stands in etcd, with what clients make of it: for programs that look for
    /// mistakes. [`services`](Self::services) and [`instances`](Self::instances) show what clients see.
    ///
    /// Keys are read with their values in pages, all at one revision. After 100,000 keys, or about 256 MiB of memory,
    /// it ends, and [`StoredKeys::is_cut_off`] says so.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Config`] under an empty prefix or `/`, as for `services`; otherwise what the call failed with.
    /// Every member is asked before it fails, for at most 5 s each, or 5 s a page.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only looks.
    pub async fn keys(&self) -> Result<StoredKeys, RegistryError> {
        self.watchers.keys().await
    }

    /// Like [`keys`](Self::keys), of one service alone.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Config`] for a bad service name; otherwise what the call failed with.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only looks.
    pub async fn keys_of(&self, service: impl AsRef<str>) -> Result<StoredKeys, RegistryError> {
        let service = service.as_ref().parse().map_err(RegistryError::Config)?;
        self.watchers.keys_of(&service).await
    }

    /// A lease with the time that it has left and its keys; `None` if it does not exist (any more).
    ///
    /// # Errors
    ///
    /// [`RegistryError::Config`] for the id 0, which means none; [`RegistryError::Denied`] where it has keys that the
    /// user may not read; otherwise what the call failed with. Every member is asked before it fails, for at most 5 s
    /// each.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only looks.
    pub async fn lease(&self, id: i64) -> Result<Option<Lease>, RegistryError> {
        self.watchers.lease(id).await
    }

    /// The ids of all leases in etcd, those of other programs among them.
    ///
    /// # Errors
    ///
    /// What the call failed with. Every member is asked before it fails, for at most 5 s each.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only looks.
    pub async fn leases(&self) -> Result<Vec<i64>, RegistryError> {
        self.watchers.leases().await
    }

    /// What each etcd member reports of itself, in the order of the URLs, each under its own. All are asked at once,
    /// for at most 5 s and the login.
    ///
    /// A member without a leader, or one of another cluster than the others, has an error in its place.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only looks.
    pub async fn members(&self) -> Vec<(String, Result<MemberStatus, RegistryError>)> {
        self.watchers.members().await
    }

    /// Tells an instance to leave: puts the draining mark on its key, under the lease that it has, if nothing about the
    /// key changed meanwhile.
    ///
    /// The server obeys as if it had been signalled, but serves on: it revokes its lease, its status becomes
    /// [`RegistrationStatus::Drained`](crate::RegistrationStatus::Drained), and its calls in flight go on. Clients send
    /// it no new ones from the mark on, unless no other instance is left. A server that does not use this crate cannot
    /// obey and stays registered; for clients with this crate the mark counts all the same.
    ///
    /// A server that is registered in several registries ([`RegistrationSet`](crate::RegistrationSet)) leaves this one
    /// alone, and has to be drained in each: to clients of several it is there while one of them has it.
    ///
    /// It returns when the mark is in etcd, a few milliseconds before the server is gone. An instance that is marked
    /// already is no error.
    ///
    /// # Errors
    ///
    /// [`RegistryError::UnknownAddress`]; [`RegistryError::NoDrainingMark`], where the format has no place for it; a
    /// bad service name or address; otherwise what a call failed with.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the mark may be written although the future is dropped.
    pub async fn drain<A>(&self, service: impl AsRef<str>, address: A) -> Result<(), RegistryError>
    where
        A: TryInto<Address>,
        A::Error: Into<ConfigError>,
    {
        let service = service.as_ref().parse().map_err(RegistryError::Config)?;
        let address = address.try_into().map_err(|error| RegistryError::Config(error.into()))?;
        self.watchers.drain(&service, &address, None).await
    }

    /// Like [`drain`](Self::drain), of the one server whose key hangs on this lease: its successor at the same address
    /// is left alone. [`Member::lease`](crate::snapshot::Member::lease) says which lease that is; 0 means keys that were
    /// put without one.
    ///
    /// # Errors
    ///
    /// As for `drain`; [`RegistryError::UnknownAddress`], too, where the address has no key of that lease, or the key
    /// came to hang on another one meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the mark may be written although the future is dropped.
    pub async fn drain_leased<A>(&self, service: impl AsRef<str>, address: A, lease: i64) -> Result<(), RegistryError>
    where
        A: TryInto<Address>,
        A::Error: Into<ConfigError>,
    {
        let service = service.as_ref().parse().map_err(RegistryError::Config)?;
        let address = address.try_into().map_err(|error| RegistryError::Config(error.into()))?;
        self.watchers.drain(&service, &address, Some(lease)).await
    }

    /// Sets the weight of an instance from outside, under the lease that its key has, and waits until its server has
    /// written it as its own: milliseconds as a rule, up to a second after ten others in a row. Clients follow as they do
    /// where the server sets it itself.
    ///
    /// A server has 3 s for its answer, and what it does not keep is put back, for which etcd has 5 s more. Before that,
    /// the keys are read: 5 s for each etcd member that does not answer.
    ///
    /// The server keeps this weight for as long as its registration lives: over updates of its tags, a lost lease, and an
    /// etcd that was wiped. A weight that its program sets later replaces it
    /// ([`Registration::update`](crate::Registration::update)), and a server that starts anew has its own.
    ///
    /// A server that does not use this crate would forget it: the former weight is put back then. It stands beside the new
    /// one until the server answers, so that a weight whose call was cut off can be undone by another call. A server that
    /// is registered in several registries has a weight in each.
    ///
    /// In the format [`EtcdNaming`](crate::format::EtcdNaming) a weight needs an object as `Metadata`, on which old
    /// grpc-go clients panic. Where it is `null`, the weight is refused unless the format
    /// [is asked to add one](crate::format::EtcdNaming::adds_metadata).
    ///
    /// # Errors
    ///
    /// [`RegistryError::UnknownAddress`]; [`RegistryError::NoWeight`], where the format has no place for it, or clients
    /// would read another one; [`RegistryError::WeightNotKept`], with the [reason](crate::WeightRefusal);
    /// [`RegistryError::WeightUnknown`], where etcd did not answer any more after it was written;
    /// [`RegistryError::Contended`], where others wrote the key each time; a weight of 0, a bad service name or address;
    /// otherwise what a call failed with.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the weight may be written although the future is dropped: a server with this crate keeps it all the
    /// same, and that of another program is put back by the next call only.
    pub async fn set_weight<A>(&self, service: impl AsRef<str>, address: A, weight: u16) -> Result<(), RegistryError>
    where
        A: TryInto<Address>,
        A::Error: Into<ConfigError>,
    {
        let service = service.as_ref().parse().map_err(RegistryError::Config)?;
        let address = address.try_into().map_err(|error| RegistryError::Config(error.into()))?;
        self.watchers.set_weight(&service, &address, weight).await
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("registrar", &self.registrar).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn services_below_slashes_alone_are_not_listed() {
        for prefix in ["", "/"] {
            let registry = Registry::builder(["http://127.0.0.1:1"]).prefix(prefix).build().expect("a good registry");
            let refused = registry.services().await.expect_err("the keys of every program begin with that");
            assert!(matches!(refused, RegistryError::Config(ConfigError::Prefix { .. })), "{prefix:?}: {refused}");
        }
    }

    #[test]
    fn discovering_outside_of_a_runtime_is_a_typed_error() {
        let registry = Registry::builder(["http://127.0.0.1:1"]).build().expect("a good registry");
        assert!(matches!(registry.discover("echo"), Err(ConfigError::NoRuntime { .. })));
        assert!(matches!(registry.discover("a/b"), Err(ConfigError::ServiceName { .. })));
    }
}
