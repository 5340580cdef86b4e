//! What the registration layer adds to a call of a server, against the same service without it, and against a layer
//! that only counts the calls in flight: around a service that does nothing, and around one of tonic's.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use criterion::{Criterion, criterion_group, criterion_main};
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt as _;
use prost::Message as _;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::body::Body;
use tonic_etcd::{Instance, Registration, Registry};
use tower::{BoxError, Layer, Service};
use tower_http::metrics::InFlightRequestsLayer;

use self::proto::hello::hello_server::{Hello, HelloServer};
use self::proto::hello::{HelloReply, HelloRequest};

#[path = "../examples/proto/mod.rs"]
mod proto;

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

/// Says hello at once.
#[derive(Clone)]
struct Greets;

#[tonic::async_trait]
impl Hello for Greets {
    async fn say_hello(&self, request: tonic::Request<HelloRequest>) -> Result<tonic::Response<HelloReply>, Status> {
        Ok(tonic::Response::new(HelloReply { message: request.into_inner().name }))
    }
}

/// A request's only message, as it comes from a connection: then the body is over.
struct Whole(Option<Bytes>);

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

fn layer(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let registration = registration();
    // Counts as in a server, but registers nothing: no etcd is needed.
    let counted = registration.layer().count_only();
    let (in_flight_only, in_flight) = InFlightRequestsLayer::pair();

    nothing(criterion, &runtime, "bare", Answer);
    nothing(criterion, &runtime, "in_flight_only", in_flight_only.layer(Answer));
    nothing(criterion, &runtime, "counted", counted.layer(Answer));

    let hello = HelloServer::new(Greets);
    say_hello(criterion, &runtime, "bare", hello.clone());
    say_hello(criterion, &runtime, "in_flight_only", in_flight_only.layer(hello.clone()));
    say_hello(criterion, &runtime, "counted", counted.layer(hello));

    assert_eq!(in_flight.get(), 0, "all calls have ended");
}

/// A call that carries nothing there and back.
fn nothing<S, B>(criterion: &mut Criterion, runtime: &Runtime, layer: &str, mut service: S)
where
    S: Service<Request<Body>, Response = Response<B>>,
{
    criterion.bench_function(&format!("call/nothing/{layer}"), |bencher| {
        bencher.to_async(runtime).iter(|| service.call(Request::new(Body::empty())));
    });
}

/// A unary call through a service that tonic generated, with a message of eight bytes there and back.
fn say_hello<S, B>(criterion: &mut Criterion, runtime: &Runtime, layer: &str, mut service: S)
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let message = frame_of(&HelloRequest { name: "a caller".to_owned() });
    criterion.bench_function(&format!("call/hello/{layer}"), |bencher| {
        bencher.to_async(runtime).iter(|| {
            let request = Request::post("/hello.Hello/SayHello")
                .header(CONTENT_TYPE, "application/grpc")
                .body(Body::new(Whole(Some(message.clone()))))
                .expect("a constant request is a good one");
            let response = service.call(request);
            async {
                let Ok(response) = response.await;
                let collected = response.into_body().collect().await.map_err(Into::into).expect("the body arrives");
                assert!(collected.trailers().is_some_and(|trailers| trailers["grpc-status"] == "0"), "it is answered");
            }
        });
    });
}

/// As gRPC frames a message: whether it is compressed, its length, itself.
fn frame_of(message: &HelloRequest) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).expect("a short message"));
    message.encode(&mut frame).expect("the buffer grows");
    frame.freeze()
}

fn registration() -> Registration {
    let registry = Registry::builder(["http://127.0.0.1:1"]).build().expect("a good registry");
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    registry.registration(Instance::new("hello", address)).build().expect("a good instance")
}

criterion_group!(benches, layer);
criterion_main!(benches);
