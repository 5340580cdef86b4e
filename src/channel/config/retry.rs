//! Which failures of calls are worth another attempt, how many attempts there may be, and the waits between them, in
//! the terms of gRPC's proposal A6.

use std::time::Duration;

use tonic::Code;

use crate::error::ConfigError;

/// When a call that failed is made again: on which status codes, how often and after which waits.
///
/// A call is made again only while its whole request is kept (64 KiB at most) and nothing of a response has begun: its
/// status must come without one. Attempts that provably reached no handler are repeated anyhow and do not count. Each
/// attempt goes to an instance that was not tried, while there is one. The call's deadline covers all attempts and
/// waits; a wait that would outlast it is not begun, and the call fails with what the last attempt failed with.
///
/// Only calls that may run twice should be retried on codes that do not say that they did not run.
///
/// ```
/// use std::time::Duration;
/// use tonic::Code;
/// use tonic_etcd::retry::RetryPolicy;
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
    /// Retries calls that end with one of these codes: three attempts in all, the second after about 50 ms and the
    /// third after about 100 ms, which are some round trips within a data centre and short for people.
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

    /// How many attempts there are at most, the first included: 2 or more, of which more than 5 count as 5. Defaults to
    /// 3.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// The wait before the second attempt, the longest one, and by what each is longer than the one before. Each is up
    /// to 20 % shorter or longer, by chance. Defaults to 50 ms, 1 s and 2. A server that says when to come back
    /// (`grpc-retry-pushback-ms`) is obeyed instead, and the waits begin anew after that.
    #[must_use]
    pub fn backoff(mut self, initial: Duration, max: Duration, multiplier: f64) -> Self {
        (self.initial_backoff, self.max_backoff, self.multiplier) = (initial, max, multiplier);
        self
    }

    /// How long one attempt may take until its response begins; then it is cancelled, and made again whatever the codes
    /// are, as gRPC's `perAttemptRecvTimeout` has it, while attempts are left. The last one fails the call with
    /// `DEADLINE_EXCEEDED`. Only for calls that may run twice. Defaults to none.
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

    /// The attempts that one call may make, the first included.
    pub(crate) fn attempts(&self) -> u32 {
        self.max_attempts.min(MAX_ATTEMPTS)
    }

    /// The time that one attempt may take until its response begins.
    pub(crate) fn time_per_attempt(&self) -> Option<Duration> {
        self.attempt_timeout
    }

    pub(crate) fn retries(&self, code: Code) -> bool {
        self.codes & bit(code) != 0
    }

    /// The wait before a retry that follows on `before` earlier ones; `chance` is from 0 to 1.
    pub(crate) fn wait(&self, before: u32, chance: f64) -> Duration {
        let exponent = i32::try_from(before).unwrap_or(i32::MAX);
        let grown = self.initial_backoff.as_secs_f64() * self.multiplier.powi(exponent);
        let wait = grown.min(self.max_backoff.as_secs_f64()) * (1.0 + JITTER * (2.0 * chance - 1.0));
        Duration::try_from_secs_f64(wait).unwrap_or(self.max_backoff)
    }
}

fn bit(code: Code) -> u32 {
    1 << (code as u32)
}

/// The most attempts that one call gets, whatever is asked for: A6 says so.
const MAX_ATTEMPTS: u32 = 5;

/// The share by which a wait is shortened or lengthened by chance, so that calls that failed together do not come back
/// together.
const JITTER: f64 = 0.2;

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_policy_that_cannot_be_meant_is_refused() {
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
    }
}
