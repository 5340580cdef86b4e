//! Load: calls of one shape go out through a client, either a fixed number at a time or at a fixed rate; their outcomes
//! come back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream;
use http_body::Body as HttpBody;
use tokio::runtime::Handle;
use tokio::sync::mpsc::channel;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::{Request, Status};

use crate::machine::cpu_time;
use crate::proto::echo::echo_client::EchoClient;
use crate::proto::echo::{EchoReply, EchoRequest};
use crate::statistics::{figure, quantile};

/// A client of any channel.
pub(crate) trait Caller: Clone + Send + 'static {
    /// One unary call. Its deadline, if it has one, is sent to the server and set on the channel.
    fn call(&mut self, deadline: Option<Duration>) -> impl Future<Output = Result<EchoReply, Status>> + Send;

    /// One call of this shape, to its end.
    fn exchange(&mut self, shape: Shape) -> impl Future<Output = Result<(), Status>> + Send;
}

/// What a call carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A message of 64 bytes there and back, with a deadline or without.
    Short(Option<Duration>),
    /// A message of so many bytes there and back.
    Long(usize),
    /// So many messages of 100 bytes from the server.
    ServerStream(usize),
    /// So many messages of 100 bytes to the server.
    ClientStream(usize),
    /// So many messages of 100 bytes there and back, each after the answer to the one before.
    PingPong(usize),
}

impl<T> Caller for EchoClient<T>
where
    T: GrpcService<Body> + Clone + Send + 'static,
    T::Future: Send,
    T::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    T::ResponseBody: HttpBody<Data = bytes::Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    async fn call(&mut self, deadline: Option<Duration>) -> Result<EchoReply, Status> {
        let mut request = Request::new(EchoRequest { message: PAYLOAD.to_owned() });
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        Ok(self.unary_echo(request).await?.into_inner())
    }

    async fn exchange(&mut self, shape: Shape) -> Result<(), Status> {
        match shape {
            Shape::Short(deadline) => _ = self.call(deadline).await?,
            Shape::Long(bytes) => _ = self.unary_echo(EchoRequest { message: "x".repeat(bytes) }).await?,
            Shape::ServerStream(messages) => {
                let request = EchoRequest { message: messages.to_string() };
                let mut replies = self.server_streaming_echo(request).await?.into_inner();
                while replies.message().await?.is_some() {}
            }
            Shape::ClientStream(messages) => {
                _ = self.client_streaming_echo(stream::iter((0..messages).map(|_| item()))).await?;
            }
            Shape::PingPong(messages) => {
                let (requests, items) = channel(1);
                let mut replies = self.bidirectional_streaming_echo(ReceiverStream::new(items)).await?.into_inner();
                for _ in 0..messages {
                    requests.send(item()).await.map_err(|_| Status::cancelled("the stream ended early"))?;
                    replies.message().await?.ok_or_else(|| Status::data_loss("the stream ended early"))?;
                }
            }
        }
        Ok(())
    }
}

fn item() -> EchoRequest {
    EchoRequest { message: "x".repeat(ITEM) }
}

/// What a stretch of load cost, and how it went.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample {
    cpu: Duration,
    elapsed: Duration,
    failed: usize,
    latencies_us: Vec<u32>,
}

impl Sample {
    /// Adds what another stretch of the same load found.
    pub(crate) fn merge(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.elapsed += other.elapsed;
        self.failed += other.failed;
        self.latencies_us.extend(other.latencies_us);
    }

    /// The figures of the whole.
    pub(crate) fn figures(mut self) -> Figures {
        self.latencies_us.sort_unstable();
        let calls = self.latencies_us.len();
        Figures {
            cpu_us_per_call: self.cpu.as_secs_f64() * 1e6 / figure(calls),
            calls_per_s: figure(calls) / self.elapsed.as_secs_f64(),
            p50_us: quantile(&self.latencies_us, 500),
            p99_us: quantile(&self.latencies_us, 990),
            p999_us: quantile(&self.latencies_us, 999),
            calls,
            failed: self.failed,
        }
    }
}

/// A stretch of load in figures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    /// User and system time of this process, in microseconds.
    pub(crate) cpu_us_per_call: f64,
    /// How many calls ended in a second.
    pub(crate) calls_per_s: f64,
    /// The median latency, in microseconds.
    pub(crate) p50_us: f64,
    /// The latency that one call in a hundred exceeds, in microseconds.
    pub(crate) p99_us: f64,
    /// The latency that one call in a thousand exceeds, in microseconds.
    pub(crate) p999_us: f64,
    /// How many calls were made.
    pub(crate) calls: usize,
    /// How many of them failed.
    pub(crate) failed: usize,
}

/// Keeps `in_flight` calls of a shape going for a while.
///
/// # Panics
///
/// If a task of the load panics.
pub(crate) async fn closed(caller: impl Caller, shape: Shape, in_flight: usize, duration: Duration) -> Sample {
    let (cpu, begin) = (cpu_time(), Instant::now());
    let end = begin + duration;
    let tasks = (0..in_flight).map(|_| tokio::spawn(keep_calling(caller.clone(), shape, end)));
    let mut sample = Sample::default();
    for task in join_all(tasks.collect::<Vec<_>>()).await {
        sample.merge(task.expect("calls do not panic"));
    }
    Sample { cpu: cpu_time().saturating_sub(cpu), elapsed: begin.elapsed(), ..sample }
}

async fn keep_calling(mut caller: impl Caller, shape: Shape, end: Instant) -> Sample {
    let mut sample = Sample::default();
    let mut now = Instant::now();
    while now < end {
        let failed = caller.exchange(shape).await.is_err();
        let begun = std::mem::replace(&mut now, Instant::now());
        sample.latencies_us.push(microseconds(now - begun));
        sample.failed += usize::from(failed);
    }
    sample
}

/// One call of [`open`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// When it was due, which is when its latency begins to count: a client that lags hides nothing.
    pub(crate) begun: Instant,
    /// How long it took from then.
    pub(crate) took: Duration,
    /// The server that answered, if one did.
    pub(crate) answered_by: Option<SocketAddr>,
}

/// Makes `rate` calls a second for a while, at even intervals and whatever becomes of them, and waits for the last one.
///
/// # Panics
///
/// If a call panics.
pub(crate) async fn open(caller: impl Caller, rate: u32, duration: Duration, deadline: Duration) -> Vec<Call> {
    let (runtime, begin) = (Handle::current(), Instant::now());
    let wanted = Arc::new(());
    let is_wanted = Arc::downgrade(&wanted);
    // A thread of its own, since the runtime's timers count whole milliseconds.
    let made = spawn_blocking(move || {
        let mut calls: Vec<JoinHandle<Call>> = Vec::new();
        let due_times = (0..).map(|number| Duration::from_secs(1) * number / rate);
        for due in due_times.take_while(|due| *due < duration) {
            let due = begin + due;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if is_wanted.strong_count() == 0 {
                break;
            }
            calls.push(runtime.spawn(call_once(caller.clone(), due, deadline)));
        }
        calls
    });
    let calls = made.await.expect("calls are made in time");
    drop(wanted);
    join_all(calls).await.into_iter().map(|call| call.expect("a call does not panic")).collect()
}

async fn call_once(mut caller: impl Caller, begun: Instant, deadline: Duration) -> Call {
    // A channel that forgets the deadline must not hold up the run.
    let answer = timeout(deadline + GRACE, caller.call(Some(deadline))).await;
    let answered_by = match answer {
        Ok(Ok(reply)) => Some(reply.address.parse().expect("a server tells its address")),
        Ok(Err(_)) | Err(_) => None,
    };
    Call { begun, took: begun.elapsed(), answered_by }
}

/// The figures of calls that were made at a fixed rate; the CPU time is left out, for it is mostly that of waking up.
pub(crate) fn sample(calls: &[Call], duration: Duration) -> Sample {
    Sample {
        cpu: Duration::ZERO,
        elapsed: duration,
        failed: calls.iter().filter(|call| call.answered_by.is_none()).count(),
        latencies_us: calls.iter().map(|call| microseconds(call.took)).collect(),
    }
}

fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// The size of a stream's messages, on both sides.
pub(crate) const ITEM: usize = 100;
/// What a short call carries, there and back.
const PAYLOAD: &str = "sixty-four bytes of text, as long as many a small message is ...";
const GRACE: Duration = Duration::from_secs(1);
