//! An echo server that registers itself in etcd: every option is a flag, every event a JSON line.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt, TryStreamExt};
use serde::Serialize;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use tonic_etcd::{Address, Instance, Registration, RegistrationSet, RegistrationStatus, Registry, shutdown_signal};

use aging::Aging;
use proto::echo::echo_server::{Echo, EchoServer};
use proto::echo::{EchoReply, EchoRequest};
use shared::{Failure, RegistryFlags};
use values::{millis, number, seconds};

#[path = "shared/aging.rs"]
mod aging;
mod proto;
mod shared;
#[path = "shared/values.rs"]
mod values;

/// An echo server that registers itself in etcd.
///
/// Standard output is one JSON line for each event: listening, registered (in each format, and again after each
/// re-registration, with the new lease in hex), lost, `gave_up`, deregistered or drained (from each) and stopped.
/// Ctrl-c and SIGTERM end it gracefully.
#[derive(Parser)]
#[command(name = "echo_server")]
struct Flags {
    #[command(flatten)]
    registry: RegistryFlags,

    /// The service's name
    #[arg(long, value_name = "NAME", default_value = "echo")]
    service: String,

    /// Where to listen; port 0 finds a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0", value_parser = listen)]
    listen: SocketAddr,

    /// The address that clients dial [default: where it listens]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,

    /// Its share of the calls, for clients that weigh
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = number(1..=u16::MAX))]
    weight: u16,

    /// A tag that clients can read; may be given several times
    #[arg(long, value_name = "K=V", value_parser = tag)]
    tag: Vec<(String, String)>,

    /// How long etcd keeps it on the list after it fell silent, in seconds [default: 15]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    ttl: Option<Duration>,

    /// How Kitex registers, where that differs: a TTL of 60 s, a pause of 6000 ms, and 10 s between 5 attempts; other
    /// flags count more
    #[arg(long)]
    kitex: bool,

    /// How long it waits at most after the first attempt to register that failed, in milliseconds [default: 250]
    #[arg(long, value_name = "MILLIS", value_parser = millis)]
    retry_delay: Option<Duration>,

    /// How many attempts to register may fail in a row before it serves on without [default: no limit]
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,

    /// How often it checks its key without any cause, in seconds [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    check_interval: Option<Duration>,

    /// Sleeps this long in each call
    #[arg(long, value_name = "MILLIS", default_value = "0", value_parser = millis)]
    delay: Duration,

    /// Answers UNAVAILABLE to this many of each 100 calls, evenly spread
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = number(0..=100_u64))]
    fail_percent: u64,

    /// Answers `RESOURCE_EXHAUSTED` to this many of each 100 calls, evenly spread, as a server that sheds load
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = number(0..=100_u64))]
    shed_percent: u64,

    /// How old a connection gets before it announces its end and takes no further calls, in seconds [default: any age]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    max_connection_age: Option<Duration>,

    /// How long calls may take on such a connection before it is closed, in seconds [default: any time]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, requires = "max_connection_age")]
    max_connection_age_grace: Option<Duration>,

    /// How long it serves on after it left etcd, until clients have heard of it, in milliseconds [default: 1000]
    #[arg(long, value_name = "MILLIS", value_parser = millis)]
    pause: Option<Duration>,

    /// How long calls in flight may take to end after that, in seconds [default: 25]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    drain: Option<Duration>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    shared::log_to_stderr("warn,tonic_etcd=info");
    shared::exit_code::<Flags>(run(flags).await)
}

async fn run(flags: Flags) -> Result<(), Failure> {
    let incoming = TcpIncoming::bind(flags.listen)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {}: {error}", flags.listen)))?;
    let bound = incoming.local_addr()?;
    let registrations = flags.registrations(bound)?;
    let calls = Arc::new(AtomicU64::new(0));
    let advertised = registrations.iter().next().map(Registration::address);
    let echo = EchoService {
        address: advertised.map_or_else(|| bound.to_string(), Address::to_string),
        delay: flags.delay,
        fail_percent: flags.fail_percent,
        shed_percent: flags.shed_percent,
        calls: Arc::clone(&calls),
    };

    // Handled from here on: the reader of the next line may send a signal.
    let shutdown = shutdown_signal();
    shared::print_line(&Event::Listening { address: bound })?;
    let changes = registrations.iter().map(Registration::status_changes);
    let events: Vec<_> = changes.map(|changes| tokio::spawn(report(changes))).collect();
    let mut builder = Server::builder();
    if let Some(age) = flags.max_connection_age {
        builder = builder.max_connection_age(age);
    }
    let age_limit = flags.age_limit();
    let incoming = registrations.incoming(incoming).map_ok(|io| Aging::new(io, age_limit));
    let result = builder
        .layer(registrations.layer())
        .add_service(EchoServer::new(echo))
        .serve_with_incoming_shutdown(incoming, registrations.deregister_on(shutdown))
        .await;

    // After a signal this is done already; where serving failed no key must stay behind.
    registrations.deregister().await;
    for events in events {
        events.await.map_err(io::Error::other)??;
    }
    shared::print_line(&Event::Stopped { calls: calls.load(Ordering::Relaxed) })?;
    Ok(result?)
}

impl Flags {
    /// The age at which a connection is closed, whatever its calls do.
    fn age_limit(&self) -> Option<Duration> {
        self.max_connection_age.zip(self.max_connection_age_grace).map(|(age, grace)| age.saturating_add(grace))
    }

    fn registrations(&self, bound: SocketAddr) -> Result<RegistrationSet, Failure> {
        let registries = self.registry.registries()?;
        let each: Result<Vec<_>, _> = registries.iter().map(|registry| self.registration(registry, bound)).collect();
        Ok(RegistrationSet::new(each?)?)
    }

    fn registration(&self, registry: &Registry, bound: SocketAddr) -> Result<Registration, Failure> {
        let mut instance = Instance::new(&self.service, bound).with_weight(self.weight);
        for (name, value) in &self.tag {
            instance = instance.with_tag(name, value);
        }
        let mut registration = registry.registration(instance);
        if let Some(advertise) = &self.advertise {
            registration = registration.advertise(advertise.as_str());
        }
        if self.kitex {
            registration = registration.kitex();
        }
        if let Some(delay) = self.retry_delay {
            registration = registration.retry_delay(delay);
        }
        if let Some(attempts) = self.max_attempts {
            registration = registration.max_attempts(attempts);
        }
        if let Some(interval) = self.check_interval {
            registration = registration.check_interval(interval);
        }
        if let Some(ttl) = self.ttl {
            registration = registration.ttl(ttl);
        }
        if let Some(pause) = self.pause {
            registration = registration.propagation_pause(pause);
        }
        if let Some(drain) = self.drain {
            registration = registration.drain_limit(drain);
        }
        Ok(registration.build()?)
    }
}

fn listen(value: &str) -> Result<SocketAddr, &'static str> {
    value.parse().map_err(|_| "expected an IP address and a port, such as 127.0.0.1:0 or [::1]:5000")
}

fn tag(value: &str) -> Result<(String, String), &'static str> {
    match value.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected a name and a value, such as zone=a"),
    }
}

#[derive(PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event {
    Listening { address: SocketAddr },
    Registered { key: String, lease: String },
    Lost { reason: String },
    Deregistered,
    Drained,
    GaveUp { attempts: u32, reason: String },
    Stopped { calls: u64 },
}

/// Prints what becomes of the registration, until it is gone.
async fn report(changes: impl Stream<Item = RegistrationStatus>) -> io::Result<()> {
    let mut changes = pin!(changes);
    let mut last = None;
    while let Some(status) = changes.next().await {
        let event = match status {
            RegistrationStatus::Registered { key, lease, .. } => Event::Registered { key, lease: format!("{lease:x}") },
            RegistrationStatus::Lost { reason, .. } => Event::Lost { reason },
            RegistrationStatus::Conflict { key, lease, .. } => {
                Event::Lost { reason: format!("{key} belongs to another server, under lease {lease:x}") }
            }
            RegistrationStatus::Gone => Event::Deregistered,
            RegistrationStatus::Drained => Event::Drained,
            RegistrationStatus::GaveUp { attempts, reason, .. } => Event::GaveUp { attempts, reason },
            _ => continue,
        };
        // A conflict is seen again at every attempt to claim the key.
        if last.as_ref() != Some(&event) {
            shared::print_line(&event)?;
            last = Some(event);
        }
    }
    Ok(())
}

/// Answers with what it was asked, and with the address that clients know it by.
struct EchoService {
    address: String,
    delay: Duration,
    fail_percent: u64,
    shed_percent: u64,
    calls: Arc<AtomicU64>,
}

impl EchoService {
    /// What every call begins with: it is counted, waits for the delay, and fails if it is its turn.
    async fn begin(&self) -> Result<(), Status> {
        let before = self.calls.fetch_add(1, Ordering::Relaxed);
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        // Whole percents of all calls so far: of each hundred exactly `percent` reach the next one.
        let is_its_turn = |percent| (before + 1) * percent / 100 > before * percent / 100;
        if is_its_turn(self.shed_percent) {
            return Err(Status::resource_exhausted(format!(
                "{} sheds {} of 100 calls",
                self.address, self.shed_percent
            )));
        }
        if is_its_turn(self.fail_percent) {
            return Err(Status::unavailable(format!("{} fails {} of 100 calls", self.address, self.fail_percent)));
        }
        Ok(())
    }

    fn reply(&self, message: impl Into<String>) -> EchoReply {
        EchoReply { message: message.into(), address: self.address.clone() }
    }
}

#[tonic::async_trait]
impl Echo for EchoService {
    async fn unary_echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        self.begin().await?;
        Ok(Response::new(self.reply(request.into_inner().message)))
    }

    type ServerStreamingEchoStream = BoxStream<'static, Result<EchoReply, Status>>;

    /// One reply a word.
    async fn server_streaming_echo(
        &self,
        request: Request<EchoRequest>,
    ) -> Result<Response<Self::ServerStreamingEchoStream>, Status> {
        self.begin().await?;
        let message = request.into_inner().message;
        let replies: Vec<_> = message.split_whitespace().map(|word| Ok(self.reply(word))).collect();
        Ok(Response::new(stream::iter(replies).boxed()))
    }

    /// One reply of all messages, as words.
    async fn client_streaming_echo(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<EchoReply>, Status> {
        self.begin().await?;
        let words: Vec<_> = request.into_inner().map_ok(|request| request.message).try_collect().await?;
        Ok(Response::new(self.reply(words.join(" "))))
    }

    type BidirectionalStreamingEchoStream = BoxStream<'static, Result<EchoReply, Status>>;

    /// One reply a message, as they come.
    async fn bidirectional_streaming_echo(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Self::BidirectionalStreamingEchoStream>, Status> {
        self.begin().await?;
        let address = self.address.clone();
        let replies = request
            .into_inner()
            .map_ok(move |request| EchoReply { message: request.message, address: address.clone() });
        Ok(Response::new(replies.boxed()))
    }
}
