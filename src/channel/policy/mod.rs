//! How the next call's instance is chosen among those that are READY: the trait, and the policies that come with it.

mod average;
pub(crate) mod candidate;
mod clock;
mod least_request;
mod lingering;
pub(crate) mod load;
mod peak_ewma;
mod pick_first;
pub(crate) mod quota;
mod random;
mod ring_hash;
mod round_robin;
mod sampler;
mod shunning;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::sync::Arc;

use http::request::Parts;

use crate::channel::policy::candidate::Candidate;

pub use self::least_request::LeastRequest;
pub use self::peak_ewma::PeakEwma;
pub use self::pick_first::PickFirst;
pub use self::random::WeightedRandom;
pub use self::ring_hash::RingHash;
pub use self::round_robin::WeightedRoundRobin;

/// Chooses the instance of each call.
///
/// A policy works in two steps. Whenever the set of candidates changes, a weight or a tag included, the channel's own
/// task asks it for a [`Picker`]: here is the time for sorting and tables. Then every call asks that picker, on the
/// task that makes the call.
///
/// The channel takes care of the rest: it asks again when the chosen instance has no room for a call, goes through the
/// others when that does not help, and asks about READY instances that are neither ejected nor draining; without any
/// about ejected ones, and without any about draining ones.
///
/// A policy that panics costs no other call: where [`picker`](Self::picker) panics, calls go to any instance with room
/// until the next one is made, and where [`key`](Self::key) does, its call fails with INTERNAL.
///
/// Ready-made are [`LeastRequest`], [`PeakEwma`], [`WeightedRoundRobin`], [`WeightedRandom`], [`PickFirst`] and
/// [`RingHash`]. One of your own can wrap them, and passes on all that the inner one says: this one stays in its zone
/// while an instance is READY there.
///
/// ```
/// use tonic_etcd::Instance;
/// use tonic_etcd::policy::{Candidate, LeastRequest, Picker, Policy};
/// use tonic_etcd::testing::PolicyTester;
///
/// /// Picks in one zone while it can, and everywhere otherwise.
/// #[derive(Debug)]
/// struct PreferZone<P> {
///     zone: String,
///     then: P,
/// }
///
/// impl<P: Policy> Policy for PreferZone<P> {
///     fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
///         let is_near = |candidate: &Candidate| candidate.instance().tags.get("zone") == Some(self.zone.as_str());
///         let (places, near): (Vec<_>, Vec<_>) =
///             candidates.iter().cloned().enumerate().filter(|(_, candidate)| is_near(candidate)).unzip();
///         if near.is_empty() {
///             return self.then.picker(candidates);
///         }
///         let picker = self.then.picker(&near);
///         Box::new(InZone { places, near, picker })
///     }
///
///     fn key(&self, request: &http::request::Parts) -> u64 {
///         self.then.key(request)
///     }
///
///     fn measures_peaks(&self) -> bool {
///         self.then.measures_peaks()
///     }
///
///     fn starts_slowly(&self) -> bool {
///         self.then.starts_slowly()
///     }
/// }
///
/// struct InZone {
///     places: Vec<usize>,
///     near: Vec<Candidate>,
///     picker: Box<dyn Picker>,
/// }
///
/// impl Picker for InZone {
///     fn pick(&self, _: &[Candidate], key: u64) -> usize {
///         self.places[self.picker.pick(&self.near, key)]
///     }
/// }
///
/// let here = Instance::new("echo", "127.0.0.1:1".parse::<std::net::SocketAddr>()?).with_tag("zone", "a");
/// let there = Instance::new("echo", "127.0.0.1:2".parse::<std::net::SocketAddr>()?).with_tag("zone", "b");
///
/// let in_a = PreferZone { zone: "a".into(), then: LeastRequest::new() };
/// let tester = PolicyTester::new(in_a, [here.clone(), there.clone()]);
/// for _ in 0..100 {
///     assert_eq!(tester.pick().expect("both are READY").instance().address, here.address);
/// }
///
/// let in_c = PreferZone { zone: "c".into(), then: LeastRequest::new() };
/// assert!(PolicyTester::new(in_c, [here, there]).pick().is_some(), "no instance in zone c, so any will do");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// What chooses among `candidates` until they change. They are never empty, and in no particular order.
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker>;

    /// The key of a call for the picker, made from the head of its request. Defaults to 0, for policies that look at
    /// instances only.
    ///
    /// Called once per call, before anything else; a policy around another one passes on what that one says.
    fn key(&self, request: &Parts) -> u64 {
        let _ = request;
        0
    }

    /// Whether the policy looks at [`Candidate::peak_latency`]. Defaults to `false`: measuring costs each call a
    /// little.
    ///
    /// Called once, when the channel is built; a policy around another one passes on what that one says.
    fn measures_peaks(&self) -> bool {
        false
    }

    /// Whether new instances [start slowly](crate::ChannelBuilder::slow_start) with this policy, if the channel has
    /// that option. Defaults to `true`: then a picker is asked for after each percent by which a share has grown.
    /// `false` is for policies that do not share calls by weight, or where calls have to find the same instance again.
    ///
    /// Called once, when the channel is built; a policy around another one passes on what that one says.
    fn starts_slowly(&self) -> bool {
        true
    }
}

/// Chooses among candidates that do not change.
pub trait Picker: Send + Sync + 'static {
    /// The index of the candidate for the next call.
    ///
    /// `candidates` are those that the picker was made from, in the same order. Called by every call, from many threads
    /// at once: it must not block. An index beyond them is no error; then the channel takes any that has room. `key` is
    /// what [`Policy::key`] made of the call.
    fn pick(&self, candidates: &[Candidate], key: u64) -> usize;
}

impl<P: Policy + ?Sized> Policy for Box<P> {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        (**self).picker(candidates)
    }

    fn key(&self, request: &Parts) -> u64 {
        (**self).key(request)
    }

    fn measures_peaks(&self) -> bool {
        (**self).measures_peaks()
    }

    fn starts_slowly(&self) -> bool {
        (**self).starts_slowly()
    }
}

impl<P: Policy + ?Sized> Policy for Arc<P> {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        (**self).picker(candidates)
    }

    fn key(&self, request: &Parts) -> u64 {
        (**self).key(request)
    }

    fn measures_peaks(&self) -> bool {
        (**self).measures_peaks()
    }

    fn starts_slowly(&self) -> bool {
        (**self).starts_slowly()
    }
}
