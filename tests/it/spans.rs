//! What is built inside a caller's span does not keep that span open, and logs nothing in its name.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use tonic_etcd::{BalancedChannel, Instance, Registration, RegistrationStatus, Registry};
use tracing::span::Id;
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Instrument, Subscriber, info_span};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::support::etcd::Etcd;
use crate::support::server::EchoServer;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::{LIMIT, eventually};

/// The spans of this name that have closed, and the events in them, on this thread.
#[derive(Clone, Default)]
struct Requests {
    closed: Arc<AtomicUsize>,
    events: Arc<AtomicUsize>,
}

const REQUEST: &str = "request";

impl Requests {
    /// Watches this thread, at all levels, until the guard is dropped.
    fn watch() -> (Self, DefaultGuard) {
        let requests = Self::default();
        let subscriber = tracing_subscriber::registry().with(requests.clone());
        (requests, tracing::subscriber::set_default(subscriber))
    }

    fn events(&self) -> usize {
        self.events.load(Ordering::Relaxed)
    }

    fn closed(&self) -> usize {
        self.closed.load(Ordering::Relaxed)
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Requests {
    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let is_request = context.span(&id).is_some_and(|span| span.name() == REQUEST);
        self.closed.fetch_add(usize::from(is_request), Ordering::Relaxed);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let is_in_request =
            context.event_scope(event).is_some_and(|mut scope| scope.any(|span| span.name() == REQUEST));
        self.events.fetch_add(usize::from(is_in_request), Ordering::Relaxed);
    }
}

/// The span is closed now, and stays without events.
async fn assert_over(requests: &Requests, what: &str, then: impl AsyncFnOnce()) {
    assert_eq!(requests.closed(), 1, "{what}: the span has closed");
    let before = requests.events();
    then().await;
    assert_eq!(requests.events(), before, "{what}: nothing was logged in its name");
}

async fn is_registered(registration: &Registration) {
    let registered = async || matches!(registration.status(), RegistrationStatus::Registered { .. });
    eventually("it is registered", LIMIT, registered).await;
}

#[tokio::test]
async fn a_channel_outlives_the_span_that_it_was_built_and_first_used_in() {
    let server = EchoServer::unregistered();
    let (requests, _guard) = Requests::watch();
    let instance = Instance::new("echo", server.address());
    let instances = futures_util::stream::iter([vec![instance]]).chain(futures_util::stream::pending());
    let request = info_span!(REQUEST);
    let channel = request.in_scope(|| BalancedChannel::from_instances("echo", instances).build().expect("it is built"));
    let mut client = EchoClient::new(channel);
    let echo = async |client: &mut EchoClient<BalancedChannel>| {
        client.unary_echo(EchoRequest { message: "hi".into() }).await.expect("the server answers");
    };
    echo(&mut client).instrument(request).await;
    assert_over(&requests, "a channel", async || {
        echo(&mut client).await;
        server.stop().await;
        let gone = async || client.unary_echo(EchoRequest { message: "hi".into() }).await.is_err();
        eventually("the server is gone", LIMIT, gone).await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_of_changes_outlives_the_span_that_it_was_begun_in() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let (requests, _guard) = Requests::watch();
    let request = info_span!(REQUEST);
    let mut changes = request.in_scope(|| registry.discover("echo").expect("a good name"));
    etcd.put("kitex/registry-etcd/echo/127.0.0.1:1", r#"{"address":"127.0.0.1:1"}"#).await;
    changes.next().instrument(request).await.expect("a change").expect("of the set");
    assert_over(&requests, "a stream", async || {
        etcd.put("kitex/registry-etcd/echo/127.0.0.1:2", r#"{"address":"127.0.0.1:2"}"#).await;
        changes.next().await.expect("a change").expect("of the set");
        etcd.restart().await;
        etcd.put("kitex/registry-etcd/echo/127.0.0.1:3", r#"{"address":"127.0.0.1:3"}"#).await;
        changes.next().await.expect("a change").expect("of the set");
    })
    .await;
}

#[tokio::test]
async fn a_channel_of_tonic_outlives_the_span_that_it_was_made_and_first_used_in() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let server = EchoServer::registered(&registry, "echo").await;
    let (requests, _guard) = Requests::watch();
    let request = info_span!(REQUEST);
    let changes = request.in_scope(|| registry.discover("echo").expect("a good name"));
    let channel = request.in_scope(|| changes.balance_channel(|_, endpoint| endpoint));
    let mut client = EchoClient::new(channel);
    let hello = || EchoRequest { message: "hi".into() };
    client.unary_echo(hello()).instrument(request).await.expect("the server answers");
    assert_over(&requests, "a channel of tonic's", async || {
        client.unary_echo(hello()).await.expect("the server answers");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_registration_outlives_the_span_that_it_was_built_and_started_in() {
    let etcd = Etcd::start().await;
    let (requests, _guard) = Requests::watch();
    let request = info_span!(REQUEST);
    let registration = request.in_scope(|| {
        let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
        let address: std::net::SocketAddr = "127.0.0.1:7".parse().expect("an address");
        let registration = registry.registration(Instance::new("echo", address)).build().expect("a good instance");
        registration.start();
        registration
    });
    is_registered(&registration).instrument(request).await;
    assert_over(&requests, "a registration", async || {
        etcd.restart().await;
        let (key, ..) = etcd.keys("").await.pop().expect("it is registered");
        etcd.delete(key.clone()).await;
        let back = async || !etcd.keys(&key).await.is_empty();
        eventually("the key is back", LIMIT, back).await;
        registration.deregister().await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_to_etcd_outlives_the_span_of_the_call_that_opened_it() {
    let etcd = Etcd::start().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let (requests, _guard) = Requests::watch();
    let request = info_span!(REQUEST);
    let services = registry.services().instrument(request).await;
    services.expect("etcd answers");
    assert_over(&requests, "a call to etcd", async || {
        etcd.restart().await;
        let again = async || registry.services().await.is_ok();
        eventually("etcd answers again", LIMIT, again).await;
    })
    .await;
}
