//! The etcd cluster as the rest of the crate sees it: one connection a member, each call with a deadline.
//!
//! etcd-client's own balancing over members is not used: it picks one at random for each call, while a watch, a lease and a
//! retry need to know whom they talk to.

mod calls;
mod cluster_id;
mod connection;
mod endpoint;
mod kv;
mod limits;
mod login;
mod range;
mod scan;
mod source;
#[cfg(feature = "_tls")]
mod tls;
mod watch;

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{EtcdError, EtcdErrorKind, chain};

pub(crate) use self::calls::{Claimed, hex};
pub(crate) use self::cluster_id::Eye;
use self::cluster_id::Unity;
pub(crate) use self::connection::Connection;
use self::endpoint::Target;
pub(crate) use self::endpoint::{Tls, parse_endpoints, without_user};
pub(crate) use self::kv::{Kv, MAX_SEGMENT, MAX_VALUE};
pub(crate) use self::limits::{CALL_LIMIT, CLAIM_LIMIT, DENIED_PAUSE, REFUSED_PAUSE, SPLIT_PAUSE};
pub use self::login::Credentials;
use self::login::Logins;
pub(crate) use self::login::Provider;
pub(crate) use self::range::Range;
pub(crate) use self::scan::Scan;
pub(crate) use self::source::{Source, Update};
pub(crate) use self::watch::Event;
use self::watch::{Watch, WatchMessage};

/// How long a member must have been silent to count as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a member that does not answer is logged.
const OUTAGE_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The members of one etcd cluster.
pub(crate) struct Cluster {
    members: Vec<Member>,
    logins: Option<Arc<Logins>>,
    /// The member that answered last, asked first.
    preferred: AtomicUsize,
    unity: Unity,
}

struct Member {
    name: Arc<str>,
    target: Target,
    connection: Mutex<Option<Arc<Connection>>>,
    outage: Mutex<Outage>,
}

/// Since when a member does not answer, and what was logged of it.
#[derive(Default)]
struct Outage {
    since: Option<Instant>,
    logged: Option<Instant>,
    /// Whether this outage was logged, and its end is to be.
    is_told: bool,
}

impl Cluster {
    pub(crate) fn new(targets: Vec<Target>, provider: Option<Provider>) -> Self {
        let members = targets.into_iter().map(|target| Member {
            name: target.name.as_str().into(),
            target,
            connection: Mutex::new(None),
            outage: Mutex::default(),
        });
        let members: Vec<_> = members.collect();
        // Not the first for everybody: one member would carry the whole fleet.
        let preferred = AtomicUsize::new(fastrand::usize(..members.len()));
        let logins = provider.map(|provider| Arc::new(Logins::new(provider, members.len())));
        let unity = Unity::new(members.len());
        Self { members, logins, preferred, unity }
    }

    /// The number of members.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// The member that answered last.
    pub(crate) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    /// Another member than this one is to be asked first, if it was this one.
    pub(crate) fn avoid(&self, index: usize) {
        let index = index % self.len();
        let next = (index + 1) % self.len();
        // Where it changed meanwhile, someone else found a better one.
        let _ = self.preferred.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The connection to member `index` (modulo their number), logged in. Opening it costs nothing until the first call;
    /// a login, where one is due, may take `limit`.
    ///
    /// # Errors
    ///
    /// What became of the login, if one is configured; and the member is known to be of another cluster.
    pub(crate) async fn connection(
        self: &Arc<Self>,
        index: usize,
        limit: Duration,
    ) -> Result<Arc<Connection>, EtcdError> {
        let index = index % self.members.len();
        self.admit(index)?;
        match self.reach(index, limit).await {
            Err(error) if matches!(error.kind, EtcdErrorKind::Login | EtcdErrorKind::Withheld) => {
                Err(self.without_login(index, error).await)
            }
            reached => reached,
        }
    }

    /// The connection to member `index`, whatever cluster it is of.
    async fn reach(&self, index: usize, limit: Duration) -> Result<Arc<Connection>, EtcdError> {
        let deadline = Instant::now() + limit;
        let connection = match self.existing(index) {
            Some(connection) => connection,
            None => self.open(index).await?,
        };
        let login = connection.log_in(deadline, limit).await;
        login.inspect_err(|error| self.after(&connection, error))?;
        Ok(connection)
    }

    /// Logs that a member does not answer: when it begins, and once a minute, whoever asks how often.
    fn note(&self, index: usize, error: &EtcdError) {
        if !error.is_worth_another_member() {
            return;
        }
        self.avoid(index);
        let now = Instant::now();
        let mut outage = self.members[index].outage();
        let lasts = now - *outage.since.get_or_insert(now);
        if outage.logged.is_none_or(|logged| now >= logged + OUTAGE_LOG_INTERVAL) {
            outage.logged = Some(now);
            outage.is_told = true;
            tracing::warn!(member = %error.member, ?lasts, error = chain(error), "etcd member does not answer");
        }
    }

    /// Draws the conclusions from how a call on a connection ended.
    ///
    /// # Errors
    ///
    /// The call's own, and that its answer does not count since the member is of another cluster.
    pub(crate) async fn conclude<T>(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        answer: Result<T, EtcdError>,
    ) -> Result<T, EtcdError> {
        if answer.as_ref().err().is_none_or(|error| !error.is_worth_another_member()) {
            self.accept(connection, answer.is_err()).await?;
        }
        match &answer {
            Ok(_) => self.heard(connection),
            Err(error) => self.after(connection, error),
        }
        answer
    }

    /// Notes that a member said something.
    pub(crate) fn heard(&self, connection: &Connection) {
        self.preferred.store(connection.index(), Ordering::Relaxed);
        let mut outage = self.members[connection.index()].outage();
        let lasted = outage.since.take().map(|since| since.elapsed());
        if std::mem::take(&mut outage.is_told) {
            tracing::info!(member = connection.name(), ?lasted, "etcd member answers again");
        }
    }

    fn existing(&self, index: usize) -> Option<Arc<Connection>> {
        self.members[index].slot().clone()
    }

    async fn open(&self, index: usize) -> Result<Arc<Connection>, EtcdError> {
        let Member { name, target, .. } = &self.members[index];
        let connection = Connection::open(index, name.clone(), target, self.logins.clone()).await?;
        Ok(self.members[index].slot().get_or_insert(Arc::new(connection)).clone())
    }

    /// Gives up a connection that seems dead: the next call opens another one.
    pub(crate) fn forget(&self, connection: &Arc<Connection>) {
        let mut slot = self.members[connection.index()].slot();
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            *slot = None;
        }
    }

    /// Makes one call, on each member in turn until one answers, beginning with the one that answered last. `limit` is for
    /// the login on each member; the call keeps its own.
    ///
    /// What a member did before it fell silent is unknown, so `call` must be safe to repeat.
    ///
    /// # Errors
    ///
    /// The answer of the first member that gave one, or what the last one failed with.
    pub(crate) async fn call<T, F, Fut>(self: &Arc<Self>, limit: Duration, call: F) -> Result<T, EtcdError>
    where
        F: Fn(Arc<Connection>) -> Fut,
        Fut: Future<Output = Result<T, EtcdError>>,
    {
        let first = self.preferred();
        let mut attempt = 0;
        loop {
            let result = self.call_on(first + attempt, limit, &call).await;
            attempt += 1;
            match result {
                Err(error) if error.is_worth_another_member() && attempt < self.len() => {
                    tracing::debug!(error = chain(&error), "etcd call goes to the next member");
                }
                result => return result,
            }
        }
    }

    async fn call_on<T, F, Fut>(self: &Arc<Self>, index: usize, limit: Duration, call: &F) -> Result<T, EtcdError>
    where
        F: Fn(Arc<Connection>) -> Fut,
        Fut: Future<Output = Result<T, EtcdError>>,
    {
        let connection = self.connection(index, limit).await?;
        let answer = call(connection.clone()).await;
        self.conclude(&connection, answer).await
    }

    /// Draws the conclusions for a connection from an error that was seen on it.
    pub(crate) fn after(&self, connection: &Arc<Connection>, error: &EtcdError) {
        if matches!(error.kind, EtcdErrorKind::Deadline(limit) if limit < PATIENCE) {
            // Says more about our hurry than about the member.
            self.avoid(connection.index());
            return;
        }
        self.note(connection.index(), error);
        match error.kind {
            // The connection may be dead without knowing, or have lost the runtime that it was made on.
            EtcdErrorKind::Deadline(_) | EtcdErrorKind::Unreachable | EtcdErrorKind::Tls => self.forget(connection),
            EtcdErrorKind::Token | EtcdErrorKind::Denied => {
                connection.log_in_again();
                // Streams outlive the connection that new calls use; its token is no better.
                if let Some(present) = self.existing(connection.index()) {
                    present.log_in_again();
                }
            }
            _ => {}
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.members.iter().map(|member| &*member.name).collect();
        f.debug_struct("Cluster").field("members", &names).finish_non_exhaustive()
    }
}

impl Member {
    fn slot(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outage(&self) -> MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
