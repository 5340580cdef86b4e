//! Outcomes of a call's attempts become the wait before the next one, or the end of the call.
//!
//! Pure: the call waits, and makes the attempts.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use tokio::runtime::Handle as Runtime;
use tokio::time::Instant;
use tonic::Code;

use crate::channel::config::budget::RetryLimiter;
use crate::channel::config::retry::RetryPolicy;
use crate::channel::deadline::Deadline;
use crate::instance::Instance;

/// The retries of one call.
#[derive(Debug)]
pub(crate) struct RetryState {
    policy: Arc<RetryPolicy>,
    /// The attempts that failed.
    failed: u32,
    /// The waits that were our own, since the server last said when to come.
    waits: u32,
    tried: Vec<Arc<Instance>>,
    /// Whether the budget did not allow the retry that was wanted last.
    is_over_budget: bool,
    /// The end of the present attempt's time.
    too_slow: Deadline,
}

/// A server's word on another attempt (`grpc-retry-pushback-ms`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushback {
    Nothing,
    Never,
    After(Duration),
}

impl Pushback {
    /// Reads the head of a response.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(PUSHBACK) else { return Self::Nothing };
        let millis = value.to_str().ok().and_then(|text| text.parse().ok());
        millis.map_or(Self::Never, |millis| Self::After(Duration::from_millis(millis)))
    }
}

impl RetryState {
    pub(crate) fn new(policy: Arc<RetryPolicy>) -> Self {
        Self { policy, failed: 0, waits: 0, tried: Vec::new(), is_over_budget: false, too_slow: Deadline::default() }
    }

    /// An attempt begins.
    pub(crate) fn on_attempt(&mut self, now: Instant) {
        self.too_slow = Deadline::new(self.policy.time_per_attempt(), None, now);
    }

    /// Whether the present attempt has taken too long.
    pub(crate) fn poll_too_slow(&mut self, runtime: &Runtime, cx: &mut Context<'_>) -> Poll<()> {
        self.too_slow.poll_missed(runtime, cx)
    }

    /// The instances that were tried.
    pub(crate) fn tried(&self) -> &[Arc<Instance>] {
        &self.tried
    }

    /// How many attempts failed.
    pub(crate) fn failed(&self) -> u32 {
        self.failed
    }

    /// Whether the budget alone kept the call from another attempt.
    pub(crate) fn is_over_budget(&self) -> bool {
        self.is_over_budget
    }

    /// An attempt ended with this code, or without one where its own time was over, and this word of the server, `by`
    /// an instance if it found one. Returns the wait before the next one, if there is to be one: none that would last
    /// beyond `end`, nor beyond the budget.
    pub(crate) fn on_failure(
        &mut self,
        (code, pushback): (Option<Code>, Pushback),
        by: Option<&Arc<Instance>>,
        budget: Option<&RetryLimiter>,
        (now, end): (Instant, Option<Instant>),
    ) -> Option<Duration> {
        let is_wanted = code.is_none_or(|code| self.policy.retries(code));
        if let Some(budget) = budget
            && (is_wanted || pushback == Pushback::Never)
        {
            budget.on_failure();
        }
        self.failed += 1;
        if !is_wanted || pushback == Pushback::Never || self.failed >= self.policy.attempts() {
            return None;
        }
        let (wait, waits) = match pushback {
            Pushback::After(wait) => (wait, 0),
            _ => (self.policy.wait(self.waits, fastrand::f64()), self.waits + 1),
        };
        let is_in_time = now.checked_add(wait).is_some_and(|at| end.is_none_or(|end| at < end));
        // The budget last: what it allows is made, and counts.
        self.is_over_budget = is_in_time && budget.is_some_and(|budget| !budget.takes_retry(now));
        if !is_in_time || self.is_over_budget {
            return None;
        }
        self.tried.extend(by.cloned());
        self.waits = waits;
        Some(wait)
    }
}

/// The header with the number of attempts before this one.
pub(super) const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// The header in which a server says when to try again, in milliseconds; a negative number is never.
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::config::throttling::RetryThrottling;

    fn after(retry: &mut RetryState, code: Code, pushback: Pushback) -> Option<Duration> {
        let instance = Instance::new("echo", std::net::SocketAddr::from(([127, 0, 0, 1], 1)));
        retry.on_failure((Some(code), pushback), Some(&Arc::new(instance)), None, (Instant::now(), None))
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn attempts_are_repeated_on_their_codes_to_their_limit_and_never_past_5() {
        for (asked, made) in [(2, 2), (3, 3), (5, 5), (50, 5)] {
            let policy = Arc::new(RetryPolicy::new([Code::Unavailable, Code::Aborted]).max_attempts(asked));
            let mut retry = RetryState::new(policy.clone());
            let mut attempts = 1;
            while after(&mut retry, Code::Aborted, Pushback::Nothing).is_some() {
                attempts += 1;
            }
            assert_eq!(attempts, made, "of {asked}");
            assert_eq!(retry.tried.len(), made - 1, "each is remembered");
            assert_eq!(after(&mut RetryState::new(policy), Code::Internal, Pushback::Nothing), None);
        }
    }

    #[test]
    fn the_server_says_when_and_whether_and_the_waits_begin_anew_then() {
        let policy = RetryPolicy::new([Code::Unavailable]).max_attempts(5).backoff(millis(100), millis(10_000), 10.0);
        let mut retry = RetryState::new(Arc::new(policy));
        let wait = |retry: &mut RetryState, pushback| after(retry, Code::Unavailable, pushback);
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
    fn an_attempt_whose_own_time_is_over_is_made_again_whatever_the_codes() {
        let policy = Arc::new(RetryPolicy::new([Code::Unavailable]).max_attempts(3).backoff(millis(1), millis(1), 1.0));
        let now = Instant::now();
        let mut retry = RetryState::new(policy.clone());
        let mut too_slow = |end| retry.on_failure((None, Pushback::Nothing), None, None, (now, end)).is_some();
        assert!(too_slow(None) && too_slow(None), "attempts are left");
        assert!(!too_slow(None), "none is left");
        let mut retry = RetryState::new(policy);
        let late = retry.on_failure((None, Pushback::Nothing), None, None, (now, Some(now)));
        assert_eq!(late, None, "the call's own deadline has passed");
    }

    #[test]
    fn too_many_failures_stop_all_retries_until_enough_calls_succeed() {
        let policy = Arc::new(RetryPolicy::new([Code::Unavailable]).max_attempts(2));
        let budget = RetryLimiter::tokens(RetryThrottling::new(10, 0.5));
        let retries = |code, pushback| {
            let mut retry = RetryState::new(policy.clone());
            retry.on_failure((Some(code), pushback), None, Some(&budget), (Instant::now(), None)).is_some()
        };
        for failure in 1..=4 {
            assert!(retries(Code::Unavailable, Pushback::Nothing), "{failure} of ten tokens are gone");
        }
        assert!(!retries(Code::Unavailable, Pushback::Nothing), "half of them are gone");
        (0..3).for_each(|_| budget.on_success());
        // 6.5 of ten, of which this takes one.
        assert!(retries(Code::Unavailable, Pushback::Nothing), "three successes are worth one and a half");
        assert!(!retries(Code::Internal, Pushback::Nothing), "what is not retried");
        assert!(!retries(Code::Internal, Pushback::Never), "takes one only if the server does not want it");
        assert!(!retries(Code::Unavailable, Pushback::Nothing), "that was one");
    }

    #[test]
    fn only_a_retry_that_is_made_counts_in_the_budget() {
        let policy =
            Arc::new(RetryPolicy::new([Code::Unavailable]).max_attempts(2).backoff(millis(100), millis(100), 1.0));
        let now = Instant::now();
        let budget = RetryLimiter::share(now);
        let failures = |code, pushback, end: Option<Duration>| {
            let mut retry = RetryState::new(policy.clone());
            let end = end.map(|end| now + end);
            let again =
                |retry: &mut RetryState| retry.on_failure((Some(code), pushback), None, Some(&budget), (now, end));
            (again(&mut retry).is_some(), again(&mut retry).is_some())
        };
        for _ in 0..1_000 {
            assert_eq!(failures(Code::Internal, Pushback::Nothing, None), (false, false), "not retried");
            assert_eq!(failures(Code::Unavailable, Pushback::Never, None), (false, false), "not wanted");
            assert_eq!(failures(Code::Unavailable, Pushback::Nothing, Some(millis(50))), (false, false), "too late");
        }
        for _ in 0..100 {
            assert_eq!(failures(Code::Unavailable, Pushback::Nothing, None), (true, false), "one of two attempts");
        }
        assert_eq!(failures(Code::Unavailable, Pushback::Nothing, None), (false, false), "a hundred were made");
    }
}
