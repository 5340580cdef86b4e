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

use crate::channel::config::retry::RetryPolicy;
use crate::channel::config::throttling::RetryBudget;
use crate::channel::deadline::Deadline;
use crate::instance::Instance;

/// The retries of one call.
#[derive(Debug)]
pub(crate) struct RetryState {
    policy: Arc<RetryPolicy>,
    budget: Option<Arc<RetryBudget>>,
    /// The attempts that failed.
    failed: u32,
    /// The waits that were our own, since the server last said when to come.
    waits: u32,
    tried: Vec<Arc<Instance>>,
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
    pub(crate) fn new(policy: Arc<RetryPolicy>, budget: Option<Arc<RetryBudget>>) -> Self {
        Self { policy, budget, failed: 0, waits: 0, tried: Vec::new(), too_slow: Deadline::default() }
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

    /// An attempt ended with `code`, `by` an instance if it found one. Returns the wait before the next one, if there
    /// is to be one.
    pub(crate) fn on_failure(
        &mut self,
        code: Code,
        pushback: Pushback,
        by: Option<&Arc<Instance>>,
    ) -> Option<Duration> {
        let is_wanted = self.policy.retries(code);
        if let Some(budget) = &self.budget
            && (is_wanted || pushback == Pushback::Never)
        {
            budget.on_failure();
        }
        self.failed += 1;
        let may = is_wanted
            && pushback != Pushback::Never
            && self.failed < self.policy.attempts()
            && self.budget.as_ref().is_none_or(|budget| budget.allows_retries());
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
        retry.on_failure(code, pushback, Some(&Arc::new(instance)))
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn attempts_are_repeated_on_their_codes_to_their_limit_and_never_past_5() {
        for (asked, made) in [(2, 2), (3, 3), (5, 5), (50, 5)] {
            let policy = Arc::new(RetryPolicy::new([Code::Unavailable, Code::Aborted]).max_attempts(asked));
            let mut retry = RetryState::new(policy.clone(), None);
            let mut attempts = 1;
            while after(&mut retry, Code::Aborted, Pushback::Nothing).is_some() {
                attempts += 1;
            }
            assert_eq!(attempts, made, "of {asked}");
            assert_eq!(retry.tried.len(), made - 1, "each is remembered");
            assert_eq!(after(&mut RetryState::new(policy, None), Code::Internal, Pushback::Nothing), None);
        }
    }

    #[test]
    fn the_server_says_when_and_whether_and_the_waits_begin_anew_then() {
        let policy = RetryPolicy::new([Code::Unavailable]).max_attempts(5).backoff(millis(100), millis(10_000), 10.0);
        let mut retry = RetryState::new(Arc::new(policy), None);
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
    fn too_many_failures_stop_all_retries_until_enough_calls_succeed() {
        let policy = Arc::new(RetryPolicy::new([Code::Unavailable]).max_attempts(2));
        let budget = Arc::new(RetryBudget::new(RetryThrottling::new(10, 0.5)));
        let retries = |code, pushback| {
            after(&mut RetryState::new(policy.clone(), Some(budget.clone())), code, pushback).is_some()
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
}
