//! A policy around another one: what the inner one says and sees stays what it is.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use http::{HeaderName, Request};

use super::*;
use crate::channel::picks::tester::PolicyTester;

/// Wraps a policy, and says nothing of its own. Keeps the peaks that its pickers see.
#[derive(Debug)]
struct Wrapper<P> {
    then: P,
    peaks: Arc<Mutex<Vec<Option<Duration>>>>,
}

struct WrappedPicker {
    picker: Box<dyn Picker>,
    peaks: Arc<Mutex<Vec<Option<Duration>>>>,
}

impl<P: Policy> Policy for Wrapper<P> {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        Box::new(WrappedPicker { picker: self.then.picker(candidates), peaks: self.peaks.clone() })
    }

    fn inner(&self) -> Option<&dyn Policy> {
        Some(&self.then)
    }
}

impl Picker for WrappedPicker {
    fn pick(&self, candidates: &[Candidate], call: &PickArgs<'_>) -> Option<usize> {
        *self.peaks.lock().expect("no thread panicked") = candidates.iter().map(Candidate::peak_latency).collect();
        self.picker.pick(candidates, call)
    }
}

/// A policy in a wrapper in a wrapper, and in the boxes that people have policies in.
fn wrapped(policy: impl Policy) -> (impl Policy, Arc<Mutex<Vec<Option<Duration>>>>) {
    let peaks = Arc::<Mutex<_>>::default();
    let then: Box<dyn Policy> = Box::new(Arc::new(Wrapper { then: policy, peaks: Arc::default() }));
    (Wrapper { then, peaks: peaks.clone() }, peaks)
}

fn tester(policy: impl Policy) -> PolicyTester {
    let instance = |port| Instance::new("echo", SocketAddr::from(([127, 0, 0, 1], port)));
    PolicyTester::new(policy, (1..=10).map(instance))
}

#[test]
fn ring_hash_keeps_its_keys_and_owners_in_a_wrapper() {
    let ring = || RingHash::by_header(HeaderName::from_static("x-user"));
    let (alone, wrapped) = (tester(ring()), tester(wrapped(ring()).0));
    for user in 0..100 {
        let request = Request::builder().header("x-user", user).body(()).expect("a request");
        let owner = |tester: &PolicyTester| tester.pick_for(&request).expect("all are READY").instance().clone();
        assert_eq!(owner(&alone), owner(&wrapped), "user {user} has one owner");
    }
    let request = Request::builder().header("x-user", 7).body(()).expect("a request");
    let head = CallHead::from(&request);
    let (boxed, shared) = (Policy::key(&Box::new(ring()), &head), Policy::key(&Arc::new(ring()), &head));
    let alone = ring().key(&head);
    assert!(alone.is_some() && (alone, alone) == (boxed, shared), "{alone:?}, {boxed:?}, {shared:?}");
    let [ring, wrapped] = [ring().needs(), self::wrapped(ring()).0.needs()];
    assert!(wrapped.every_instance() && wrapped.full_weights(), "{wrapped:?}");
    assert_eq!(ring, wrapped, "it needs what it needs alone");
}

#[test]
fn peak_ewma_keeps_its_peaks_in_a_wrapper_and_others_measure_none() {
    for (policy, measures) in
        [(Box::new(PeakEwma::new()) as Box<dyn Policy>, true), (Box::new(LeastRequest::new()), false)]
    {
        let (policy, peaks) = wrapped(policy);
        let tester = tester(policy);
        for _ in 0..100 {
            tester.pick().expect("all are READY").answered(Duration::from_millis(3));
        }
        let peaks = peaks.lock().expect("no thread panicked");
        assert_eq!(peaks.iter().any(Option::is_some), measures, "{tester:?}");
    }
}

#[test]
fn what_two_policies_need_is_what_either_needs() {
    let both = PeakEwma::new().needs().and(PickFirst::new().needs());
    assert_eq!(both, Needs::new().with_peak_latency().with_full_weights());
    assert_eq!(Needs::new().and(Needs::new()), Needs::default());
}

/// Fills the first instance that was not tried, and has no opinion once all were.
#[derive(Debug)]
struct Untried;

impl Policy for Untried {
    fn picker(&self, _: &[Candidate]) -> Box<dyn Picker> {
        Box::new(Self)
    }
}

impl Picker for Untried {
    fn pick(&self, candidates: &[Candidate], call: &PickArgs<'_>) -> Option<usize> {
        candidates.iter().position(|candidate| !call.has_tried(candidate))
    }
}

#[test]
fn a_picker_learns_which_instances_a_call_tried_and_may_leave_the_choice_to_the_channel() {
    let set = ReadySet::of(candidates(&[1; 3]), &Untried);
    let instances: Vec<_> = set.candidates().iter().map(|candidate| candidate.shared_instance().clone()).collect();
    for tried in 0..3 {
        let taken = set.take(&instances[..tried]).expect("all have room");
        assert_eq!(taken.instance(), &*instances[tried], "the first that was not tried");
    }
    assert!(set.take(&instances).is_some(), "no opinion, so any with room");
}

#[test]
fn a_weight_is_that_of_the_instance_and_in_slow_start_its_part_of_it() {
    let all = candidates(&[10, 0, 65_535]);
    let weights: Vec<_> = all.iter().map(|candidate| format!("{}", candidate.weight())).collect();
    assert_eq!(weights, ["10", "1", "65535"], "1 where an instance states 0");
    let starting = all.into_iter().map(|candidate| format!("{}", candidate.with_percent(55).weight()));
    assert_eq!(starting.collect::<Vec<_>>(), ["5.5", "0.55", "36044.25"], "in the same unit");
}
