//! How the next call's instance is chosen among those that are READY: the trait, and the policies that come with it.

mod average;
mod call_head;
pub(crate) mod candidate;
mod clock;
mod least_request;
mod lingering;
pub(crate) mod load;
mod needs;
mod peak_ewma;
mod pick_args;
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

use crate::channel::policy::candidate::Candidate;

pub use self::call_head::CallHead;
pub use self::least_request::LeastRequest;
pub use self::needs::Needs;
pub use self::peak_ewma::PeakEwma;
pub use self::pick_args::PickArgs;
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
/// [`RingHash`]. One of your own can wrap them: it names the other one as [`inner`](Self::inner), and what that says of
/// keys and needs holds for both. This one sends a part of the calls to canaries, and both parts by the policy inside:
///
/// ```
/// use http::{HeaderName, Request};
/// use tonic_etcd::Instance;
/// use tonic_etcd::policy::{Candidate, PickArgs, Picker, Policy, RingHash};
/// use tonic_etcd::testing::PolicyTester;
///
/// /// Sends so many of a hundred calls, or of a hundred keys, to instances with the tag `canary`.
/// #[derive(Debug)]
/// struct Canary<P> {
///     percent: u64,
///     then: P,
/// }
///
/// impl<P: Policy> Policy for Canary<P> {
///     fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
///         let part = |canaries: bool| {
///             let all = candidates.iter().cloned().enumerate();
///             let wanted = all.filter(|(_, one)| one.instance().tags().contains("canary") == canaries);
///             let (indices, candidates): (Vec<_>, Vec<_>) = wanted.unzip();
///             (!indices.is_empty()).then(|| Part { indices, picker: self.then.picker(&candidates), candidates })
///         };
///         match (part(true), part(false)) {
///             (Some(canaries), Some(others)) => Box::new(Split { percent: self.percent, canaries, others }),
///             _ => self.then.picker(candidates),
///         }
///     }
///
///     fn inner(&self) -> Option<&dyn Policy> {
///         Some(&self.then)
///     }
/// }
///
/// struct Split {
///     percent: u64,
///     canaries: Part,
///     others: Part,
/// }
///
/// impl Picker for Split {
///     fn pick(&self, _: &[Candidate], call: &PickArgs<'_>) -> Option<usize> {
///         let is_canary = call.key().unwrap_or_else(|| fastrand::u64(..)) % 100 < self.percent;
///         if is_canary { self.canaries.pick(call) } else { self.others.pick(call) }
///     }
/// }
///
/// /// Some of the candidates, where they are among all of them, and the picker for them.
/// struct Part {
///     indices: Vec<usize>,
///     candidates: Vec<Candidate>,
///     picker: Box<dyn Picker>,
/// }
///
/// impl Part {
///     fn pick(&self, call: &PickArgs<'_>) -> Option<usize> {
///         self.picker.pick(&self.candidates, call).and_then(|index| self.indices.get(index).copied())
///     }
/// }
///
/// let instance = |port| Instance::new("echo", std::net::SocketAddr::from(([127, 0, 0, 1], port)));
/// let by_user = RingHash::by_header(HeaderName::from_static("x-user"));
/// let instances = [instance(1), instance(2), instance(3).with_tag("canary", "yes")];
/// let tester = PolicyTester::new(Canary { percent: 5, then: by_user }, instances);
///
/// let mut canaries = 0;
/// for user in 0..1_000 {
///     let request = Request::builder().header("x-user", user).body(())?;
///     let [first, second] = [(); 2].map(|()| tester.pick_for(&request).expect("all are READY"));
///     assert_eq!(first.instance(), second.instance(), "RingHash still has its keys");
///     canaries += usize::from(first.instance().tags().contains("canary"));
/// }
/// assert!((20..90).contains(&canaries), "about 50 of a thousand users");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// What chooses among `candidates` until they change. They are never empty, and in no particular order.
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker>;

    /// The policy that this one wraps. What it says of [`key`](Self::key) and [`needs`](Self::needs) holds for both,
    /// unless this one says otherwise. Defaults to none.
    fn inner(&self) -> Option<&dyn Policy> {
        None
    }

    /// The key of a call for the picker, made from the head of its request: calls with one key should go to one
    /// instance. `None` for calls that any instance may take, and for policies that look at instances only. Defaults to
    /// what [`inner`](Self::inner) says, or to `None`.
    ///
    /// Called once per call, before anything else.
    fn key(&self, call: &CallHead<'_>) -> Option<u64> {
        self.inner().and_then(|inner| inner.key(call))
    }

    /// What the policy needs of its channel beside candidates. Defaults to what [`inner`](Self::inner) says, or to
    /// nothing.
    ///
    /// Called when the channel is built.
    fn needs(&self) -> Needs {
        self.inner().map(Policy::needs).unwrap_or_default()
    }
}

/// Chooses among candidates that do not change.
pub trait Picker: Send + Sync + 'static {
    /// The index of the candidate for the next call, or `None` for any that has room.
    ///
    /// `candidates` are those that the picker was made from, in the same order. Called by every call, from many threads
    /// at once: it must not block. An index beyond them counts as `None`.
    fn pick(&self, candidates: &[Candidate], call: &PickArgs<'_>) -> Option<usize>;
}

impl<P: Policy + ?Sized> Policy for Box<P> {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        (**self).picker(candidates)
    }

    fn inner(&self) -> Option<&dyn Policy> {
        (**self).inner()
    }

    fn key(&self, call: &CallHead<'_>) -> Option<u64> {
        (**self).key(call)
    }

    fn needs(&self) -> Needs {
        (**self).needs()
    }
}

impl<P: Policy + ?Sized> Policy for Arc<P> {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        (**self).picker(candidates)
    }

    fn inner(&self) -> Option<&dyn Policy> {
        (**self).inner()
    }

    fn key(&self, call: &CallHead<'_>) -> Option<u64> {
        (**self).key(call)
    }

    fn needs(&self) -> Needs {
        (**self).needs()
    }
}
