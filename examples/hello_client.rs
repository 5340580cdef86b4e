//! A client that says hello to the servers registered as "hello", once a second: start and stop servers meanwhile.

use std::error::Error;
use std::time::Duration;

use tonic_etcd::Registry;

use proto::hello::HelloRequest;
use proto::hello::hello_client::HelloClient;

mod proto;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let registry = Registry::builder(["http://127.0.0.1:2379"]).build()?;
    let channel = registry.channel("hello").timeout(Duration::from_secs(5)).build()?;
    let mut client = HelloClient::new(channel);

    loop {
        match client.say_hello(HelloRequest { name: "etcd".to_owned() }).await {
            Ok(reply) => println!("{}", reply.into_inner().message),
            Err(status) => eprintln!("the call failed: {:?}: {}", status.code(), status.message()),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
