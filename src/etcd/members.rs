//! The members of a cluster: one connection to each, opened when it is needed and given up when it is dead; the member
//! that is asked first; and what is logged of outages.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::connection::Connection;
use super::credentials::Provider;
use super::endpoint::Target;
use super::login::Logins;
use crate::error::{EtcdError, EtcdErrorKind, chain};

/// All members, each known by its index.
pub(super) struct Members {
    each: Vec<ClusterMember>,
    logins: Option<Arc<Logins>>,
    /// The member that answered last, asked first.
    preferred: AtomicUsize,
}

struct ClusterMember {
    name: Arc<str>,
    target: Target,
    connection: Mutex<Option<Arc<Connection>>>,
    outage: Mutex<Outage>,
}

/// Since when a member cannot be used, and what was logged of it.
#[derive(Default)]
struct Outage {
    since: Option<Instant>,
    /// When each fault was logged last, in this outage or before.
    logged: [Option<Instant>; 2],
    /// The worst fault that was logged in this outage: its end is to be logged as well.
    reported: Option<Fault>,
}

/// What is wrong with a member; the worse fault is the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// It does not answer, until it answers again.
    Silent,
    /// It answers that it cannot serve, until it serves again.
    Unavailable,
}

impl Members {
    pub(super) fn new(targets: Vec<Target>, provider: Option<Provider>) -> Self {
        let each = targets.into_iter().map(|target| ClusterMember {
            name: target.name.as_str().into(),
            target,
            connection: Mutex::new(None),
            outage: Mutex::default(),
        });
        let each: Vec<_> = each.collect();
        // Not the first member in every process: it would carry the whole fleet.
        let preferred = AtomicUsize::new(fastrand::usize(..each.len()));
        let logins = provider.map(|provider| Arc::new(Logins::new(provider, each.len())));
        Self { each, logins, preferred }
    }

    pub(super) fn len(&self) -> usize {
        self.each.len()
    }

    pub(super) fn name(&self, index: usize) -> &str {
        &self.each[index].name
    }

    /// The member that answered last.
    pub(super) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    /// The member behind this one is asked first from now on, if this one was.
    pub(super) fn prefer_another(&self, index: usize) {
        let index = index % self.len();
        let next = (index + 1) % self.len();
        // Where it changed meanwhile, another call has found a better member.
        let _ = self.preferred.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The connection to member `index`, logged in, whatever cluster the member belongs to.
    ///
    /// # Errors
    ///
    /// What the login failed with, if one is configured.
    pub(super) async fn connect(&self, index: usize, limit: Duration) -> Result<Arc<Connection>, EtcdError> {
        let deadline = Instant::now() + limit;
        let connection = self.connect_without_login(index).await?;
        let login = connection.log_in(deadline, limit).await;
        login.inspect_err(|error| self.on_error(&connection, error))?;
        Ok(connection)
    }

    /// The connection to member `index`, for calls that need no token.
    pub(super) async fn connect_without_login(&self, index: usize) -> Result<Arc<Connection>, EtcdError> {
        match self.existing(index) {
            Some(connection) => Ok(connection),
            None => self.open(index).await,
        }
    }

    fn existing(&self, index: usize) -> Option<Arc<Connection>> {
        self.each[index].slot().clone()
    }

    async fn open(&self, index: usize) -> Result<Arc<Connection>, EtcdError> {
        let ClusterMember { name, target, .. } = &self.each[index];
        let connection = Connection::open(index, name.clone(), target, self.logins.clone()).await?;
        Ok(self.each[index].slot().get_or_insert(connection).clone())
    }

    /// Gives up a connection that seems dead: the next call opens another one.
    pub(super) fn forget(&self, connection: &Arc<Connection>) {
        let mut slot = self.each[connection.index()].slot();
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            *slot = None;
        }
    }

    /// A member sent a response: it is asked first from now on, and its outage is over.
    pub(super) fn on_response(&self, connection: &Connection) {
        self.preferred.store(connection.index(), Ordering::Relaxed);
        let ended = self.each[connection.index()].outage().on_response(Instant::now());
        let member = connection.name();
        match ended {
            Some((Fault::Silent, lasted)) => tracing::info!(member, ?lasted, "etcd member answers again"),
            Some((Fault::Unavailable, lasted)) => tracing::info!(member, ?lasted, "etcd member serves again"),
            None => {}
        }
    }

    /// A call or a stream on a connection failed: decides which member is asked next, and whether the connection and
    /// its token are used again.
    pub(super) fn on_error(&self, connection: &Arc<Connection>, error: &EtcdError) {
        let is_short = |limit| limit < PATIENCE;
        if matches!(error.kind, EtcdErrorKind::LoginPending)
            || matches!(error.kind, EtcdErrorKind::Deadline(limit) if is_short(limit))
        {
            // Neither a login that is under way nor a short limit proves anything about the member.
            self.prefer_another(connection.index());
            return;
        }
        if error.is_worth_another_member() {
            self.on_outage(connection.index(), error);
        }
        match error.kind {
            // The connection may be dead without knowing, or have lost the runtime that it was made on.
            EtcdErrorKind::Deadline(_) | EtcdErrorKind::Unreachable | EtcdErrorKind::Tls => self.forget(connection),
            EtcdErrorKind::Token | EtcdErrorKind::Denied => {
                connection.on_token_doubted();
                // Streams outlive the connection that new calls use; its token is no better.
                if let Some(present) = self.existing(connection.index()) {
                    present.on_token_doubted();
                }
            }
            _ => {}
        }
    }

    /// A member cannot be used: another one is asked first.
    fn on_outage(&self, index: usize, error: &EtcdError) {
        self.prefer_another(index);
        let fault = match error.kind {
            EtcdErrorKind::Unavailable | EtcdErrorKind::Incapable => Fault::Unavailable,
            _ => Fault::Silent,
        };
        let Some(lasts) = self.each[index].outage().on_fault(fault, Instant::now()) else { return };
        let (member, chain) = (&error.member, chain(error));
        match fault {
            Fault::Silent => tracing::warn!(%member, ?lasts, error = chain, "etcd member does not answer"),
            Fault::Unavailable => tracing::warn!(%member, ?lasts, error = chain, "etcd member cannot serve"),
        }
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.each.iter().map(|member| &member.name)).finish()
    }
}

impl ClusterMember {
    fn slot(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outage(&self) -> MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outage {
    /// Returns how long the outage lasts, if this fault of the member is to be logged: once a minute, however often the
    /// member is asked, and at once where it is another one.
    fn on_fault(&mut self, fault: Fault, now: Instant) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        let logged = &mut self.logged[fault as usize];
        if logged.is_some_and(|logged| now < logged + OUTAGE_LOG_INTERVAL) {
            return None;
        }
        *logged = Some(now);
        self.reported = self.reported.max(Some(fault));
        Some(now - since)
    }

    /// Returns what ended, and how long it lasted, if it was logged.
    fn on_response(&mut self, now: Instant) -> Option<(Fault, Duration)> {
        let since = self.since.take()?;
        Some((self.reported.take()?, now - since))
    }
}

/// How long a member must have been silent to count as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often each fault of a member is logged.
const OUTAGE_LOG_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::parse_endpoints;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_login_that_is_under_way_is_no_outage_and_its_connection_is_kept() {
        let urls = ["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()];
        let members = Members::new(parse_endpoints(&urls, None, SECOND).expect("good URLs"), None);
        members.preferred.store(0, Ordering::Relaxed);
        let connection = members.connect(0, SECOND).await.expect("it is opened lazily");
        let error = connection.refusal("login", "the user", EtcdErrorKind::LoginPending, "not yet".into());
        members.on_error(&connection, &error);
        assert!(members.each[0].outage().since.is_none(), "the member did nothing wrong");
        let present = members.existing(0).expect("it has one");
        assert!(Arc::ptr_eq(&present, &connection), "the next call uses the same");
        assert_eq!(members.preferred(), 1, "another one may be able to log in");
    }

    #[test]
    fn a_fault_is_logged_once_a_minute_and_another_one_at_once() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        assert_eq!(outage.on_fault(Fault::Silent, start), Some(Duration::ZERO), "it begins");
        assert_eq!(outage.on_fault(Fault::Silent, start + SECOND), None, "it was logged a second ago");
        assert_eq!(outage.on_fault(Fault::Unavailable, start + 2 * SECOND), Some(2 * SECOND), "that is news");
        assert_eq!(outage.on_fault(Fault::Silent, start + 3 * SECOND), None, "they may take turns");
        assert_eq!(outage.on_fault(Fault::Silent, start + 60 * SECOND), Some(60 * SECOND), "it lasts for a minute");
    }

    #[test]
    fn the_end_of_an_outage_is_logged_for_its_worst_fault_if_that_was() {
        use Fault::{Silent, Unavailable};
        let start = Instant::now();
        for (faults, worst) in [
            (&[][..], None),
            (&[Silent], Some(Silent)),
            (&[Unavailable], Some(Unavailable)),
            (&[Unavailable, Silent], Some(Unavailable)),
        ] {
            let mut outage = Outage::default();
            for &fault in faults {
                outage.on_fault(fault, start);
            }
            let ended = outage.on_response(start + SECOND);
            assert_eq!(ended, worst.map(|worst| (worst, SECOND)), "{faults:?}");
            assert_eq!(outage.on_response(start + SECOND), None, "it ends once");
            for &fault in faults {
                assert_eq!(outage.on_fault(fault, start + 2 * SECOND), None, "it was logged two seconds ago");
            }
            assert_eq!(outage.on_response(start + 3 * SECOND), None, "nor is the end of what was not logged");
        }
    }
}
