//! Keepalives: one stream per member for all registrations of a registry, and for each lease a keeper that renews it in
//! time, asks another member when one is silent, and reports the end of the lease.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use etcd_client::{LeaseKeepAliveResponse, LeaseKeepAliveStream, LeaseKeeper};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::Instrument;

use crate::backoff::{Backoff, spread};
use crate::error::{EtcdError, EtcdErrorKind, chain};
use crate::etcd::{Cluster, Connection};

/// The keepalive streams of one registry, for as long as one of its leases is kept.
#[derive(Debug)]
pub(super) struct KeepalivePool {
    cluster: Arc<Cluster>,
    running: Mutex<Weak<KeepaliveStreams>>,
}

impl KeepalivePool {
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, running: Mutex::default() }
    }

    /// The running streams, or new ones: for the first lease, and after the runtime of the old ones has ended. Needs a
    /// tokio runtime.
    fn streams(&self) -> Arc<KeepaliveStreams> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(streams) = running.upgrade().filter(|streams| streams.is_running()) {
            return streams;
        }
        let spawned = KeepaliveStreams::spawn(&self.cluster);
        *running = Arc::downgrade(&spawned);
        spawned
    }
}

/// One stream for each member. They end when no lease is left that holds them.
#[derive(Debug)]
struct KeepaliveStreams {
    cluster: Arc<Cluster>,
    members: Vec<mpsc::Sender<Ask>>,
}

/// One keepalive.
#[derive(Debug)]
struct Ask {
    lease: i64,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Renewed,
    Dead,
}

impl KeepaliveStreams {
    fn spawn(cluster: &Arc<Cluster>) -> Arc<Self> {
        let members = (0..cluster.len()).map(|index| {
            let (asks, receiver) = mpsc::channel(QUEUE);
            let span = tracing::info_span!(parent: None, "keepalive", member = index);
            tokio::spawn(MemberStream { cluster: cluster.clone(), index, asks: receiver }.run().instrument(span));
            asks
        });
        Arc::new(Self { members: members.collect(), cluster: cluster.clone() })
    }

    /// False once the runtime of the streams has ended.
    fn is_running(&self) -> bool {
        self.members.iter().all(|member| !member.is_closed())
    }

    /// One keepalive through one member. `None`: its stream broke, or its queue is full.
    async fn ask(&self, lease: i64, member: usize) -> Option<Answer> {
        let (answer, answered) = oneshot::channel();
        self.members[member % self.members.len()].try_send(Ask { lease, answer }).ok()?;
        answered.await.ok()
    }
}

/// The stream to one member, opened on demand.
struct MemberStream {
    cluster: Arc<Cluster>,
    index: usize,
    asks: mpsc::Receiver<Ask>,
}

impl MemberStream {
    async fn run(mut self) {
        let mut reopen_at = Instant::now();
        while let Some(first) = self.asks.recv().await {
            if first.answer.is_closed() || Instant::now() < reopen_at {
                continue;
            }
            match self.open(first.lease).await {
                Ok((connection, keeper, responses)) => {
                    let _ = first.answer.send(Answer::Renewed);
                    self.serve(&connection, keeper, responses).await;
                }
                Err(error) if error.kind == EtcdErrorKind::NotFound => {
                    let _ = first.answer.send(Answer::Dead);
                }
                Err(error) => {
                    tracing::debug!(error = chain(&error), "keepalive stream cannot be opened");
                    reopen_at = Instant::now() + REOPEN_PAUSE;
                }
            }
        }
    }

    async fn open(&self, lease: i64) -> Result<(Arc<Connection>, LeaseKeeper, LeaseKeepAliveStream), EtcdError> {
        let connection = self.cluster.connection_without_login(self.index).await?;
        let opened = connection.keep_alive(lease, REPLY_LIMIT).await;
        let (keeper, responses) = self.cluster.on_answer(&connection, opened).await?;
        Ok((connection, keeper, responses))
    }

    /// Passes keepalives on until the stream breaks, stalls or idles, or its member turns out to be of another cluster.
    /// Pending keepalives are cancelled then.
    async fn serve(
        &mut self,
        connection: &Arc<Connection>,
        mut keeper: LeaseKeeper,
        mut responses: LeaseKeepAliveStream,
    ) {
        let mut pending = Pending::new(Instant::now());
        let mut refusals = self.cluster.refusal_watch();
        loop {
            tokio::select! {
                biased;
                () = refusals.refused(connection) => return,
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        self.cluster.on_response(connection);
                        pending.on_answer(response.id(), answer_in(&response), Instant::now());
                    }
                    Ok(None) => return,
                    Err(error) => {
                        tracing::debug!(%error, "keepalive stream broke");
                        return;
                    }
                },
                ask = self.asks.recv() => {
                    let Some(ask) = ask else { return };
                    // The stream takes any lease; only etcd-client's handle is bound to one.
                    keeper.id = ask.lease;
                    pending.on_ask(ask, Instant::now());
                    if !matches!(timeout(REPLY_LIMIT, keeper.keep_alive()).await, Ok(Ok(()))) {
                        self.cluster.forget(connection);
                        return;
                    }
                }
                () = sleep_until(pending.give_up_at()) => {
                    if pending.is_owed() {
                        tracing::debug!("member does not answer keepalives");
                        self.cluster.forget(connection);
                        self.cluster.prefer_another(self.index);
                    }
                    return;
                }
            }
        }
    }
}

/// The keepalives of one stream that wait for their answers.
struct Pending {
    waiting: HashMap<i64, Vec<oneshot::Sender<Answer>>>,
    /// Since when the member owes an answer, even if its keeper has given up by now.
    owing: Option<Instant>,
    last_ask: Instant,
}

impl Pending {
    fn new(now: Instant) -> Self {
        Self { waiting: HashMap::new(), owing: None, last_ask: now }
    }

    fn on_ask(&mut self, ask: Ask, now: Instant) {
        self.last_ask = now;
        self.owing.get_or_insert(now);
        self.waiting.retain(|_, answers| answers.iter().any(|answer| !answer.is_closed()));
        self.waiting.entry(ask.lease).or_default().push(ask.answer);
    }

    /// One answer serves all keepalives of its lease, and gives the others time anew.
    fn on_answer(&mut self, lease: i64, answer: Answer, now: Instant) {
        for waiting in self.waiting.remove(&lease).into_iter().flatten() {
            let _ = waiting.send(answer);
        }
        self.owing = (!self.waiting.is_empty()).then_some(now);
    }

    fn is_owed(&self) -> bool {
        self.owing.is_some()
    }

    /// When the member has been silent, or the stream idle, for too long.
    fn give_up_at(&self) -> Instant {
        self.owing.map_or(self.last_ask + STREAM_IDLE, |since| since + REPLY_LIMIT)
    }
}

fn answer_in(response: &LeaseKeepAliveResponse) -> Answer {
    if response.ttl() > 0 { Answer::Renewed } else { Answer::Dead }
}

/// The state of a lease, as far as its keeper knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseState {
    /// The lease is kept alive, or no member could be asked.
    Kept,
    /// etcd reported that the lease does not exist.
    Dead,
}

/// Keeps a lease alive until the receiver is dropped or etcd reports the lease dead. The first keepalive is due at
/// `first`, and each other one a third of the TTL after the one before.
pub(super) fn keep(
    pool: Arc<KeepalivePool>,
    lease: i64,
    ttl: Duration,
    first: Option<Instant>,
) -> watch::Receiver<LeaseState> {
    let (publisher, state) = watch::channel(LeaseState::Kept);
    let interval = move || Instant::now() + spread(ttl / 3, 0.1);
    let keeper = async move {
        // Held between keepalives as well: the streams end with their last handle.
        let mut streams = pool.streams();
        let mut due = first.unwrap_or_else(interval);
        loop {
            tokio::select! {
                () = publisher.closed() => return,
                () = sleep_until(due) => due = interval(),
            }
            // Late after the process was stopped, and then renewed at once.
            tokio::select! {
                () = publisher.closed() => return,
                answer = renew(&pool, &mut streams, lease) => {
                    if answer == Answer::Dead {
                        publisher.send_replace(LeaseState::Dead);
                        return;
                    }
                }
            }
        }
    };
    tokio::spawn(keeper.in_current_span());
    state
}

/// Asks in rounds until a member answers.
async fn renew(pool: &KeepalivePool, streams: &mut Arc<KeepaliveStreams>, lease: i64) -> Answer {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        *streams = pool.streams();
        if let Some(answer) = ask_around(streams, lease).await {
            return answer;
        }
        sleep(backoff.next()).await;
    }
}

/// Asks member after member, each as soon as the one before was silent for too long. The first answer counts, from
/// whichever member.
async fn ask_around(streams: &KeepaliveStreams, lease: i64) -> Option<Answer> {
    let first = streams.cluster.preferred();
    let mut asked = FuturesUnordered::new();
    for member in first..first + streams.members.len() {
        asked.push(streams.ask(lease, member));
        let mut silent = pin!(sleep(REPLY_LIMIT));
        loop {
            tokio::select! {
                answer = asked.next() => match answer {
                    Some(Some(answer)) => return Some(answer),
                    // One of several broke off; the others may still answer.
                    Some(None) => {}
                    None => break,
                },
                () = &mut silent => break,
            }
        }
    }
    None
}

/// How long a member may take to answer a keepalive before another one is asked: a TTL of 15 s then survives a member
/// that freezes (interval 5 s + this 2 s + connect 2 s + an election 2 s + one retry 2 s = 13 s).
const REPLY_LIMIT: Duration = Duration::from_secs(2);

/// How long a stream without keepalives stays open, after a hedge for instance.
const STREAM_IDLE: Duration = Duration::from_secs(60);

/// How many keepalives may wait for a member's stream to open. More than that fail at once and are tried elsewhere.
const QUEUE: usize = 1024;

/// How long a member is left alone after its stream could not be opened: many leases are no reason to dial a dead
/// member more often.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);

/// The first wait after no member answered.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// The longest wait after no member answered: a lease is renewed within a second of etcd's return.
const RETRY_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ask(pending: &mut Pending, lease: i64, now: Instant) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        pending.on_ask(Ask { lease, answer }, now);
        answered
    }

    #[test]
    fn an_answer_serves_every_keepalive_of_its_lease_and_no_other() {
        let now = Instant::now();
        let mut pending = Pending::new(now);
        let mut answers = [1, 1, 2].map(|lease| ask(&mut pending, lease, now));
        pending.on_answer(1, Answer::Renewed, now);
        assert_eq!(answers[0].try_recv(), Ok(Answer::Renewed), "the first of the lease");
        assert_eq!(answers[1].try_recv(), Ok(Answer::Renewed), "the second of the lease");
        assert!(answers[2].try_recv().is_err(), "another lease waits on");
        pending.on_answer(2, Answer::Dead, now);
        assert_eq!(answers[2].try_recv(), Ok(Answer::Dead), "the other lease");
        assert!(!pending.is_owed(), "all were answered");
    }

    #[test]
    fn a_silent_member_is_given_up_sooner_than_an_idle_stream() {
        let start = Instant::now();
        let mut pending = Pending::new(start);
        assert_eq!(pending.give_up_at(), start + STREAM_IDLE, "nothing was asked");
        let _first = ask(&mut pending, 1, start + SECOND);
        let _second = ask(&mut pending, 2, start + 2 * SECOND);
        assert_eq!(pending.give_up_at(), start + SECOND + REPLY_LIMIT, "the first keepalive counts");
        pending.on_answer(1, Answer::Renewed, start + 2 * SECOND);
        assert_eq!(pending.give_up_at(), start + 2 * SECOND + REPLY_LIMIT, "an answer gives the others time anew");
        pending.on_answer(2, Answer::Renewed, start + 3 * SECOND);
        assert_eq!(pending.give_up_at(), start + 2 * SECOND + STREAM_IDLE, "idle since the last keepalive");
    }

    #[test]
    fn a_keeper_that_gave_up_leaves_nothing_behind_but_the_debt() {
        let now = Instant::now();
        let mut pending = Pending::new(now);
        drop(ask(&mut pending, 1, now));
        let _kept = ask(&mut pending, 2, now);
        assert_eq!(pending.waiting.len(), 1, "the first is forgotten with the next one");
        assert!(pending.is_owed(), "the member is silent all the same");
    }
}
