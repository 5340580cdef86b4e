//! Configured retries, in the terms of gRPC's proposal A6: which failures are worth another attempt, how many there may be,
//! and when the next one is made.
//!
//! Pure: a call tells what became of an attempt and is told how long to wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use tokio::time::Instant;
use tonic::Code;

use crate::channel::deadline::Deadline;
use crate::error::ConfigError;
use crate::instance::Instance;

/// How many attempts one call gets at most, whatever is asked for: A6 says so.
const MOST_ATTEMPTS: u32 = 5;

/// By how much a wait is shortened or lengthened by chance, so that calls that failed together do not come back together.
const JITTER: f64 = 0.2;

/// Tokens are counted in thousandths: ratios have three decimals.
const TOKEN: u32 = 1_000;

/// How many attempts came before this one.
pub(crate) const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// When the server wants to be tried again, in milliseconds; a negative number is never.
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// When a call that failed is made again: on which status codes, how often and after which waits.
///
/// A call is made again only while its whole request is kept (64 KiB at most) and nothing of a response has begun: its
/// status must come without one. Attempts that provably reached no handler are repeated anyhow and do not count. Each attempt
/// goes to an instance that was not tried, while there is one. The call's deadline covers all attempts and waits; a wait that
/// would outlast it is not begun, and the call fails with what the last attempt failed with.
///
/// Only calls that may run twice should be retried on codes that do not say that they did not run.
///
/// ```
/// use std::time::Duration;
/// use tonic::Code;
/// use tonic_etcd::RetryPolicy;
///
/// let retries = RetryPolicy::new([Code::Unavailable, Code::ResourceExhausted])
///     .max_attempts(4)
///     .backoff(Duration::from_millis(20), Duration::from_secs(1), 2.0);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// A bit for each code.
    codes: u32,
    max_attempts: u32,
    initial_backoff: Duration,
    max_backoff: Duration,
    multiplier: f64,
    attempt_timeout: Option<Duration>,
}

impl RetryPolicy {
    /// Retries calls that end with one of these codes: three attempts in all, the second after about 50 ms and the third after
    /// about 100 ms, which are some round trips within a data centre and short for people.
    pub fn new(codes: impl IntoIterator<Item = Code>) -> Self {
        Self {
            codes: codes.into_iter().fold(0, |codes, code| codes | bit(code)),
            max_attempts: 3,
            initial_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(1),
            multiplier: 2.0,
            attempt_timeout: None,
        }
    }

    /// How many attempts there are at most, the first included: 2 or more, of which more than 5 count as 5. Defaults to 3.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// The wait before the second attempt, the longest one, and by what each is longer than the one before. Each is up to 20 %
    /// shorter or longer, by chance. Defaults to 50 ms, 1 s and 2. A server that says when to come back
    /// (`grpc-retry-pushback-ms`) is obeyed instead, and the waits begin anew after that.
    #[must_use]
    pub fn backoff(mut self, initial: Duration, max: Duration, multiplier: f64) -> Self {
        (self.initial_backoff, self.max_backoff, self.multiplier) = (initial, max, multiplier);
        self
    }

    /// How long one attempt may take until its response begins; then it is cancelled, and counts as one that ended with
    /// `DEADLINE_EXCEEDED`. Defaults to none.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let refuse = |value: String, expected| Err(ConfigError::Option { option: "retry", value, expected });
        if self.codes == 0 || self.codes & bit(Code::Ok) != 0 {
            let value = if self.codes == 0 { "on no status code" } else { "on OK" };
            return refuse(value.into(), "codes of failures, at least one");
        }
        if self.max_attempts < 2 {
            return refuse(format!("{} attempts", self.max_attempts), "at least 2 attempts");
        }
        if self.initial_backoff.is_zero() || self.max_backoff.is_zero() {
            return refuse(format!("waits from {:?} to {:?}", self.initial_backoff, self.max_backoff), "waits above 0");
        }
        if !(self.multiplier.is_finite() && self.multiplier > 0.0) {
            return refuse(format!("a multiplier of {}", self.multiplier), "a multiplier above 0");
        }
        if self.attempt_timeout.is_some_and(|timeout| timeout.is_zero()) {
            return refuse("an attempt's timeout of 0".into(), "a timeout above 0");
        }
        Ok(())
    }

    fn wants(&self, code: Code) -> bool {
        self.codes & bit(code) != 0
    }

    /// The wait before a retry, of which so many were made after waits of their own; `chance` is from 0 to 1.
    fn wait(&self, before: u32, chance: f64) -> Duration {
        let exponent = i32::try_from(before).unwrap_or(i32::MAX);
        let grown = self.initial_backoff.as_secs_f64() * self.multiplier.powi(exponent);
        let wait = grown.min(self.max_backoff.as_secs_f64()) * (1.0 + JITTER * (2.0 * chance - 1.0));
        Duration::try_from_secs_f64(wait).unwrap_or(self.max_backoff)
    }
}

fn bit(code: Code) -> u32 {
    1 << (code as u32)
}

/// A limit for the retries of all calls of a channel together: while too many fail, nothing is tried twice.
///
/// There are `max_tokens` at first. Each failure of a call that could be made again, with a code that is retried or where the
/// server wants no other attempt, takes one; each call of the channel whose response is read up to OK gives back `token_ratio`
/// of one. There are retries while more than half of them are
/// left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryThrottling {
    max_tokens: u32,
    token_ratio: f64,
}

impl RetryThrottling {
    /// `max_tokens` is from 1 to 1,000; `token_ratio` is above 0, with three decimals that count.
    #[must_use]
    pub fn new(max_tokens: u32, token_ratio: f64) -> Self {
        Self { max_tokens, token_ratio }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if !(1..=1_000).contains(&self.max_tokens) {
            let value = format!("{} tokens", self.max_tokens);
            return Err(ConfigError::Option { option: "retry_throttling", value, expected: "1 to 1000 tokens" });
        }
        if !(self.token_ratio.is_finite() && self.token_ratio >= 0.001) {
            let value = format!("a ratio of {}", self.token_ratio);
            return Err(ConfigError::Option {
                option: "retry_throttling",
                value,
                expected: "a ratio of 0.001 or more",
            });
        }
        Ok(())
    }
}

/// The tokens of a channel.
#[derive(Debug)]
pub(crate) struct Budget {
    tokens: AtomicU32,
    max: u32,
    gain: u32,
}

impl Budget {
    pub(crate) fn new(throttling: RetryThrottling) -> Self {
        let max = throttling.max_tokens * TOKEN;
        let gain = (throttling.token_ratio * f64::from(TOKEN)).clamp(1.0, f64::from(max));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is from 1 to a million")]
        let gain = gain as u32;
        Self { tokens: AtomicU32::new(max), max, gain }
    }

    fn failed(&self) {
        self.change(|tokens| tokens.saturating_sub(TOKEN));
    }

    /// A call was answered to its end.
    pub(crate) fn succeeded(&self) {
        self.change(|tokens| tokens.saturating_add(self.gain).min(self.max));
    }

    fn allows(&self) -> bool {
        self.tokens.load(Ordering::Relaxed) > self.max / 2
    }

    fn change(&self, change: impl Fn(u32) -> u32) {
        let _ = self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tokens| Some(change(tokens)));
    }
}

/// What a service config says of the calls of a method.
#[derive(Debug, Clone, Default)]
pub(crate) struct Method {
    pub(crate) timeout: Option<Duration>,
    pub(crate) wait_for_ready: Option<bool>,
    pub(crate) retry: Option<Arc<RetryPolicy>>,
}

/// What counts for one call.
#[derive(Default)]
pub(crate) struct Said<'a> {
    pub(crate) timeout: Option<Duration>,
    pub(crate) wait_for_ready: Option<bool>,
    pub(crate) retry: Option<&'a Arc<RetryPolicy>>,
}

/// Something for methods, by their paths: `/package.Service/Method`, `/package.Service/` or, for all others, nothing.
#[derive(Debug, Clone)]
pub(crate) struct ByMethod<T>(HashMap<String, T>);

impl<T> Default for ByMethod<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> ByMethod<T> {
    /// By a name: `package.Service/Method`, `package.Service`, or nothing for all others.
    pub(crate) fn insert(&mut self, name: &str, what: T) {
        let path = match name.split_once('/') {
            _ if name.is_empty() => String::new(),
            Some(_) => format!("/{name}"),
            None => format!("/{name}/"),
        };
        self.0.insert(path, what);
    }

    /// What there is for the method of this path: by its exact name, or by its service's, or else what is for all others.
    fn of(&self, path: &str) -> Option<&T> {
        let service = || path.rfind('/').and_then(|end| self.0.get(&path[..=end]));
        self.0.get(path).or_else(service).or_else(|| self.0.get(""))
    }

    fn check_names(&self) -> Result<(), ConfigError> {
        let is_bad = |path: &&String| !path.is_empty() && (path.split('/').count() != 3 || path.starts_with("//"));
        match self.0.keys().find(is_bad) {
            None => Ok(()),
            Some(path) => {
                let name = path.strip_prefix('/').unwrap_or(path);
                let value = format!("{:?}", name.strip_suffix('/').unwrap_or(name));
                let expected = "package.Service or package.Service/Method";
                Err(ConfigError::Option { option: "retry_for", value, expected })
            }
        }
    }
}

/// What is said of methods.
#[derive(Debug, Clone, Default)]
pub(crate) struct Methods {
    /// By the channel's own options.
    pub(crate) retries: ByMethod<Arc<RetryPolicy>>,
    /// By a service config.
    pub(crate) config: ByMethod<Method>,
}

impl Methods {
    /// What counts for the method of this path: of retries what the channel's own options say, and if they say nothing, what
    /// the service config does.
    pub(crate) fn of(&self, path: &str) -> Said<'_> {
        let config = self.config.of(path);
        Said {
            timeout: config.and_then(|method| method.timeout),
            wait_for_ready: config.and_then(|method| method.wait_for_ready),
            retry: self.retries.of(path).or_else(|| config?.retry.as_ref()),
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        self.retries.check_names()?;
        self.retries.0.values().try_for_each(|retry| retry.check())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.retries.0.is_empty() && self.config.0.is_empty()
    }
}

/// The retries of one call.
#[derive(Debug)]
pub(crate) struct Retry {
    policy: Arc<RetryPolicy>,
    budget: Option<Arc<Budget>>,
    /// How many attempts failed.
    failed: u32,
    /// How many waits were our own, since the server last said when to come.
    waits: u32,
    tried: Vec<Arc<Instance>>,
    /// When the present attempt has taken too long.
    too_slow: Deadline,
}

/// What a server says of another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushback {
    Nothing,
    Never,
    After(Duration),
}

impl Pushback {
    /// What stands in the head of a response.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(PUSHBACK) else { return Self::Nothing };
        let millis = value.to_str().ok().and_then(|text| text.parse().ok());
        millis.map_or(Self::Never, |millis| Self::After(Duration::from_millis(millis)))
    }
}

impl Retry {
    pub(crate) fn new(policy: Arc<RetryPolicy>, budget: Option<Arc<Budget>>) -> Self {
        Self { policy, budget, failed: 0, waits: 0, tried: Vec::new(), too_slow: Deadline::default() }
    }

    /// An attempt begins.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.too_slow = Deadline::new(self.policy.attempt_timeout, None, now);
    }

    /// Whether the present attempt has taken too long.
    pub(crate) fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.too_slow.poll_missed(cx)
    }

    /// Who was tried.
    pub(crate) fn tried(&self) -> &[Arc<Instance>] {
        &self.tried
    }

    /// How many attempts failed.
    pub(crate) fn failed(&self) -> u32 {
        self.failed
    }

    /// An attempt ended with `code`, `by` an instance if it found one: how long to wait before the next one, if there is to be one.
    pub(crate) fn after(&mut self, code: Code, pushback: Pushback, by: Option<&Arc<Instance>>) -> Option<Duration> {
        let is_wanted = self.policy.wants(code);
        if let Some(budget) = &self.budget
            && (is_wanted || pushback == Pushback::Never)
        {
            budget.failed();
        }
        self.failed += 1;
        let may = is_wanted
            && pushback != Pushback::Never
            && self.failed < self.policy.max_attempts.min(MOST_ATTEMPTS)
            && self.budget.as_ref().is_none_or(|budget| budget.allows());
        if !may {
            return None;
        }
        self.tried.extend(by.cloned());
        if let Pushback::After(wait) = pushback {
            self.waits = 0;
            return Some(wait);
        }
        self.waits += 1;
        Some(self.policy.wait(self.waits - 1, fastrand::f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(retry: &mut Retry, code: Code, pushback: Pushback) -> Option<Duration> {
        let instance = Instance::new("echo", std::net::SocketAddr::from(([127, 0, 0, 1], 1)));
        retry.after(code, pushback, Some(&Arc::new(instance)))
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn waits_grow_by_the_multiplier_up_to_the_longest_and_vary_by_a_fifth() {
        let policy = RetryPolicy::new([Code::Unavailable]).backoff(millis(100), millis(300), 2.0);
        for (before, wait) in [(0, 100), (1, 200), (2, 300), (3, 300), (1_000, 300)] {
            assert_eq!(policy.wait(before, 0.5), millis(wait), "after {before}");
            assert_eq!(policy.wait(before, 0.0), millis(wait) * 8 / 10, "the shortest after {before}");
            assert_eq!(policy.wait(before, 1.0), millis(wait) * 12 / 10, "the longest after {before}");
        }
    }

    #[test]
    fn an_attempt_is_repeated_on_its_codes_as_often_as_is_allowed_and_never_more_than_five_times() {
        for (asked, made) in [(2, 2), (3, 3), (5, 5), (50, 5)] {
            let policy = Arc::new(RetryPolicy::new([Code::Unavailable, Code::Aborted]).max_attempts(asked));
            let mut retry = Retry::new(policy.clone(), None);
            let mut attempts = 1;
            while after(&mut retry, Code::Aborted, Pushback::Nothing).is_some() {
                attempts += 1;
            }
            assert_eq!(attempts, made, "of {asked}");
            assert_eq!(retry.tried.len(), made - 1, "each is remembered");
            assert_eq!(after(&mut Retry::new(policy, None), Code::Internal, Pushback::Nothing), None);
        }
    }

    #[test]
    fn the_server_says_when_and_whether_and_the_waits_begin_anew_then() {
        let policy = RetryPolicy::new([Code::Unavailable]).max_attempts(5).backoff(millis(100), millis(10_000), 10.0);
        let mut retry = Retry::new(Arc::new(policy), None);
        let wait = |retry: &mut Retry, pushback| after(retry, Code::Unavailable, pushback);
        let own = wait(&mut retry, Pushback::Nothing).expect("a retry");
        assert!((millis(80)..=millis(120)).contains(&own), "{own:?}");
        assert_eq!(wait(&mut retry, Pushback::After(millis(7))), Some(millis(7)), "exactly");
        let own = wait(&mut retry, Pushback::Nothing).expect("a retry");
        assert!((millis(80)..=millis(120)).contains(&own), "{own:?}");
        assert_eq!(wait(&mut retry, Pushback::Never), None);

        let says = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(PUSHBACK, value.parse().expect("a header's value"));
            Pushback::of(&headers)
        };
        assert_eq!(Pushback::of(&HeaderMap::new()), Pushback::Nothing);
        assert_eq!(says("0"), Pushback::After(Duration::ZERO));
        assert_eq!(says("1500"), Pushback::After(millis(1_500)));
        for never in ["-1", "", "soon", "1.5", "99999999999999999999999"] {
            assert_eq!(says(never), Pushback::Never, "{never:?}");
        }
    }

    #[test]
    fn a_channel_whose_calls_fail_too_often_tries_nothing_twice_until_enough_succeed() {
        let policy = Arc::new(RetryPolicy::new([Code::Unavailable]).max_attempts(2));
        let budget = Arc::new(Budget::new(RetryThrottling::new(10, 0.5)));
        let retries =
            |code, pushback| after(&mut Retry::new(policy.clone(), Some(budget.clone())), code, pushback).is_some();
        for failure in 1..=4 {
            assert!(retries(Code::Unavailable, Pushback::Nothing), "{failure} of ten tokens are gone");
        }
        assert!(!retries(Code::Unavailable, Pushback::Nothing), "half of them are gone");
        (0..3).for_each(|_| budget.succeeded());
        // 6.5 of ten, of which this takes one.
        assert!(retries(Code::Unavailable, Pushback::Nothing), "three successes are worth one and a half");
        assert!(!retries(Code::Internal, Pushback::Nothing), "what is not retried");
        assert!(!retries(Code::Internal, Pushback::Never), "takes one only if the server does not want it");
        assert!(!retries(Code::Unavailable, Pushback::Nothing), "that was one");
        (0..1_000).for_each(|_| budget.succeeded());
        assert_eq!(budget.tokens.load(Ordering::Relaxed), 10_000, "there are never more than at first");
        (0..1_000).for_each(|_| _ = retries(Code::Unavailable, Pushback::Nothing));
        assert_eq!(budget.tokens.load(Ordering::Relaxed), 0, "and never less than none");
    }

    #[test]
    fn the_most_exact_name_counts_and_the_channels_own_retries_before_those_of_a_service_config() {
        let mut methods = Methods::default();
        for (name, attempts) in [("a.B/C", 2), ("a.B", 3), ("", 4)] {
            let retry = Some(Arc::new(RetryPolicy::new([Code::Aborted]).max_attempts(attempts)));
            let timeout = Some(Duration::from_secs(attempts.into()));
            methods.config.insert(name, Method { timeout, retry, wait_for_ready: None });
        }
        // A whole entry counts or not: one without retries is meant that way.
        methods.config.insert("a.B/D", Method::default());
        let of = |methods: &Methods, path| {
            let said = methods.of(path);
            (said.timeout.map(|timeout| timeout.as_secs()), said.retry.map(|retry| retry.max_attempts))
        };
        assert_eq!(of(&methods, "/a.B/C"), (Some(2), Some(2)));
        assert_eq!(of(&methods, "/a.B/D"), (None, None));
        assert_eq!(of(&methods, "/a.B/E"), (Some(3), Some(3)));
        assert_eq!(of(&methods, "/a.F/C"), (Some(4), Some(4)));
        let own = |attempts| Arc::new(RetryPolicy::new([Code::Unavailable]).max_attempts(attempts));
        methods.retries.insert("a.B/C", own(5));
        assert_eq!(of(&methods, "/a.B/C"), (Some(2), Some(5)), "the timeout stays");
        assert_eq!(of(&methods, "/a.B/E"), (Some(3), Some(3)), "others stay what they are");
        methods.retries.insert("", own(5));
        assert_eq!(of(&methods, "/a.B/D"), (None, Some(5)));
        for path in ["", "*", "/"] {
            assert_eq!(of(&methods, path), (Some(4), Some(5)), "{path:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let good = || RetryPolicy::new([Code::Unavailable]);
        let backoff = |initial, max, multiplier| good().backoff(millis(initial), millis(max), multiplier);
        assert!(good().check().is_ok());
        for bad in [
            RetryPolicy::new([]),
            RetryPolicy::new([Code::Ok, Code::Unavailable]),
            good().max_attempts(1),
            good().attempt_timeout(Duration::ZERO),
            backoff(0, 1, 2.0),
            backoff(1, 0, 2.0),
            backoff(1, 1, 0.0),
            backoff(1, 1, f64::NAN),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        for (tokens, ratio) in [(0, 1.0), (1_001, 1.0), (10, 0.0), (10, f64::INFINITY)] {
            assert!(RetryThrottling::new(tokens, ratio).check().is_err(), "{tokens} {ratio}");
        }
        for name in ["/a", "a/b/c", "/", "a//b"] {
            let mut methods = Methods::default();
            methods.retries.insert(name, Arc::new(good()));
            assert!(methods.check().is_err(), "{name:?}");
        }
    }
}
