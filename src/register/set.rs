//! The registrations of one server as one handle: they start together and leave together, with one drain.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};

use super::registration::Registration;
use super::server::{Drain, DrainLayer, Incoming};
use super::status::{RegistrationEnded, StartError};
use crate::error::ConfigError;

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
/// let registrations = RegistrationSet::new([old.registration(instance.clone()).build()?, new.registration(instance).build()?])?;
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
    /// Joins these registrations: they share one drain from now on, whose limit is the longest of theirs.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Option`], for none, for registrations of another set, and for those of different servers: two of
    /// them have a layer, incoming connections or a shutdown future that were taken before.
    pub fn new(registrations: impl IntoIterator<Item = Registration>) -> Result<Self, ConfigError> {
        let refuse = |value: &str, expected| {
            Err(ConfigError::Option { option: "RegistrationSet", value: value.to_owned(), expected })
        };
        let each: Arc<[Registration]> = registrations.into_iter().collect();
        let drains: Vec<Drain> = each.iter().map(Registration::drain).collect();
        let Some(limit) = drains.iter().map(Drain::configured_limit).max() else {
            return refuse("of no registration", "at least one; without etcd, server::Drain shuts a server down");
        };
        if each.iter().any(|registration| registration.is_joined_to_others(&each)) {
            return refuse("of another set", "registrations that are in no other");
        }
        let mut used = drains.iter().filter(|drain| drain.is_used());
        let drain = used.next().cloned().unwrap_or_default();
        if !used.all(|other| other.is_same(&drain)) {
            return refuse("of different servers", "registrations of one, or whose layers are not taken yet");
        }
        // They belong to one server, so that the address of any tells its log lines from those of other servers.
        let address = each.first().map(|registration| registration.address().to_string().into());
        let drain = drain.limit(limit).at(address);
        Registration::join(&each, &drain);
        Ok(Self { each, drain })
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

    pub(super) async fn deregister_all(&self) {
        self.deregister().await;
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
    use std::convert::Infallible;
    use std::future::ready;

    use futures_util::stream;
    use http::{Request, Response};
    use tokio::time::Instant;
    use tonic::body::Body;
    use tower::{Layer, Service, service_fn};

    use super::super::builder::tests::builder;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn never(_: Request<Body>) -> Result<Response<Body>, Infallible> {
        std::future::pending().await
    }

    fn limited(seconds: u32) -> Registration {
        builder().drain_limit(seconds * SECOND).build().expect("a good instance")
    }

    #[test]
    fn the_drain_of_a_set_has_the_longest_limit_and_an_empty_one_is_refused() {
        let set = RegistrationSet::new([limited(2), limited(7), limited(3)]).expect("three of one server");
        assert_eq!(set.drain.configured_limit(), 7 * SECOND, "the longest of three");
        let error = RegistrationSet::new([]).expect_err("there is nothing to register");
        assert!(error.to_string().starts_with("bad RegistrationSet of no registration: "), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn places_of_a_set_and_of_its_registrations_go_together() {
        let (first, second) = (limited(2), limited(3));
        // Taken before the set is there.
        let (layer, signal) = (first.layer(), first.deregister_on(ready(())));
        let set = RegistrationSet::new([first.clone(), second.clone()]).expect("only one was used");
        let mut service = layer.layer(service_fn(never));
        let stuck = service.call(Request::new(Body::empty()));
        assert_eq!([first.in_flight(), second.in_flight(), set.in_flight()], [1; 3], "there is one drain");
        signal.await;
        assert!(set.iter().all(|registration| registration.status().has_ended()), "all leave");
        let began = Instant::now();
        let answer = stuck.await.expect("an answer");
        assert_eq!(began.elapsed(), 3 * SECOND, "it is ended at the limit");
        assert_eq!(answer.status(), http::StatusCode::SERVICE_UNAVAILABLE, "it was no gRPC");
    }

    #[test]
    fn registrations_of_different_servers_are_no_set() {
        let (first, second) = (limited(2), limited(3));
        let _layer = first.layer();
        let _incoming = second.incoming(stream::empty::<Result<tokio::io::Empty, std::io::Error>>());
        let error = RegistrationSet::new([first.clone(), second]).expect_err("calls of one would not be the other's");
        assert!(error.to_string().starts_with("bad RegistrationSet of different servers: "), "{error}");
        let again = RegistrationSet::new([first.clone(), limited(1)]).expect("one of them is new");
        assert!(RegistrationSet::new(again.iter().cloned()).is_ok(), "they are of one server already");
        let error = RegistrationSet::new([limited(1), first]).expect_err("it has left with others");
        assert!(error.to_string().starts_with("bad RegistrationSet of another set: "), "{error}");
    }
}
