//! How a registration is kept up: how soon a failed attempt is repeated, how often, and how often the key is checked.

use std::time::Duration;

use crate::error::ConfigError;

/// How a registration is kept up.
#[derive(Debug, Clone, Copy)]
pub(super) struct RetryConfig {
    /// The longest first wait after a failed grant or claim.
    pub(super) retry_delay: Duration,
    /// How many grants and claims may fail in a row; 0 for any number.
    pub(super) max_attempts: u32,
    /// How often the key is read without any cause.
    pub(super) check_interval: Duration,
}

impl RetryConfig {
    /// The first wait is much longer than etcd needs for an answer, and short for a server that waits to be found. A watch
    /// tells of each change of the key, so the check is only for what nobody thought of.
    pub(super) const DEFAULT: Self =
        Self { retry_delay: Duration::from_millis(250), max_attempts: 0, check_interval: Duration::from_secs(60) };

    /// What `NewRetryConfig` gives: `RetryDelay`, `MaxAttemptTimes` and `ObserveDelay`.
    pub(super) const KITEX: Self =
        Self { retry_delay: Duration::from_secs(10), max_attempts: 5, check_interval: Duration::from_secs(30) };

    /// Refuses what would keep etcd busy, or overflow a clock.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(Duration::from_millis(1)..=A_DAY).contains(&self.retry_delay) {
            let value = format!("{:?}", self.retry_delay);
            return Err(ConfigError::Option { option: "retry_delay", value, expected: "1 ms to 86400 s" });
        }
        if !(Duration::from_secs(1)..=A_DAY).contains(&self.check_interval) {
            let value = format!("{:?}", self.check_interval);
            return Err(ConfigError::Option { option: "check_interval", value, expected: "1 s to 86400 s" });
        }
        Ok(())
    }
}

const A_DAY: Duration = Duration::from_secs(86_400);
