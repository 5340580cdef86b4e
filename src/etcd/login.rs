//! Credentials towards etcd: from a value or a provider, asked for again with each login, and kept from etcd for a
//! while once it refused them.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::error::{BoxError, chain};

/// A user of etcd and its password. `Debug` shows the user alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
}

impl Credentials {
    /// The user and its password.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: user.into(), password: password.into() }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Where a cluster's credentials come from.
pub(crate) enum Provider {
    /// One value for every login.
    Fixed(Credentials),
    /// A function of the user's, called for each login.
    Asked(Box<dyn Fn() -> Answer + Send + Sync>),
}

type Answer = BoxFuture<'static, Result<Credentials, BoxError>>;

impl Provider {
    /// Credentials from a function of the user's. A panic in it is an answer like others that are of no use.
    pub(crate) fn asked<P, F, E>(provider: P) -> Self
    where
        P: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self::Asked(Box::new(move || {
            // Not called before the future is polled, so that its own panic is caught as well.
            let asking = std::panic::catch_unwind(AssertUnwindSafe(&provider));
            async move {
                let Ok(asking) = asking else { return Err(PANICKED.into()) };
                match AssertUnwindSafe(asking).catch_unwind().await {
                    Ok(answer) => answer.map_err(Into::into),
                    Err(_) => Err(PANICKED.into()),
                }
            }
            .boxed()
        }))
    }

    /// Whether it names an empty user, with which no login can succeed.
    pub(crate) fn has_no_user(&self) -> bool {
        matches!(self, Self::Fixed(credentials) if credentials.user.is_empty())
    }

    fn ask(&self) -> Answer {
        match self {
            Self::Fixed(credentials) => std::future::ready(Ok(credentials.clone())).boxed(),
            Self::Asked(provider) => provider(),
        }
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(credentials) => credentials.fmt(f),
            Self::Asked(_) => f.write_str("Provider"),
        }
    }
}

/// The logins of one cluster, on whichever member.
pub(super) struct Logins {
    provider: Provider,
    /// A question that the provider has not answered yet, and when it was put. It outlives the calls that wait for it:
    /// a slow provider may take longer than any call's limit.
    asking: Mutex<Option<(Instant, Answer)>>,
    state: StdMutex<State>,
    /// Whether the provider has yet to answer.
    waiting: AtomicBool,
}

struct State {
    /// The provider is not asked before then.
    ask_at: Option<Instant>,
    /// The credentials that each member refused: a member of another cluster may refuse what the others take.
    refused: Vec<Option<Refused>>,
    /// When a provider that fails was logged the last time.
    logged: Option<Instant>,
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
    pub(super) fn new(provider: Provider, members: usize) -> Self {
        let refused = std::iter::repeat_with(|| None).take(members).collect();
        let state = StdMutex::new(State { ask_at: None, refused, logged: None });
        Self { provider, asking: Mutex::default(), state, waiting: AtomicBool::new(false) }
    }

    /// Whether the provider has yet to answer: then it, and no member, is what a login waits for.
    pub(super) fn is_asking(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The credentials to log in to this member with now.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the next call waits for the same answer.
    pub(super) async fn credentials(&self, member: usize) -> Result<Credentials, NoCredentials> {
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
        match answer {
            Ok(credentials) if credentials.user.is_empty() => {
                Err(state.on_failure("it gave a user without a name".into()))
            }
            Ok(credentials) => state.unless_refused(member, credentials),
            Err(error) => Err(state.on_failure(error)),
        }
    }

    /// A member refused these credentials.
    pub(super) fn on_refused(&self, member: usize, name: &str, credentials: Credentials) {
        let now = Instant::now();
        tracing::warn!(member = name, user = credentials.user, "etcd refused the credentials");
        self.state().refused[member] = Some(Refused { credentials, at: now, ask_at: now + ASK_PAUSE });
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

impl State {
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
        if self.logged.is_none_or(|logged| now >= logged + LOG_INTERVAL) {
            self.logged = Some(now);
            tracing::warn!(error = chain(&*error), "provider of credentials for etcd failed");
        }
        NoCredentials::Failed(error)
    }
}

/// How long a member is not asked to take credentials that it refused: an operator may have a limit on failed logins,
/// and a password that was just changed is found out by the provider, not by etcd.
const CREDENTIALS_PAUSE: Duration = Duration::from_secs(30);

/// How long a provider is not asked again after it failed, or its answer was refused.
const ASK_PAUSE: Duration = Duration::from_secs(1);

/// How often a provider that fails is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How long a provider may take: far longer than a vault does, and it is asked again where its connection was lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

const PANICKED: &str = "it panicked";

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

    /// Logins with the credentials that the sender holds, and how often the provider was asked.
    fn logins(first: Credentials) -> (Logins, watch::Sender<Credentials>, Arc<AtomicUsize>) {
        let (sender, given) = watch::channel(first);
        let asked = Arc::<AtomicUsize>::default();
        let counter = asked.clone();
        let provider = Provider::asked(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok::<_, BoxError>(given.borrow().clone()))
        });
        (Logins::new(provider, 2), sender, asked)
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
        logins.on_refused(0, "one", wrong());
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
        logins.on_refused(1, "one of another cluster", right());
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
        let logins = Logins::new(provider, 1);
        for _ in 0..3 {
            assert!(timeout(SECOND, logins.credentials(0)).await.is_err(), "it has not answered yet");
            assert!(logins.is_asking(), "and that is known to be its fault");
        }
        send.send(right()).expect("the login waits still");
        assert_eq!(logins.credentials(0).await.expect("the answer to the first question"), right());
        assert!(!logins.is_asking());
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
        let logins = Logins::new(provider, 1);
        for cause in ["the vault is locked", PANICKED, PANICKED] {
            let error = logins.credentials(0).await.expect_err("it has none");
            assert_eq!(chain(&error), format!("the provider of credentials failed: {cause}"));
            let soon = logins.credentials(0).await.expect_err("it is too early");
            assert!(matches!(soon, NoCredentials::TooEarly), "{soon:?}");
            advance(SECOND).await;
        }
        assert_eq!(logins.credentials(0).await.expect("it has some now"), right());
    }

    #[tokio::test]
    async fn no_debug_shows_a_password() {
        let fixed = Logins::new(Provider::Fixed(Credentials::new("user", "canary")), 1);
        fixed.on_refused(0, "one", Credentials::new("user", "canary"));
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
        let logins = Logins::new(provider, 1);
        let none = logins.credentials(0).await.expect_err("it does not answer");
        assert!(matches!(none, NoCredentials::Failed(_)), "{none:?}");
        advance(ASK_PAUSE).await;
        assert_eq!(logins.credentials(0).await.expect("now it does"), right());
    }
}
