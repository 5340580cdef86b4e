//! A budget for the retries of a whole channel by failures and successes, in the terms of gRPC's proposal A6.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::ConfigError;

/// A limit for the retries of all calls of a channel together: while too many fail, nothing is tried twice. It takes
/// the place of the [budget](crate::ChannelBuilder::retry_budget) that a channel has by default.
///
/// There are `max_tokens` at first. Each failure of a call that could be made again, with a code that is retried or
/// where the server wants no other attempt, takes one; each call of the channel whose response is read up to OK gives
/// back `token_ratio` of one. There are retries while more than half of them are left.
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
            return Err(ConfigError::Option { option: "retry_budget", value, expected: "1 to 1000 tokens" });
        }
        if !(self.token_ratio.is_finite() && self.token_ratio >= 0.001) {
            let value = format!("a ratio of {}", self.token_ratio);
            return Err(ConfigError::Option { option: "retry_budget", value, expected: "a ratio of 0.001 or more" });
        }
        Ok(())
    }
}

/// The tokens of a channel.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    tokens: AtomicU32,
    max: u32,
    gain: u32,
}

impl TokenBucket {
    pub(super) fn new(throttling: RetryThrottling) -> Self {
        let max = throttling.max_tokens * TOKEN;
        let gain = (throttling.token_ratio * f64::from(TOKEN)).clamp(1.0, f64::from(max));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is from 1 to a million")]
        let gain = gain as u32;
        Self { tokens: AtomicU32::new(max), max, gain }
    }

    pub(super) fn on_failure(&self) {
        self.change(|tokens| tokens.saturating_sub(TOKEN));
    }

    /// A call was answered to its end.
    pub(super) fn on_success(&self) {
        self.change(|tokens| tokens.saturating_add(self.gain).min(self.max));
    }

    pub(super) fn allows_retries(&self) -> bool {
        self.tokens.load(Ordering::Relaxed) > self.max / 2
    }

    fn change(&self, change: impl Fn(u32) -> u32) {
        let _ = self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tokens| Some(change(tokens)));
    }
}

/// Tokens are counted in thousandths: ratios have three decimals.
const TOKEN: u32 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_that_cannot_be_meant_is_refused() {
        assert!(RetryThrottling::new(10, 0.1).check().is_ok());
        for (tokens, ratio) in [(0, 1.0), (1_001, 1.0), (10, 0.0), (10, f64::INFINITY)] {
            assert!(RetryThrottling::new(tokens, ratio).check().is_err(), "{tokens} {ratio}");
        }
    }

    #[test]
    fn retries_are_allowed_while_more_than_half_of_the_tokens_are_left() {
        let budget = TokenBucket::new(RetryThrottling::new(10, 1.0));
        let allows_after_a_failure = || {
            budget.on_failure();
            budget.allows_retries()
        };
        assert!(budget.allows_retries(), "all are left");
        let allowed: Vec<bool> = (0..10).map(|_| allows_after_a_failure()).collect();
        let first_four: Vec<bool> = (0..10).map(|failure| failure < 4).collect();
        assert_eq!(allowed, first_four, "the fifth leaves half of them, and the tenth none");
        (0..6).for_each(|_| budget.on_success());
        assert!(budget.allows_retries(), "six are back");
    }

    #[test]
    fn tokens_never_exceed_those_at_first_nor_fall_below_none() {
        let budget = TokenBucket::new(RetryThrottling::new(10, 0.5));
        (0..100).for_each(|_| budget.on_success());
        assert_eq!(budget.tokens.load(Ordering::Relaxed), 10_000, "there are never more than at first");
        (0..100).for_each(|_| budget.on_failure());
        assert_eq!(budget.tokens.load(Ordering::Relaxed), 0, "and never less than none");
    }
}
