//! How soon and how often a failed attempt to register is repeated, and how often the key is checked.

use std::time::Duration;

use crate::error::ConfigError;

/// Kitex's name for these three options.
#[derive(Debug, Clone, Copy)]
pub(super) struct RetryConfig {
    /// The longest first wait after a failed grant or claim.
    pub(super) retry_delay: Duration,
    /// How many grants and claims may fail in a row; `None` for any number.
    pub(super) max_attempts: Option<u32>,
    /// How often the key is read although nothing happened.
    pub(super) check_interval: Duration,
}

impl RetryConfig {
    /// The first wait is much longer than etcd needs for an answer, and short for a server that waits to be found. A
    /// watch reports each change of the key, so the check is only for unforeseen faults.
    pub(super) const DEFAULT: Self =
        Self { retry_delay: Duration::from_millis(250), max_attempts: None, check_interval: Duration::from_secs(60) };

    /// The values of Kitex's `NewRetryConfig`: `RetryDelay`, `MaxAttemptTimes` and `ObserveDelay`.
    pub(super) const KITEX: Self =
        Self { retry_delay: Duration::from_secs(10), max_attempts: Some(5), check_interval: Duration::from_secs(30) };

    /// Refuses times that would keep etcd busy, or overflow a clock.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(Duration::from_millis(1)..=A_DAY).contains(&self.retry_delay) {
            let value = format!("{:?}", self.retry_delay);
            return Err(ConfigError::Option { option: "retry_delay", value, expected: "1 ms to 86400 s" });
        }
        if !(Duration::from_secs(1)..=A_DAY).contains(&self.check_interval) {
            let value = format!("{:?}", self.check_interval);
            return Err(ConfigError::Option { option: "check_interval", value, expected: "1 s to 86400 s" });
        }
        if self.max_attempts == Some(0) {
            let (option, expected) = ("max_attempts", "at least 1; None is no limit");
            return Err(ConfigError::Option { option, value: "0".into(), expected });
        }
        Ok(())
    }
}

/// What of it was given.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RetryOptions {
    pub(super) retry_delay: Option<Duration>,
    #[expect(clippy::option_option, reason = "no limit can be given, too")]
    pub(super) max_attempts: Option<Option<u32>>,
    pub(super) check_interval: Option<Duration>,
}

impl RetryOptions {
    /// What was given, and `preset` for the rest.
    pub(super) fn over(self, preset: RetryConfig) -> RetryConfig {
        RetryConfig {
            retry_delay: self.retry_delay.unwrap_or(preset.retry_delay),
            max_attempts: self.max_attempts.unwrap_or(preset.max_attempts),
            check_interval: self.check_interval.unwrap_or(preset.check_interval),
        }
    }
}

const A_DAY: Duration = Duration::from_secs(86_400);
