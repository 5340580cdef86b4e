//! An interceptor and tower layers around the channel: a token and an id for each call, a limit, times and servers.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use tonic::body::Body;
use tonic::{Request, Status};
use tonic_etcd::{Instance, Registry};
use tower::ServiceBuilder;

use proto::hello::HelloRequest;
use proto::hello::hello_client::HelloClient;

mod proto;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let url = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:2379".to_owned());
    let registry = Registry::builder([url]).build()?;
    let channel = registry.channel("hello").timeout(Duration::from_secs(5)).wait_for_ready(true).build()?;

    // The first layer is the outermost one. The deadline stays the channel's: it covers responses to their end.
    let layered = ServiceBuilder::new()
        .concurrency_limit(64)
        .map_request(|mut request: http::Request<Body>| {
            request.headers_mut().insert("x-request-id", HeaderValue::from(fastrand::u64(..)));
            request
        })
        .map_future(|call| async move {
            let begin = Instant::now();
            let response = call.await;
            println!("a response began after {:?}", begin.elapsed());
            response
        })
        .service(channel);
    let mut client = HelloClient::with_interceptor(layered, authorize);

    for _ in 0..3 {
        let reply = client.say_hello(HelloRequest { name: "etcd".to_owned() }).await?;
        // The channel says which server it was.
        let server = reply.extensions().get::<Arc<Instance>>().map(|server| server.address().to_string());
        println!("{} from {}", reply.get_ref().message, server.unwrap_or_default());
    }
    Ok(())
}

/// The token that all calls carry.
fn authorize(mut request: Request<()>) -> Result<Request<()>, Status> {
    let token = "Bearer some-token".parse().map_err(|_| Status::internal("the token is no header value"))?;
    request.metadata_mut().insert("authorization", token);
    Ok(request)
}
