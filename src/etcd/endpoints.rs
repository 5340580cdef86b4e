//! The endpoints of a cluster: those that were named last, and when they are asked for again.
//!
//! ```text
//! Quiet --a member failed--> Asking --others are named--> streams, and the next calls, go to them
//!   ^                          |
//!   +-- after a pause ---------+   of a second, and twice as long each time, while nothing changes and no other fails
//! ```
//!
//! There is one question at a time, so that no late answer undoes a newer one.
//!
//! Only a failure asks: while all members that a process uses are well, it does not matter to it that others have new
//! addresses. A member that is away is tried again now and then, and that fails, so that one that was replaced is found
//! out in the end.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument;

use super::asked::Asked;
use super::target::{Dialling, Target, Tls};
use crate::backoff::{Backoff, spread, up_to};
use crate::error::{BoxError, ConfigError, chain};
use crate::log_limit::LogLimit;
use crate::targets::ETCD;
#[cfg(feature = "_tls")]
use crate::tls::Peer;

/// The endpoints of a cluster.
pub(crate) struct Endpoints {
    dialling: Dialling,
    provider: Option<EndpointsProvider>,
    named: watch::Sender<Arc<Vec<Target>>>,
    state: Mutex<State>,
}

/// A function of the user's that names all endpoints.
pub(crate) struct EndpointsProvider(Asked<Vec<String>>);

struct State {
    is_asking: bool,
    /// When the last question was answered in vain.
    answered: Option<Instant>,
    /// How long the provider is not asked after that.
    pause: Duration,
    pauses: Backoff,
    /// When a provider that fails was logged the last time.
    log: LogLimit,
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
        #[cfg(feature = "_tls")]
        let tls = tls.map(|tls| tls.build(Peer::Etcd)).transpose()?;
        #[cfg(not(feature = "_tls"))]
        let tls = tls.copied();
        let dialling = Dialling::new(tls, dial_timeout);
        let named = watch::Sender::new(Arc::new(dialling.targets(urls)?));
        let pauses = Backoff::new(PAUSE_FIRST, PAUSE_MAX);
        let state = State { is_asking: false, answered: None, pause: PAUSE_FIRST, pauses, log: LogLimit::default() };
        Ok(Self { dialling, provider, named, state: Mutex::new(state) })
    }

    /// The members, as they were named last.
    pub(super) fn named(&self) -> Arc<Vec<Target>> {
        self.named.borrow().clone()
    }

    /// Whether these are the members that were named last.
    pub(super) fn are(&self, members: &Arc<Vec<Target>>) -> bool {
        Arc::ptr_eq(&self.named.borrow(), members)
    }

    /// Tells when others are named.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<Vec<Target>>> {
        self.named.subscribe()
    }

    /// A member failed: asks for the endpoints again, if there is a provider and it is not too soon. `is_news`
    /// says that it was well before.
    pub(super) fn on_failure(self: &Arc<Self>, is_news: bool) {
        if self.provider.is_none() || !self.state().begin(is_news, Instant::now()) {
            return;
        }
        let endpoints = Arc::downgrade(self);
        let asking = Asking(endpoints.clone());
        let ask = async move {
            // Also where the runtime ends.
            let _asking = asking;
            // Not all processes in the moment in which they lose an etcd.
            sleep(up_to(PAUSE_FIRST)).await;
            let ask = |endpoints: Arc<Self>| endpoints.provider.as_ref().map(|provider| provider.0.ask());
            let Some(answer) = endpoints.upgrade().and_then(ask) else { return };
            let answer = timeout(ANSWER_LIMIT, answer).await;
            let Some(endpoints) = endpoints.upgrade() else { return };
            let answer = answer.unwrap_or_else(|_| Err(format!("it did not answer within {ANSWER_LIMIT:?}").into()));
            if let Err(error) = endpoints.on_answer(answer) {
                endpoints.on_no_answer(&*error);
            }
        };
        tokio::spawn(ask.instrument(tracing::info_span!(target: ETCD, parent: None, "endpoints")));
    }

    fn on_answer(&self, answer: Result<Vec<String>, BoxError>) -> Result<(), BoxError> {
        self.name(&answer?)?;
        Ok(())
    }

    /// These are the endpoints from now on.
    pub(super) fn name(&self, urls: &[String]) -> Result<(), ConfigError> {
        let named = self.dialling.targets(urls)?;
        if names(&named) != names(&self.named()) {
            self.state().answered = None;
            self.named.send_replace(Arc::new(named));
        }
        Ok(())
    }

    fn on_no_answer(&self, error: &(dyn std::error::Error + Send + Sync + 'static)) {
        if self.state().log.admit(Instant::now()) {
            tracing::warn!(
                target: ETCD,
                error = chain(error),
                "provider of etcd's endpoints failed; those of before stay"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether it is time to ask, which then is under way.
    fn begin(&mut self, is_news: bool, now: Instant) -> bool {
        if is_news {
            self.pauses.reset();
            self.pause = PAUSE_FIRST;
        }
        let is_time = !self.is_asking && self.answered.is_none_or(|answered| now >= answered + self.pause);
        self.is_asking |= is_time;
        if is_time {
            // Unless others are named.
            self.answered = Some(now);
        }
        is_time
    }

    fn end(&mut self, now: Instant) {
        self.is_asking = false;
        match &mut self.answered {
            Some(answered) => {
                *answered = now;
                self.pause = spread(self.pauses.longest(), 0.5);
            }
            None => self.pauses.reset(),
        }
    }
}

/// A question is under way until it is dropped.
struct Asking(Weak<Endpoints>);

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(endpoints) = self.0.upgrade() {
            endpoints.state().end(Instant::now());
        }
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

/// How soon the provider is asked again at first, give or take half of it: it may learn of new members later than we
/// learn that one is gone, and short leases do not wait.
const PAUSE_FIRST: Duration = Duration::from_secs(1);

/// How rarely in the end, where its answers change nothing: most failures are of members that come back.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long the provider may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

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
        endpoints.on_failure(false);
        sleep(SECOND).await;
        endpoints.named().iter().map(|target| target.name.clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn failures_ask_for_the_endpoints_more_and_more_rarely_while_they_stay() {
        let (endpoints, sender, asked) = endpoints(Ok(vec!["a:1", "b:1"]));
        sleep(PAUSE_MAX * 10).await;
        assert_eq!(asked.load(Ordering::Relaxed), 0, "nothing failed");
        let began = Instant::now();
        while began.elapsed() < PAUSE_MAX * 10 {
            fail(&endpoints).await;
            if began.elapsed() < 4 * SECOND {
                assert!(asked.load(Ordering::Relaxed) > 0, "the first failure asks");
            }
        }
        let often = asked.load(Ordering::Relaxed);
        assert!((11..=26).contains(&often), "1 s, 2 s, .. 60 s, give or take half: {often} times in 10 min");
        sender.send(Ok(vec!["c:1", "b:1"])).expect("the provider listens");
        let changed = eventually_named(&endpoints, &["http://c:1", "http://b:1"]).await;
        assert!(changed <= PAUSE_MAX * 2, "{changed:?}");
        for next in ["d:1", "e:1"] {
            let often = asked.load(Ordering::Relaxed);
            sender.send(Ok(vec![next])).expect("the provider listens");
            let changed = eventually_named(&endpoints, &[&format!("http://{next}")]).await;
            assert!(changed <= 2 * SECOND, "an answer that changed something begins anew: {changed:?}");
            assert_eq!(asked.load(Ordering::Relaxed), often + 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_was_well_begins_anew() {
        let (endpoints, _sender, asked) = endpoints(Ok(vec!["a:1", "b:1"]));
        for _ in 0..300 {
            fail(&endpoints).await;
        }
        let often = asked.load(Ordering::Relaxed);
        endpoints.on_failure(true);
        sleep(3 * SECOND).await;
        endpoints.on_failure(true);
        sleep(SECOND).await;
        assert!(asked.load(Ordering::Relaxed) > often, "the pause was up to 90 s");
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_one_question_at_a_time() {
        let (asked, count) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counter = count.clone();
        let at_once = asked.clone();
        let provider = EndpointsProvider::new(move || {
            let (asked, count) = (at_once.clone(), counter.clone());
            async move {
                assert_eq!(asked.fetch_add(1, Ordering::Relaxed), 0, "another one is under way");
                count.fetch_add(1, Ordering::Relaxed);
                sleep(6 * SECOND).await;
                asked.fetch_sub(1, Ordering::Relaxed);
                Ok::<_, BoxError>(["a:1"])
            }
        });
        let endpoints = Arc::new(Endpoints::new(&["a:1".to_owned()], Some(provider), None, SECOND).expect("good URLs"));
        for _ in 0..60 {
            endpoints.on_failure(true);
            fail(&endpoints).await;
        }
        let count = count.load(Ordering::Relaxed);
        assert!((6..=10).contains(&count), "{count} questions in a minute");
    }

    /// Fails until these are named, and says how long that took.
    async fn eventually_named(endpoints: &Arc<Endpoints>, names: &[&str]) -> Duration {
        let began = Instant::now();
        while fail(endpoints).await != names {}
        began.elapsed()
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
            let before = asked.load(Ordering::Relaxed);
            let began = Instant::now();
            while began.elapsed() < 58 * SECOND {
                assert_eq!(fail(&endpoints).await, ["http://a:1", "http://b:1"]);
            }
            assert!(asked.load(Ordering::Relaxed) > before + 3, "it is asked again and again");
            let logged = log.text();
            assert_eq!(log.count(reason), 1, "{reason}: {logged}");
            assert!(!logged.contains("canary"), "{logged}");
            advance(PAUSE_MAX * 3).await;
            // It was well meanwhile.
            endpoints.on_failure(true);
        }
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
        assert_eq!(fail(&endpoints).await, ["http://a:1"]);
        assert!(eventually_named(&endpoints, &["http://c:1"]).await <= PAUSE_MAX);
    }
}
