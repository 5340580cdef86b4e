//! Options of calls: how long they may take, whether they wait, and what is done about those that fail.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use super::ChannelBuilder;
use crate::channel::config::CallConfig;
use crate::channel::config::retry::RetryPolicy;
use crate::channel::config::throttling::{RetryBudget, RetryThrottling};
use crate::channel::service_config::ServiceConfig;
use crate::error::ConfigError;

/// Calls, and retries of those that fail.
impl ChannelBuilder {
    /// The longest that a call may take, from the call to the end of its response. A shorter one of the call's own
    /// ([`tonic::Request::set_timeout`]) counts instead; `None` is no limit. Defaults to none, as with tonic's `Endpoint`.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// Whether calls wait, under their deadline, where no instance is known or every one failed. Defaults to `false`:
    /// such calls fail at once. A call can say otherwise with [`WaitForReady`](crate::channel::WaitForReady).
    pub fn wait_for_ready(mut self, wait: bool) -> Self {
        self.wait_for_ready = wait;
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
    /// codes. Off unless given. [`retry_for`](Self::retry_for) counts more.
    pub fn retry(self, policy: RetryPolicy) -> Self {
        self.retry_for("", policy)
    }

    /// Retries the calls of one method, `package.Service/Method`, or of one service, `package.Service`. The exact name
    /// takes precedence over the service's.
    pub fn retry_for(mut self, name: &str, policy: RetryPolicy) -> Self {
        self.methods.retries.insert(name, Arc::new(policy));
        self
    }

    /// Limits the retries of all calls together. Defaults to none.
    pub fn retry_throttling(mut self, throttling: RetryThrottling) -> Self {
        self.throttling = Some(throttling);
        self
    }

    /// Takes over what a gRPC service config says: of methods, of retries, and how to balance. Another one takes its
    /// place.
    ///
    /// Whatever the order, [`policy`](Self::policy), [`retry_throttling`](Self::retry_throttling) and, for calls that
    /// they name, [`retry`](Self::retry) and [`retry_for`](Self::retry_for) count more. Of timeouts the shortest
    /// counts: the call's own, the method's and the [channel's](Self::timeout). A method's `waitForReady` counts more
    /// than the [channel's](Self::wait_for_ready), and [`WaitForReady`](crate::channel::WaitForReady) more than both.
    pub fn service_config(mut self, config: ServiceConfig) -> Self {
        self.service_config = Some(config);
        self
    }

    /// Checks the options of calls; a service config's count where the channel's own say nothing.
    pub(super) fn take_calls(&mut self) -> Result<CallConfig, ConfigError> {
        if self.max_waiting == 0 {
            return Err(ConfigError::Option { option: "max_waiting", value: "0".into(), expected: "at least 1" });
        }
        if let Some(timeout) = self.timeout.filter(|timeout| timeout.is_zero() || *timeout > LONGEST_TIMEOUT) {
            let expected = "more than zero and at most a year; None is no limit";
            return Err(ConfigError::Option { option: "timeout", value: format!("{timeout:?}"), expected });
        }
        self.methods.check()?;
        self.throttling.map_or(Ok(()), |throttling| throttling.check())?;
        let mut methods = std::mem::take(&mut self.methods);
        if let Some(config) = self.service_config.take() {
            self.policy = self.policy.take().or(config.policy);
            self.throttling = self.throttling.or(config.throttling);
            for (name, method) in config.methods {
                methods.config.insert(&name, method);
            }
        }
        Ok(CallConfig {
            timeout: self.timeout,
            wait_for_ready: self.wait_for_ready,
            user_agent: user_agent(self.user_agent.as_deref())?,
            methods: Some(methods).filter(|methods| !methods.is_empty()),
            retry_budget: self.throttling.map(|throttling| Arc::new(RetryBudget::new(throttling))),
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
