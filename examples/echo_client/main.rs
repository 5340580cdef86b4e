//! Calls the echo servers that etcd knows, at a steady rate or as fast as it can, and counts what comes back.

use std::future;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use tokio::sync::{Semaphore, mpsc};
use tokio::time;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_etcd::{BalancedChannel, RegistrySet, shutdown_signal};

use balancing::Balancing;
use proto::echo::echo_client::EchoClient;
use proto::echo::{EchoReply, EchoRequest};
use shared::{Failure, RegistryFlags};
use tally::{Outcome, count};
use values::{millis, number, seconds};

mod balancing;
#[path = "../proto/mod.rs"]
mod proto;
#[path = "../shared/mod.rs"]
mod shared;
mod tally;
#[path = "../shared/values.rs"]
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

    #[command(flatten)]
    balancing: Balancing,

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

    /// Which channel balances
    #[arg(long, value_enum, default_value = "own")]
    balancer: Balancer,
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
        let registries = RegistrySet::new(self.registry.registries()?);
        let channel = registries.channel(&self.service).wait_for_ready(self.wait_for_ready);
        Ok(self.balancing.over(channel)?.build()?)
    }

    fn tonics_channel(&self) -> Result<Channel, Failure> {
        self.balancing.is_tonics()?;
        let discover = RegistrySet::new(self.registry.registries()?).discover(&self.service)?;
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
            let request = self.balancing.request(number, timeout);
            tokio::spawn(async move {
                let answer = client.echo(request, timeout).await;
                let latency = due.elapsed();
                drop(turn);
                let _ = outcomes.send(Outcome { answer, latency }).await;
            });
        }
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

/// A client over one of the two channels.
trait Echo: Clone + Send + 'static {
    /// Makes a call, and returns the address of the server that answered.
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

/// Calls at once at most in an open loop: enough that only a stalled set of servers holds calls up.
const OPEN_LOOP: u32 = 1024;
/// Callers in a closed loop: enough to keep a few cores busy.
const CLOSED_LOOP: u32 = 64;
/// Moments and outcomes that may wait to be looked at.
const OUTCOMES: usize = 1024;
