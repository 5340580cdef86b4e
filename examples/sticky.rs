//! Sticky calls by ring hash: all calls of one user go to one server, the same for every client.

use std::error::Error;
use std::time::Duration;

use http::HeaderName;
use tonic::Request;
use tonic_etcd::Registry;
use tonic_etcd::policy::RingHash;

use proto::echo::EchoRequest;
use proto::echo::echo_client::EchoClient;

mod proto;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let url = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:2379".to_owned());
    let registry = Registry::builder([url]).build()?;
    let by_user = RingHash::by_header(HeaderName::from_static("x-user"));
    let channel = registry.channel("echo").policy(by_user).timeout(Duration::from_secs(5)).build()?;
    let mut client = EchoClient::new(channel);

    // Start and stop servers meanwhile: only the users of a server that leaves move, and come back with it.
    loop {
        for user in ["anna", "bert", "cleo", "dora", "emil", "faye", "gwen", "hans"] {
            let mut request = Request::new(EchoRequest { message: "hello".to_owned() });
            request.metadata_mut().insert("x-user", user.parse()?);
            match client.unary_echo(request).await {
                Ok(reply) => println!("{user} is at {}", reply.into_inner().address),
                Err(status) => println!("{user} is nowhere: {}", status.message()),
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
