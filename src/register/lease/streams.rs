//! Keepalives in, answers out: a stream to each member, for all leases of a registry.
//!
//! A stream is kept for as long as its connection lives, however late its answers are: what ends a dead connection are
//! its HTTP/2 pings. But etcd serves the keepalives of a stream one after the other, and a follower that forwarded one
//! to a leader which is gone holds up all behind it for 7 s. So a keepalive that finds its stream late opens another
//! one beside it, on the same connection, or on a new one where that does not even answer a read: the network may have
//! lost it, and pings take longer to find out than a lease may wait.
//!
//! ```text
//! current --late--> current, and one beside it --the one beside was answered--> it is the current one
//!                      |               |
//!                      |               +--it broke, or is late as well: the next late keepalive opens another one
//!                      +--replaced: it gets no more keepalives, and ends when it has answered those that it got
//! ```
//!
//! Late is later than the keeper of a lease would wait (its patience), and later than twice the latest answer: a member
//! that is always late, as `etcd grpc-proxy` is, needs no second stream.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use etcd_client::{LeaseKeepAliveResponse, LeaseKeepAliveStream, LeaseKeeper};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::Instrument;

use super::metrics::KeepaliveMetrics;
use crate::error::{EtcdError, EtcdErrorKind, chain};
use crate::etcd::{Cluster, Connection, Generation};
use crate::targets::REGISTRATION;

/// The keepalive streams of one registry, for as long as one of its leases is kept.
#[derive(Debug)]
pub(super) struct KeepalivePool {
    cluster: Arc<Cluster>,
    running: Mutex<Weak<KeepaliveStreams>>,
    metrics: KeepaliveMetrics,
}

impl KeepalivePool {
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, running: Mutex::default(), metrics: KeepaliveMetrics::new() }
    }

    /// The running streams, or new ones: for the first lease, after the runtime of the old ones has ended, and where
    /// other members are named. Needs a tokio runtime.
    pub(super) fn streams(&self) -> Arc<KeepaliveStreams> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let members = self.cluster.current();
        if let Some(streams) = running.upgrade().filter(|streams| streams.are_running_on(&members)) {
            return streams;
        }
        let spawned = Arc::new(KeepaliveStreams::spawn(members, &self.metrics));
        *running = Arc::downgrade(&spawned);
        spawned
    }

    pub(super) fn metrics(&self) -> &KeepaliveMetrics {
        &self.metrics
    }
}

/// The streams of all members. They end when no lease is left that holds them.
#[derive(Debug)]
pub(super) struct KeepaliveStreams {
    generation: Arc<Generation>,
    members: Vec<Mutex<MemberStreams>>,
}

/// An answer to a keepalive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Renewed,
    Dead,
}

impl KeepaliveStreams {
    fn spawn(generation: Arc<Generation>, metrics: &KeepaliveMetrics) -> Self {
        let streams = |index| Mutex::new(MemberStreams::new(generation.clone(), index, metrics.clone()));
        let members = (0..generation.len()).map(streams);
        Self { members: members.collect(), generation }
    }

    /// Whether these are the members, and the runtime of the streams has not ended.
    fn are_running_on(&self, members: &Arc<Generation>) -> bool {
        Arc::ptr_eq(&self.generation, members)
            && (0..self.members.len()).all(|member| !self.member(member).current.asks.is_closed())
    }

    /// One keepalive through one member. `None`: its stream broke, or takes no more.
    pub(super) async fn ask(&self, lease: i64, member: usize, patience: Duration) -> Option<Answer> {
        let (answer, answered) = oneshot::channel();
        self.member(member).ask(Ask { lease, patience, answer }, Instant::now());
        answered.await.ok()
    }

    /// The member to ask next, which is none of `asked`. Of those that do not owe an answer for longer than `patience`
    /// it is the preferred one if nothing was asked yet, or else any; if all do, it is the one that owes the least
    /// long.
    pub(super) fn choose(&self, asked: &[usize], patience: Duration) -> Option<usize> {
        let now = Instant::now();
        let lateness = (0..self.members.len()).map(|member| self.member(member).lateness(patience, now));
        choose(&lateness.collect::<Vec<_>>(), self.generation.preferred(), asked)
    }

    fn member(&self, index: usize) -> MutexGuard<'_, MemberStreams> {
        self.members[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn choose(lateness: &[Duration], preferred: usize, asked: &[usize]) -> Option<usize> {
    let mut members: Vec<_> = (0..lateness.len()).filter(|member| !asked.contains(member)).collect();
    fastrand::shuffle(&mut members);
    let is_other = |member: usize| !asked.is_empty() || member != preferred;
    members.into_iter().min_by_key(|&member| (lateness[member], is_other(member)))
}

/// The streams to one member.
#[derive(Debug)]
struct MemberStreams {
    generation: Arc<Generation>,
    index: usize,
    /// The one that keepalives go to.
    current: StreamHandle,
    /// The one that replaces it once it is answered.
    beside: Option<StreamHandle>,
    /// How many were opened beside it while it was late.
    tries: u32,
    metrics: KeepaliveMetrics,
}

#[derive(Debug)]
struct StreamHandle {
    asks: mpsc::Sender<Ask>,
    standing: watch::Receiver<Standing>,
}

/// One keepalive.
#[derive(Debug)]
struct Ask {
    lease: i64,
    /// How long its keeper waits before it asks another member.
    patience: Duration,
    answer: oneshot::Sender<Answer>,
}

/// What a stream owes, and how late it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Standing {
    /// Since when an answer is owed; each answer gives the others time anew.
    owes_since: Option<Instant>,
    /// How late answers have been; `None` while none has come.
    delay: Option<Duration>,
}

impl Standing {
    /// How long an answer has been owed, if that is longer than usual and than `patience`.
    fn lateness(&self, patience: Duration, now: Instant) -> Option<Duration> {
        let owed = now.saturating_duration_since(self.owes_since?);
        (owed >= patience.max(2 * self.delay.unwrap_or_default())).then_some(owed)
    }
}

impl MemberStreams {
    fn new(generation: Arc<Generation>, index: usize, metrics: KeepaliveMetrics) -> Self {
        let current = StreamHandle::spawn(generation.clone(), index, Standing::default(), metrics.clone());
        Self { generation, index, current, beside: None, tries: 0, metrics }
    }

    /// Passes a keepalive to the current stream, or to a new one if that is late.
    fn ask(&mut self, ask: Ask, now: Instant) {
        let stream = if self.wants_another(ask.patience, now) {
            self.tries += 1;
            let opening = Standing { owes_since: Some(now), delay: None };
            let (generation, metrics) = (self.generation.clone(), self.metrics.clone());
            self.beside.insert(StreamHandle::spawn(generation, self.index, opening, metrics))
        } else {
            &mut self.current
        };
        // An ask that is dropped tells its keeper.
        let _ = stream.asks.try_send(ask);
    }

    /// Whether the current stream is late, and so is what was opened beside it: each try has twice as long.
    fn wants_another(&mut self, patience: Duration, now: Instant) -> bool {
        self.settle();
        if self.current.lateness(patience, now).is_none() {
            self.tries = 0;
            return false;
        }
        let patience = patience * 2_u32.saturating_pow(self.tries.min(MOST_TRIES));
        self.beside.as_ref().is_none_or(|beside| beside.lateness(patience, now).is_some())
    }

    /// How long the member has been late; zero if it is not.
    fn lateness(&mut self, patience: Duration, now: Instant) -> Duration {
        self.settle();
        self.current.lateness(patience, now).unwrap_or_default()
    }

    /// Lets a stream that was opened beside the current one replace it, if it was answered.
    fn settle(&mut self) {
        let Some(beside) = self.beside.take() else { return };
        let standing = *beside.standing.borrow();
        if standing.delay.is_some() {
            (self.current, self.tries) = (beside, 0);
        } else if standing.owes_since.is_some() {
            self.beside = Some(beside);
        }
    }
}

impl StreamHandle {
    fn spawn(generation: Arc<Generation>, index: usize, standing: Standing, metrics: KeepaliveMetrics) -> Self {
        let (asks, receiver) = mpsc::channel(QUEUE);
        let (publisher, standing) = watch::channel(standing);
        let span = tracing::info_span!(
            target: REGISTRATION,
            parent: None,
            "keepalive",
            member = generation.name(index)
        );
        let is_beside = publisher.borrow().owes_since.is_some();
        let stream = KeepaliveStream { generation, index, is_beside, asks: receiver, standing: publisher, metrics };
        tokio::spawn(stream.run().instrument(span));
        Self { asks, standing }
    }

    fn lateness(&self, patience: Duration, now: Instant) -> Option<Duration> {
        self.standing.borrow().lateness(patience, now)
    }
}

/// One stream to one member, opened on demand.
struct KeepaliveStream {
    generation: Arc<Generation>,
    index: usize,
    /// Whether it was opened since another one is late.
    is_beside: bool,
    asks: mpsc::Receiver<Ask>,
    standing: watch::Sender<Standing>,
    metrics: KeepaliveMetrics,
}

impl KeepaliveStream {
    async fn run(mut self) {
        let mut reopen_at = Instant::now();
        while let Some(first) = self.asks.recv().await {
            let asked = Instant::now();
            if first.answer.is_closed() || asked < reopen_at {
                self.standing.send_replace(Standing::default());
                continue;
            }
            self.standing.send_replace(Standing { owes_since: Some(asked), delay: None });
            self.metrics.on_sent();
            match self.open(first.lease, first.patience).await {
                Ok((connection, keeper, responses)) => {
                    let _ = first.answer.send(Answer::Renewed);
                    self.serve(&connection, keeper, responses, asked.elapsed()).await;
                }
                Err(error) if error.kind == EtcdErrorKind::NotFound => {
                    let _ = first.answer.send(Answer::Dead);
                }
                Err(error) => {
                    tracing::debug!(target: REGISTRATION, error = chain(&error), "keepalive stream cannot be opened");
                    reopen_at = Instant::now() + REOPEN_PAUSE;
                }
            }
            self.standing.send_replace(Standing::default());
        }
    }

    async fn open(
        &mut self,
        lease: i64,
        patience: Duration,
    ) -> Result<(Arc<Connection>, LeaseKeeper, LeaseKeepAliveStream), EtcdError> {
        let mut connection = self.generation.connection_without_login(self.index).await?;
        if std::mem::take(&mut self.is_beside) && !is_alive(&connection, patience).await {
            self.generation.forget(&connection);
            connection = self.generation.connection_without_login(self.index).await?;
        }
        let opened = connection.keep_alive(lease, ANSWER_LIMIT).await;
        let (keeper, responses) = self.generation.on_answer(&connection, opened).await?;
        Ok((connection, keeper, responses))
    }

    /// Passes keepalives on until the stream breaks or idles, it was replaced and owes nothing, or its member turns out
    /// to be of another cluster. Pending keepalives are cancelled then.
    async fn serve(
        &mut self,
        connection: &Arc<Connection>,
        mut keeper: LeaseKeeper,
        mut responses: LeaseKeepAliveStream,
        delay: Duration,
    ) {
        let _open = connection.hold_stream();
        let mut pending = Pending::new(delay, Instant::now());
        let mut refusals = self.generation.refusal_watch();
        let mut is_replaced = false;
        while !is_replaced || pending.is_owed() {
            self.standing.send_replace(pending.standing());
            tokio::select! {
                biased;
                () = refusals.refused(connection) => return,
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        connection.on_heard();
                        let delay = pending.on_answer(response.id(), answer_in(&response), Instant::now());
                        delay.inspect(|delay| self.metrics.on_answer(*delay));
                        // A late answer is no reason to ask its member first.
                        if delay.is_none_or(|delay| delay <= PATIENCE_MAX) {
                            self.generation.on_response(connection);
                        }
                    }
                    Ok(None) => return,
                    Err(error) => {
                        tracing::debug!(target: REGISTRATION, %error, "keepalive stream broke");
                        return;
                    }
                },
                ask = self.asks.recv(), if !is_replaced => {
                    let Some(ask) = ask else {
                        is_replaced = true;
                        continue;
                    };
                    if ask.answer.is_closed() || !pending.takes(ask.lease) {
                        continue;
                    }
                    // The stream takes any lease; only etcd-client's handle is bound to one.
                    keeper.id = ask.lease;
                    match timeout(SEND_LIMIT, keeper.keep_alive()).await {
                        Ok(Ok(())) => {
                            self.metrics.on_sent();
                            pending.on_ask(ask.lease, ask.answer, Instant::now());
                        }
                        Ok(Err(_)) => return,
                        // The connection takes no bytes now.
                        Err(_) => {}
                    }
                }
                () = sleep_until(pending.give_up_at()) => {
                    // One that was replaced may share its connection with a sound one.
                    if pending.is_owed() && !is_replaced {
                        tracing::debug!(target: REGISTRATION, "member does not answer keepalives");
                        self.generation.on_silence(connection);
                    }
                    return;
                }
            }
        }
    }
}

/// Whether a connection brings answers: it did a moment ago, or it does when it is asked for one.
async fn is_alive(connection: &Connection, patience: Duration) -> bool {
    connection.was_heard_within(patience) || connection.answers(patience).await
}

/// The keepalives of one stream that wait for their answers.
struct Pending {
    leases: HashMap<i64, Owed>,
    owes_since: Option<Instant>,
    /// The delay of the latest answer, or half of the one before if that is longer.
    delay: Duration,
    last_ask: Instant,
}

/// What is owed for one lease.
#[derive(Default)]
struct Owed {
    /// When each keepalive was sent that was not answered yet.
    sent: VecDeque<Instant>,
    waiting: Vec<oneshot::Sender<Answer>>,
}

impl Pending {
    fn new(delay: Duration, now: Instant) -> Self {
        Self { leases: HashMap::new(), owes_since: None, delay, last_ask: now }
    }

    /// Whether another keepalive of this lease is worth its way.
    fn takes(&self, lease: i64) -> bool {
        self.leases.get(&lease).is_none_or(|owed| owed.sent.len() < MOST_OWED)
    }

    fn on_ask(&mut self, lease: i64, answer: oneshot::Sender<Answer>, now: Instant) {
        self.last_ask = now;
        self.owes_since.get_or_insert(now);
        let owed = self.leases.entry(lease).or_default();
        owed.waiting.retain(|answer| !answer.is_closed());
        owed.waiting.push(answer);
        owed.sent.push_back(now);
    }

    /// One answer serves all keepalives of its lease, although each gets one. Returns how late it was, if it was owed.
    fn on_answer(&mut self, lease: i64, answer: Answer, now: Instant) -> Option<Duration> {
        let owed = self.leases.get_mut(&lease)?;
        for waiting in owed.waiting.drain(..) {
            let _ = waiting.send(answer);
        }
        let sent = owed.sent.pop_front();
        if owed.sent.is_empty() {
            self.leases.remove(&lease);
        }
        self.owes_since = self.is_owed().then_some(now);
        let delay = now - sent?;
        self.delay = delay.max(self.delay / 2);
        Some(delay)
    }

    fn is_owed(&self) -> bool {
        !self.leases.is_empty()
    }

    fn standing(&self) -> Standing {
        Standing { owes_since: self.owes_since, delay: Some(self.delay) }
    }

    /// When the member has been silent, or the stream idle, for too long.
    fn give_up_at(&self) -> Instant {
        self.owes_since.map_or(self.last_ask + STREAM_IDLE, |since| since + ANSWER_LIMIT)
    }
}

fn answer_in(response: &LeaseKeepAliveResponse) -> Answer {
    if response.ttl() > 0 { Answer::Renewed } else { Answer::Dead }
}

/// The longest patience of a keeper. Answers within it are no sign of trouble.
pub(super) const PATIENCE_MAX: Duration = Duration::from_secs(2);

/// How long a member may owe its first answer, or all of them: longer than the pings of a dead connection take to end
/// it (15 s), so that this is for a member that answers pings and nothing else.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// How long a stream without keepalives stays open, after a hedge for instance.
const STREAM_IDLE: Duration = Duration::from_secs(60);

/// How many keepalives may wait for a stream to open. More than that fail at once and are tried elsewhere.
const QUEUE: usize = 1024;

/// How long a keepalive may wait for a full stream, while answers wait as well.
const SEND_LIMIT: Duration = Duration::from_millis(100);

/// How many answers may be owed for one lease on one stream: with a third of the TTL between two keepalives, for longer
/// than the lease lives.
const MOST_OWED: usize = 8;

/// How often the patience with streams that are opened beside a late one doubles.
const MOST_TRIES: u32 = 6;

/// How long a member is left alone after its stream could not be opened: many leases are no reason to dial a dead
/// member more often.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ask(pending: &mut Pending, lease: i64, now: Instant) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        pending.on_ask(lease, answer, now);
        answered
    }

    #[test]
    fn an_answer_serves_every_keepalive_of_its_lease_and_no_other() {
        let now = Instant::now();
        let mut pending = Pending::new(Duration::ZERO, now);
        let mut answers = [1, 1, 2].map(|lease| ask(&mut pending, lease, now));
        pending.on_answer(1, Answer::Renewed, now);
        assert_eq!(answers[0].try_recv(), Ok(Answer::Renewed), "the first of the lease");
        assert_eq!(answers[1].try_recv(), Ok(Answer::Renewed), "the second of the lease");
        assert!(answers[2].try_recv().is_err(), "another lease waits on");
        pending.on_answer(2, Answer::Dead, now);
        assert_eq!(answers[2].try_recv(), Ok(Answer::Dead), "the other lease");
        assert!(pending.is_owed(), "the second keepalive of the first lease gets an answer of its own");
        pending.on_answer(1, Answer::Renewed, now);
        assert!(!pending.is_owed(), "all were answered");
    }

    #[test]
    fn a_silent_member_is_given_up_sooner_than_an_idle_stream() {
        let start = Instant::now();
        let mut pending = Pending::new(Duration::ZERO, start);
        assert_eq!(pending.give_up_at(), start + STREAM_IDLE, "nothing was asked");
        let _first = ask(&mut pending, 1, start + SECOND);
        let _second = ask(&mut pending, 2, start + 2 * SECOND);
        assert_eq!(pending.give_up_at(), start + SECOND + ANSWER_LIMIT, "the first keepalive counts");
        pending.on_answer(1, Answer::Renewed, start + 2 * SECOND);
        assert_eq!(pending.give_up_at(), start + 2 * SECOND + ANSWER_LIMIT, "an answer gives the others time anew");
        pending.on_answer(2, Answer::Renewed, start + 3 * SECOND);
        assert_eq!(pending.give_up_at(), start + 2 * SECOND + STREAM_IDLE, "idle since the last keepalive");
    }

    #[test]
    fn a_lease_that_is_owed_many_answers_is_not_asked_for_again() {
        let now = Instant::now();
        let mut pending = Pending::new(Duration::ZERO, now);
        for _ in 0..MOST_OWED {
            assert!(pending.takes(1), "answers may be on their way");
            drop(ask(&mut pending, 1, now));
        }
        assert!(!pending.takes(1) && pending.takes(2), "that lease waits, another one does not");
        assert_eq!(pending.leases[&1].waiting.len(), 1, "keepers that gave up are forgotten with the next one");
        pending.on_answer(1, Answer::Renewed, now);
        assert!(pending.takes(1), "until an answer comes");
    }

    #[test]
    fn a_stream_is_late_beyond_the_patience_and_twice_its_usual_delay() {
        let start = Instant::now();
        let mut pending = Pending::new(Duration::ZERO, start);
        let lateness = |pending: &Pending, after: Duration| pending.standing().lateness(2 * SECOND, start + after);
        let _first = ask(&mut pending, 1, start);
        assert_eq!(lateness(&pending, SECOND), None, "that is no time");
        assert_eq!(lateness(&pending, 2 * SECOND), Some(2 * SECOND), "late");
        pending.on_answer(1, Answer::Renewed, start + 7 * SECOND);
        assert_eq!(lateness(&pending, 60 * SECOND), None, "it owes nothing");
        let _second = ask(&mut pending, 1, start + 10 * SECOND);
        assert_eq!(lateness(&pending, 23 * SECOND), None, "it has answered after 7 s");
        assert_eq!(lateness(&pending, 24 * SECOND), Some(14 * SECOND), "but never after 14 s");
        pending.on_answer(1, Answer::Renewed, start + 11 * SECOND);
        let _third = ask(&mut pending, 1, start + 20 * SECOND);
        assert_eq!(lateness(&pending, 27 * SECOND), Some(7 * SECOND), "what was long ago counts less");
    }

    #[test]
    fn the_preferred_member_comes_first_and_a_late_one_last() {
        let late = |seconds: [u64; 3]| seconds.map(Duration::from_secs);
        for _ in 0..20 {
            assert_eq!(choose(&late([0, 0, 0]), 1, &[]), Some(1), "the preferred one");
            assert_eq!(choose(&late([9, 3, 0]), 1, &[]), Some(2), "it is late, and one is not");
            assert_eq!(choose(&late([9, 3, 5]), 0, &[]), Some(1), "all are late, it the least long");
            assert_eq!(choose(&late([0, 0, 4]), 1, &[1]), Some(0), "a hedge goes to a member that is not late");
            assert_eq!(choose(&late([0, 0, 0]), 1, &[0, 1, 2]), None, "all were asked");
        }
        let mut hedges: Vec<_> = (0..64).filter_map(|_| choose(&late([0, 0, 0]), 1, &[1])).collect();
        hedges.sort_unstable();
        hedges.dedup();
        assert_eq!(hedges, [0, 2], "a hedge goes to any other");
    }
}
