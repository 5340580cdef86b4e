//! What the registration layer adds to a call of a server, against the same service without it, and against a layer that
//! only counts the calls in flight.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::task::{Context, Poll};

use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, Response};
use tokio::runtime::Runtime;
use tonic::body::Body;
use tonic_etcd::{Instance, Registry};
use tower::{Layer, Service};
use tower_http::metrics::InFlightRequestsLayer;

/// Answers at once with nothing.
#[derive(Clone)]
struct Answer;

impl Service<Request<Body>> for Answer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        ready(Ok(Response::new(Body::empty())))
    }
}

fn layer(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let registry = Registry::builder(["http://127.0.0.1:1"]).build().expect("a good registry");
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let registration = registry.registration(Instance::new("echo", address)).build().expect("a good instance");
    let mut bare = Answer;
    criterion.bench_function("call/bare", |bencher| {
        bencher.to_async(&runtime).iter(|| bare.call(Request::new(Body::empty())));
    });
    let (layer, in_flight) = InFlightRequestsLayer::pair();
    let mut in_flight_only = layer.layer(Answer);
    criterion.bench_function("call/in_flight_only", |bencher| {
        bencher.to_async(&runtime).iter(|| in_flight_only.call(Request::new(Body::empty())));
    });
    assert_eq!(in_flight.get(), 0, "all calls have ended");
    // Counts as in a server, but registers nothing: no etcd is needed.
    let mut counted = registration.layer().count_only().layer(Answer);
    criterion.bench_function("call/counted", |bencher| {
        bencher.to_async(&runtime).iter(|| counted.call(Request::new(Body::empty())));
    });
}

criterion_group!(benches, layer);
criterion_main!(benches);
