//! The registrations of one server as one handle: they start together and leave together, with one drain.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};

use super::registration::Registration;
use super::server::{DEFAULT_LIMIT, Drain, DrainLayer, Incoming};
use super::status::StartError;
use crate::error::RegistrationEnded;

/// The registrations of one server that has several: in more than one registry or format, or as more than one
/// service. A cheap handle; clones are the same registrations.
///
/// A server uses it like one [`Registration`]. Each registration keeps a status of its own,
/// and is paused, updated or taken out by its own handle ([`iter`](Self::iter)).
///
/// ```no_run
/// use tonic::transport::server::TcpIncoming;
/// use tonic_etcd::{Instance, RegistrationSet, Registry, shutdown_signal};
/// use tonic_etcd::format::EtcdNaming;
///
/// # async fn example(service: tonic::service::Routes) -> Result<(), Box<dyn std::error::Error>> {
/// let old = Registry::builder(["http://127.0.0.1:2379"]).build()?;
/// let new = Registry::builder(["http://127.0.0.1:2379"]).format(EtcdNaming::new()).build()?;
/// let incoming = TcpIncoming::bind("0.0.0.0:50051".parse()?)?;
/// let instance = Instance::new("echo", incoming.local_addr()?);
/// let registrations = RegistrationSet::new([old.registration(instance.clone()).build()?, new.registration(instance).build()?]);
/// registrations.serve(service, incoming, shutdown_signal()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "registrations begin with their server, or with start()"]
pub struct RegistrationSet {
    each: Arc<[Registration]>,
    drain: Drain,
}

impl RegistrationSet {
    /// Joins these registrations.
    ///
    /// Use [`layer`](Self::layer), [`incoming`](Self::incoming) and [`deregister_on`](Self::deregister_on) of the
    /// set, and none of its registrations': each has a drain of its own, which knows nothing of the set's calls. The
    /// drain of an empty set has the default limit of 25 s.
    pub fn new(registrations: impl IntoIterator<Item = Registration>) -> Self {
        let each: Arc<[Registration]> = registrations.into_iter().collect();
        let limit = each.iter().map(Registration::drain_limit).max().unwrap_or(DEFAULT_LIMIT);
        // They belong to one server, so that the address of any tells its log lines from those of other servers.
        let address = each.first().map(|registration| registration.address().to_string().into());
        Self { each, drain: Drain::new().limit(limit).at(address) }
    }

    /// The layer for `Server::builder().layer(..)`: starts all registrations, and is otherwise like
    /// [`Registration::layer`].
    #[must_use]
    pub fn layer(&self) -> DrainLayer {
        self.server().layer()
    }

    /// Wraps a server's incoming connections, as [`Registration::incoming`] does.
    #[must_use]
    pub fn incoming<I>(&self, incoming: I) -> Incoming<I> {
        self.server().incoming(incoming)
    }

    /// The shutdown future for `serve_with_incoming_shutdown`, as [`Registration::deregister_on`] makes one. All
    /// leaves are announced and all leases are revoked at once, at most 3 s for all of them together; all health that
    /// is followed turns `NOT_SERVING` before. One propagation pause follows, the longest of the registrations', and
    /// one drain, for at most the longest of their limits.
    ///
    /// # Panics
    ///
    /// When the signal comes, if the future is polled outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the signal, the future does nothing. Dropped after the signal, it lets deregistrations that have
    /// begun go on.
    pub fn deregister_on<F>(&self, signal: F) -> impl Future<Output = ()> + Send + use<F>
    where
        F: Future<Output = ()> + Send,
    {
        let (registrations, drain) = (self.each.clone(), self.drain.clone());
        self.drain.on(async move {
            signal.await;
            Registration::leave(&registrations, &drain).await;
        })
    }

    /// Starts all registrations, as [`Registration::start`] does.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(&self) {
        self.iter().for_each(Registration::start);
    }

    /// Starts all registrations that were not started, and waits until their keys are in etcd under our leases.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`RegistrationEnded`], if one of the registrations has ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the registrations go on.
    pub async fn registered(&self) -> Result<(), RegistrationEnded> {
        try_join_all(self.iter().map(Registration::registered)).await.map(drop)
    }

    /// Starts all registrations and waits until their keys are in etcd, as [`Registration::start_within`] does.
    ///
    /// # Errors
    ///
    /// Of the first of them that fails.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the registrations go on.
    pub async fn start_within(&self, limit: Duration) -> Result<(), StartError> {
        try_join_all(self.iter().map(|registration| registration.start_within(limit))).await.map(drop)
    }

    /// Ends all registrations for good, at once: at most 3 s for all of them together.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the deregistrations go on when the future is dropped.
    pub async fn deregister(&self) {
        join_all(self.iter().map(Registration::deregister)).await;
    }

    /// How many calls the layer counts whose request or response has not ended yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.drain.in_flight()
    }

    /// Each registration, in the order given: for its status, to pause or to update it.
    #[must_use = "an iterator does nothing unless it is used"]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Registration> {
        self.each.iter()
    }

    fn server(&self) -> Drain {
        let registrations = self.clone();
        self.drain.with_start(move || registrations.start())
    }
}

#[cfg(test)]
mod tests {
    use super::super::builder::tests::builder;
    use super::*;

    #[test]
    fn the_drain_of_a_set_has_the_longest_limit_and_an_empty_one_the_default() {
        let seconds = std::time::Duration::from_secs;
        let limited = |limit| builder().drain_limit(seconds(limit)).build().expect("a good instance");
        let set = RegistrationSet::new([limited(2), limited(7), limited(3)]);
        assert_eq!(set.drain.configured_limit(), seconds(7), "the longest of three");
        let empty = RegistrationSet::new([]);
        assert_eq!(empty.drain.configured_limit(), DEFAULT_LIMIT, "calls get time, too, where etcd is left out");
    }
}
