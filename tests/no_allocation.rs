//! A pick allocates nothing, by whatever policy.

use std::net::SocketAddr;

use tonic_etcd::Instance;
use tonic_etcd::policy::{
    Candidate, LeastRequest, PeakEwma, PickArgs, PickFirst, Picker, Policy, RingHash, WeightedRandom,
    WeightedRoundRobin,
};
use tonic_etcd::testing::PolicyTester;

fn ring_hash() -> RingHash {
    RingHash::by_header(http::HeaderName::from_static("x-user"))
}

/// A policy around another one, as users write it.
#[derive(Debug)]
struct Around<P>(P);

struct AroundPicker(Box<dyn Picker>);

impl<P: Policy> Policy for Around<P> {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        Box::new(AroundPicker(self.0.picker(candidates)))
    }

    fn inner(&self) -> Option<&dyn Policy> {
        Some(&self.0)
    }
}

impl Picker for AroundPicker {
    fn pick(&self, candidates: &[Candidate], call: &PickArgs<'_>) -> Option<usize> {
        self.0.pick(candidates, call)
    }
}

#[test]
fn a_pick_allocates_nothing_by_any_policy() {
    let policies: [fn() -> Box<dyn Policy>; 7] = [
        || Box::new(LeastRequest::new()),
        || Box::new(WeightedRoundRobin::new()),
        || Box::new(WeightedRandom::new()),
        || Box::new(PickFirst::new()),
        || Box::new(PeakEwma::new()),
        || Box::new(ring_hash()),
        || Box::new(Around(Box::new(Around(ring_hash())))),
    ];
    for policy in policies {
        for (count, weight) in [(1_u16, 10), (100, 10), (1_000, 0)] {
            let instance = |port| {
                let address = SocketAddr::from(([127, 0, 0, 1], port));
                Instance::new("echo", address).with_weight(if weight == 0 { port } else { weight })
            };
            let policy = policy();
            let name = format!("{policy:?}");
            let tester = PolicyTester::new(policy, (1..=count).map(instance));
            let (head, ()) = http::Request::builder().header("x-user", "ann").body(()).expect("a request").into_parts();
            // What a thread's first pick sets up for all later ones is not counted.
            drop(tester.pick());
            let counted = allocation_counter::measure(|| {
                for _ in 0..10_000 {
                    assert!(tester.pick_for(&head).is_some(), "{name}: all instances are ready");
                }
            });
            assert_eq!(counted.count_total, 0, "{name} allocated while picking from {count} instances");
        }
    }
}
