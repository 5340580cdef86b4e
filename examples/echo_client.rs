//! Calls the echo servers that etcd knows, at a steady rate or as fast as it can, and counts what comes back.

use std::collections::BTreeMap;
use std::future;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Parser, ValueEnum};
use hdrhistogram::Histogram;
use http::HeaderName;
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};
use tokio::time;
use tonic::metadata::AsciiMetadataKey;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_etcd::{
    BalancedChannel, ChannelBuilder, LeastRequest, PeakEwma, PickFirst, Registries, RingHash, WeightedRandom,
    WeightedRoundRobin, shutdown_signal,
};

use proto::echo::echo_client::EchoClient;
use proto::echo::{EchoReply, EchoRequest};
use shared::{Failure, RegistryFlags};
use values::{millis, number, seconds};

mod proto;
mod shared;
#[path = "shared/values.rs"]
mod values;

/// Calls the echo servers that etcd knows, and counts what comes back.
///
/// Standard output is one JSON line a second, about the calls that ended in it, and one with the summary at the end.
/// Its latencies are those of the calls that succeeded, in microseconds from the moment each was due, so that a call
/// that had to wait for its turn does not look fast. Without --count and --duration it runs until ctrl-c.
#[derive(Parser)]
#[command(name = "echo_client")]
struct Flags {
    #[command(flatten)]
    registry: RegistryFlags,

    /// The service's name
    #[arg(long, value_name = "NAME", default_value = "echo")]
    service: String,

    /// How a server is chosen for each call; tonic's balancer knows only random [default: least-request, or random with
    /// --balancer tonic]
    #[arg(long, value_enum, value_name = "NAME")]
    policy: Option<Policy>,

    #[command(flatten)]
    spread: Spread,

    /// Calls a second, each begun at its own time whatever the others do; 0 is as many as --concurrency callers can
    /// make
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = number(0..=u32::MAX))]
    rps: u32,

    /// Calls at once at most [default: 1024, or 64 with --rps 0]
    #[arg(long, value_name = "N", value_parser = number(1..=u32::MAX))]
    concurrency: Option<u32>,

    /// Ends after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with = "count")]
    duration: Option<Duration>,

    /// Ends after this many calls
    #[arg(long, value_name = "N", value_parser = number(0..=u64::MAX))]
    count: Option<u64>,

    /// The deadline of each call, in milliseconds
    #[arg(long, value_name = "MILLIS", default_value = "5000", value_parser = timeout)]
    timeout: Duration,

    /// While no server can be reached, calls wait until their deadline; with tonic's balancer they always do while none
    /// is known
    #[arg(long)]
    wait_for_ready: bool,

    /// Who balances
    #[arg(long, value_enum, default_value = "own")]
    balancer: Balancer,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Policy {
    LeastRequest,
    WeightedRoundRobin,
    Random,
    PickFirst,
    PeakEwma,
    RingHash,
}

/// Which servers take how much; not for tonic's balancer.
#[derive(Args)]
struct Spread {
    /// With --policy ring-hash: the header with a call's key, of which the calls have a thousand in turn
    #[arg(long, value_name = "NAME", value_parser = header)]
    hash_header: Option<AsciiMetadataKey>,

    /// Prefers the servers of this zone
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,

    /// The tag that names a server's zone
    #[arg(long, value_name = "NAME", default_value = "zone", requires = "zone")]
    zone_tag: String,

    /// Uses, and connects to, this many servers only
    #[arg(long, value_name = "N", value_parser = number(1..=usize::MAX))]
    subset: Option<usize>,

    /// The share of a new server grows from a tenth to all of it in this time
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    slow_start: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Balancer {
    Own,
    Tonic,
}

fn timeout(value: &str) -> Result<Duration, &'static str> {
    match millis(value)? {
        Duration::ZERO => Err("expected at least 1 millisecond"),
        timeout => Ok(timeout),
    }
}

fn header(value: &str) -> Result<AsciiMetadataKey, &'static str> {
    value.parse().map_err(|_| "expected the name of a header that does not end with -bin, such as x-user")
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    shared::log_to_stderr("warn");
    shared::exit_code::<Flags>(run(&flags).await)
}

async fn run(flags: &Flags) -> Result<(), Failure> {
    match flags.balancer {
        Balancer::Own => call_and_count(flags, EchoClient::new(flags.own_channel()?)).await,
        Balancer::Tonic => call_and_count(flags, EchoClient::new(flags.tonics_channel()?)).await,
    }
}

async fn call_and_count(flags: &Flags, client: impl Echo) -> Result<(), Failure> {
    let (outcomes, received) = mpsc::channel(OUTCOMES);
    let summary = tokio::spawn(count(received));

    let end = async {
        match flags.duration {
            Some(duration) => time::sleep(duration).await,
            None => future::pending().await,
        }
    };
    tokio::select! {
        () = flags.call_all(&client, outcomes) => {}
        () = end => {}
        () = shutdown_signal() => {}
    }

    // The calls in flight end by their deadlines, and the counting with the last of them.
    let summary = summary.await.map_err(io::Error::other)??;
    Ok(shared::print_line(&summary)?)
}

impl Flags {
    fn own_channel(&self) -> Result<BalancedChannel, Failure> {
        let registries = Registries::new(self.registry.registries()?);
        let channel = registries.channel(&self.service).wait_for_ready(self.wait_for_ready);
        let channel = match self.policy {
            None | Some(Policy::LeastRequest) => channel.policy(LeastRequest::new()),
            Some(Policy::WeightedRoundRobin) => channel.policy(WeightedRoundRobin::new()),
            Some(Policy::Random) => channel.policy(WeightedRandom::new()),
            Some(Policy::PickFirst) => channel.policy(PickFirst::new()),
            Some(Policy::PeakEwma) => channel.policy(PeakEwma::new()),
            Some(Policy::RingHash) => channel.policy(self.spread.ring()?),
        };
        if self.spread.hash_header.is_some() && self.policy != Some(Policy::RingHash) {
            return Err(Failure::Usage("--hash-header is for --policy ring-hash".into()));
        }
        Ok(self.spread.over(channel).build()?)
    }

    fn tonics_channel(&self) -> Result<Channel, Failure> {
        let Spread { hash_header, zone, zone_tag: _, subset, slow_start } = &self.spread;
        if hash_header.is_some() || zone.is_some() || subset.is_some() || slow_start.is_some() {
            return Err(Failure::Usage(
                "tonic's balancer knows no --hash-header, --zone, --subset and --slow-start: expected --balancer own"
                    .into(),
            ));
        }
        if !matches!(self.policy, None | Some(Policy::Random)) {
            return Err(Failure::Usage(
                "tonic's balancer has one policy: expected --policy random, or none with --balancer tonic".into(),
            ));
        }
        let discover = Registries::new(self.registry.registries()?).discover(&self.service)?;
        Ok(discover.balance_channel(|_, endpoint| endpoint))
    }

    /// Starts every call when it is due, as a task that ends with its outcome. Cancelled, it starts no more.
    async fn call_all(&self, client: &impl Echo, outcomes: mpsc::Sender<Outcome>) {
        let mut schedule = (self.rps > 0).then(|| schedule(self.rps));
        let at_once = self.concurrency.unwrap_or(if self.rps > 0 { OPEN_LOOP } else { CLOSED_LOOP });
        let turns = Arc::new(Semaphore::new(at_once as usize));

        for number in 0..self.count.unwrap_or(u64::MAX) {
            // The counting ends early only where standard output is closed.
            if outcomes.is_closed() {
                return;
            }
            let due = match &mut schedule {
                Some(schedule) => schedule.recv().await,
                None => None,
            };
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
            let due = due.unwrap_or_else(Instant::now);
            let (client, timeout, outcomes) = (client.clone(), self.timeout, outcomes.clone());
            let request = self.spread.request(number, timeout);
            tokio::spawn(async move {
                let answer = client.echo(request, timeout).await;
                let latency = due.elapsed();
                drop(turn);
                let _ = outcomes.send(Outcome { answer, latency }).await;
            });
        }
    }
}

impl Spread {
    fn ring(&self) -> Result<RingHash, Failure> {
        let header = self.hash_header.as_ref().and_then(|header| header.as_str().parse::<HeaderName>().ok());
        header.map(RingHash::by_header).ok_or_else(|| Failure::Usage("--policy ring-hash needs --hash-header".into()))
    }

    fn over(&self, channel: ChannelBuilder) -> ChannelBuilder {
        let channel = match self.slow_start {
            Some(window) => channel.slow_start(window),
            None => channel,
        };
        let channel = match &self.zone {
            Some(zone) => channel.prefer_zone(&self.zone_tag, zone),
            None => channel,
        };
        match self.subset {
            Some(size) => channel.subset(size),
            None => channel,
        }
    }

    /// The call of this number.
    fn request(&self, number: u64, timeout: Duration) -> Request<EchoRequest> {
        let mut request = Request::new(EchoRequest { message: "hello".to_owned() });
        request.set_timeout(timeout);
        if let Some(header) = &self.hash_header {
            request.metadata_mut().insert(header, (number % KEYS).into());
        }
        request
    }
}

/// The moments at which calls are due. They come from a thread of their own: tokio's timer knows whole milliseconds
/// only, several times a call on the loopback.
fn schedule(rps: u32) -> mpsc::Receiver<Instant> {
    let (moments, received) = mpsc::channel(OUTCOMES);
    thread::spawn(move || {
        let (start, rps) = (Instant::now(), u64::from(rps));
        for n in 0.. {
            let due = start + Duration::from_secs(n / rps) + Duration::from_nanos(n % rps * 1_000_000_000 / rps);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if moments.blocking_send(due).is_err() {
                return;
            }
        }
    });
    received
}

/// What became of one call: the address of the server that answered, or the code of the failure.
struct Outcome {
    answer: Result<String, Code>,
    latency: Duration,
}

/// A client over one of the two channels.
trait Echo: Clone + Send + 'static {
    /// Makes a call, and tells the address of the server that answered.
    fn echo(
        self,
        request: Request<EchoRequest>,
        timeout: Duration,
    ) -> impl Future<Output = Result<String, Code>> + Send;
}

impl Echo for EchoClient<BalancedChannel> {
    async fn echo(mut self, request: Request<EchoRequest>, _: Duration) -> Result<String, Code> {
        answer(self.unary_echo(request).await)
    }
}

impl Echo for EchoClient<Channel> {
    async fn echo(mut self, request: Request<EchoRequest>, timeout: Duration) -> Result<String, Code> {
        // tonic's channel looks at the deadline only once it has chosen a server, and chooses none while there is none.
        match time::timeout(timeout, self.unary_echo(request)).await {
            // It reports a missed deadline as CANCELLED.
            Ok(Err(status)) if status.message() == "Timeout expired" => Err(Code::DeadlineExceeded),
            Ok(reply) => answer(reply),
            Err(_) => Err(Code::DeadlineExceeded),
        }
    }
}

fn answer(reply: Result<Response<EchoReply>, Status>) -> Result<String, Code> {
    reply.map(|reply| reply.into_inner().address).map_err(|status| {
        tracing::debug!(%status, "call failed");
        status.code()
    })
}

/// Counts all calls, and prints a line a second meanwhile.
async fn count(mut outcomes: mpsc::Receiver<Outcome>) -> io::Result<Summary> {
    let mut latencies = Histogram::new(LATENCY_DIGITS).expect("the number of digits is allowed");
    let mut total = Tally::default();
    let mut second = Tally::default();
    let mut seconds = time::interval(Duration::from_secs(1));
    seconds.tick().await;
    let mut t = 0;
    loop {
        tokio::select! {
            outcome = outcomes.recv() => match outcome {
                Some(Outcome { answer, latency }) => {
                    total.add(&answer);
                    second.add(&answer);
                    if answer.is_ok() {
                        latencies += u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
                    }
                }
                None => return Ok(total.into_summary(&latencies)),
            },
            _ = seconds.tick() => {
                t += 1;
                shared::print_line(&std::mem::take(&mut second).into_second(t))?;
            }
        }
    }
}

#[derive(Default)]
struct Tally {
    by_instance: BTreeMap<String, u64>,
    failed: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn add(&mut self, answer: &Result<String, Code>) {
        match answer {
            Ok(address) => match self.by_instance.get_mut(address) {
                Some(calls) => *calls += 1,
                None => drop(self.by_instance.insert(address.clone(), 1)),
            },
            Err(code) => *self.failed.entry(name(*code)).or_default() += 1,
        }
    }

    fn ok(&self) -> u64 {
        self.by_instance.values().sum()
    }

    fn failed(&self) -> u64 {
        self.failed.values().sum()
    }

    fn into_second(self, t: u64) -> Second {
        Second { event: "second", t, ok: self.ok(), failed: self.failed(), by_instance: self.by_instance }
    }

    fn into_summary(self, latencies: &Histogram<u64>) -> Summary {
        Summary {
            sent: self.ok() + self.failed(),
            ok: self.ok(),
            failed: self.failed,
            by_instance: self.by_instance,
            latency_us: Latency {
                p50: latencies.value_at_quantile(0.5),
                p90: latencies.value_at_quantile(0.9),
                p99: latencies.value_at_quantile(0.99),
                p999: latencies.value_at_quantile(0.999),
                max: latencies.max(),
            },
        }
    }
}

#[derive(Serialize)]
struct Second {
    event: &'static str,
    t: u64,
    ok: u64,
    failed: u64,
    by_instance: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct Summary {
    sent: u64,
    ok: u64,
    failed: BTreeMap<&'static str, u64>,
    by_instance: BTreeMap<String, u64>,
    latency_us: Latency,
}

#[derive(Serialize)]
struct Latency {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

/// A code as gRPC's specification writes it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Calls at once at most in an open loop: enough that only a stalled set of servers holds calls up.
const OPEN_LOOP: u32 = 1024;
/// Callers in a closed loop: enough to keep a few cores busy.
const CLOSED_LOOP: u32 = 64;
/// Keys of calls for a ring: enough that each of a few dozen servers has some.
const KEYS: u64 = 1_000;
/// Moments and outcomes that may wait to be looked at.
const OUTCOMES: usize = 1024;
/// Significant digits of a latency: three tell 1.00 ms from 1.01 ms.
const LATENCY_DIGITS: u8 = 3;
