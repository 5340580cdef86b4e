//! Options of calls: how long they may take, whether they wait, and what is done about those that fail.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use super::ChannelBuilder;
use crate::channel::config::CallConfig;
use crate::channel::config::budget::{RetryBudget, RetryLimit, RetryLimiter};
use crate::channel::config::retry::RetryPolicy;
use crate::error::ConfigError;

/// Calls, and retries of those that fail.
impl ChannelBuilder {
    /// The longest that a call may take, from the call to the end of its response. A shorter one of the call's own
    /// ([`tonic::Request::set_timeout`]) counts instead; `None` is no limit. Defaults to none, as with tonic's
    /// `Endpoint`.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// Whether calls wait, under their deadline, where no instance is known or every one failed. Defaults to `false`:
    /// such calls fail at once. A call can say otherwise with [`WaitForReady`](crate::channel::WaitForReady).
    pub fn wait_for_ready(mut self, wait: bool) -> Self {
        self.wait_for_ready = Some(wait);
        self
    }

    /// How many calls may wait for a connection or a turn at once; those beyond fail with `RESOURCE_EXHAUSTED`.
    /// Defaults to 10,000: about 20 MB of calls.
    pub fn max_waiting(mut self, calls: usize) -> Self {
        self.max_waiting = calls;
        self
    }

    /// The user agent of calls that bring none, before our own. Defaults to our own alone: `tonic-etcd/` and the
    /// version.
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = Some(user_agent.into());
        self
    }

    /// Makes calls that fail again, all of them: only for services whose every method may run twice on the policy's
    /// codes. Off unless given. [`retry_for`](Self::retry_for) takes precedence. All retries share a
    /// [budget](Self::retry_budget).
    pub fn retry(self, policy: RetryPolicy) -> Self {
        self.retry_for("", policy)
    }

    /// Retries the calls of one method, `package.Service/Method`, or of one service, `package.Service`. The exact name
    /// takes precedence over the service's.
    pub fn retry_for(mut self, name: &str, policy: RetryPolicy) -> Self {
        self.methods.retries.insert(name, Arc::new(policy));
        self
    }

    /// Limits the retries of all calls together, to another share of them or by failures and successes, as gRPC does:
    /// [`RetryThrottling`](crate::retry::RetryThrottling). `None` takes every limit away.
    ///
    /// Without it a channel with a retry policy, its own or a service config's, has a budget: in about ten seconds, a
    /// tenth of the calls that may be retried and a hundred more. So an outage brings many calls a tenth more, and few
    /// calls ten a second, where the retry policy would bring three times as many. A call that finds the budget used up
    /// fails with what its last attempt failed with. linkerd and Envoy limit retries like that, too. Calls that
    /// provably reached no handler are made again in any case, and an attempt that found no instance spends nothing.
    pub fn retry_budget(mut self, budget: impl Into<Option<RetryBudget>>) -> Self {
        self.retry_limit = Some(budget.into().map_or(RetryLimit::Off, RetryLimit::Budget));
        self
    }

    /// Checks the options of calls.
    pub(super) fn take_calls(&mut self) -> Result<CallConfig, ConfigError> {
        if self.max_waiting == 0 {
            return Err(ConfigError::Option { option: "max_waiting", value: "0".into(), expected: "at least 1" });
        }
        if let Some(timeout) = self.timeout.filter(|timeout| timeout.is_zero() || *timeout > LONGEST_TIMEOUT) {
            let expected = "more than zero and at most a year; None is no limit";
            return Err(ConfigError::Option { option: "timeout", value: format!("{timeout:?}"), expected });
        }
        let methods = std::mem::take(&mut self.methods);
        methods.check()?;
        Ok(CallConfig {
            timeout: self.timeout,
            wait_for_ready: self.wait_for_ready.unwrap_or_default(),
            user_agent: user_agent(self.user_agent.as_deref())?,
            retry_budget: RetryLimiter::of(self.retry_limit, methods.has_retries(), Instant::now())?.map(Arc::new),
            methods: Some(methods).filter(|methods| !methods.is_empty()),
        })
    }
}

fn user_agent(own: Option<&str>) -> Result<HeaderValue, ConfigError> {
    let text = match own {
        Some(own) => format!("{own} {USER_AGENT}"),
        None => USER_AGENT.to_owned(),
    };
    HeaderValue::try_from(&text).map_err(|_| ConfigError::Option {
        option: "user_agent",
        value: format!("{text:?}"),
        expected: "visible ASCII characters",
    })
}

/// A year: more is a mistake in units, and `None` is no limit.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The user agent of calls that bring none.
const USER_AGENT: &str = concat!("tonic-etcd/", env!("CARGO_PKG_VERSION"));
