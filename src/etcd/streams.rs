//! The watch streams of a process, one on each member that is in use. A new watch goes to the stream on its member, or
//! opens it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::connection::Connection;
use super::members::Members;
use super::metrics::Progress;
use super::range::Range;
use super::shared_stream::{SharedStream, WATCH, Wanted};
use super::spread::Spread;
use super::survey::Surveys;
use super::token::Token;
use super::watch::Watch;
use crate::error::{EtcdError, EtcdErrorKind};
use crate::targets::ETCD;

/// The streams, by the index of their member.
pub(super) struct Streams {
    members: Arc<Members>,
    surveys: Arc<Surveys>,
    each: Vec<Mutex<Option<Handle>>>,
}

/// The way to a stream's task.
#[derive(Clone)]
struct Handle {
    /// Held by the task, and by each watch.
    connection: Weak<Connection>,
    /// The token that the stream was opened with, by which etcd judges each watch on it.
    token: Option<Arc<Token>>,
    wanted: mpsc::UnboundedSender<Wanted>,
    /// Set once the stream takes no further watches.
    is_retired: watch::Sender<bool>,
}

impl Handle {
    /// The stream's connection, while the stream takes watches. One with a token of old is retired.
    fn open(&self) -> Option<Arc<Connection>> {
        let connection = self.connection.upgrade()?;
        if self.wanted.is_closed() || *self.is_retired.borrow() {
            return None;
        }
        let token = connection.token();
        let is_same = match (&self.token, &token) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            // Where there is none now, the next one will tell.
            (_, None) => true,
            (None, Some(_)) => false,
        };
        if !is_same {
            self.is_retired.send_replace(true);
        }
        is_same.then_some(connection)
    }
}

impl Streams {
    pub(super) fn new(members: Arc<Members>, surveys: Arc<Surveys>) -> Self {
        let each = (0..members.len()).map(|_| Mutex::default()).collect();
        Self { members, surveys, each }
    }

    /// Watches a range from revision `start` on, over the stream that takes watches of this member, or a new one on
    /// this connection. Returns the connection of the stream; and the watch with the revision of the store when it was
    /// created, or the error: the stream could not be opened, broke, or did not create the watch in time, or the watch
    /// was refused.
    pub(super) async fn watch(
        &self,
        connection: &Arc<Connection>,
        range: &Range,
        start: i64,
        progress: &Progress,
        limit: Duration,
    ) -> (Arc<Connection>, Result<(Watch, i64), EtcdError>) {
        let deadline = Instant::now() + limit;
        loop {
            let (connection, handle) = self.join(connection);
            let (answer, answered) = oneshot::channel();
            // A stream that is over by now drops it.
            let _ = handle.wanted.send(Wanted { range: range.clone(), start, progress: progress.clone(), answer });
            let Ok(answer) = timeout_at(deadline, answered).await else {
                if limit >= STANDSTILL {
                    self.leave(&connection, &handle);
                }
                let error = connection.deadline(WATCH, range.name(), limit);
                return (connection, Err(error));
            };
            match answer {
                Ok(watched) => return (connection, watched),
                // It ended for want of watches as this one came, or with its runtime.
                Err(_) if Instant::now() < deadline => tokio::task::yield_now().await,
                Err(_) => {
                    let reason = "its stream ended each time".to_owned();
                    let error = connection.refusal(WATCH, range.name(), EtcdErrorKind::Unreachable, reason);
                    return (connection, Err(error));
                }
            }
        }
    }

    /// The stream has not even reported a failure for longer than it may take: its task is on a runtime that stands
    /// still.
    fn leave(&self, connection: &Arc<Connection>, handle: &Handle) {
        let mut slot = self.slot(connection.index());
        if slot.as_ref().is_some_and(|present| present.wanted.same_channel(&handle.wanted)) {
            *slot = None;
        }
        drop(slot);
        self.members.forget(connection);
    }

    /// The stream that takes watches, or a new one, with its connection.
    fn join(&self, connection: &Arc<Connection>) -> (Arc<Connection>, Handle) {
        let mut slot = self.slot(connection.index());
        if let Some(handle) = slot.as_ref()
            && let Some(connection) = handle.open()
        {
            return (connection, handle.clone());
        }
        let (wanted, wanted_receiver) = mpsc::unbounded_channel();
        let retired = watch::Sender::new(false);
        let (weak, token) = (Arc::downgrade(connection), connection.token());
        let handle = Handle { connection: weak, token, wanted, is_retired: retired.clone() };
        *slot = Some(handle.clone());
        // A runtime that is going down drops the task at once.
        drop(slot);
        let spread = Spread::new(self.members.clone(), self.surveys.clone(), connection.index());
        let stream = SharedStream::new(connection.clone(), spread, wanted_receiver, retired);
        let span = tracing::info_span!(target: ETCD, parent: None, "watch stream", member = connection.name());
        tokio::spawn(stream.run().instrument(span));
        (connection.clone(), handle)
    }

    fn slot(&self, index: usize) -> MutexGuard<'_, Option<Handle>> {
        self.each[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a stream that reports nothing may take: longer than it waits for its member.
const STANDSTILL: Duration = Duration::from_secs(30);
