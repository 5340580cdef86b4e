//! A server on a Unix socket, for clients on its host: in place of an address, etcd has the socket's name.
//!
//! `unix_server [ETCD_URL [FOLDER]]`: the folder of the sockets, which clients know as well.

use std::error::Error;

use tonic::{Request, Response, Status};

use proto::hello::hello_server::Hello;
use proto::hello::{HelloReply, HelloRequest};

mod proto;

struct Greeter;

#[tonic::async_trait]
impl Hello for Greeter {
    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let message = format!("Hello, {}!", request.into_inner().name);
        Ok(Response::new(HelloReply { message }))
    }
}

#[cfg(unix)]
#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic_etcd::{Instance, Registry, shutdown_signal};

    tracing_subscriber::fmt().init();
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "http://127.0.0.1:2379".to_owned());
    let folder = arguments.next().unwrap_or_else(|| "/tmp".to_owned());
    let name = format!("hello-{:08x}", fastrand::u32(..));
    let path = format!("{folder}/{name}.sock");

    // An address has a host and a port: here the name, which must be one that DNS could have, and any port.
    let instance = Instance::parse("hello", (name.as_str(), 1))?;
    let registration = Registry::builder([url]).build()?.registration(instance).build()?;
    let incoming = UnixListenerStream::new(tokio::net::UnixListener::bind(&path)?);
    println!("hello is served at {path}, and published as {}", registration.address());
    let service = proto::hello::hello_server::HelloServer::new(Greeter);
    let served = registration.serve(service, incoming, shutdown_signal()).await;
    std::fs::remove_file(path)?;
    Ok(served?)
}

#[cfg(not(unix))]
fn main() -> Result<(), Box<dyn Error>> {
    Err("this needs Unix sockets".into())
}
