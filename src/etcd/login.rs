//! Logins to a cluster: credentials, kept from etcd for a while once it refused them, and one login at a time for all
//! connections of the process.
//!
//! etcd hashes the password at each login, for some 60 ms, and goes on with that when the caller has gone: with many
//! clients all are answered late, at about the same time, and logins that are begun anew make it later still. So a
//! login is begun rarely and waited for long:
//!
//! - One token serves all members (`token`): etcd knows its simple tokens at every member, and a JWT by its signature.
//! - A login belongs to the cluster. Callers drive it and wait for it, each until its own deadline; one that gives up
//!   leaves it to the next, and nothing is lost if no caller drives it for a while. If the runtime ends on which it was
//!   begun, it fails at once, and the next caller begins another.
//! - Callers at another member wait for it too. Only where it is not answered at once a second one is begun, at their
//!   member, since the first member may be dead. There are two at most.
//! - It has a connection of its own, whose pings show a dead member; the limit of a login is for what a proxy swallows.
//!   It doubles with each login that came too late.
//! - A login that failed late is followed by a wait with full jitter, which grows.
//!
//! A token is renewed when a member refuses it, and not before. To know how long it lives would save one refused call
//! of a few microseconds, while a login before it is due costs a hash, also for a process that asks for nothing.
//! Connections use their token now and then instead, which keeps a simple token alive.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, select_all};
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::asked::Answer;
use super::credentials::{Credentials, Provider};
use super::metrics::LoginMetrics;
use super::token::{Token, TokenSlot, Tokens};
use crate::backoff::Backoff;
use crate::error::{BoxError, EtcdErrorKind, chain};
use crate::log_limit::LogLimit;
use crate::targets::ETCD;

/// The logins of one cluster, on whichever member. Each member that was ever named has a place here, which it keeps.
pub(super) struct Logins {
    provider: Provider,
    /// A question that the provider has not answered yet, and when it was put. It outlives the calls that wait for it:
    /// a slow provider may take longer than any call's limit.
    asking: Mutex<Option<(Instant, Answer<Credentials>)>>,
    /// Held by the caller that is about to begin a login.
    beginning: Mutex<()>,
    state: StdMutex<State>,
    /// Whether the provider has yet to answer.
    waiting: AtomicBool,
    metrics: LoginMetrics,
}

struct State {
    /// The provider is not asked before then.
    ask_at: Option<Instant>,
    /// The URL of each member that was ever named, by its place here.
    members: Vec<Arc<str>>,
    /// The credentials that each member refused: a member of another cluster may refuse what the others take.
    refused: Vec<Option<Refused>>,
    /// When a provider that fails was logged the last time.
    log: LogLimit,
    tokens: Tokens,
    /// The logins that etcd has yet to answer, the newest last.
    under_way: Vec<Login>,
    pace: Pace,
}

/// A login that etcd has yet to answer. Each of its callers drives it.
#[derive(Clone)]
struct Login {
    member: usize,
    credentials: Credentials,
    began: Instant,
    /// How long it may take.
    limit: Duration,
    answer: Shared<Authentication>,
}

/// The answer to a login.
pub(super) type Authentication = BoxFuture<'static, Result<Arc<Token>, LoginFailure>>;

/// Why a login failed.
#[derive(Debug, Clone)]
pub(super) struct LoginFailure {
    /// `Login` if the member refused the credentials.
    pub(super) kind: EtcdErrorKind,
    /// The member's URL.
    pub(super) member: Arc<str>,
    pub(super) user: String,
    pub(super) reason: String,
}

/// What a caller that wants a token does next.
enum Next {
    /// It has one.
    Done(Arc<Token>),
    /// It waits for the logins that are under way, until then.
    Join(Vec<Login>, Instant),
    /// It waits: a login failed late, and the next one has to wait until then.
    Pause(Instant),
    /// It begins one.
    Begin,
}

/// When the next login may begin, and how long it may take.
#[derive(Debug)]
struct Pace {
    next: Option<Instant>,
    limit: Duration,
    backoff: Backoff,
}

impl Pace {
    fn new() -> Self {
        Self { next: None, limit: LOGIN_LIMIT, backoff: Backoff::new(LOGIN_PAUSE, LOGIN_PAUSE_MAX) }
    }

    fn on_success(&mut self, took: Duration) {
        self.next = None;
        self.backoff.reset();
        if took < LOGIN_LIMIT {
            self.limit = LOGIN_LIMIT;
        }
    }

    /// A login failed after so long. One that fails at once cost etcd nothing, and is tried again by the pace of its
    /// callers.
    fn on_failure(&mut self, took: Duration, now: Instant) {
        if took >= COSTLY {
            self.next = Some(now + self.backoff.next());
        }
    }

    /// A login was not answered within its limit.
    fn on_late(&mut self, now: Instant) {
        self.next = Some(now + self.backoff.next());
        self.limit = (self.limit * 2).min(LOGIN_LIMIT_MAX);
    }
}

#[derive(Debug)]
struct Refused {
    credentials: Credentials,
    at: Instant,
    /// The provider is not asked for others before then.
    ask_at: Instant,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("refused", &self.refused).finish_non_exhaustive()
    }
}

/// Why there is no token.
#[derive(Debug)]
pub(super) enum NoToken {
    /// There are no credentials to log in with now.
    Credentials(NoCredentials),
    /// The provider has not answered before the caller's deadline.
    Unprovided,
    /// A login is under way, or has to wait for its turn, beyond the caller's deadline.
    Pending,
    /// The member did not answer the login within this limit, which is the login's own.
    Late(Duration),
    /// The login failed.
    Failed(LoginFailure),
}

/// Why there are no credentials to log in with now.
#[derive(Debug, Error)]
pub(super) enum NoCredentials {
    /// The provider was asked and had none.
    #[error("the provider of credentials failed")]
    Failed(#[source] BoxError),
    /// It is too early to ask it, or to ask etcd the same again.
    #[error("the last ones were of no use, and it is too early to try again")]
    TooEarly,
}

impl Logins {
    pub(super) fn new(provider: Provider) -> Self {
        let state = State {
            ask_at: None,
            members: Vec::new(),
            refused: Vec::new(),
            log: LogLimit::default(),
            tokens: Tokens::new(),
            under_way: Vec::new(),
            pace: Pace::new(),
        };
        Self {
            provider,
            asking: Mutex::default(),
            beginning: Mutex::default(),
            state: StdMutex::new(state),
            waiting: AtomicBool::new(false),
            metrics: LoginMetrics::new(),
        }
    }

    /// The place of a member, by its URL.
    pub(super) fn place(&self, name: &Arc<str>) -> usize {
        let mut state = self.state();
        state.members.iter().position(|member| member == name).unwrap_or_else(|| {
            state.members.push(name.clone());
            state.refused.push(None);
            state.tokens.add_member();
            state.members.len() - 1
        })
    }

    /// These are the members from now on: no login is waited for at others.
    pub(super) fn on_named(&self, names: &[Arc<str>]) {
        let State { members, under_way, .. } = &mut *self.state();
        under_way.retain(|login| names.contains(&members[login.member]));
    }

    /// Where connections to a member find its token.
    pub(super) fn slot(&self, member: usize) -> TokenSlot {
        self.state().tokens.slot(member)
    }

    /// A member refused a token.
    pub(super) fn on_token_refused(&self, member: usize, token: &Arc<Token>) {
        self.state().tokens.on_refused(member, token);
    }

    /// The token for calls to a member: the one that it takes so far, or that another member gave out, or that a login
    /// brings. `authenticate` begins one, at this member.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a login goes on, and the next call waits for it.
    pub(super) async fn token(
        &self,
        member: usize,
        deadline: Instant,
        authenticate: impl Fn(Credentials) -> Authentication,
    ) -> Result<Arc<Token>, NoToken> {
        loop {
            let next = self.state().next(member, Instant::now());
            let (logins, until) = match next {
                Next::Done(token) => return Ok(token),
                Next::Join(logins, until) => (logins, until),
                Next::Pause(until) if until >= deadline => return self.pending_until(deadline).await,
                Next::Pause(until) => {
                    sleep_until(until).await;
                    continue;
                }
                Next::Begin => {
                    let begun = timeout_at(deadline, self.begin(member, &authenticate)).await;
                    begun.map_err(|_| self.pending())??;
                    continue;
                }
            };
            let answers = select_all(logins.iter().map(|login| login.answer.clone()));
            if let Ok((answer, index, _)) = timeout_at(until.min(deadline), answers).await {
                let failure = answer.as_ref().err().cloned();
                self.on_answer(&logins[index], answer);
                // What another member said is nothing that this one did.
                if let Some(failure) = failure.filter(|_| logins[index].member == member) {
                    return Err(NoToken::Failed(failure));
                }
                continue;
            }
            for login in logins.iter().filter(|login| login.is_late()) {
                self.on_late(login);
                if login.member == member {
                    return Err(NoToken::Late(login.limit));
                }
            }
            // Else it is time for a login at this member as well.
            if Instant::now() >= deadline {
                return Err(NoToken::Pending);
            }
        }
    }

    async fn pending_until(&self, deadline: Instant) -> Result<Arc<Token>, NoToken> {
        sleep_until(deadline).await;
        Err(NoToken::Pending)
    }

    fn pending(&self) -> NoToken {
        if self.waiting.load(Ordering::Relaxed) { NoToken::Unprovided } else { NoToken::Pending }
    }

    /// Begins a login at a member, unless another caller did meanwhile.
    async fn begin(&self, member: usize, authenticate: impl Fn(Credentials) -> Authentication) -> Result<(), NoToken> {
        let _beginning = self.beginning.lock().await;
        if !matches!(self.state().next(member, Instant::now()), Next::Begin) {
            return Ok(());
        }
        let credentials = self.credentials(member).await.map_err(NoToken::Credentials)?;
        let answer = authenticate(credentials.clone()).shared();
        let mut state = self.state();
        let limit = state.pace.limit;
        state.under_way.push(Login { member, credentials, began: Instant::now(), limit, answer });
        Ok(())
    }

    /// A login was answered. Its first caller to see that reports it.
    fn on_answer(&self, login: &Login, answer: Result<Arc<Token>, LoginFailure>) {
        let mut state = self.state();
        if !state.end(login) {
            return;
        }
        let took = login.began.elapsed();
        match answer {
            Ok(token) => {
                tracing::debug!(target: ETCD, ?took, "logged in to etcd");
                self.metrics.on_success();
                state.tokens.on_login(login.member, token);
                state.pace.on_success(took);
                // Whatever else is under way is of no use any more.
                state.under_way.clear();
            }
            Err(failure) if failure.kind == EtcdErrorKind::Login => {
                self.metrics.on_refused();
                state.on_refused(login.member, &failure.member, login.credentials.clone());
            }
            Err(_) => {
                self.metrics.on_failed();
                state.pace.on_failure(took, Instant::now());
            }
        }
    }

    fn on_late(&self, login: &Login) {
        let mut state = self.state();
        if state.end(login) {
            self.metrics.on_late();
            state.pace.on_late(Instant::now());
        }
    }

    /// The credentials to log in to this member with now.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the next call waits for the same answer.
    async fn credentials(&self, member: usize) -> Result<Credentials, NoCredentials> {
        let mut asking = self.asking.lock().await;
        if self.state().ask_at(member).is_some_and(|at| Instant::now() < at) {
            return Err(NoCredentials::TooEarly);
        }
        self.waiting.store(true, Ordering::Relaxed);
        let (asked_at, answer) = asking.get_or_insert_with(|| (Instant::now(), self.provider.ask()));
        let answer = timeout_at(*asked_at + ANSWER_LIMIT, answer).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("it did not answer within {ANSWER_LIMIT:?}").into()));
        self.waiting.store(false, Ordering::Relaxed);
        *asking = None;
        let mut state = self.state();
        state.ask_at = None;
        if !answer.as_ref().is_ok_and(|credentials| !credentials.user.is_empty()) {
            self.metrics.on_no_credentials();
        }
        match answer {
            Ok(credentials) if credentials.user.is_empty() => {
                Err(state.on_failure("it gave a user without a name".into()))
            }
            Ok(credentials) => state.unless_refused(member, credentials),
            Err(error) => Err(state.on_failure(error)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logins")
            .field("provider", &self.provider)
            .field("state", &*self.state())
            .finish_non_exhaustive()
    }
}

impl Login {
    /// When it comes too late.
    fn end(&self) -> Instant {
        self.began + self.limit
    }

    fn is_late(&self) -> bool {
        Instant::now() >= self.end()
    }
}

impl State {
    fn next(&self, member: usize, now: Instant) -> Next {
        if let Some(token) = self.tokens.of(member) {
            return Next::Done(token);
        }
        if let (Some(last), Some(end)) = (self.under_way.last(), self.under_way.iter().map(Login::end).min()) {
            let is_asked = self.under_way.iter().any(|login| login.member == member);
            let hedge_at = last.began + HEDGE_AFTER;
            if is_asked || self.under_way.len() >= MOST_LOGINS {
                return Next::Join(self.under_way.clone(), end);
            }
            if now < hedge_at {
                return Next::Join(self.under_way.clone(), end.min(hedge_at));
            }
        }
        let Some(next) = self.pace.next.filter(|next| now < *next) else { return Next::Begin };
        match self.under_way.iter().map(Login::end).min() {
            // Another member may answer the login that it was asked for meanwhile.
            Some(end) => Next::Join(self.under_way.clone(), end.min(next)),
            None => Next::Pause(next),
        }
    }

    /// Takes a login out of those that are under way; returns whether it was one.
    fn end(&mut self, login: &Login) -> bool {
        let before = self.under_way.len();
        self.under_way.retain(|other| !other.answer.ptr_eq(&login.answer));
        self.under_way.len() < before
    }

    /// A member refused these credentials.
    fn on_refused(&mut self, member: usize, name: &str, credentials: Credentials) {
        let now = Instant::now();
        tracing::warn!(target: ETCD, member = name, user = credentials.user, "etcd refused the credentials");
        self.refused[member] = Some(Refused { credentials, at: now, ask_at: now + ASK_PAUSE });
    }

    /// The instant before which nothing is asked for this member.
    fn ask_at(&self, member: usize) -> Option<Instant> {
        self.ask_at.max(self.refused[member].as_ref().map(|refused| refused.ask_at))
    }

    fn unless_refused(&mut self, member: usize, credentials: Credentials) -> Result<Credentials, NoCredentials> {
        match &mut self.refused[member] {
            Some(refused) if refused.credentials == credentials && refused.at.elapsed() < CREDENTIALS_PAUSE => {
                refused.ask_at = Instant::now() + ASK_PAUSE;
                Err(NoCredentials::TooEarly)
            }
            _ => Ok(credentials),
        }
    }

    fn on_failure(&mut self, error: BoxError) -> NoCredentials {
        let now = Instant::now();
        self.ask_at = Some(now + ASK_PAUSE);
        if self.log.admit(now) {
            tracing::warn!(target: ETCD, error = chain(&*error), "provider of credentials for etcd failed");
        }
        NoCredentials::Failed(error)
    }
}

/// How long a member is not asked to take credentials that it refused: an operator may have a limit on failed logins,
/// and a password that was just changed is found out by the provider, not by etcd.
const CREDENTIALS_PAUSE: Duration = Duration::from_secs(30);

/// How long a provider is not asked again after it failed, or its answer was refused.
const ASK_PAUSE: Duration = Duration::from_secs(1);

/// How long a provider may take: far longer than a vault does, and it is asked again where its connection was lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long a login may take at first. A dead member is found out sooner, by the pings of its connection. etcd with two
/// cores answers 4,000 logins within this time, and those that it answers later it has hashed in vain.
const LOGIN_LIMIT: Duration = Duration::from_secs(120);

/// How long a login may take in the end: the hashes of 10,000 clients for an etcd with two cores.
const LOGIN_LIMIT_MAX: Duration = Duration::from_secs(300);

/// The longest wait after the first login that failed late.
const LOGIN_PAUSE: Duration = Duration::from_secs(1);

/// The longest wait after many logins that failed late.
const LOGIN_PAUSE_MAX: Duration = Duration::from_secs(30);

/// A login that fails after this time may have had its password hashed. Connections that cannot be made fail sooner,
/// and etcd without a leader hashes nothing.
const COSTLY: Duration = Duration::from_secs(5);

/// How long one member may take for a login before another one is asked: as long as a member gets that is asked for the
/// first time.
const HEDGE_AFTER: Duration = Duration::from_secs(1);

/// How many logins may be under way: one, and another in case that its member is dead.
const MOST_LOGINS: usize = 2;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::{oneshot, watch};
    use tokio::time::{advance, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn right() -> Credentials {
        Credentials::new("user", "right")
    }

    fn wrong() -> Credentials {
        Credentials::new("user", "wrong")
    }

    /// Logins to so many members.
    fn of(provider: Provider, members: usize) -> Logins {
        let logins = Logins::new(provider);
        for member in 0..members {
            assert_eq!(logins.place(&format!("http://{member}").into()), member);
        }
        logins
    }

    /// Logins with the credentials that the sender holds, and how often the provider was asked.
    fn logins(first: Credentials) -> (Logins, watch::Sender<Credentials>, Arc<AtomicUsize>) {
        let (sender, given) = watch::channel(first);
        let asked = Arc::<AtomicUsize>::default();
        let counter = asked.clone();
        let provider = Provider::asked(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok::<_, BoxError>(given.borrow().clone()))
        });
        (of(provider, 2), sender, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn the_provider_is_asked_for_each_login() {
        let (logins, sender, asked) = logins(wrong());
        assert_eq!(logins.credentials(0).await.expect("it has some"), wrong());
        sender.send_replace(right());
        assert_eq!(logins.credentials(0).await.expect("it has some"), right(), "the newest count");
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn only_refused_credentials_are_kept_from_etcd_for_half_a_minute() {
        let (logins, sender, asked) = logins(wrong());
        logins.state().on_refused(0, "one", wrong());
        let began = Instant::now();
        while began.elapsed() + SECOND < CREDENTIALS_PAUSE {
            let none = logins.credentials(0).await.expect_err("the same ones again");
            assert!(matches!(none, NoCredentials::TooEarly), "{none:?}");
            advance(SECOND / 10).await;
        }
        assert!(asked.load(Ordering::Relaxed) <= 30, "the provider is asked once a second at most");
        sender.send_replace(right());
        advance(SECOND).await;
        assert_eq!(logins.credentials(0).await.expect("these were never refused"), right());

        sender.send_replace(wrong());
        advance(CREDENTIALS_PAUSE).await;
        assert_eq!(logins.credentials(0).await.expect("time enough"), wrong(), "etcd may take them by now");
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_member_refuses_is_not_kept_from_another() {
        let (logins, _sender, _) = logins(right());
        logins.state().on_refused(1, "one of another cluster", right());
        logins.credentials(1).await.expect_err("it refused them");
        assert_eq!(logins.credentials(0).await.expect("this one did not"), right());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_provider_is_waited_for_by_one_caller_after_the_other() {
        let (send, receive) = oneshot::channel();
        let receive = std::sync::Mutex::new(Some(receive));
        let provider = Provider::asked(move || {
            let receive = receive.lock().expect("no test panics here").take();
            async move { receive.ok_or("asked twice")?.await.map_err(|_| "no answer") }
        });
        let logins = of(provider, 1);
        for _ in 0..3 {
            assert!(timeout(SECOND, logins.credentials(0)).await.is_err(), "it has not answered yet");
            assert!(matches!(logins.pending(), NoToken::Unprovided), "and that is known to be its fault");
        }
        send.send(right()).expect("the login waits still");
        assert_eq!(logins.credentials(0).await.expect("the answer to the first question"), right());
        assert!(matches!(logins.pending(), NoToken::Pending), "it has answered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_fails_or_panics_is_asked_again_after_a_second() {
        let count = AtomicUsize::new(0);
        let provider = Provider::asked(move || {
            let count = count.fetch_add(1, Ordering::Relaxed);
            assert_ne!(count, 1, "the provider's own panic");
            async move {
                assert_ne!(count, 2, "the panic of its future");
                if count == 0 { Err("the vault is locked") } else { Ok(right()) }
            }
        });
        let logins = of(provider, 1);
        for cause in ["the vault is locked", "it panicked", "it panicked"] {
            let error = logins.credentials(0).await.expect_err("it has none");
            assert_eq!(chain(&error), format!("the provider of credentials failed: {cause}"));
            let soon = logins.credentials(0).await.expect_err("it is too early");
            assert!(matches!(soon, NoCredentials::TooEarly), "{soon:?}");
            advance(SECOND).await;
        }
        assert_eq!(logins.credentials(0).await.expect("it has some now"), right());
    }

    #[test]
    fn a_member_that_is_named_again_has_the_place_that_it_had() {
        let logins = fixed(2);
        logins.slot(1);
        assert_eq!(logins.place(&"http://new".into()), 2);
        assert_eq!(logins.place(&"http://1".into()), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_at_a_member_that_was_replaced_is_waited_for_no_more() {
        let (logins, members) = (fixed(2), Members::default());
        assert!(matches!(members.token(&logins, 0, SECOND).await, Err(NoToken::Pending)), "it is silent");
        logins.on_named(&["http://1".into(), "http://new".into()]);
        assert!(matches!(members.token(&logins, 1, SECOND / 10).await, Err(NoToken::Pending)));
        assert_eq!(members.begun(), 2, "another one is begun at once");
    }

    #[tokio::test]
    async fn no_debug_shows_a_password() {
        let fixed = of(Provider::Fixed(Credentials::new("user", "canary")), 1);
        fixed.state().on_refused(0, "one", Credentials::new("user", "canary"));
        assert!(!format!("{fixed:?}").contains("canary"), "{fixed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_never_answers_is_asked_again() {
        let asked = Arc::<AtomicUsize>::default();
        let counter = asked.clone();
        let provider = Provider::asked(move || {
            let first = counter.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if first {
                    std::future::pending::<()>().await;
                }
                Ok::<_, BoxError>(right())
            }
        });
        let logins = of(provider, 1);
        let none = logins.credentials(0).await.expect_err("it does not answer");
        assert!(matches!(none, NoCredentials::Failed(_)), "{none:?}");
        advance(ASK_PAUSE).await;
        assert_eq!(logins.credentials(0).await.expect("now it does"), right());
    }

    type Outcome = Result<Arc<Token>, LoginFailure>;

    /// Members whose logins a test answers.
    #[derive(Default)]
    struct Members(StdMutex<Vec<oneshot::Sender<Outcome>>>);

    impl Members {
        /// How often a login was begun.
        fn begun(&self) -> usize {
            self.0.lock().expect("no test panics here").len()
        }

        /// Answers the login that was begun last.
        fn answer(&self, outcome: Outcome) {
            let login = self.0.lock().expect("no test panics here").pop().expect("a login was begun");
            login.send(outcome).expect("it is waited for");
            // Its place stays counted.
            self.0.lock().expect("no test panics here").push(oneshot::channel().0);
        }

        /// A call to a member that waits this long for a token.
        async fn token(&self, logins: &Logins, member: usize, patience: Duration) -> Result<Arc<Token>, NoToken> {
            let begin = |_| {
                let (answer, answered) = oneshot::channel();
                self.0.lock().expect("no test panics here").push(answer);
                async move { answered.await.expect("the test answers") }.boxed()
            };
            logins.token(member, Instant::now() + patience, begin).await
        }
    }

    fn fixed(members: usize) -> Logins {
        of(Provider::Fixed(right()), members)
    }

    fn good() -> Arc<Token> {
        Arc::new(Token::new("token", 0).expect("a header's value"))
    }

    fn bad(kind: EtcdErrorKind) -> LoginFailure {
        LoginFailure { kind, member: "one".into(), user: "user".into(), reason: "no".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn callers_share_a_login_and_one_that_gives_up_leaves_it_to_the_next() {
        let (logins, members) = (fixed(1), Members::default());
        let call = || members.token(&logins, 0, SECOND);
        for _ in 0..20 {
            let (one, two) = tokio::join!(call(), call());
            assert!(matches!((one, two), (Err(NoToken::Pending), Err(NoToken::Pending))), "no fault of the member");
        }
        assert_eq!(members.begun(), 1, "all of them wait for the same");
        members.answer(Ok(good()));
        let (one, two) = tokio::join!(call(), call());
        assert!(one.is_ok() && two.is_ok(), "the answer came while no caller waited");
        call().await.expect("it is kept");
        assert_eq!(members.begun(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn another_member_is_asked_for_a_login_after_a_second_and_a_third_is_not() {
        let (logins, members) = (fixed(3), Members::default());
        let call = |member, seconds| members.token(&logins, member, seconds * SECOND);
        assert!(matches!(call(0, 1).await, Err(NoToken::Pending)), "the first member is silent");
        assert!(matches!(call(1, 1).await, Err(NoToken::Pending)), "so is the second");
        assert_eq!(members.begun(), 2);
        assert!(matches!(call(2, 5).await, Err(NoToken::Pending)), "its caller waits for the second login");
        assert_eq!(members.begun(), 2, "two logins at most");
        members.answer(Ok(good()));
        for member in 0..3 {
            call(member, 1).await.expect("one token for all");
        }
        assert_eq!(members.begun(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_by_one_member_lets_another_one_be_asked_at_once() {
        let (logins, members) = (fixed(2), Members::default());
        let one = async { members.token(&logins, 0, SECOND).await };
        let other = async { members.token(&logins, 1, SECOND).await };
        let etcd = async {
            tokio::task::yield_now().await;
            members.answer(Err(bad(EtcdErrorKind::Login)));
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            assert_eq!(members.begun(), 2, "the other one had waited for the first login");
            members.answer(Ok(good()));
        };
        let (one, other, ()) = tokio::join!(one, other, etcd);
        assert!(matches!(one, Err(NoToken::Failed(LoginFailure { kind: EtcdErrorKind::Login, .. }))), "{one:?}");
        other.expect("it logged in");
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_that_comes_too_late_is_followed_by_a_pause_and_one_that_may_take_longer() {
        let (logins, members) = (fixed(1), Members::default());
        let mut limit = LOGIN_LIMIT;
        for round in 1..=6 {
            // The pause before it may last as long as the longest.
            let late = members.token(&logins, 0, limit + LOGIN_PAUSE_MAX).await;
            assert!(matches!(late, Err(NoToken::Late(was)) if was == limit), "round {round}: {late:?}");
            assert_eq!(members.begun(), round);
            limit = (limit * 2).min(LOGIN_LIMIT_MAX);
        }
        let pause = logins.state().pace.next.expect("a login came too late") - Instant::now();
        assert!(pause <= LOGIN_PAUSE_MAX, "{pause:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_under_way_elsewhere_is_waited_for_also_before_the_next_one_may_begin() {
        let (logins, members) = (fixed(3), Members::default());
        assert!(matches!(members.token(&logins, 0, SECOND).await, Err(NoToken::Pending)), "the first is silent");
        logins.state().pace.next = Some(Instant::now() + 30 * SECOND);
        let call = async {
            let began = Instant::now();
            members.token(&logins, 1, 20 * SECOND).await.expect("the first login is answered");
            began.elapsed()
        };
        let etcd = async {
            tokio::time::sleep(5 * SECOND).await;
            members.answer(Ok(good()));
        };
        assert_eq!(tokio::join!(call, etcd).0, 5 * SECOND);
        assert_eq!(members.begun(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_failure_that_took_long_is_followed_by_a_pause() {
        let (logins, members) = (fixed(1), Members::default());
        for (took, is_paced) in [(COSTLY / 2, false), (COSTLY, true)] {
            let call = members.token(&logins, 0, LOGIN_LIMIT);
            let etcd = async {
                tokio::time::sleep(took).await;
                members.answer(Err(bad(EtcdErrorKind::Unavailable)));
            };
            let (failed, ()) = tokio::join!(call, etcd);
            assert!(matches!(failed, Err(NoToken::Failed(_))), "{failed:?}");
            assert_eq!(logins.state().pace.next.is_some(), is_paced, "it took {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_a_member_refused_is_replaced_by_one_login() {
        let (logins, members) = (fixed(2), Members::default());
        let call = |member| members.token(&logins, member, SECOND);
        let renew = async || {
            let etcd = async {
                tokio::task::yield_now().await;
                members.answer(Ok(good()));
            };
            let (one, other, ()) = tokio::join!(call(0), call(1), etcd);
            (one.expect("a token"), other.expect("a token"))
        };
        let (first, _) = renew().await;
        logins.on_token_refused(0, &first);
        logins.on_token_refused(1, &first);
        let (one, other) = renew().await;
        assert!(Arc::ptr_eq(&one, &other), "both share the new one");
        assert_eq!(members.begun(), 2, "one login before and one after");
        assert!(Arc::ptr_eq(&logins.slot(1).token().expect("it has one"), &one), "connections send it");
    }
}
