//! A client of servers on Unix sockets: it finds their names in etcd, and the channel's connector opens the sockets.
//!
//! `unix_client [ETCD_URL [FOLDER]]`: the folder of the sockets.

use std::error::Error;

mod proto;

#[cfg(unix)]
#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    use std::time::Duration;

    use hyper_util::rt::TokioIo;
    use proto::hello::HelloRequest;
    use proto::hello::hello_client::HelloClient;
    use tokio::net::UnixStream;
    use tonic::transport::Uri;
    use tonic_etcd::Registry;

    tracing_subscriber::fmt().init();
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "http://127.0.0.1:2379".to_owned());
    let folder = arguments.next().unwrap_or_else(|| "/tmp".to_owned());

    // It is given `http://`, the address of a server and `/`, for each connection.
    let connector = tower::service_fn(move |address: Uri| {
        let path = format!("{folder}/{}.sock", address.host().unwrap_or_default());
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let registry = Registry::builder([url]).build()?;
    let channel = registry.channel("hello").connector(connector).timeout(Duration::from_secs(5)).build()?;
    let mut client = HelloClient::new(channel);
    for _ in 0..3 {
        match client.say_hello(HelloRequest { name: "neighbour".to_owned() }).await {
            Ok(reply) => println!("{}", reply.into_inner().message),
            Err(status) => println!("the call failed: {}", status.message()),
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn main() -> Result<(), Box<dyn Error>> {
    Err("this needs Unix sockets".into())
}
