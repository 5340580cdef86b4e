//! Calls without end over a balanced channel, each begun at its own time whatever became of the others.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{self, MissedTickBehavior};
use tonic::{Request, Status};
use tonic_etcd::BalancedChannel;

use super::server::proto::echo::EchoRequest;
use super::server::proto::echo::echo_client::EchoClient;
use super::{LIMIT, eventually};

/// A call that ended.
#[derive(Debug, Clone)]
pub struct Call {
    /// The moment at which it was sent into the channel.
    pub begin: Instant,
    /// The address of the server that answered, or the error.
    pub answer: Result<String, Status>,
}

/// Calls at a steady rate, until it is [finished](Self::finish) or dropped.
#[derive(Debug)]
pub struct Load {
    rate: u32,
    ended: Arc<Mutex<Vec<Call>>>,
    task: JoinHandle<()>,
    stop: Arc<Notify>,
}

impl Load {
    /// Starts to call two hundred times a second, and waits until the first calls were answered.
    pub async fn start(channel: &BalancedChannel) -> Self {
        Self::at_rate(CALLS_A_SECOND, channel).await
    }

    /// Starts to call that many times a second, and waits until the first calls were answered.
    pub async fn at_rate(rate: u32, channel: &BalancedChannel) -> Self {
        Self::with_deadlines(rate, LIMIT, channel).await
    }

    /// Starts to call that many times a second, each call with this deadline, and waits until the first are answered.
    pub async fn with_deadlines(rate: u32, deadline: Duration, channel: &BalancedChannel) -> Self {
        let (ended, stop) = (Arc::default(), Arc::default());
        let task = tokio::spawn(call_all(rate, deadline, channel.clone(), Arc::clone(&ended), Arc::clone(&stop)));
        let load = Self { rate, ended, task, stop };
        load.goes_on_for(Duration::from_millis(100)).await;
        load
    }

    /// Waits until as many calls more have been answered as fall due in `time`.
    pub async fn goes_on_for(&self, time: Duration) {
        let (begin, more) = (Instant::now(), u128::from(self.rate) * time.as_millis() / 1_000);
        let answered = async || {
            let calls = self.ended();
            calls.iter().filter(|call| call.begin > begin && call.answer.is_ok()).count() as u128 > more
        };
        eventually("calls are answered", LIMIT, answered).await;
    }

    /// Waits until calls that began from now on were answered by `address`.
    pub async fn reaches(&self, address: &str) {
        let begin = Instant::now();
        let reached = async || self.ended().iter().any(|call| call.begin > begin && is_by(call, address));
        eventually("the server answers calls", LIMIT, reached).await;
    }

    /// Begins no more calls, waits for those in flight, and returns what became of all, in the order of their ends.
    ///
    /// # Panics
    ///
    /// If the calls have not ended after [`LIMIT`].
    pub async fn finish(mut self) -> Vec<Call> {
        self.stop.notify_one();
        let ended = time::timeout(LIMIT, &mut self.task).await;
        ended.expect("all calls end in time").expect("no call panics");
        mem::take(&mut *self.ended())
    }

    fn ended(&self) -> MutexGuard<'_, Vec<Call>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

/// Whether `address` answered this call.
pub fn is_by(call: &Call, address: &str) -> bool {
    call.answer.as_ref().is_ok_and(|by| by == address)
}

/// Those of `calls` that failed.
pub fn failed(calls: &[Call]) -> Vec<&Call> {
    calls.iter().filter(|call| call.answer.is_err()).collect()
}

async fn call_all(
    rate: u32,
    deadline: Duration,
    channel: BalancedChannel,
    ended: Arc<Mutex<Vec<Call>>>,
    stop: Arc<Notify>,
) {
    let client = EchoClient::new(channel);
    let mut calls = JoinSet::new();
    let mut due = time::interval(Duration::from_secs(1) / rate);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        tokio::select! {
            () = stop.notified() => break,
            _ = due.tick() => {}
            Some(call) = calls.join_next() => {
                ended.lock().unwrap_or_else(PoisonError::into_inner).push(call.expect("no call panics"));
                continue;
            }
        }
        let mut client = client.clone();
        calls.spawn(async move {
            let begin = Instant::now();
            let mut request = Request::new(EchoRequest { message: "hi".into() });
            request.set_timeout(deadline);
            let answer = client.unary_echo(request).await;
            Call { begin, answer: answer.map(|reply| reply.into_inner().address) }
        });
    }
    while let Some(call) = calls.join_next().await {
        ended.lock().unwrap_or_else(PoisonError::into_inner).push(call.expect("no call panics"));
    }
}

const CALLS_A_SECOND: u32 = 200;
