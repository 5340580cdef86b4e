//! What etcd says of a range, without an end, for discovery and for a registration's own key: a list first, then
//! events, and a list again whenever events may be missing.
//!
//! A list comes page by page, and a message of events in parts, so that what stands in etcd need never be in memory at
//! once.
//!
//! ```text
//!            +--------- compacted, cannot be decoded, store rolled back ----------+
//!            v                                                                    |
//! Listing --listed--> Connecting --created--> Streaming <--nothing is missing-- Checking
//!    |                  ^     |                  |  \-------------now and then----^ |
//!    |                  |     | failed           | broken, ended                    | something is
//!    |  in its turn     |     v                  |                                  v
//!    +--failed-------> Waiting <-----------------+                               Listing, the stream waits
//! ```
//!
//! The revision only ever moves to what was handed out: whatever breaks, the next watch begins right behind it. A list
//! or a check that fails leaves a stream that is open as it is.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::attempts::Attempts;
use super::cluster::Cluster;
use super::connection::Connection;
use super::generation::Generation;
use super::kv::Kv;
use super::metrics::{ListCause, Restart, WatchMetrics};
use super::range::Range;
use super::scan::Scan;
use super::survey::RefusalWatch;
use super::watch::{Event, Watch, WatchMessage};
use crate::backoff::{Backoff, spread, up_to};
use crate::error::{EtcdError, EtcdErrorKind};
use crate::targets::ETCD;
use crate::time::sleep_until;
use crate::trouble::Trouble;

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
    /// How many keys the range has at that revision.
    keys: i64,
    /// What makes the first list necessary.
    cause: ListCause,
    attempts: Attempts,
    metrics: WatchMetrics,
    /// How often a check verifies the stream without any cause.
    interval: Duration,
    /// `None` while it makes a step.
    state: Option<State>,
}

enum State {
    /// Everything is listed.
    Listing(Box<List>),
    /// A watch is to be opened right behind the revision.
    Connecting {
        /// Whether that revision was just listed.
        is_verified: bool,
        /// The watch that the new one takes the place of; it goes on where the new one fails.
        before: Option<Box<Stream>>,
    },
    /// A watch is open.
    Streaming(Box<Stream>),
    /// It is asked whether the watch missed anything.
    Checking(Box<Stream>),
    /// Nothing is tried until then, or until it is this one's turn.
    Waiting { until: Option<Instant>, then: Goal },
}

impl State {
    /// Among the states of the gauge.
    fn label(&self) -> &'static str {
        match self {
            Self::Streaming(_) | Self::Checking(_) | Self::Connecting { before: Some(_), .. } => "watching",
            Self::Listing(list) if list.stream.is_some() => "watching",
            Self::Listing(_) => "listing",
            Self::Connecting { before: None, .. } => "opening",
            Self::Waiting { .. } => "waiting",
        }
    }
}

/// What to do after waiting.
#[derive(Debug, Clone, Copy)]
enum Goal {
    List(ListCause),
    Watch,
}

struct List {
    cause: ListCause,
    scan: Scan,
    began: Instant,
    /// How many keys came.
    keys: i64,
    generation: Arc<Generation>,
    /// The one that all its pages come from.
    connection: Option<Arc<Connection>>,
    /// The stream that the list verifies; it is not read meanwhile, so that the two never overlap.
    stream: Option<Box<Stream>>,
}

struct Stream {
    generation: Arc<Generation>,
    /// Ends the stream when its member is refused.
    refusals: RefusalWatch,
    watch: Watch,
    /// When the next check is due.
    check_at: Instant,
    /// When another watch is to take its place.
    move_at: Option<Instant>,
    /// Whether its member gives no signs of life on watches.
    is_mute: bool,
    /// How many keys the parts of a message that is not complete have added.
    more_keys: i64,
    /// The waits after checks and moves that failed.
    again: Backoff,
}

impl Source {
    /// `trouble` is told how the last attempt failed.
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        range: Range,
        interval: Duration,
        trouble: Trouble,
        metrics: WatchMetrics,
    ) -> Self {
        let (cause, attempts) = (ListCause::Start, Attempts::new(trouble));
        Self { cluster, range, interval, revision: 0, keys: 0, cause, attempts, metrics, state: None }
    }

    /// States what makes its first list necessary, where something was known before.
    pub(crate) fn because(self, cause: ListCause) -> Self {
        Self { cause, ..self }
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
            let state = self.state.take().unwrap_or_else(|| self.list_beside(self.cause, None));
            self.metrics.set_state(state.label());
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
                match until {
                    Some(_) => sleep_until(until).await,
                    None => self.cluster.turn(self.attempts.next_wait()).await,
                }
                let next = match then {
                    Goal::List(cause) => self.list_beside(cause, None),
                    Goal::Watch => State::Connecting { is_verified: false, before: None },
                };
                (next, None)
            }
            State::Listing(list) => self.list(list).await,
            State::Connecting { is_verified, before } => (self.connect(is_verified, before).await, None),
            State::Streaming(stream) => self.stream(stream).await,
            State::Checking(stream) => (self.check(stream).await, None),
        }
    }

    /// From the first page on, before the stream is read on, if there is one.
    fn list_beside(&self, cause: ListCause, stream: Option<Box<Stream>>) -> State {
        let (generation, connection) = match &stream {
            Some(stream) => (stream.generation.clone(), Some(stream.watch.connection().clone())),
            None => (self.cluster.current(), None),
        };
        let (scan, began) = (Scan::new(&self.range), Instant::now());
        State::Listing(Box::new(List { cause, scan, began, keys: 0, generation, connection, stream }))
    }

    async fn list(&mut self, mut list: Box<List>) -> (State, Option<Update>) {
        if list.scan.is_over() {
            let revision = list.scan.revision();
            self.keys = list.keys;
            let took = list.began.elapsed();
            self.attempts.on_listed(took);
            self.metrics.on_listed(list.cause, took, revision);
            return (self.on_listed(revision, list.stream), Some(Update::Listed(revision)));
        }
        let is_first = !list.scan.has_begun();
        match self.page(&mut list).await {
            Ok(kvs) => {
                list.keys += i64::try_from(kvs.len()).unwrap_or(i64::MAX);
                self.metrics.on_page(kvs.len(), list.scan.page_bytes());
                (State::Listing(list), Some(Update::Page { is_first, kvs }))
            }
            Err(error) => match list.stream {
                Some(stream) => (self.on_check_failed(stream, &error), None),
                None => (self.on_error(&error, Goal::List(list.cause)), None),
            },
        }
    }

    async fn page(&mut self, list: &mut List) -> Result<Vec<Kv>, EtcdError> {
        // Where there are others, a member gets one second at first: a client that starts must not wait for a frozen
        // one.
        let generation = &list.generation;
        let is_first_try = generation.len() > 1 && !self.attempts.has_failed() && list.stream.is_none();
        let limit = if is_first_try { FIRST_TRY_LIMIT } else { self.attempts.limit() };
        let connection = match &list.connection {
            Some(connection) => connection,
            None => list.connection.insert(generation.connection(generation.preferred(), limit).await?),
        };
        let page = list.scan.next(connection, &self.range, limit).await;
        generation.on_answer(connection, page).await
    }

    /// The list is complete; returns what follows it.
    fn on_listed(&mut self, revision: i64, stream: Option<Box<Stream>>) -> State {
        self.attempts.on_success();
        match stream {
            Some(_) if revision < self.revision => {
                tracing::warn!(
                    target: ETCD,
                    store = revision,
                    seen = self.revision,
                    "etcd was rolled back; its list counts"
                );
                self.metrics.on_restart(Restart::RolledBack);
                State::Connecting { is_verified: true, before: None }
            }
            Some(mut stream) if !stream.is_mute => {
                stream.more_keys = 0;
                stream.check_at = Instant::now() + spread(self.interval, 0.2);
                State::Streaming(stream)
            }
            // Whether a watch without signs of life misses events cannot be known: a new one begins where the list
            // ends.
            Some(_) => {
                self.metrics.on_restart(Restart::Mute);
                State::Connecting { is_verified: true, before: None }
            }
            None => State::Connecting { is_verified: true, before: None },
        }
    }

    async fn connect(&mut self, is_verified: bool, before: Option<Box<Stream>>) -> State {
        match (self.open(is_verified).await, before) {
            (Ok(state), before) => {
                self.attempts.on_success();
                if before.is_some() {
                    self.metrics.on_restart(Restart::Moved);
                }
                state
            }
            (Err(error), Some(mut stream)) => {
                stream.move_at = Some(Instant::now() + MOVE_AGAIN);
                self.on_check_failed(stream, &error)
            }
            (Err(error), None) => self.on_error(&error, Goal::Watch),
        }
    }

    async fn open(&mut self, is_verified: bool) -> Result<State, EtcdError> {
        let start = self.revision + 1;
        let generation = self.cluster.current();
        let (watch, store) =
            generation.watch(&self.range, start, self.metrics.progress(), self.attempts.limit()).await?;
        if store < start - 1 {
            // The member lags, or the store was rolled back under us; only the leader knows.
            let asked = watch.connection().revision(&self.range, self.attempts.limit()).await;
            let store = generation.on_answer(watch.connection(), asked).await?;
            if store < start - 1 {
                tracing::warn!(
                    target: ETCD,
                    store,
                    seen = start - 1,
                    "etcd was rolled back; everything is listed anew"
                );
                return Ok(self.list_beside(ListCause::RolledBack, None));
            }
        }
        tracing::debug!(target: ETCD, member = watch.connection().name(), start, "watch is open");
        let check_in = if is_verified { spread(self.interval, 0.2) } else { up_to(self.attempts.window()) };
        Ok(State::Streaming(Box::new(Stream {
            refusals: generation.refusal_watch(),
            generation,
            watch,
            check_at: Instant::now() + check_in,
            move_at: None,
            is_mute: false,
            more_keys: 0,
            again: Backoff::new(AGAIN_FIRST, AGAIN_MAX),
        })))
    }

    async fn stream(&mut self, mut stream: Box<Stream>) -> (State, Option<Update>) {
        let connection = stream.watch.connection().clone();
        let message = tokio::select! {
            biased;
            // These before the messages, which may never pause. What another cluster sent is of no use here.
            () = stream.refusals.refused(&connection) => {
                self.metrics.on_restart(Restart::OtherCluster);
                return (self.list_beside(ListCause::OtherCluster, None), None);
            }
            () = sleep_until(Some(stream.check_at)) => return (State::Checking(stream), None),
            () = sleep_until(stream.move_at) => {
                stream.move_at = None;
                return (State::Connecting { is_verified: false, before: Some(stream) }, None);
            }
            message = stream.watch.message() => message,
        };
        match message {
            WatchMessage::Events(revision, mut events) => {
                // Events that a list, ahead of the stream, has shown already.
                events.retain(|event| event.mod_revision() > self.revision);
                stream.more_keys += events.iter().map(Event::keys).sum::<i64>();
                if revision.is_some() {
                    self.keys += std::mem::take(&mut stream.more_keys);
                }
                // The last part of a message may hold nothing new, and still completes the parts before.
                let is_news = !events.is_empty() || revision.is_some_and(|revision| revision > self.revision);
                let update = is_news.then_some(Update::Events(revision, events));
                (State::Streaming(stream), update)
            }
            WatchMessage::Mute => {
                stream.is_mute = true;
                stream.check_at = stream.check_at.min(Instant::now() + spread(CHECK_OF_MUTE, 0.2));
                (State::Streaming(stream), None)
            }
            WatchMessage::MoveOn => {
                stream.move_at = Some(Instant::now() + up_to(MOVE_WITHIN));
                (State::Streaming(stream), None)
            }
            WatchMessage::Left => {
                self.metrics.on_restart(Restart::LeftBehind);
                (State::Connecting { is_verified: false, before: None }, None)
            }
            WatchMessage::Compacted => {
                tracing::info!(
                    target: ETCD,
                    revision = self.revision,
                    "revision is compacted; everything is listed anew"
                );
                self.metrics.on_restart(Restart::Compacted);
                let wait = up_to(self.attempts.window() / COMPACTED_SHARE);
                let (until, then) = (Some(Instant::now() + wait), Goal::List(ListCause::Compacted));
                (State::Waiting { until, then }, None)
            }
            WatchMessage::Over(kind, reason) => {
                let error = stream.watch.error(kind, reason);
                stream.generation.on_error(&connection, &error);
                self.metrics.on_restart(Restart::of(kind));
                (self.on_error(&error, Goal::Watch), None)
            }
        }
    }

    /// Asks whether the range differs from what is known: cheaper than a list by what it does not send.
    async fn check(&mut self, mut stream: Box<Stream>) -> State {
        let connection = stream.watch.connection().clone();
        let asked = connection.changes(&self.range, self.revision, self.attempts.limit()).await;
        match stream.generation.on_answer(&connection, asked).await {
            Ok(changes) if changes.store >= self.revision && !changes.any && changes.keys == self.keys => {
                self.attempts.on_success();
                self.metrics.progress().on_checked(changes.store);
                let interval = if stream.is_mute { CHECK_OF_MUTE } else { self.interval };
                stream.check_at = Instant::now() + spread(interval, 0.2);
                stream.again.reset();
                State::Streaming(stream)
            }
            // Perhaps on its way on the stream; the list tells.
            Ok(_) => self.list_beside(ListCause::Check, Some(stream)),
            Err(error) => self.on_check_failed(stream, &error),
        }
    }

    /// A check or a move failed, and the stream goes on: it is tried again, more and more rarely.
    fn on_check_failed(&mut self, mut stream: Box<Stream>, error: &EtcdError) -> State {
        let wait = stream.again.ceiling() + stream.again.next();
        if !self.attempts.on_check_failed(error, wait) {
            self.metrics.on_restart(Restart::Silent);
            return self.on_error(error, Goal::Watch);
        }
        stream.check_at = Instant::now() + wait;
        State::Streaming(stream)
    }

    /// A list or a watch failed; returns what to do next, and when.
    fn on_error(&mut self, error: &EtcdError, goal: Goal) -> State {
        let wait = self.attempts.on_error(error, self.cluster.current().len());
        let then = match (goal, error.kind) {
            (Goal::Watch, EtcdErrorKind::Compacted) => Goal::List(ListCause::Compacted),
            // The same revision would come in the same message again.
            (Goal::Watch, EtcdErrorKind::TooLarge) => Goal::List(ListCause::TooLarge),
            (Goal::Watch, EtcdErrorKind::Split) => Goal::List(ListCause::OtherCluster),
            (goal, _) => goal,
        };
        State::Waiting { until: wait.map(|wait| Instant::now() + wait), then }
    }
}

/// How long a member may take when it is asked for the first time, and there are others.
const FIRST_TRY_LIMIT: Duration = Duration::from_secs(1);

/// Which part of that time a watch waits that was compacted and knows nothing new until it has listed.
const COMPACTED_SHARE: u32 = 3;

/// How often a check stands in for signs of life, on a member that gives none.
const CHECK_OF_MUTE: Duration = Duration::from_secs(60);

/// Within which time watches move to another member.
const MOVE_WITHIN: Duration = Duration::from_secs(2);

/// How soon a move that failed is tried again.
const MOVE_AGAIN: Duration = Duration::from_secs(10);

/// How soon a check that failed is made again at first.
const AGAIN_FIRST: Duration = Duration::from_secs(5);

/// How rarely in the end.
const AGAIN_MAX: Duration = Duration::from_secs(60);
