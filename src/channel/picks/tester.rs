//! A policy without connections: a call up to the moment of sending.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::ready_set::ReadySet;
use crate::channel::policy::candidate::Candidate;
use crate::channel::policy::load::Load;
use crate::channel::policy::{CallHead, PickArgs, Policy};
use crate::instance::Instance;

/// Picks by a policy among instances that are all READY, without connecting to any: for tests and measurements of
/// policies.
///
/// A pick is what every call of a channel begins with, down to the last count.
///
/// ```
/// use tonic_etcd::Instance;
/// use tonic_etcd::policy::LeastRequest;
/// use tonic_etcd::testing::PolicyTester;
///
/// let instance = |port| Instance::new("echo", std::net::SocketAddr::from(([127, 0, 0, 1], port)));
/// let tester = PolicyTester::new(LeastRequest::new(), [instance(1), instance(2)]);
///
/// let call = tester.pick().expect("both are READY");
/// let next = tester.pick().expect("both are READY");
/// assert_ne!(call.instance(), next.instance(), "the first has a call in flight");
/// ```
pub struct PolicyTester {
    policy: Box<dyn Policy>,
    ready: ArcSwap<ReadySet<()>>,
}

impl PolicyTester {
    /// Tests `policy` with these instances, each with room for any number of calls.
    pub fn new(policy: impl Policy, instances: impl IntoIterator<Item = Instance>) -> Self {
        let instances: Vec<Instance> = instances.into_iter().collect();
        let measures_peaks = policy.needs().peak_latency();
        // All loads first: they come to lie side by side, as a pick likes it.
        let loads: Vec<Arc<Load>> =
            instances.iter().map(|_| Arc::new(Load::new(u32::MAX).measuring_peaks(measures_peaks))).collect();
        let member = |(load, instance)| (Candidate::new(load, Arc::new(instance)), ());
        let members = loads.into_iter().zip(instances).map(member).collect();
        let ready = ReadySet::new(members, 0, |candidates| policy.picker(candidates));
        Self { policy: Box::new(policy), ready: ArcSwap::from_pointee(ready) }
    }

    /// Begins a call, which is in flight until what is returned is dropped. `None` where there are no instances.
    #[must_use]
    pub fn pick(&self) -> Option<TestPick> {
        self.take(None)
    }

    /// Begins a call with the head of this [`http::Request`], or with this one alone, for policies that look at it.
    #[must_use]
    pub fn pick_for<'a>(&self, call: impl Into<CallHead<'a>>) -> Option<TestPick> {
        self.take(self.policy.key(&call.into()))
    }

    fn take(&self, key: Option<u64>) -> Option<TestPick> {
        let ready = self.ready.load();
        let index = ready.acquire(&PickArgs::new(key, &[]))?;
        Some(TestPick { candidate: ready.candidate(index).clone() })
    }
}

impl fmt::Debug for PolicyTester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready = self.ready.load();
        f.debug_struct("PolicyTester").field("policy", &self.policy).field("candidates", &ready.candidates()).finish()
    }
}

/// A call that a [`PolicyTester`] sent to an instance; in flight until it is dropped.
#[derive(Debug)]
pub struct TestPick {
    candidate: Candidate,
}

impl TestPick {
    /// The instance that was chosen.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        self.candidate.instance()
    }

    /// The response began `after` the call was sent.
    pub fn answered(&self, after: Duration) {
        let now = Instant::now();
        self.candidate.load().on_answer();
        self.candidate.load().on_latency(now, after);
    }

    /// The instance failed the call at once: INTERNAL, UNIMPLEMENTED, UNKNOWN, `DATA_LOSS`, or an answer that is no
    /// gRPC.
    pub fn failed_at_once(&self) {
        let now = Instant::now();
        self.candidate.load().on_answer();
        self.candidate.load().on_fast_failure(now);
    }

    /// The instance shed the call, and wants to be spared for `pause`, which counts up to five seconds. An instance
    /// that says nothing of that is spared for half a second.
    pub fn shed(&self, pause: Duration) {
        let now = Instant::now();
        self.candidate.load().on_answer();
        self.candidate.load().on_shed(now, pause);
    }

    /// The call's deadline passed, and the instance answered no other meanwhile.
    pub fn missed(&self) {
        self.candidate.load().on_missed(Instant::now());
    }

    /// The call failed.
    pub fn failed(&self) {
        self.candidate.load().on_failure(Instant::now());
    }
}

impl Drop for TestPick {
    fn drop(&mut self) {
        self.candidate.load().quota().release();
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
        let tester = PolicyTester::new(LeastRequest::new(), [instance(1)]);
        let calls: Vec<_> = (0..3).filter_map(|_| tester.pick()).collect();
        assert_eq!(calls[0].candidate.in_flight(), 3, "three calls were begun");
        drop(calls);
        assert_eq!(tester.pick().map(|call| call.candidate.in_flight()), Some(1), "they are over");
    }

    #[test]
    fn a_slow_answer_turns_the_next_call_away() {
        let tester = PolicyTester::new(LeastRequest::new(), [instance(1), instance(2)]);
        let (one, other) = (tester.pick().expect("one of two"), tester.pick().expect("the other"));
        one.answered(Duration::from_millis(100));
        other.answered(Duration::from_millis(1));
        let (slow, fast) = (one.instance().clone(), other.instance().clone());
        drop((one, other));
        for _ in 0..100 {
            assert_eq!(tester.pick().expect("both are there").instance(), &fast, "{slow:?} is a hundred times slower");
        }
    }

    #[test]
    fn a_tester_without_instances_picks_none() {
        assert!(PolicyTester::new(LeastRequest::new(), []).pick().is_none());
    }
}
