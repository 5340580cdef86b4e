//! What etcd says of a range, without an end, for discovery and for a registration's own key: a list first, then events,
//! and a list again whenever events may be missing.
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

use crate::backoff::{Backoff, spread, up_to};
use crate::error::{EtcdError, EtcdErrorKind, chain};

use super::{CALL_LIMIT, Cluster, Connection, DENIED_PAUSE, Event, Listing, REFUSED_PAUSE, Range, Watch, WatchMessage};

/// The first wait before a member is asked again.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);

/// The longest wait before the next attempt, so that a client is back within 3 s of etcd.
const RECONNECT_MAX: Duration = Duration::from_secs(2);

/// How long a watch may be silent before it is asked for a sign of life; with its answer, a dead one is noticed in 20 s.
const IDLE: Duration = Duration::from_secs(15);

/// How long the sign of life may take.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// How long a member whose watch is dead may take to show that it lives itself.
const SUSPECT_LIMIT: Duration = Duration::from_secs(1);

/// How long a member may take when it is asked for the first time, and there are others.
const FIRST_TRY_LIMIT: Duration = Duration::from_secs(1);

/// How many fresh logins in a row may be refused before etcd is left alone.
const TOKEN_ATTEMPTS: u32 = 3;

/// After a reconnect a list verifies the stream within this time: a DELETE that was compacted away while the watch was
/// down is never told. Spread, so that a thousand clients do not list at once when etcd comes back.
const VERIFY_WITHIN: Duration = Duration::from_secs(3);

/// How often a list stands in for the signs of life that a server does not know how to give.
const LIST_INSTEAD_OF_PROBE: Duration = Duration::from_secs(60);

/// News of the range.
#[derive(Debug)]
pub(crate) enum Update {
    /// Everything in it.
    Listed(Listing),
    /// What happened up to this revision.
    Events(i64, Vec<Event>),
}

impl Update {
    pub(crate) fn revision(&self) -> i64 {
        match self {
            Self::Listed(listing) => listing.revision,
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
    state: State,
}

enum State {
    /// Everything is to be listed.
    Listing,
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

struct Stream {
    connection: Arc<Connection>,
    watch: Watch,
    /// When the next list is due.
    list_at: Instant,
    /// When the watch was heard the last time.
    heard: Instant,
    /// Whether a sign of life was asked for after it was heard.
    asked: bool,
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
            state: State::Listing,
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
            let state = std::mem::replace(&mut self.state, State::Listing);
            let (state, update) = self.step(state).await;
            self.state = state;
            if let Some(update) = update {
                self.revision = update.revision();
                return update;
            }
        }
    }

    async fn step(&mut self, state: State) -> (State, Option<Update>) {
        match state {
            State::Waiting { until, then } => {
                sleep_until(until).await;
                let next = match then {
                    Goal::List => State::Listing,
                    Goal::Watch => State::Connecting { listed: false },
                };
                (next, None)
            }
            State::Listing => match self.list().await {
                Ok(listing) => (State::Connecting { listed: true }, Some(Update::Listed(listing))),
                Err(error) => (self.after(&error, Goal::List), None),
            },
            State::Connecting { listed } => match self.connect(listed).await {
                Ok(state) => (state, None),
                Err(error) => (self.after(&error, Goal::Watch), None),
            },
            State::Streaming(stream) => self.stream(stream).await,
        }
    }

    async fn list(&mut self) -> Result<Listing, EtcdError> {
        // Where there are others, a member gets one second at first: a client that starts must not wait for a frozen one.
        let is_first_try = self.cluster.len() > 1 && !self.has_failed;
        let limit = if is_first_try { FIRST_TRY_LIMIT } else { CALL_LIMIT };
        let connection = self.cluster.connection(self.member, limit).await?;
        let listing = connection.list(&self.range, limit).await;
        match &listing {
            Ok(_) => {
                self.cluster.answered(&connection);
                self.succeeded();
            }
            Err(error) => self.cluster.after(&connection, error),
        }
        listing
    }

    async fn connect(&mut self, listed: bool) -> Result<State, EtcdError> {
        let connection = self.cluster.connection(self.member, CALL_LIMIT).await?;
        let opened = self.open(&connection, listed).await;
        match &opened {
            Ok(_) => self.cluster.answered(&connection),
            Err(error) => self.cluster.after(&connection, error),
        }
        opened
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
                    return Ok(State::Listing);
                }
            }
            WatchMessage::Created(_) => {}
            WatchMessage::Compacted => {
                tracing::info!(revision = start, "revision is compacted; everything is listed anew");
                return Ok(State::Listing);
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
            watch,
            list_at: now + if listed { spread(self.interval, 0.2) } else { up_to(VERIFY_WITHIN) },
            heard: now,
            asked: false,
            answers_probes: true,
        })))
    }

    async fn stream(&mut self, mut stream: Box<Stream>) -> (State, Option<Update>) {
        let silent_at = stream.heard + if stream.asked { IDLE + PROBE_LIMIT } else { IDLE };
        let message = tokio::select! {
            biased;
            // Before the messages, which may never pause.
            () = sleep_until(stream.list_at) => return self.verify(stream).await,
            message = stream.watch.message() => message,
            () = sleep_until(silent_at), if stream.answers_probes => return (self.probe(stream).await, None),
        };
        stream.heard = Instant::now();
        stream.asked = false;
        match message {
            Ok(WatchMessage::Events(revision, mut events)) => {
                self.succeeded();
                // A list was ahead of the stream.
                events.retain(|event| event.mod_revision() > self.revision);
                let update = (!events.is_empty()).then_some(Update::Events(revision, events));
                (State::Streaming(stream), update)
            }
            Ok(WatchMessage::Created(_) | WatchMessage::Progress) => (State::Streaming(stream), None),
            Ok(WatchMessage::Compacted) => (State::Listing, None),
            Ok(WatchMessage::Canceled(kind, reason)) => {
                let error = stream.connection.refusal("watch", self.range.name(), kind, reason);
                self.cluster.after(&stream.connection, &error);
                (self.after(&error, Goal::Watch), None)
            }
            // The same revision would come in the same message again.
            Err(error) if error.kind == EtcdErrorKind::TooLarge => (self.after(&error, Goal::List), None),
            Err(error) => {
                self.cluster.after(&stream.connection, &error);
                (self.after(&error, Goal::Watch), None)
            }
        }
    }

    /// Lists while the stream is not read, so that the two never overlap.
    async fn verify(&mut self, mut stream: Box<Stream>) -> (State, Option<Update>) {
        match stream.connection.list(&self.range, CALL_LIMIT).await {
            Ok(listing) if listing.revision < self.revision => {
                tracing::warn!(store = listing.revision, seen = self.revision, "etcd was rolled back; its list counts");
                (State::Connecting { listed: true }, Some(Update::Listed(listing)))
            }
            Ok(listing) => {
                self.succeeded();
                let now = Instant::now();
                if !stream.answers_probes {
                    // Whether such a watch tells everything cannot be known: a new one begins where the list ends.
                    return (State::Connecting { listed: true }, Some(Update::Listed(listing)));
                }
                stream.list_at = now + spread(self.interval, 0.2);
                (State::Streaming(stream), Some(Update::Listed(listing)))
            }
            Err(error) => {
                self.cluster.after(&stream.connection, &error);
                (self.after(&error, Goal::Watch), None)
            }
        }
    }

    /// The watch was silent: asks it for a sign of life, and if none came, whether its member is there at all.
    async fn probe(&mut self, mut stream: Box<Stream>) -> State {
        if !stream.asked {
            stream.asked = true;
            return match stream.watch.request_progress().await {
                Ok(()) => State::Streaming(stream),
                Err(error) => {
                    self.cluster.after(&stream.connection, &error);
                    self.after(&error, Goal::Watch)
                }
            };
        }
        match stream.connection.revision(&self.range, SUSPECT_LIMIT).await {
            Ok(_) => {
                tracing::debug!(member = stream.connection.name(), "member gives no signs of life on a watch");
                stream.answers_probes = false;
                stream.list_at = stream.list_at.min(Instant::now() + LIST_INSTEAD_OF_PROBE);
                State::Streaming(stream)
            }
            Err(error) => {
                self.cluster.forget(&stream.connection);
                self.cluster.after(&stream.connection, &error);
                self.after(&error, Goal::Watch)
            }
        }
    }

    fn succeeded(&mut self) {
        self.backoff.reset();
        self.has_failed = false;
        self.token_refusals = 0;
    }

    /// What to do after a failure, and when.
    fn after(&mut self, error: &EtcdError, goal: Goal) -> State {
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
            _ => {
                self.member = (self.member + 1) % self.cluster.len();
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
