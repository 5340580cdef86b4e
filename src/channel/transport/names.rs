//! A name becomes its addresses: anew for each attempt to connect, by one lookup of a name at a time.
//!
//! A lookup outlives the attempts that wait for it, since the system's resolver cannot be stopped: further attempts
//! join it, and what it finds when all of them have given up is for the next one.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::Instant;

/// The lookups of a channel. Clones share them.
#[derive(Clone)]
pub(crate) struct Names {
    resolver: Resolver,
    lookups: Arc<Mutex<HashMap<Arc<str>, Lookup>>>,
}

/// Asks for the addresses of a name.
type Resolver = Arc<dyn Fn(Arc<str>) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// A lookup that is under way, or whose answer no attempt has taken.
type Lookup = watch::Receiver<Option<Answer>>;

/// What was found, and when.
#[derive(Debug, Clone)]
struct Answer {
    found: Result<Arc<[IpAddr]>, LookupError>,
    came: Instant,
}

/// Why a name has no addresses. The attempts that waited for one lookup share it.
#[derive(Debug, Clone, Error)]
#[error(transparent)]
pub(crate) struct LookupError(Arc<io::Error>);

impl Names {
    pub(super) fn new<F>(resolver: impl Fn(Arc<str>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        Self { resolver: Arc::new(move |name| Box::pin(resolver(name))), lookups: Arc::default() }
    }

    /// The addresses that a name has now.
    ///
    /// # Errors
    ///
    /// The resolver's own.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the lookup goes on, for the next call with its name.
    pub(super) async fn resolve(&self, name: &str) -> Result<Arc<[IpAddr]>, LookupError> {
        let mut lookup = self.join(name);
        let answer = lookup.wait_for(Option::is_some).await.map(|answer| answer.clone());
        let mut lookups = self.lookups.lock().unwrap_or_else(PoisonError::into_inner);
        if lookups.get(name).is_some_and(|known| known.same_channel(&lookup)) {
            lookups.remove(name);
        }
        match answer {
            Ok(Some(Answer { found, .. })) => found,
            // The task of the lookup ended with its runtime, or the resolver panicked.
            Ok(None) | Err(_) => Err(LookupError(Arc::new(io::Error::other("the lookup was given up")))),
        }
    }

    /// The lookup of a name that is under way or has an answer that is good still, or a new one.
    fn join(&self, name: &str) -> Lookup {
        let mut lookups = self.lookups.lock().unwrap_or_else(PoisonError::into_inner);
        lookups.retain(|_, lookup| is_of_use(lookup));
        if let Some(known) = lookups.get(name) {
            return known.clone();
        }
        let (answered, lookup) = watch::channel(None);
        let name: Arc<str> = name.into();
        lookups.insert(name.clone(), lookup.clone());
        let found = (self.resolver)(name);
        tokio::spawn(async move {
            let found = found.await.map(Into::into).map_err(|error| LookupError(Arc::new(error)));
            answered.send_replace(Some(Answer { found, came: Instant::now() }));
        });
        lookup
    }
}

impl Default for Names {
    /// The system's resolver.
    fn default() -> Self {
        Self::new(|name| async move { Ok(lookup_host((&*name, 0)).await?.map(|found| found.ip()).collect()) })
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

fn is_of_use(lookup: &Lookup) -> bool {
    match &*lookup.borrow() {
        Some(answer) => answer.came.elapsed() < KEPT,
        None => lookup.has_changed().is_ok(),
    }
}

/// How long an answer that came too late is kept for the next attempt, which follows a failure within 10 s.
const KEPT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicU8, Ordering};

    use tokio::time::{sleep, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Names that each lookup finds after `delay`: the number of the lookup is the last part of the address.
    fn slow(delay: Duration) -> (Names, Arc<AtomicU8>) {
        let lookups = Arc::<AtomicU8>::default();
        let counted = lookups.clone();
        let names = Names::new(move |_| {
            let number = counted.fetch_add(1, Ordering::Relaxed) + 1;
            async move {
                sleep(delay).await;
                Ok(vec![IpAddr::V4(Ipv4Addr::new(10, 0, 0, number))])
            }
        });
        (names, lookups)
    }

    async fn number(names: &Names) -> u8 {
        match names.resolve("echo").await.expect("it is found")[..] {
            [IpAddr::V4(found)] => found.octets()[3],
            _ => unreachable!("one address is found"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_call_looks_anew() {
        let (names, _) = slow(SECOND);
        assert_eq!((number(&names).await, number(&names).await), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_name_is_asked_for_once_and_its_late_answer_counts() {
        let (names, lookups) = slow(5 * SECOND);
        for _ in 0..4 {
            assert!(timeout(SECOND, names.resolve("echo")).await.is_err(), "it takes five seconds");
        }
        assert_eq!(number(&names).await, 1, "the fifth second brings the answer");
        assert!(timeout(SECOND, names.resolve("echo")).await.is_err(), "which was used up");
        sleep(10 * SECOND).await;
        let before = Instant::now();
        assert_eq!((number(&names).await, before.elapsed()), (2, Duration::ZERO), "an answer that came meanwhile");
        assert_eq!(lookups.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_answer_is_not_taken_and_none_is_kept_for_good() {
        let (names, _) = slow(2 * SECOND);
        assert!(timeout(SECOND, names.resolve("echo")).await.is_err(), "it takes two seconds");
        sleep(KEPT + 2 * SECOND).await;
        names.resolve("other").await.expect("it is found");
        assert!(names.lookups.lock().expect("no test panics here").is_empty(), "the old one is gone");
        assert_eq!(number(&names).await, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_reaches_each_that_waits_and_a_panic_does_not_stick() {
        let names = Names::new(|name| async move {
            sleep(SECOND).await;
            assert_eq!(&*name, "bad", "a resolver panics");
            Err(io::Error::other("no such name"))
        });
        let (one, other) = tokio::join!(names.resolve("bad"), names.resolve("bad"));
        for error in [one, other] {
            assert_eq!(error.expect_err("it has none").to_string(), "no such name");
        }
        for _ in 0..2 {
            let error = names.resolve("worse").await.expect_err("the resolver panics");
            assert_eq!(error.to_string(), "the lookup was given up");
        }
    }
}
