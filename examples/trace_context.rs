//! A server in the middle of a trace: the W3C trace context of a call goes on to the calls that are made for it.

use std::error::Error;

use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_etcd::{BalancedChannel, Instance, Registry, shutdown_signal};
use tower::{Service, service_fn};

use proto::hello::hello_client::HelloClient;
use proto::hello::hello_server::{Hello, HelloServer};
use proto::hello::{HelloReply, HelloRequest};

mod proto;

tokio::task_local! { static TRACE: String }

/// The trace that a request names, or a new one, with an id for its handling here. OpenTelemetry's propagator does this, too.
fn trace_of(headers: &http::HeaderMap) -> String {
    let parent = headers.get("traceparent").and_then(|parent| parent.to_str().ok()).unwrap_or_default();
    let (trace, flags) = match parent.split('-').collect::<Vec<_>>()[..] {
        ["00", trace, _, flags] if trace.len() == 32 => (trace.to_owned(), flags),
        _ => (format!("{:032x}", fastrand::u128(1..)), "01"),
    };
    format!("00-{trace}-{:016x}-{flags}", fastrand::u64(1..))
}

/// The interceptor of calls to others: they belong to the trace of the call that is being handled.
fn pass_on(mut request: Request<()>) -> Result<Request<()>, Status> {
    if let Ok(trace) = TRACE.try_with(|trace| trace.parse()) {
        let trace = trace.map_err(|_| Status::internal("the trace is no header value"))?;
        request.metadata_mut().insert("traceparent", trace);
    }
    Ok(request)
}

struct Front(BalancedChannel);

#[tonic::async_trait]
impl Hello for Front {
    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        println!("a call within {}", TRACE.get());
        HelloClient::with_interceptor(self.0.clone(), pass_on).say_hello(request.into_inner()).await
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let url = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:2379".to_owned());
    let registry = Registry::builder([url]).build()?;
    let front = HelloServer::new(Front(registry.channel("hello").timeout(std::time::Duration::from_secs(5)).build()?));
    // The layer around all services of the server: each call is handled within its trace.
    let traced = service_fn(move |request: http::Request<_>| {
        TRACE.scope(trace_of(request.headers()), front.clone().call(request))
    });
    let incoming = TcpIncoming::bind("0.0.0.0:0".parse()?)?;
    let registration = registry.registration(Instance::new("front", incoming.local_addr()?)).build()?;
    Ok(registration.serve(traced, incoming, shutdown_signal()).await?)
}
