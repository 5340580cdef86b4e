//! What etcd says of a range, without an end, for discovery and for a registration's own key: a list first, then
//! events, and a list again whenever events may be missing.
//!
//! A list comes page by page, and a message of events in parts, so that what stands in etcd need never be in memory at
//! once.
//!
//! ```text
//!            +--------- compacted, cannot be decoded, store rolled back ----------+
//!            v                                                                    |
//! Listing --listed--> Connecting --created--> Streaming --(lists now and then)----+
//!    |                  ^     |                  |
//!    |                  |     | failed           | broken, silent, cancelled
//!    |   next member    |     v                  |
//!    +--failed-------> Waiting <-----------------+
//! ```
//!
//! The revision only ever moves to what was handed out: whatever breaks, the next watch begins right behind it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::cluster::Cluster;
use super::connection::Connection;
use super::kv::Kv;
use super::limits::{CALL_LIMIT, DENIED_PAUSE, REFUSED_PAUSE, SPLIT_PAUSE};
use super::range::Range;
use super::scan::Scan;
use super::survey::RefusalWatch;
use super::watch::{Event, Watch, WatchMessage};
use crate::backoff::{Backoff, spread, up_to};
use crate::error::{EtcdError, EtcdErrorKind, chain};

/// News of the range.
#[derive(Debug)]
pub(crate) enum Update {
    /// A page of a list that may never be finished; the first page voids what came of the one before.
    Page { is_first: bool, kvs: Vec<Kv> },
    /// The list is complete: its pages are everything, at this revision.
    Listed(i64),
    /// What happened: all of it up to this revision, or a part while there is none.
    Events(Option<i64>, Vec<Event>),
}

impl Update {
    /// The revision that it completes.
    pub(crate) fn revision(&self) -> Option<i64> {
        match self {
            Self::Page { .. } => None,
            Self::Listed(revision) => Some(*revision),
            Self::Events(revision, _) => *revision,
        }
    }
}

/// The news of one range.
pub(crate) struct Source {
    cluster: Arc<Cluster>,
    range: Range,
    /// Everything up to here was handed out.
    revision: i64,
    member: usize,
    backoff: Backoff,
    /// How often a list verifies the stream without any cause.
    interval: Duration,
    /// Whether the last attempt failed at all.
    has_failed: bool,
    /// How often in a row an attempt failed for its token. Once or twice is normal: streams and calls can be on two
    /// connections with a token each.
    token_refusals: u32,
    /// How many members in a row refused for a reason of their own.
    incapable: usize,
    /// `None` while it makes a step.
    state: Option<State>,
}

enum State {
    /// Everything is listed.
    Listing(Box<List>),
    /// A watch is to be opened right behind the revision.
    Connecting {
        /// Whether that revision was just listed.
        listed: bool,
    },
    /// A watch is open.
    Streaming(Box<Stream>),
    /// Nothing is tried until then.
    Waiting { until: Instant, then: Goal },
}

/// What to do after waiting.
#[derive(Debug, Clone, Copy)]
enum Goal {
    List,
    Watch,
}

struct List {
    scan: Scan,
    /// The one that all its pages come from.
    connection: Option<Arc<Connection>>,
    /// The stream that the list verifies; it is not read meanwhile, so that the two never overlap.
    stream: Option<Box<Stream>>,
}

struct Stream {
    connection: Arc<Connection>,
    /// Ends the stream when its member is refused.
    refusals: RefusalWatch,
    watch: Watch,
    /// When the next list is due.
    list_at: Instant,
    /// When the watch was heard the last time.
    heard: Instant,
    /// How long it may be silent before it is asked for a sign of life.
    idle: Duration,
    /// When it was asked for one, after it was heard.
    asked: Option<Instant>,
    /// Whether it left an earlier question unanswered although the store moved on.
    is_doubted: bool,
    /// Whether the server answers when asked for a sign of life.
    answers_probes: bool,
}

impl Source {
    pub(crate) fn new(cluster: Arc<Cluster>, range: Range, interval: Duration) -> Self {
        Self {
            member: cluster.preferred(),
            cluster,
            range,
            interval,
            revision: 0,
            backoff: Backoff::new(RECONNECT_FIRST, RECONNECT_MAX),
            has_failed: false,
            token_refusals: 0,
            incapable: 0,
            state: None,
        }
    }

    /// Up to where news was handed out.
    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// The next news.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: a step that is dropped begins again with a list.
    pub(crate) async fn next(&mut self) -> Update {
        loop {
            let state = self.state.take().unwrap_or_else(|| self.listing());
            let (state, update) = self.step(state).await;
            self.state = Some(state);
            if let Some(update) = update {
                self.revision = update.revision().unwrap_or(self.revision);
                return update;
            }
        }
    }

    async fn step(&mut self, state: State) -> (State, Option<Update>) {
        match state {
            State::Waiting { until, then } => {
                sleep_until(until).await;
                let next = match then {
                    Goal::List => self.listing(),
                    Goal::Watch => State::Connecting { listed: false },
                };
                (next, None)
            }
            State::Listing(list) => self.list(list).await,
            State::Connecting { listed } => match self.connect(listed).await {
                Ok(state) => (state, None),
                Err(error) => (self.on_error(&error, Goal::Watch), None),
            },
            State::Streaming(stream) => self.stream(stream).await,
        }
    }

    /// From the first page on.
    fn listing(&self) -> State {
        State::Listing(Box::new(List { scan: Scan::new(&self.range), connection: None, stream: None }))
    }

    /// From the first page on, before the stream is read on.
    fn verifying(&self, stream: Box<Stream>) -> State {
        let (scan, connection) = (Scan::new(&self.range), Some(stream.connection.clone()));
        State::Listing(Box::new(List { scan, connection, stream: Some(stream) }))
    }

    async fn list(&mut self, mut list: Box<List>) -> (State, Option<Update>) {
        if list.scan.is_over() {
            let revision = list.scan.revision();
            return (self.on_listed(revision, list.stream), Some(Update::Listed(revision)));
        }
        let is_first = !list.scan.has_begun();
        match self.page(&mut list).await {
            Ok(kvs) => (State::Listing(list), Some(Update::Page { is_first, kvs })),
            Err(error) => {
                let goal = if list.stream.is_some() { Goal::Watch } else { Goal::List };
                (self.on_error(&error, goal), None)
            }
        }
    }

    async fn page(&mut self, list: &mut List) -> Result<Vec<Kv>, EtcdError> {
        // Where there are others, a member gets one second at first: a client that starts must not wait for a frozen
        // one.
        let is_first_try = self.cluster.len() > 1 && !self.has_failed && list.stream.is_none();
        let limit = if is_first_try { FIRST_TRY_LIMIT } else { CALL_LIMIT };
        let connection = match &list.connection {
            Some(connection) => connection,
            None => list.connection.insert(self.cluster.connection(self.member, limit).await?),
        };
        let page = list.scan.next(connection, &self.range, limit).await;
        self.cluster.on_answer(connection, page).await
    }

    /// The list is complete; returns what follows it.
    fn on_listed(&mut self, revision: i64, stream: Option<Box<Stream>>) -> State {
        self.on_success();
        match stream {
            Some(_) if revision < self.revision => {
                tracing::warn!(store = revision, seen = self.revision, "etcd was rolled back; its list counts");
                State::Connecting { listed: true }
            }
            Some(mut stream) if stream.answers_probes => {
                stream.list_at = Instant::now() + spread(self.interval, 0.2);
                State::Streaming(stream)
            }
            // Whether a watch without signs of life misses events cannot be known: a new one begins where the list
            // ends.
            _ => State::Connecting { listed: true },
        }
    }

    async fn connect(&mut self, listed: bool) -> Result<State, EtcdError> {
        let connection = self.cluster.connection(self.member, CALL_LIMIT).await?;
        let opened = self.open(&connection, listed).await;
        self.cluster.on_answer(&connection, opened).await
    }

    async fn open(&mut self, connection: &Arc<Connection>, listed: bool) -> Result<State, EtcdError> {
        let start = self.revision + 1;
        let limit = Instant::now() + CALL_LIMIT;
        let mut watch = connection.watch(&self.range, start, CALL_LIMIT).await?;
        let first = timeout_at(limit, watch.message()).await;
        let first = first.unwrap_or_else(|_| Err(connection.deadline("watch", self.range.name(), CALL_LIMIT)))?;
        match first {
            WatchMessage::Created(revision) if revision < start - 1 => {
                // The member lags, or the store was rolled back under us; only the leader knows.
                let store = connection.revision(&self.range, CALL_LIMIT).await?;
                if store < start - 1 {
                    tracing::warn!(store, seen = start - 1, "etcd was rolled back; everything is listed anew");
                    return Ok(self.listing());
                }
            }
            WatchMessage::Created(_) => {}
            WatchMessage::Compacted => {
                tracing::info!(revision = start, "revision is compacted; everything is listed anew");
                return Ok(self.listing());
            }
            WatchMessage::Canceled(kind, reason) => {
                return Err(connection.refusal("watch", self.range.name(), kind, reason));
            }
            WatchMessage::Events(..) | WatchMessage::Progress => {
                let reason = "the watch did not begin with `created`".to_owned();
                return Err(connection.refusal("watch", self.range.name(), EtcdErrorKind::Unreachable, reason));
            }
        }
        tracing::debug!(member = connection.name(), start, "watch is open");
        let now = Instant::now();
        Ok(State::Streaming(Box::new(Stream {
            connection: connection.clone(),
            refusals: self.cluster.refusal_watch(),
            watch,
            list_at: now + if listed { spread(self.interval, 0.2) } else { up_to(VERIFY_WITHIN) },
            heard: now,
            idle: IDLE,
            asked: None,
            is_doubted: false,
            answers_probes: true,
        })))
    }

    async fn stream(&mut self, mut stream: Box<Stream>) -> (State, Option<Update>) {
        let silent_at = stream.asked.map_or(stream.heard + stream.idle, |asked| asked + PROBE_LIMIT);
        let message = tokio::select! {
            biased;
            // These before the messages, which may never pause. What another cluster sent is of no use here.
            () = stream.refusals.refused(&stream.connection) => {
                self.member = self.cluster.preferred();
                return (self.listing(), None);
            }
            () = sleep_until(stream.list_at) => return (self.verifying(stream), None),
            message = stream.watch.message() => message,
            () = sleep_until(silent_at), if stream.answers_probes => return (self.probe(stream).await, None),
        };
        (stream.heard, stream.idle) = (Instant::now(), IDLE);
        (stream.asked, stream.is_doubted) = (None, false);
        match message {
            Ok(WatchMessage::Events(revision, mut events)) => {
                self.on_success();
                // Events that a list, ahead of the stream, has shown already.
                events.retain(|event| event.mod_revision() > self.revision);
                // The last part of a message may hold nothing new, and still completes the parts before.
                let is_news = !events.is_empty() || revision.is_some_and(|revision| revision > self.revision);
                let update = is_news.then_some(Update::Events(revision, events));
                (State::Streaming(stream), update)
            }
            Ok(WatchMessage::Created(_) | WatchMessage::Progress) => (State::Streaming(stream), None),
            Ok(WatchMessage::Compacted) => (self.listing(), None),
            Ok(WatchMessage::Canceled(kind, reason)) => {
                let error = stream.connection.refusal("watch", self.range.name(), kind, reason);
                self.cluster.on_error(&stream.connection, &error);
                (self.on_error(&error, Goal::Watch), None)
            }
            // The same revision would come in the same message again.
            Err(error) if error.kind == EtcdErrorKind::TooLarge => (self.on_error(&error, Goal::List), None),
            Err(error) => {
                self.cluster.on_error(&stream.connection, &error);
                (self.on_error(&error, Goal::Watch), None)
            }
        }
    }

    /// The watch was silent: asks it for a sign of life, and if none came, whether its member is there at all.
    ///
    /// Silence is right where nothing was written to the store since the list that the watch began behind: etcd from
    /// 3.4.38, 3.5.22 and 3.6.2 on gives no sign of life before that.
    async fn probe(&mut self, mut stream: Box<Stream>) -> State {
        if stream.asked.is_none() {
            stream.asked = Some(Instant::now());
            return match stream.watch.request_progress().await {
                Ok(()) => State::Streaming(stream),
                Err(error) => {
                    self.cluster.on_error(&stream.connection, &error);
                    self.on_error(&error, Goal::Watch)
                }
            };
        }
        match stream.connection.revision(&self.range, SUSPECT_LIMIT).await {
            Ok(store) if store == self.revision => {
                (stream.heard, stream.asked) = (Instant::now(), None);
                stream.idle = (stream.idle * 2).min(IDLE_IN_A_QUIET_STORE);
                State::Streaming(stream)
            }
            // The store moved on, maybe after the question, which etcd has forgotten then.
            Ok(_) if !stream.is_doubted => {
                (stream.asked, stream.is_doubted) = (None, true);
                State::Streaming(stream)
            }
            Ok(_) => {
                tracing::debug!(member = stream.connection.name(), "member gives no signs of life on a watch");
                stream.answers_probes = false;
                stream.list_at = stream.list_at.min(Instant::now() + LIST_INSTEAD_OF_PROBE);
                State::Streaming(stream)
            }
            Err(error) => {
                self.cluster.forget(&stream.connection);
                self.cluster.on_error(&stream.connection, &error);
                self.on_error(&error, Goal::Watch)
            }
        }
    }

    fn on_success(&mut self) {
        self.backoff.reset();
        self.has_failed = false;
        self.token_refusals = 0;
        self.incapable = 0;
    }

    fn turn_to_next_member(&mut self) {
        self.member = (self.member + 1) % self.cluster.len();
    }

    /// A list or a watch failed; returns what to do next, and when.
    fn on_error(&mut self, error: &EtcdError, goal: Goal) -> State {
        self.has_failed = true;
        let now = Instant::now();
        let (wait, then) = match error.kind {
            EtcdErrorKind::Compacted | EtcdErrorKind::TooLarge => (self.backoff.next(), Goal::List),
            EtcdErrorKind::Token if self.token_refusals < TOKEN_ATTEMPTS => {
                self.token_refusals += 1;
                (self.backoff.next(), goal)
            }
            EtcdErrorKind::Token | EtcdErrorKind::Denied => {
                self.token_refusals = 0;
                (DENIED_PAUSE, goal)
            }
            EtcdErrorKind::Refused => (spread(REFUSED_PAUSE, 0.1), goal),
            EtcdErrorKind::Incapable => {
                self.turn_to_next_member();
                self.incapable += 1;
                // Once around, each of them said so.
                let wait = if self.incapable.is_multiple_of(self.cluster.len()) {
                    spread(REFUSED_PAUSE, 0.1)
                } else {
                    self.backoff.next()
                };
                (wait, goal)
            }
            EtcdErrorKind::Split => (spread(SPLIT_PAUSE, 0.1), Goal::List),
            _ => {
                self.turn_to_next_member();
                (self.backoff.next(), goal)
            }
        };
        if error.is_final() || wait == DENIED_PAUSE {
            tracing::warn!(error = chain(error), ?wait, "etcd refuses to be watched; the last known set stays");
        } else {
            tracing::debug!(error = chain(error), ?wait, "watch is interrupted; the last known set stays");
        }
        State::Waiting { until: now + wait, then }
    }
}

/// The first wait before a member is asked again.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);

/// The longest wait before the next attempt, so that a client is back within 3 s of etcd.
const RECONNECT_MAX: Duration = Duration::from_secs(2);

/// How long a watch may be silent before it is asked for a sign of life; with its answer, a dead one is noticed in 20
/// s.
const IDLE: Duration = Duration::from_secs(15);

/// The same where it turned out more than once that nothing was written to the store.
const IDLE_IN_A_QUIET_STORE: Duration = Duration::from_secs(60);

/// How long a sign of life may take.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// How long a member whose watch is dead may take to show that it lives itself.
const SUSPECT_LIMIT: Duration = Duration::from_secs(1);

/// How long a member may take when it is asked for the first time, and there are others.
const FIRST_TRY_LIMIT: Duration = Duration::from_secs(1);

/// How many fresh logins in a row may be refused before etcd is left alone.
const TOKEN_ATTEMPTS: u32 = 3;

/// After a reconnect a list verifies the stream within this time: a DELETE that was compacted away while the watch was
/// down is never reported. Spread, so that a thousand clients do not list at once when etcd comes back.
const VERIFY_WITHIN: Duration = Duration::from_secs(3);

/// How often a list stands in for signs of life, on a member that gives none.
const LIST_INSTEAD_OF_PROBE: Duration = Duration::from_secs(60);
