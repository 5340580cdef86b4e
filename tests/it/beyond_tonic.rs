//! Servers that are not tonic's register and leave as tonic's do, and plain HTTP clients follow them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::get;
use futures_util::stream;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tonic_etcd::{Instance, RegistrationStatus, Registry};

use crate::support::changes::Changes;
use crate::support::etcd::Etcd;
use crate::support::process::{Process, Signal, example};
use crate::support::{LIMIT, eventually};

#[path = "../../examples/shared/accepting.rs"]
mod accepting;

/// A connection with one request on it, whose answer is read until the server closes it.
struct Request(TcpStream);

impl Request {
    async fn send(address: SocketAddr, path: &str) -> Self {
        let mut socket = TcpStream::connect(address).await.expect("the server listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("the server reads");
        Self(socket)
    }

    async fn answer(mut self) -> String {
        let mut answer = Vec::new();
        // Reset or closed: what came before counts.
        let _ = timeout(LIMIT, self.0.read_to_end(&mut answer)).await.expect("the server closes the connection");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

fn start(name: &str, etcd: &Etcd, flags: &[&str]) -> Process {
    Process::start(example(name).args(["--etcd", &etcd.url()]).args(flags))
}

async fn address_of(server: &mut Process) -> SocketAddr {
    let listening = server.expect_event("listening", LIMIT).await;
    listening["address"].as_str().and_then(|address| address.parse().ok()).expect("an address")
}

#[tokio::test]
async fn http_servers_join_answer_and_leave_without_a_failed_request() {
    let etcd = Etcd::start().await;
    let mut servers = [start("axum_server", &etcd, &[]), start("hyper_server", &etcd, &[])];
    let mut client = start("http_client", &etcd, &["--interval", "5"]);
    let mut addresses = Vec::new();
    for server in &mut servers {
        addresses.push(address_of(server).await);
    }
    let body = |address: &SocketAddr| Value::from(format!("hello from {address}"));
    for address in &addresses {
        let answered = async || client.next_line(LIMIT).await.is_some_and(|line| line["body"] == body(address));
        eventually("the client finds and asks each server", LIMIT, answered).await;
    }

    let mut changes = Changes::of(&Registry::builder([etcd.url()]).build().expect("a good registry"), "web");
    for _ in &addresses {
        changes.next().await;
    }
    for (server, address) in servers.iter_mut().zip(&addresses) {
        let slow = Request::send(*address, "/slow").await;
        server.signal(Signal::TERM);
        changes.expect_remove(address).await;
        assert!(server.wait(LIMIT).await.success(), "a graceful end is a success");
        let answer = slow.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("hello from"), "it was in flight: {answer}");
        assert!(TcpStream::connect(address).await.is_err(), "the server is gone");
        if address == &addresses[0] {
            let mut in_a_row = 0;
            // What was asked before comes first, and half of it went to this one.
            while in_a_row < 100 {
                let line = client.next_line(LIMIT).await.expect("the client goes on");
                in_a_row = if line["body"] == body(&addresses[1]) { in_a_row + 1 } else { 0 };
            }
        } else {
            client.signal(Signal::TERM);
        }
    }
    let rest = client.rest(LIMIT).await;
    let failed: Vec<&Value> = client.seen().iter().chain(&rest).filter(|line| line["event"] == "failed").collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(etcd.leases().await.is_empty(), "nothing is left behind");
}

#[tokio::test]
async fn a_layer_on_each_route_of_axum_registers_nothing_and_counts_all_calls() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let registration = registry.registration(Instance::new("web", address)).build().expect("a good instance");
    let never = || get(std::future::pending::<()>);
    let app = Router::new()
        .route("/one", never())
        .route("/two", never())
        .route("/three", never())
        .layer(registration.layer().count_only());
    assert_eq!(registration.status(), RegistrationStatus::Unregistered, "it does not serve yet");
    registration.start();
    registration.registered().await.expect("it is not gone");
    assert_eq!(etcd.keys("").await.len(), 1, "once, however many routes it has");

    let server = tokio::spawn(async { axum::serve(listener, app).await });
    let requests = [Request::send(address, "/one").await, Request::send(address, "/two").await];
    eventually("each route counts", LIMIT, async || registration.in_flight() == 2).await;
    drop(requests);
    eventually("until its client is gone", LIMIT, async || registration.in_flight() == 0).await;
    server.abort();
    registration.deregister().await;
}

#[tokio::test]
async fn an_axum_server_ends_soon_after_its_drain_limit_whatever_its_clients_do() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let registration = registry
        .registration(Instance::new("web", address))
        .propagation_pause(Duration::ZERO)
        .drain_limit(Duration::from_millis(500))
        .build()
        .expect("a good instance");
    let endless = || async {
        let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
        Body::from_stream(stream::repeat_with(move || Ok::<_, std::io::Error>(chunk.clone())))
    };
    let app = Router::new()
        .route("/never", get(std::future::pending::<()>))
        .route("/endless", get(endless))
        .layer(registration.layer().count_only());
    let (shutdown, stopped) = oneshot::channel::<()>();
    let incoming = registration.incoming(TcpListenerStream::new(listener));
    let accepting = accepting::Accepting::new(incoming, address);
    let leave = registration.deregister_on(async { stopped.await.unwrap_or_default() });
    let server = tokio::spawn(async { axum::serve(accepting, app).with_graceful_shutdown(leave).await });
    let is_started = async || registration.status() != RegistrationStatus::Unregistered;
    eventually("accepting starts it", LIMIT, is_started).await;
    registration.registered().await.expect("it has not ended");

    let never = Request::send(address, "/never").await;
    let unread = Request::send(address, "/endless").await;
    let silent = TcpStream::connect(address).await.expect("the server listens");
    eventually("both requests are in flight", LIMIT, async || registration.in_flight() == 2).await;
    let asked = Instant::now();
    shutdown.send(()).expect("the server waits for it");
    let end = timeout(LIMIT, server).await.expect("the server ends").expect("it does not panic");
    end.expect("it ends without an error");
    // The limit, a quarter of a second for the answers, at most three seconds for etcd, and a slow machine.
    assert!(asked.elapsed() < Duration::from_secs(8), "it took {:?}", asked.elapsed());
    assert!(never.answer().await.starts_with("HTTP/1.1 503"), "an unanswered request gets a 503 to go elsewhere");
    let cut = unread.answer().await;
    assert!(!cut.ends_with("0\r\n\r\n"), "a body that was cut off does not look complete");
    drop(silent);
    assert_eq!(registration.status(), RegistrationStatus::Gone, "as every server that is shut down");
}
