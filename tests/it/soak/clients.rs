//! The clients: calls and streams without end, and what each is told of the servers.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{self, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};
use tonic_etcd::channel::{Connectivity, InstanceStatus};
use tonic_etcd::{BalancedChannel, Change, Discover, Instance, Registry};

use super::journal::{Journal, List};
use super::{SERVERS, SETTLED};
use crate::support::eventually;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;

/// A client, which calls for as long as it lives.
pub(super) struct Client {
    pub(super) registry: Registry,
    pub(super) channel: BalancedChannel,
    pub(super) known: Discover,
    tasks: Vec<JoinHandle<()>>,
}

/// What all clients report.
#[derive(Clone)]
pub(super) struct Reports {
    pub(super) journal: Journal,
    pub(super) calls: List<Failure>,
    pub(super) streams: List<Failure>,
    pub(super) removals: List<Sighting>,
    pub(super) ejections: List<Sighting>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    calls_begun: AtomicUsize,
    calls_ended: AtomicUsize,
    streams_ended: AtomicUsize,
    /// In milliseconds.
    longest_call: AtomicU64,
    longest_wait_of_streams: AtomicU64,
}

/// A call or a stream that failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) begin: Instant,
    pub(super) end: Instant,
    pub(super) status: Status,
}

/// Something that a client was told of a server.
#[derive(Debug, Clone)]
pub(super) struct Sighting {
    pub(super) at: Instant,
    pub(super) address: String,
}

impl Reports {
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            journal,
            calls: List::default(),
            streams: List::default(),
            removals: List::default(),
            ejections: List::default(),
            counts: Arc::default(),
        }
    }

    pub(super) fn calls_begun(&self) -> usize {
        self.counts.calls_begun.load(Ordering::Relaxed)
    }

    /// How many calls are under way; those whose task panicked are for ever.
    pub(super) fn calls_under_way(&self) -> usize {
        let ended = self.counts.calls_ended.load(Ordering::Relaxed);
        self.calls_begun().saturating_sub(ended)
    }

    /// How many streams ended in order, after all their answers.
    pub(super) fn streams_ended(&self) -> usize {
        self.counts.streams_ended.load(Ordering::Relaxed)
    }

    /// How long a call took at most.
    pub(super) fn longest_call(&self) -> Duration {
        Duration::from_millis(self.counts.longest_call.load(Ordering::Relaxed))
    }

    /// How long a stream took at most to begin, to bring an answer, or to fail.
    pub(super) fn longest_wait_of_streams(&self) -> Duration {
        Duration::from_millis(self.counts.longest_wait_of_streams.load(Ordering::Relaxed))
    }
}

impl Client {
    pub(super) async fn start(urls: Vec<String>, reports: &Reports) -> Self {
        let registry = Registry::builder(urls).build().expect("a good registry");
        let channel = registry.channel("echo").build().expect("a good channel");
        let known = registry.discover("echo").expect("a good name");
        let told = registry.discover("echo").expect("a good name");
        all_ready(&channel).await;
        let mut tasks = vec![
            tokio::spawn(call(channel.clone(), reports.clone())),
            tokio::spawn(watch_removals(told, reports.clone())),
            tokio::spawn(watch_ejections(channel.clone(), reports.clone())),
        ];
        for messages in STREAMS {
            tasks.push(tokio::spawn(keep_open(channel.clone(), messages, reports.clone())));
        }
        Self { registry, channel, known, tasks }
    }

    /// Whether all its tasks are at work: one that panicked is not.
    pub(super) fn is_at_work(&self) -> bool {
        self.tasks.iter().all(|task| !task.is_finished())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

pub(super) async fn all_ready(channel: &BalancedChannel) {
    let ready = async || {
        let instances = channel.instances();
        let is_ready = |status: &InstanceStatus| status.state() == Connectivity::Ready && !status.is_ejected();
        instances.len() == SERVERS && instances.iter().all(is_ready)
    };
    eventually("all servers are connected and in use", SETTLED, ready).await;
}

async fn call(channel: BalancedChannel, reports: Reports) {
    let client = EchoClient::new(channel);
    let mut due = time::interval(Duration::from_secs(1) / RATE);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let (mut client, reports) = (client.clone(), reports.clone());
        tokio::spawn(async move {
            let mut request = Request::new(EchoRequest { message: "hi".into() });
            request.set_timeout(DEADLINE);
            let begin = Instant::now();
            reports.counts.calls_begun.fetch_add(1, Ordering::Relaxed);
            let answer = patiently(client.unary_echo(request), &reports.counts.longest_call).await;
            if let Err(status) = answer {
                reports.calls.push(Failure { begin, end: Instant::now(), status });
            }
            reports.counts.calls_ended.fetch_add(1, Ordering::Relaxed);
        });
    }
}

/// Opens a stream of so many messages, and another one when it has ended.
async fn keep_open(channel: BalancedChannel, messages: u32, reports: Reports) {
    let client = EchoClient::new(channel);
    loop {
        let begin = Instant::now();
        match talk(client.clone(), messages, &reports.counts.longest_wait_of_streams).await {
            Ok(()) => _ = reports.counts.streams_ended.fetch_add(1, Ordering::Relaxed),
            Err(status) => {
                reports.streams.push(Failure { begin, end: Instant::now(), status });
                time::sleep(MESSAGES_EVERY).await;
            }
        }
    }
}

/// One stream: a message, its answer, a pause, the next one; then its end, which the server answers with its own.
async fn talk(mut client: EchoClient<BalancedChannel>, messages: u32, longest: &AtomicU64) -> Result<(), Status> {
    let (requests, body) = mpsc::channel(1);
    let response = patiently(client.bidirectional_streaming_echo(ReceiverStream::new(body)), longest).await?;
    let instance = response.extensions().get::<Arc<Instance>>();
    let address = instance.expect("a response tells its instance").address().to_string();
    let mut replies = response.into_inner();
    // The server's own words, which are passed on as they are.
    let named = |status: Status| match status.message() {
        LEAVES => Status::new(status.code(), format!("{address}: {LEAVES}")),
        _ => status,
    };
    for number in 0..messages {
        let message = number.to_string();
        // Fails where the stream has ended, which its answers tell.
        _ = requests.send(EchoRequest { message: message.clone() }).await;
        match patiently(replies.message(), longest).await.map_err(named)? {
            Some(reply) if reply.message == message && reply.address == address => {}
            Some(reply) => return Err(Status::new(WRONG, format!("{address}: {reply:?} to message {number}"))),
            None => return Err(Status::aborted(format!("{address}: the stream ended before message {number}"))),
        }
        time::sleep(MESSAGES_EVERY).await;
    }
    drop(requests);
    match patiently(replies.message(), longest).await.map_err(named)? {
        None => Ok(()),
        Some(reply) => Err(Status::new(WRONG, format!("{address}: {reply:?} to no message"))),
    }
}

/// Waits for longer than anything may take, and notes how long it took.
async fn patiently<T>(answer: impl Future<Output = Result<T, Status>>, longest: &AtomicU64) -> Result<T, Status> {
    let begin = Instant::now();
    let answer = time::timeout(PATIENCE, answer).await;
    longest.fetch_max(u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    answer.unwrap_or_else(|_| Err(Status::new(WRONG, format!("nothing came for {PATIENCE:?}"))))
}

async fn watch_removals(mut told: Discover, reports: Reports) {
    while let Some(Ok(change)) = told.next().await {
        if let Change::Remove(address) = change {
            reports.journal.note(format!("a client is told of the removal of {address}"));
            reports.removals.push(Sighting { at: Instant::now(), address: address.to_string() });
        }
    }
}

async fn watch_ejections(channel: BalancedChannel, reports: Reports) {
    let mut changes = channel.instance_changes();
    let mut before = HashSet::new();
    while let Some(instances) = changes.next().await {
        let ejected = instances.iter().filter(|status| status.is_ejected());
        let ejected: HashSet<String> = ejected.map(|status| status.instance().address().to_string()).collect();
        for address in ejected.difference(&before) {
            reports.journal.note(format!("a client ejects {address}"));
            reports.ejections.push(Sighting { at: Instant::now(), address: address.clone() });
        }
        before = ejected;
    }
}

/// Calls a second of each client.
const RATE: u32 = 250;

/// How long a call may take.
const DEADLINE: Duration = Duration::from_secs(1);

/// How many messages each stream of a client has: those of the last one go on until the server ends its connection.
const STREAMS: [u32; 3] = [8, 40, u32::MAX];

const MESSAGES_EVERY: Duration = Duration::from_millis(500);

/// What ends a stream at the drain limit of its server.
const LEAVES: &str = "the server is shutting down and its drain limit has passed";

/// How long anything is waited for that has to come.
const PATIENCE: Duration = Duration::from_secs(90);

/// The code of what must never happen, whatever was done to a server. No server of these tests sends it.
pub(super) const WRONG: Code = Code::DataLoss;
