//! A server with TLS; with mutual TLS, if it is told which authority signs the certificates of its clients.
//!
//! `tls_server ETCD_URL CERT KEY [CLIENT_CA]`: a certificate for `hello.internal`, its key, an authority, all in PEM files.

use std::error::Error;
use std::fs;

use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};
use tonic_etcd::{Instance, Registry, shutdown_signal};

use proto::hello::hello_server::{Hello, HelloServer};
use proto::hello::{HelloReply, HelloRequest};

mod proto;

struct Greeter;

#[tonic::async_trait]
impl Hello for Greeter {
    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        // With mutual TLS, the certificates that the client showed.
        let is_known = request.peer_certs().is_some_and(|certificates| !certificates.is_empty());
        let known = if is_known { "known" } else { "unknown" };
        Ok(Response::new(HelloReply { message: format!("Hello, {known} {}!", request.into_inner().name) }))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, cert, key, client_ca @ ..] = &arguments[..] else {
        return Err("usage: tls_server ETCD_URL CERT KEY [CLIENT_CA]".into());
    };
    // rustls wants to be told where two of its providers are compiled in, as with all features of tonic-etcd.
    _ = rustls::crypto::ring::default_provider().install_default();
    let mut tls = ServerTlsConfig::new().identity(Identity::from_pem(fs::read(cert)?, fs::read(key)?));
    if let Some(client_ca) = client_ca.first() {
        tls = tls.client_ca_root(Certificate::from_pem(fs::read(client_ca)?));
    }

    let registry = Registry::builder([url]).build()?;
    let incoming = TcpIncoming::bind("0.0.0.0:0".parse()?)?;
    let registration = registry.registration(Instance::new("hello", incoming.local_addr()?)).build()?;
    println!("hello is served with TLS, and published as {}", registration.address());
    let server = Server::builder().tls_config(tls)?;
    registration.serve_with(server, HelloServer::new(Greeter), incoming, shutdown_signal()).await?;
    Ok(())
}
