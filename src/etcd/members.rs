//! The members of a cluster: one connection to each, opened when it is needed and given up when it is dead; the member
//! that is asked first; and what is logged of outages.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::{Connection, Signs};
use super::endpoints::Endpoints;
use super::login::Logins;
use super::metrics::MemberGauge;
use super::target::Target;
use crate::error::{EtcdError, EtcdErrorKind, chain};
use crate::log_limit::LogLimit;
use crate::targets::ETCD;

/// All members, each known by its index.
pub(super) struct Members {
    endpoints: Arc<Endpoints>,
    /// As they were named.
    named: Arc<Vec<Target>>,
    each: Vec<ClusterMember>,
    logins: Option<Arc<Logins>>,
    /// The member that is asked first, and that watches are on.
    preferred: AtomicUsize,
    /// The member that should be.
    home: AtomicUsize,
    displacement: Mutex<Option<Instant>>,
    /// How often another member was preferred because one failed.
    displacements: watch::Sender<u64>,
}

/// One member, for choosing among them.
pub(super) struct ClusterMember {
    name: Arc<str>,
    connection: Mutex<Option<Arc<Connection>>>,
    outage: Mutex<Outage>,
    /// Whether it is of another cluster.
    is_strange: AtomicBool,
    signs: Arc<Signs>,
}

/// Since when a member cannot be used, and what was logged of it.
#[derive(Default)]
struct Outage {
    since: Option<Instant>,
    /// When each fault was logged last, in this outage or before.
    logs: [LogLimit; 3],
    /// The worst fault that was logged in this outage: its end is to be logged as well.
    reported: Option<Fault>,
    gauge: MemberGauge,
}

/// What is wrong with a member; the worse fault is the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// It answers, and too late for some calls, until it answers one in time.
    Late,
    /// It does not answer, until it answers again.
    Silent,
    /// It answers that it cannot serve, until it serves again.
    Unavailable,
}

impl Fault {
    /// Among the states of the gauge.
    fn label(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Silent => "silent",
            Self::Unavailable => "unavailable",
        }
    }
}

impl Members {
    pub(super) fn new(endpoints: Arc<Endpoints>, logins: Option<Arc<Logins>>) -> Self {
        let named = endpoints.named();
        let each = named.iter().map(|target| ClusterMember {
            name: target.name.as_str().into(),
            connection: Mutex::new(None),
            outage: Mutex::new(Outage { gauge: MemberGauge::new(), ..Outage::default() }),
            is_strange: AtomicBool::new(false),
            signs: Arc::default(),
        });
        let each: Vec<_> = each.collect();
        // Not the first member in every process: it would carry the whole fleet.
        let home = fastrand::usize(..each.len());
        let (preferred, home) = (AtomicUsize::new(home), AtomicUsize::new(home));
        let (displacement, displacements) = (Mutex::new(None), watch::Sender::new(0));
        Self { endpoints, named, each, logins, preferred, home, displacement, displacements }
    }

    /// The members that were named last, which take the place of these.
    ///
    /// The streams of the process stay on the member that they are on, if it is still one, and so does their home. Else
    /// one that is new is their home, so that one that replaces another has its share.
    pub(super) fn successor(&self) -> Self {
        let mut next = Self::new(self.endpoints.clone(), self.logins.clone());
        for member in &mut next.each {
            if let Some(before) = self.index_of(&member.name).map(|index| &self.each[index]) {
                member.signs = before.signs.clone();
                *member.outage() = std::mem::take(&mut *before.outage());
            }
        }
        for member in &self.each {
            member.outage().gauge = MemberGauge::default();
        }
        if let Some(logins) = &self.logins {
            logins.on_named(&next.each.iter().map(|member| member.name.clone()).collect::<Vec<_>>());
        }
        let is_new = |member: &ClusterMember| self.index_of(&member.name).is_none();
        let is_well = |member: &ClusterMember| !member.is_away();
        let listed = |index: usize| next.index_of(self.name(index));
        let home = listed(self.home()).or_else(|| next.random(is_new));
        let home = home.or_else(|| listed(self.preferred())).unwrap_or_else(|| next.home());
        let preferred = [listed(self.preferred()), Some(home)].into_iter().flatten();
        let mut preferred = preferred.filter(|index| is_well(&next.each[*index]));
        let preferred = preferred.next().or_else(|| next.random(is_well)).unwrap_or(home);
        next.home.store(home, Ordering::Relaxed);
        next.preferred.store(preferred, Ordering::Relaxed);
        *next.displacement() = (preferred != home).then(Instant::now);
        next
    }

    /// The member of this name.
    pub(super) fn index_of(&self, name: &str) -> Option<usize> {
        self.each.iter().position(|member| *member.name == *name)
    }

    /// Whether they are the members that were named last.
    pub(super) fn are_current(&self) -> bool {
        self.endpoints.are(&self.named)
    }

    pub(super) fn len(&self) -> usize {
        self.each.len()
    }

    pub(super) fn name(&self, index: usize) -> &str {
        &self.each[index].name
    }

    /// The member that is asked first, and that watches are on.
    pub(super) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    /// Tells when others are named.
    pub(super) fn successors(&self) -> Successors {
        Successors { named: self.named.clone(), endpoints: self.endpoints.watch() }
    }

    /// This member failed: others may have to be named, and another one is preferred. `is_news` says that it was well
    /// before.
    pub(super) fn on_failure(&self, index: usize, is_news: bool) {
        // What becomes of those that were replaced is no news.
        if self.are_current() {
            self.endpoints.on_failure(is_news);
        }
        self.prefer_another(index);
    }

    /// If this member was preferred, one that is there is from now on, or else any other, by chance.
    pub(super) fn prefer_another(&self, index: usize) {
        let index = index % self.len();
        if self.len() == 1 || self.preferred() != index {
            return;
        }
        let another = self.another(index);
        // Where it changed meanwhile, another call has found a better member.
        let moved = self.preferred.compare_exchange(index, another, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() {
            self.displacement().get_or_insert_with(Instant::now);
            self.displacements.send_modify(|count| *count += 1);
        }
    }

    /// A member answered a call that others had failed: it is preferred from now on.
    pub(super) fn prefer(&self, index: usize) {
        self.preferred.store(index, Ordering::Relaxed);
    }

    /// One that is there, or else any other, by chance.
    fn another(&self, index: usize) -> usize {
        let name = &self.each[index].name;
        self.random(|member| member.name != *name && !member.is_strange() && !member.is_away())
            .or_else(|| self.random(|member| member.name != *name && !member.is_strange()))
            .or_else(|| self.random(|member| member.name != *name))
            .unwrap_or(index)
    }

    /// One of those that are wanted, by chance.
    pub(super) fn random(&self, is_wanted: impl Fn(&ClusterMember) -> bool) -> Option<usize> {
        let wanted: Vec<usize> = (0..self.len()).filter(|&index| is_wanted(&self.each[index])).collect();
        (!wanted.is_empty()).then(|| wanted[fastrand::usize(..wanted.len())])
    }

    /// The member that the streams of the process should be on.
    pub(super) fn home(&self) -> usize {
        self.home.load(Ordering::Relaxed)
    }

    /// Notes whether a member is of another cluster.
    pub(super) fn set_strange(&self, index: usize, is_strange: bool) {
        self.each[index].is_strange.store(is_strange, Ordering::Relaxed);
    }

    /// Whether a member failed, and the streams of the process are not at home since.
    pub(super) fn is_displaced(&self) -> bool {
        self.displacement().is_some()
    }

    /// Whether they are not for as long.
    pub(super) fn is_displaced_for(&self, age: Duration) -> bool {
        self.displacement().is_some_and(|since| since.elapsed() >= age)
    }

    /// Counts displacements.
    pub(super) fn displacements(&self) -> watch::Receiver<u64> {
        self.displacements.subscribe()
    }

    /// The streams of the process have a home here from now on; `before` is preferred now. Returns whether that is so:
    /// where it changed meanwhile, that came of a failure.
    pub(super) fn settle(&self, before: usize, home: usize) -> bool {
        self.home.store(home, Ordering::Relaxed);
        let moved = self.preferred.compare_exchange(before, home, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() {
            *self.displacement() = None;
        }
        moved.is_ok()
    }

    fn displacement(&self) -> MutexGuard<'_, Option<Instant>> {
        self.displacement.lock().unwrap_or_else(PoisonError::into_inner)
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
        let ClusterMember { name, signs, .. } = &self.each[index];
        let logins = self.logins.as_ref().map(|logins| (logins.clone(), logins.place(name)));
        let target = &self.named[index];
        let connection = Connection::open(index, name.clone(), target, logins, signs.clone()).await?;
        Ok(self.each[index].slot().get_or_insert(connection).clone())
    }

    /// Gives up a connection that seems dead: the next call opens another one.
    pub(super) fn forget(&self, connection: &Arc<Connection>) {
        let mut slot = self.each[connection.index()].slot();
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            *slot = None;
        }
    }

    /// A member sent a response: its outage is over.
    pub(super) fn on_response(&self, connection: &Connection) {
        connection.on_heard();
        let ended = self.each[connection.index()].outage().on_response(Instant::now());
        let member = connection.name();
        match ended {
            Some((Fault::Late, lasted)) => {
                tracing::info!(target: ETCD, member, ?lasted, "etcd member answers in time again");
            }
            Some((Fault::Silent, lasted)) => tracing::info!(target: ETCD, member, ?lasted, "etcd member answers again"),
            Some((Fault::Unavailable, lasted)) => {
                tracing::info!(target: ETCD, member, ?lasted, "etcd member serves again");
            }
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
            self.on_outage(connection, error);
        }
        match error.kind {
            // Pings keep an eye on it; an etcd that is slow is no faster on another one.
            EtcdErrorKind::Deadline(_) if connection.has_streams() => {}
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
    fn on_outage(&self, connection: &Connection, error: &EtcdError) {
        let fault = match error.kind {
            EtcdErrorKind::Unavailable | EtcdErrorKind::Incapable => Fault::Unavailable,
            EtcdErrorKind::Deadline(limit) if connection.was_heard_within(limit) => Fault::Late,
            _ => Fault::Silent,
        };
        let is_news = !self.each[connection.index()].is_away();
        let lasts = self.each[connection.index()].outage().on_fault(fault, Instant::now());
        self.on_failure(connection.index(), is_news);
        let Some(lasts) = lasts else { return };
        // The first line of an outage says nothing of its length.
        let lasts = (!lasts.is_zero()).then(|| tracing::field::debug(lasts));
        let (member, chain) = (&error.member, chain(error));
        match fault {
            Fault::Late => tracing::warn!(target: ETCD, %member, lasts, error = chain, "etcd member answers late"),
            Fault::Silent => tracing::warn!(target: ETCD, %member, lasts, error = chain, "etcd member does not answer"),
            Fault::Unavailable => {
                tracing::warn!(target: ETCD, %member, lasts, error = chain, "etcd member cannot serve");
            }
        }
    }
}

/// Tells when the members are replaced by others.
#[derive(Clone)]
pub(super) struct Successors {
    named: Arc<Vec<Target>>,
    endpoints: watch::Receiver<Arc<Vec<Target>>>,
}

impl Successors {
    /// Whether others are named by now.
    pub(super) fn are_named(&self) -> bool {
        !Arc::ptr_eq(&self.endpoints.borrow(), &self.named)
    }

    /// Resolves once others are named.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn named(&mut self) {
        let Self { named, endpoints } = self;
        if endpoints.wait_for(|now| !Arc::ptr_eq(now, named)).await.is_err() {
            // The cluster is gone.
            std::future::pending::<()>().await;
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

    /// Whether it is of another cluster.
    pub(super) fn is_strange(&self) -> bool {
        self.is_strange.load(Ordering::Relaxed)
    }

    /// Whether it is in an outage, as far as is known.
    fn is_away(&self) -> bool {
        self.outage().since.is_some()
    }

    fn outage(&self) -> MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outage {
    /// Returns how long the outage lasts, if this fault of the member is to be logged: once a minute, however often the
    /// member is asked, and at once where it is another one.
    fn on_fault(&mut self, fault: Fault, now: Instant) -> Option<Duration> {
        if self.since.is_none() {
            self.gauge.on_outage(fault.label());
        }
        self.gauge.set_state(fault.label());
        let since = *self.since.get_or_insert(now);
        if !self.logs[fault as usize].admit(now) {
            return None;
        }
        self.reported = self.reported.max(Some(fault));
        Some(now - since)
    }

    /// Returns what ended, and how long it lasted, if it was logged.
    fn on_response(&mut self, now: Instant) -> Option<(Fault, Duration)> {
        self.gauge.set_state("answering");
        let since = self.since.take()?;
        Some((self.reported.take()?, now - since))
    }
}

/// How long a member must have been silent to count as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn members(urls: &[String]) -> Members {
        Members::new(Arc::new(Endpoints::new(urls, None, None, SECOND).expect("good URLs")), None)
    }

    /// Three members that have not been asked yet.
    fn three() -> Members {
        let urls = [1, 2, 3].map(|port| format!("http://127.0.0.1:{port}"));
        members(&urls)
    }

    #[test]
    fn the_load_of_a_member_that_fails_spreads_over_all_others() {
        let mut moved = [0; 3];
        for _ in 0..300 {
            let members = three();
            members.prefer(1);
            members.prefer_another(0);
            assert_eq!(members.preferred(), 1, "another one failed");
            members.prefer_another(1);
            moved[members.preferred()] += 1;
            assert!(members.is_displaced());
        }
        // 150 each on the average.
        assert!(moved[0] > 100 && moved[1] == 0 && moved[2] > 100, "{moved:?}");
    }

    #[test]
    fn a_member_that_is_away_or_a_stranger_is_preferred_only_where_there_is_no_other() {
        let members = three();
        members.prefer(0);
        members.each[1].outage().on_fault(Fault::Silent, Instant::now());
        members.prefer_another(0);
        assert_eq!(members.preferred(), 2, "one of the others is away");
        members.set_strange(0, true);
        members.prefer_another(2);
        assert_eq!(members.preferred(), 1, "rather one that is away than a stranger");
        members.set_strange(2, true);
        members.prefer_another(1);
        assert_ne!(members.preferred(), 1, "rather a stranger than one that just failed");
    }

    #[test]
    fn a_process_is_displaced_until_it_settles_where_nothing_failed_meanwhile() {
        let members = three();
        let home = members.home();
        members.prefer_another(home);
        let away = members.preferred();
        assert!(!members.settle(home, home), "that is not the preferred one any more");
        assert!(members.is_displaced() && members.is_displaced_for(Duration::ZERO));
        assert!(!members.is_displaced_for(SECOND * 60));
        assert!(members.settle(away, home));
        assert!(!members.is_displaced() && members.preferred() == home);
    }

    #[test]
    fn members_that_are_named_anew_keep_home_and_streams_where_they_are_listed_still() {
        let urls = |ports: &[u16]| ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect::<Vec<_>>();
        let placed = |before: &Members, ports: &[u16]| {
            before.endpoints.name(&urls(ports)).expect("good URLs");
            let next = before.successor();
            (ports[next.home()], ports[next.preferred()], next.is_displaced())
        };
        let before = three();
        before.home.store(0, Ordering::Relaxed);
        before.preferred.store(1, Ordering::Relaxed);
        assert_eq!(placed(&before, &[3, 2, 1, 4]), (1, 2, true), "both are listed, elsewhere");
        assert_eq!(placed(&before, &[4, 2, 3]), (4, 2, true), "what replaces the home is the home");
        assert_eq!(placed(&before, &[1, 4, 3]), (1, 1, false), "the streams go home");
        before.each[1].outage().on_fault(Fault::Silent, Instant::now());
        assert_eq!(placed(&before, &[1, 2, 4]), (1, 1, false), "they are on none that is away");
        before.each[1].outage().on_fault(Fault::Silent, Instant::now());
        before.each[0].outage().on_fault(Fault::Silent, Instant::now());
        assert_eq!(placed(&before, &[1, 2, 5]), (1, 5, true), "nor go home to one that is");
        let (home, preferred, is_displaced) = placed(&before, &[4, 5]);
        assert!(home > 3 && preferred == home && !is_displaced, "all are new");
        let (home, preferred, is_displaced) = placed(&before, &[2, 3]);
        assert!(home == 2 && preferred == home && !is_displaced, "none is, so they stay");
    }

    #[tokio::test]
    async fn a_login_that_is_under_way_is_no_outage_and_its_connection_is_kept() {
        let urls = ["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()];
        let members = members(&urls);
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
