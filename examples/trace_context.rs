//! A server in the middle of a trace: calls made for a call carry its W3C trace context, and are spans within its own.

use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_etcd::{BalancedChannel, Instance, Registry, shutdown_signal};
use tower::{Service, service_fn};
use tracing::{Instrument, info_span};

use proto::hello::hello_client::HelloClient;
use proto::hello::hello_server::{Hello, HelloServer};
use proto::hello::{HelloReply, HelloRequest};

mod proto;

tokio::task_local! { static TRACE: String }

/// The trace that a request names, or a new one, with an id for its handling here: as OpenTelemetry's propagator does.
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
    let trace = TRACE.get().parse().map_err(|_| Status::internal("the trace is no header value"))?;
    request.metadata_mut().insert("traceparent", trace);
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
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let log = tracing_subscriber::fmt().with_env_filter("info,tonic_etcd::channel=debug").with_ansi(false);
    log.with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE).without_time().init();
    let url = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:2379".to_owned());
    let registry = Registry::builder([url]).build()?;
    let front = HelloServer::new(Front(registry.channel("hello").timeout(std::time::Duration::from_secs(5)).build()?));
    // The layer around all services of the server: each call is handled within its trace.
    let traced = service_fn(move |request: http::Request<_>| {
        let trace = trace_of(request.headers());
        let span = info_span!("handle", %trace);
        TRACE.scope(trace, front.clone().call(request)).instrument(span)
    });
    let incoming = TcpIncoming::bind("0.0.0.0:0".parse()?)?;
    let registration = registry.registration(Instance::new("front", incoming.local_addr()?)).build()?;
    Ok(registration.serve(traced, incoming, shutdown_signal()).await?)
}
