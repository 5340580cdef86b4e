//! The members of a cluster for as long as they are named: a call goes to one after another until one answers.
//!
//! etcd-client's own balancing over members is not used: it picks a member at random for each call, while a watch, a
//! lease and a retry need to know which member they talk to.
//!
//! Calls and streams report what happens to them by events. `on_answer` is for calls, and for the begin of a watch, and
//! covers the others; keepalive streams report each response themselves, and a watch that is over its error:
//!
//! ```text
//! before a call   connection ---> Surveys::before_call ------> refused, if the member is of another cluster
//!                            \--> Members::connect ----------> on_login_failure
//! after a call    on_answer ----> Surveys::before_answer ----> refused, if the answer does not count
//!                           |---> on_response ---------------> its outage is over
//!                           \---> on_error ------------------> its outage begins, another member is asked first
//! ```

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::connection::Connection;
use super::endpoints::Endpoints;
use super::login::Logins;
use super::members::Members;
use super::metrics::Progress;
use super::pace::Pace;
use super::range::Range;
use super::streams::Streams;
use super::survey::{RefusalWatch, Surveys};
use super::watch::Watch;
use crate::error::{EtcdError, EtcdErrorKind, chain};
use crate::targets::ETCD;

/// The members of one etcd cluster, and what is on them.
pub(crate) struct Generation {
    members: Arc<Members>,
    surveys: Arc<Surveys>,
    streams: Streams,
    pace: Arc<Pace>,
}

impl Generation {
    /// Of the endpoints that were named last.
    pub(super) fn new(endpoints: Arc<Endpoints>, logins: Option<Arc<Logins>>, pace: Arc<Pace>) -> Self {
        let members = Arc::new(Members::new(endpoints, logins));
        Self::on(Surveys::new(members.clone()), members, pace)
    }

    /// The one that follows this one. Its streams find out by themselves, and have their watches move.
    pub(super) fn successor(&self) -> Self {
        let members = Arc::new(self.members.successor());
        Self::on(self.surveys.successor(members.clone()), members, self.pace.clone())
    }

    fn on(surveys: Surveys, members: Arc<Members>, pace: Arc<Pace>) -> Self {
        let surveys = Arc::new(surveys);
        Self { streams: Streams::new(members.clone(), surveys.clone()), members, surveys, pace }
    }

    /// Whether it is of the endpoints that were named last.
    pub(super) fn is_current(&self) -> bool {
        self.members.are_current()
    }

    /// The number of members.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// A member's URL.
    pub(crate) fn name(&self, index: usize) -> &str {
        self.members.name(index)
    }

    /// The member that is asked first, and that watches are on.
    pub(crate) fn preferred(&self) -> usize {
        self.members.preferred()
    }

    /// A member does not answer: another one is asked first from now on, if this one was.
    pub(crate) fn on_silence(&self, connection: &Arc<Connection>) {
        self.members.forget(connection);
        self.members.on_failure(connection.index(), false);
    }

    /// A watch on the members that are refused.
    pub(crate) fn refusal_watch(&self) -> RefusalWatch {
        self.surveys.refusal_watch()
    }

    /// The connection to member `index` (modulo their number), logged in. Opening it costs nothing until the first
    /// call; a login, where one is due, may take `limit`.
    ///
    /// # Errors
    ///
    /// What the login failed with, if one is configured; or the member is known to be of another cluster.
    pub(crate) async fn connection(&self, index: usize, limit: Duration) -> Result<Arc<Connection>, EtcdError> {
        let index = index % self.len();
        self.surveys.before_call(index)?;
        match self.members.connect(index, limit).await {
            Err(error) if matches!(error.kind, EtcdErrorKind::Login | EtcdErrorKind::Withheld) => {
                Err(self.surveys.on_login_failure(index, error).await)
            }
            connected => connected,
        }
    }

    /// The connection to member `index` (modulo their number), for keepalives: etcd 3.4 renews leases without a token,
    /// while a login is under way. Where a token is wanted after all, the call gets one.
    ///
    /// # Errors
    ///
    /// The member is known to be of another cluster.
    pub(crate) async fn connection_without_login(&self, index: usize) -> Result<Arc<Connection>, EtcdError> {
        let index = index % self.len();
        self.surveys.before_call(index)?;
        self.members.connect_without_login(index).await
    }

    /// Gives up a connection that seems dead: the next call opens another one.
    pub(crate) fn forget(&self, connection: &Arc<Connection>) {
        self.members.forget(connection);
    }

    /// Watches a range from revision `start` on, on the stream that all watches share. Returns the watch, and the
    /// revision of the store when it was created.
    ///
    /// # Errors
    ///
    /// The member or the stream cannot be used, or the watch was refused or not created within `limit`.
    pub(super) async fn watch(
        &self,
        range: &Range,
        start: i64,
        progress: &Progress,
        limit: Duration,
    ) -> Result<(Watch, i64), EtcdError> {
        let connection = self.connection(self.preferred(), limit).await?;
        let (connection, watched) = self.streams.watch(&connection, range, start, progress, limit).await;
        self.on_answer(&connection, watched).await
    }

    /// Makes one call, on each member until one answers: the one that is asked first, and then the others by chance.
    /// `limit` is for the login on each member; the call keeps its own.
    ///
    /// What a member did before it fell silent is unknown, so `call` must be safe to repeat.
    ///
    /// # Errors
    ///
    /// The answer of the first member that gave one, or what the last one failed with.
    pub(crate) async fn call<T, F, Fut>(&self, limit: Duration, call: F) -> Result<T, EtcdError>
    where
        F: Fn(Arc<Connection>) -> Fut,
        Fut: Future<Output = Result<T, EtcdError>>,
    {
        let first = self.preferred();
        let mut others: Vec<usize> = (0..self.len()).filter(|&index| index != first).collect();
        fastrand::shuffle(&mut others);
        let mut attempt = 0;
        loop {
            let index = if attempt == 0 { first } else { others[attempt - 1] };
            let result = self.call_on(index, limit, &call).await;
            attempt += 1;
            match result {
                Err(error) if error.is_worth_another_member() && attempt < self.len() => {
                    tracing::debug!(target: ETCD, error = chain(&error), "etcd call goes to the next member");
                }
                Ok(answer) => {
                    if attempt > 1 {
                        self.members.prefer(index);
                    }
                    return Ok(answer);
                }
                result => return result,
            }
        }
    }

    /// Makes one call on every member, at once. `limit` is for the login on each member; the call keeps its own.
    pub(crate) async fn call_each<T, F, Fut>(&self, limit: Duration, call: F) -> Vec<(String, Result<T, EtcdError>)>
    where
        F: Fn(Arc<Connection>) -> Fut,
        Fut: Future<Output = Result<T, EtcdError>>,
    {
        let call = &call;
        let on = |index| async move { (self.name(index).to_owned(), self.call_on(index, limit, call).await) };
        join_all((0..self.len()).map(on)).await
    }

    async fn call_on<T, F, Fut>(&self, index: usize, limit: Duration, call: &F) -> Result<T, EtcdError>
    where
        F: Fn(Arc<Connection>) -> Fut,
        Fut: Future<Output = Result<T, EtcdError>>,
    {
        let connection = self.connection(index, limit).await?;
        let answer = call(connection.clone()).await;
        self.on_answer(&connection, answer).await
    }

    /// A call on a connection ended, with an answer or without one.
    ///
    /// # Errors
    ///
    /// The call's own, or that its answer does not count since the member is of another cluster.
    pub(crate) async fn on_answer<T>(
        &self,
        connection: &Arc<Connection>,
        answer: Result<T, EtcdError>,
    ) -> Result<T, EtcdError> {
        if answer.as_ref().err().is_none_or(|error| !error.is_worth_another_member()) {
            self.surveys.before_answer(connection, answer.is_err()).await?;
        }
        match &answer {
            Ok(_) => self.on_response(connection),
            Err(error) => self.on_error(connection, error),
        }
        answer
    }

    /// A member sent a response, by an answer or on a stream.
    pub(crate) fn on_response(&self, connection: &Connection) {
        self.pace.on_success();
        self.members.on_response(connection);
    }

    /// A call or a stream on a connection failed.
    pub(crate) fn on_error(&self, connection: &Arc<Connection>, error: &EtcdError) {
        if error.is_worth_another_member() {
            self.pace.on_failure();
        }
        self.members.on_error(connection, error);
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.members.fmt(f)
    }
}
