//! A client with TLS; with mutual TLS, if it has a certificate to show.
//!
//! `tls_client ETCD_URL CA [CERT KEY]`: the authority of the servers, a certificate and its key, all in PEM files.

use std::error::Error;
use std::time::Duration;

use tonic_etcd::{ClientTls, Registry};

use proto::hello::HelloRequest;
use proto::hello::hello_client::HelloClient;

mod proto;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, ca, identity @ ..] = &arguments[..] else {
        return Err("usage: tls_client ETCD_URL CA [CERT KEY]".into());
    };
    // Servers have one certificate for all, whatever their addresses. Without a name each must have one for its address.
    let mut tls = ClientTls::new().ca_file(ca)?.server_name("hello.internal")?;
    if let [cert, key] = identity {
        tls = tls.identity_files(cert, key)?;
    }

    let registry = Registry::builder([url]).build()?;
    let channel = registry.channel("hello").tls(tls).timeout(Duration::from_secs(5)).build()?;
    let reply = HelloClient::new(channel).say_hello(HelloRequest { name: "client".to_owned() }).await;
    match reply {
        Ok(reply) => println!("{}", reply.into_inner().message),
        Err(status) => return Err(format!("the call failed: {}", status.message()).into()),
    }
    Ok(())
}
