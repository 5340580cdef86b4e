//! The endpoints of a cluster: those that were named last, and when they are asked for again.
//!
//! ```text
//! Quiet --a call to a member failed--> Asking --others are named--> they are used from the next call on
//!   ^                                    |
//!   +-- 10 s after the question began ---+
//! ```
//!
//! Only a failure asks: while all members that a process uses are well, it does not matter to it that others have new
//! addresses. A member that is away is tried again now and then, so that one that was replaced is found out in the end.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use super::asked::Asked;
use super::target::{Dialling, Target, Tls};
use crate::error::{BoxError, ConfigError, chain};

/// The endpoints of a cluster.
pub(crate) struct Endpoints {
    dialling: Dialling,
    provider: Option<EndpointsProvider>,
    named: ArcSwap<Vec<Target>>,
    state: Mutex<State>,
}

/// A function of the user's that names all endpoints.
pub(crate) struct EndpointsProvider(Asked<Vec<String>>);

#[derive(Default)]
struct State {
    /// When the last question began.
    asked: Option<Instant>,
    /// When a provider that fails was logged the last time.
    logged: Option<Instant>,
}

impl EndpointsProvider {
    pub(crate) fn new<P, F, I, U, E>(provider: P) -> Self
    where
        P: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<I, E>> + Send + 'static,
        I: IntoIterator<Item = U>,
        U: Into<String>,
        E: Into<BoxError>,
    {
        Self(Asked::new(move || {
            let asking = provider();
            async move { asking.await.map(|urls| urls.into_iter().map(Into::into).collect()) }
        }))
    }
}

impl Endpoints {
    /// These at first, and then those that the provider names.
    ///
    /// # Errors
    ///
    /// None, a bad one, or TLS without trusted roots.
    pub(crate) fn new(
        urls: &[String],
        provider: Option<EndpointsProvider>,
        tls: Option<&Tls>,
        dial_timeout: Duration,
    ) -> Result<Self, ConfigError> {
        let dialling = Dialling::new(tls, dial_timeout)?;
        let named = ArcSwap::from_pointee(dialling.targets(urls)?);
        Ok(Self { dialling, provider, named, state: Mutex::default() })
    }

    /// The members, as they were named last.
    pub(super) fn named(&self) -> Arc<Vec<Target>> {
        self.named.load_full()
    }

    /// Whether these are the members that were named last.
    pub(super) fn are(&self, members: &Arc<Vec<Target>>) -> bool {
        Arc::ptr_eq(&self.named.load(), members)
    }

    /// A member failed: asks for the endpoints again, if there is somebody to ask and it is not too soon.
    pub(super) fn on_failure(self: &Arc<Self>) {
        let Some(EndpointsProvider(provider)) = &self.provider else { return };
        let now = Instant::now();
        {
            let asked = &mut self.state().asked;
            if asked.is_some_and(|asked| now < asked + ASK_PAUSE) {
                return;
            }
            *asked = Some(now);
        }
        let (endpoints, answer) = (Arc::downgrade(self), provider.ask());
        let ask = async move {
            let answer = timeout(ANSWER_LIMIT, answer).await;
            let Some(endpoints) = endpoints.upgrade() else { return };
            let answer = answer.unwrap_or_else(|_| Err(format!("it did not answer within {ANSWER_LIMIT:?}").into()));
            if let Err(error) = endpoints.on_answer(answer) {
                endpoints.on_no_answer(&*error);
            }
        };
        tokio::spawn(ask.instrument(tracing::info_span!(parent: None, "endpoints")));
    }

    fn on_answer(&self, answer: Result<Vec<String>, BoxError>) -> Result<(), BoxError> {
        self.name(&answer?)?;
        Ok(())
    }

    /// These are the endpoints from now on.
    pub(super) fn name(&self, urls: &[String]) -> Result<(), ConfigError> {
        let named = self.dialling.targets(urls)?;
        if names(&named) != names(&self.named()) {
            self.named.store(Arc::new(named));
        }
        Ok(())
    }

    fn on_no_answer(&self, error: &(dyn std::error::Error + Send + Sync + 'static)) {
        let now = Instant::now();
        let logged = &mut self.state().logged;
        if logged.is_none_or(|logged| now >= logged + LOG_INTERVAL) {
            *logged = Some(now);
            tracing::warn!(error = chain(error), "provider of etcd's endpoints failed; those of before stay");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All names, each once: their order does not matter.
fn names(targets: &[Target]) -> Vec<&str> {
    let mut names: Vec<_> = targets.iter().map(|target| target.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.named().iter().map(|target| &target.name)).finish()
    }
}

/// How soon the provider is asked again: a member that is away fails many calls, and costs it one question.
const ASK_PAUSE: Duration = Duration::from_secs(10);

/// How long the provider may take: until it would be asked again.
const ANSWER_LIMIT: Duration = ASK_PAUSE;

/// How often a provider that fails is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::watch;
    use tokio::time::{advance, sleep};

    use super::*;
    use crate::test_log::Log;

    const SECOND: Duration = Duration::from_secs(1);

    type Named = Result<Vec<&'static str>, &'static str>;

    /// Endpoints whose provider names what the sender holds, and how often it was asked.
    fn endpoints(first: Named) -> (Arc<Endpoints>, watch::Sender<Named>, Arc<AtomicUsize>) {
        let (sender, given) = watch::channel(first);
        let asked = Arc::<AtomicUsize>::default();
        let counter = asked.clone();
        let provider = EndpointsProvider::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            std::future::ready(given.borrow().clone())
        });
        let endpoints = Endpoints::new(&["a:1".to_owned(), "b:1".to_owned()], Some(provider), None, SECOND);
        (Arc::new(endpoints.expect("good URLs")), sender, asked)
    }

    /// A member fails, and the provider is asked where it is time for that.
    async fn fail(endpoints: &Arc<Endpoints>) -> Vec<String> {
        endpoints.on_failure();
        sleep(SECOND / 1000).await;
        endpoints.named().iter().map(|target| target.name.clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_asks_for_the_endpoints_and_many_ask_once_in_ten_seconds() {
        let (endpoints, _sender, asked) = endpoints(Ok(vec!["c:1", "b:1"]));
        sleep(ASK_PAUSE * 10).await;
        assert_eq!(asked.load(Ordering::Relaxed), 0, "nothing failed");
        assert_eq!(fail(&endpoints).await, ["http://c:1", "http://b:1"]);
        for _ in 0..100 {
            fail(&endpoints).await;
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        advance(ASK_PAUSE).await;
        fail(&endpoints).await;
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_endpoints_in_another_order_change_nothing() {
        let (endpoints, _sender, asked) = endpoints(Ok(vec!["http://b:1/", "a:1", "b:1"]));
        let before = endpoints.named();
        fail(&endpoints).await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(endpoints.are(&before), "{endpoints:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_of_no_use_leaves_the_endpoints_and_is_logged_once_a_minute() {
        let (endpoints, sender, asked) = endpoints(Err("the directory is down"));
        let (log, _guard) = Log::capture();
        for (answer, reason) in [
            (Err("the directory is down"), "the directory is down"),
            (Ok(vec![]), "no etcd endpoint"),
            (Ok(vec!["http://root:canary@c:1"]), "a user belongs into auth"),
            (Ok(vec!["c:1", "https://d:1"]), "https needs tls"),
        ] {
            sender.send(answer).expect("the provider listens");
            assert_eq!(fail(&endpoints).await, ["http://a:1", "http://b:1"]);
            fail(&endpoints).await;
            let logged = log.text();
            assert!(logged.contains(reason), "{reason}: {logged}");
            assert!(!logged.contains("canary"), "{logged}");
            advance(ASK_PAUSE).await;
            fail(&endpoints).await;
            assert_eq!(log.count(reason), 1, "{logged}");
            advance(LOG_INTERVAL).await;
        }
        assert_eq!(asked.load(Ordering::Relaxed), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_panics_or_never_answers_is_asked_again() {
        let count = AtomicUsize::new(0);
        let provider = EndpointsProvider::new(move || {
            let count = count.fetch_add(1, Ordering::Relaxed);
            assert_ne!(count, 0, "the provider's own panic");
            async move {
                assert_ne!(count, 1, "the panic of its future");
                if count == 2 {
                    std::future::pending::<()>().await;
                }
                Ok::<_, BoxError>(["c:1"])
            }
        });
        let endpoints = Arc::new(Endpoints::new(&["a:1".to_owned()], Some(provider), None, SECOND).expect("good URLs"));
        for _ in 0..3 {
            assert_eq!(fail(&endpoints).await, ["http://a:1"]);
            sleep(ASK_PAUSE).await;
        }
        assert_eq!(fail(&endpoints).await, ["http://c:1"]);
    }
}
