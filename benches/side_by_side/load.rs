//! Load: calls go out through a client, either a fixed number at a time or at a fixed rate; their outcomes come back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http_body::Body as HttpBody;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::{Request, Status};

use crate::machine::cpu_time;
use crate::proto::echo::echo_client::EchoClient;
use crate::proto::echo::{EchoReply, EchoRequest};
use crate::statistics::{figure, percentile};

/// A client of any channel.
pub(crate) trait Caller: Clone + Send + 'static {
    /// One unary call. Its deadline, if it has one, is sent to the server and set on the channel.
    fn call(&mut self, deadline: Option<Duration>) -> impl Future<Output = Result<EchoReply, Status>> + Send;
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
            p50_us: percentile(&self.latencies_us, 50),
            p99_us: percentile(&self.latencies_us, 99),
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
    /// How many calls were made.
    pub(crate) calls: usize,
    /// How many of them failed.
    pub(crate) failed: usize,
}

/// Keeps `in_flight` calls going for a while.
///
/// # Panics
///
/// If a task of the load panics.
pub(crate) async fn closed(
    caller: impl Caller,
    in_flight: usize,
    duration: Duration,
    deadline: Option<Duration>,
) -> Sample {
    let (cpu, begin) = (cpu_time(), Instant::now());
    let end = begin + duration;
    let tasks = (0..in_flight).map(|_| tokio::spawn(keep_calling(caller.clone(), end, deadline)));
    let mut sample = Sample::default();
    for task in join_all(tasks.collect::<Vec<_>>()).await {
        sample.merge(task.expect("calls do not panic"));
    }
    Sample { cpu: cpu_time().saturating_sub(cpu), elapsed: begin.elapsed(), ..sample }
}

async fn keep_calling(mut caller: impl Caller, end: Instant, deadline: Option<Duration>) -> Sample {
    let mut sample = Sample::default();
    let mut now = Instant::now();
    while now < end {
        let failed = caller.call(deadline).await.is_err();
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

/// Makes `rate` calls a second for a while, whatever becomes of them, and waits for the last one.
///
/// # Panics
///
/// If a call panics.
pub(crate) async fn open(caller: impl Caller, rate: u32, duration: Duration, deadline: Duration) -> Vec<Call> {
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let end = Instant::now() + duration;
    let (mut calls, mut due): (Vec<JoinHandle<Call>>, u32) = (Vec::new(), 0);
    loop {
        let begun = ticks.tick().await.into_std();
        if begun >= end {
            break;
        }
        due += rate;
        for _ in 0..due / 1000 {
            calls.push(tokio::spawn(call_once(caller.clone(), begun, deadline)));
        }
        due %= 1000;
    }
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

/// What every call carries, there and back.
const PAYLOAD: &str = "sixty-four bytes of text, as long as many a small message is ...";
const GRACE: Duration = Duration::from_secs(1);
