//! Several registries as one, for clients whose servers are not all in the same registry.

use std::sync::Arc;

use super::{Registry, lookup};
use crate::channel::ChannelBuilder;
use crate::discover::{Discover, Watchers};
use crate::error::ConfigError;

/// Several registries as one, for clients: other formats, prefixes or etcd clusters, merged by address. Clones share
/// everything.
///
/// This is how a service moves from one to the other without a flag day: clients look in both, servers register in both
/// ([`RegistrationSet`](crate::RegistrationSet)), and when all do, the old one is left out.
///
/// - **An instance** is there while one of the registries has its address.
/// - **Weight and tags** are those in the first registry that has it, in the order given.
/// - **Leaves**: an instance is draining once no registry has it without the draining mark, and in question
///   ([`MemberState`](crate::snapshot::MemberState)) while its keys are missing in all that had it.
/// - **A registry that is unreachable** hides nothing of the others, and keeps its last known set. The first list waits
///   for all of them, though no longer than 2 s once one has answered.
///
/// Each registry keeps its own watch, shared with all other channels and streams of it.
///
/// ```no_run
/// use tonic_etcd::{Registry, RegistrySet};
/// use tonic_etcd::format::EtcdNaming;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let old = Registry::builder(["http://10.0.0.1:2379"]).build()?;
/// let new = Registry::builder(["http://10.0.0.2:2379"]).format(EtcdNaming::new()).build()?;
/// let channel = RegistrySet::new([new, old]).channel("echo").build()?;
/// // let mut client = EchoClient::new(channel);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct RegistrySet {
    each: Arc<[Registry]>,
}

impl RegistrySet {
    /// These registries, the most important one first. None at all is an error of what is built with it.
    pub fn new(registries: impl IntoIterator<Item = Registry>) -> Self {
        Self { each: registries.into_iter().collect() }
    }

    /// A channel over the instances of a service in all registries, as [`Registry::channel`] makes it over one.
    pub fn channel(&self, service: impl AsRef<str>) -> ChannelBuilder {
        lookup::channel(self.watchers(), service.as_ref())
    }

    /// The instances of a service in all registries, as [`Registry::discover`] yields those of one.
    ///
    /// # Errors
    ///
    /// A set of no registry, a bad service name, or no tokio runtime on this thread.
    pub fn discover(&self, service: impl AsRef<str>) -> Result<Discover, ConfigError> {
        lookup::discover(&self.watchers(), service.as_ref())
    }

    fn watchers(&self) -> Vec<Arc<Watchers>> {
        self.each.iter().map(|registry| registry.watchers.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_set_of_no_registry_is_refused() {
        let says = "bad RegistrySet of no registry: expected at least one";
        let set = RegistrySet::new([]);
        assert_eq!(set.discover("echo").expect_err("it would be empty for ever").to_string(), says);
        assert_eq!(set.channel("echo").build().expect_err("all calls would fail").to_string(), says);
    }
}
