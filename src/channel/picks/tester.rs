//! A policy at work without connections: what a call does up to the moment of sending.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::request::Parts;
use tokio::time::Instant;

use crate::channel::picks::ready_set::Choice;
use crate::channel::policy::Policy;
use crate::channel::policy::candidate::{Candidate, Load};
use crate::instance::Instance;

/// Picks by a policy among instances that are all READY, without connecting to any: for tests and measurements of policies.
///
/// A pick is what every call of a channel begins with, down to the last count.
///
/// ```
/// use tonic_etcd::{Instance, LeastRequest, Trial};
///
/// let instance = |port| Instance::new("echo", std::net::SocketAddr::from(([127, 0, 0, 1], port)));
/// let trial = Trial::new(LeastRequest::new(), [instance(1), instance(2)]);
///
/// let call = trial.pick().expect("both are READY");
/// let next = trial.pick().expect("both are READY");
/// assert_ne!(call.instance(), next.instance(), "the first has a call in flight");
/// ```
pub struct Trial {
    policy: Box<dyn Policy>,
    choice: ArcSwap<Choice>,
}

impl Trial {
    /// A trial of `policy` with these instances, each with room for any number of calls.
    pub fn new(policy: impl Policy, instances: impl IntoIterator<Item = Instance>) -> Self {
        let instances: Vec<Instance> = instances.into_iter().collect();
        // All loads first: they come to lie side by side, as a pick likes it.
        let loads: Vec<Arc<Load>> = instances.iter().map(|_| Load::new(u32::MAX, None)).collect();
        if policy.measures_peaks() {
            for load in &loads {
                load.measure_peaks();
            }
        }
        let candidate = |(load, instance)| Candidate::new(load, Arc::new(instance));
        let candidates = loads.into_iter().zip(instances).map(candidate).collect();
        let choice = ArcSwap::from_pointee(Choice::new(candidates, &policy));
        Self { policy: Box::new(policy), choice }
    }

    /// Begins a call, which is in flight until what is returned is dropped. `None` where there are no instances.
    #[must_use]
    pub fn pick(&self) -> Option<Picked> {
        self.take(0)
    }

    /// Begins a call of this head, where the policy looks at that.
    #[must_use]
    pub fn pick_for(&self, request: &Parts) -> Option<Picked> {
        self.take(self.policy.key(request))
    }

    fn take(&self, key: u64) -> Option<Picked> {
        let candidate = self.choice.load().take(&[], key)?.clone();
        Some(Picked { candidate })
    }
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let choice = self.choice.load();
        f.debug_struct("Trial").field("policy", &self.policy).field("candidates", &choice.candidates()).finish()
    }
}

/// A call that a [`Trial`] sent to an instance; in flight until it is dropped.
#[derive(Debug)]
pub struct Picked {
    candidate: Candidate,
}

impl Picked {
    /// The instance that was chosen.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        self.candidate.instance()
    }

    /// Says that the response began `after` the call was sent.
    pub fn answered(&self, after: Duration) {
        let now = Instant::now();
        self.candidate.load().is_alive(now);
        self.candidate.load().answered_at(now, after);
    }

    /// Says that the call failed.
    pub fn failed(&self) {
        self.candidate.load().failed_at(Instant::now());
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.candidate.load().release();
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::channel::policy::LeastRequest;

    fn instance(port: u16) -> Instance {
        Instance::new("echo", SocketAddr::from(([127, 0, 0, 1], port)))
    }

    #[test]
    fn a_call_is_in_flight_until_it_is_dropped() {
        let trial = Trial::new(LeastRequest::new(), [instance(1)]);
        let calls: Vec<_> = (0..3).filter_map(|_| trial.pick()).collect();
        assert_eq!(calls[0].candidate.in_flight(), 3, "three calls were begun");
        drop(calls);
        assert_eq!(trial.pick().map(|call| call.candidate.in_flight()), Some(1), "they are over");
    }

    #[test]
    fn a_slow_answer_turns_the_next_call_away() {
        let trial = Trial::new(LeastRequest::new(), [instance(1), instance(2)]);
        let (one, other) = (trial.pick().expect("one of two"), trial.pick().expect("the other"));
        one.answered(Duration::from_millis(100));
        other.answered(Duration::from_millis(1));
        let (slow, fast) = (one.instance().clone(), other.instance().clone());
        drop((one, other));
        for _ in 0..100 {
            assert_eq!(trial.pick().expect("both are there").instance(), &fast, "{slow:?} is a hundred times slower");
        }
    }

    #[test]
    fn a_trial_without_instances_picks_none() {
        assert!(Trial::new(LeastRequest::new(), []).pick().is_none());
    }
}
