//! What the registration layer adds to a call of a server, against the same service without it.

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
    // Counts as in a server, but registers nothing: no etcd is needed.
    let mut counted = registration.layer().count_only().layer(Answer);
    criterion.bench_function("call/counted", |bencher| {
        bencher.to_async(&runtime).iter(|| counted.call(Request::new(Body::empty())));
    });
}

criterion_group!(benches, layer);
criterion_main!(benches);
