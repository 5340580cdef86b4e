//! What the pick of an instance costs a call, from the pick to the end of the call, against tower's balancer.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, criterion_group, criterion_main};
use tokio::runtime::Builder;
use tonic_etcd::Instance;
use tonic_etcd::policy::{LeastRequest, PeakEwma, Policy, RingHash, WeightedRandom, WeightedRoundRobin};
use tonic_etcd::testing::PolicyTester;
use tower::balance::p2c::Balance;
use tower::buffer::Buffer;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PendingRequestsDiscover};
use tower::{Service, ServiceExt};

fn picker(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    for count in [10, 100, 1_000, 10_000] {
        pick(&mut group, "least_request", LeastRequest::new(), count, |_| 10);
    }
    pick(&mut group, "least_request_weighted", LeastRequest::new(), 10_000, unequal);
    for count in [100, 1_000] {
        pick(&mut group, "weighted_round_robin", WeightedRoundRobin::new(), count, |_| 10);
    }
    pick(&mut group, "weighted_round_robin_weighted", WeightedRoundRobin::new(), 10_000, unequal);
    pick(&mut group, "weighted_random", WeightedRandom::new(), 1_000, unequal);
    pick(&mut group, "peak_ewma", PeakEwma::new(), 1_000, |_| 10);
    ring_hash(&mut group, 1_000);
    buffer_p2c(&mut group, 100);
    group.finish();
}

/// One call in flight at a time, over instances that have all answered equally fast.
fn pick(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    policy: impl Policy,
    count: u16,
    weight: impl Fn(u16) -> u16,
) {
    let tester = PolicyTester::new(policy, (0..count).map(|index| instance(index, weight(index))));
    for _ in 0..u32::from(count) * 10 {
        tester.pick().expect("all are ready").answered(Duration::from_millis(1));
    }
    group.bench_function(format!("{name}/{count}"), |bencher| bencher.iter(|| tester.pick()));
}

/// Each call has another key. And what it costs to make a ring.
fn ring_hash(group: &mut BenchmarkGroup<'_, WallTime>, count: u16) {
    let policy = || RingHash::by(|_| Some(fastrand::u64(..)));
    let (head, ()) = http::Request::new(()).into_parts();
    let tester = PolicyTester::new(policy(), (0..count).map(|index| instance(index, 10)));
    group.bench_function(format!("ring_hash/{count}"), |bencher| bencher.iter(|| tester.pick_for(&head)));
    let instances: Vec<_> = (0..10_000).map(|index| instance(index, 10)).collect();
    group.sample_size(10).bench_function("ring_of/10000", |bencher| {
        bencher.iter_batched(|| instances.clone(), |all| PolicyTester::new(policy(), all), BatchSize::PerIteration);
    });
    group.sample_size(100);
}

fn instance(index: u16, weight: u16) -> Instance {
    let [high, low] = u16::to_be_bytes(index);
    let address = SocketAddr::from(([10, 0, high, low], 50_051));
    Instance::new("echo", address).with_weight(weight)
}

fn unequal(index: u16) -> u16 {
    1 + index * 31 % 100
}

/// One call by tower's balancer with its usual load measure, behind the buffer that shares it between callers.
///
/// On one thread, which flatters it: with its worker on another, each call also waits for two wake-ups.
fn buffer_p2c(group: &mut BenchmarkGroup<'_, WallTime>, count: u16) {
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    let services = ServiceList::new::<()>((0..count).map(|_| Answer));
    let balance = Balance::new(PendingRequestsDiscover::new(services, CompleteOnResponse::default()));
    let (buffer, worker) = Buffer::pair(balance, 1_024);
    runtime.spawn(worker);
    group.bench_function(format!("buffer_p2c/{count}"), |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            let mut buffer = buffer.clone();
            buffer.ready().await.expect("it never fails").call(()).await.expect("it never fails");
        });
    });
}

/// Always ready, and answers at once with nothing.
#[derive(Clone)]
struct Answer;

impl Service<()> for Answer {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

criterion_group!(benches, picker);
criterion_main!(benches);
