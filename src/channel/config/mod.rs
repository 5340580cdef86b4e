//! Options of calls: timeouts, retries, and those of single methods. Pure.

pub(crate) mod budget;
pub(crate) mod message_limit;
pub(crate) mod methods;
pub(crate) mod retry;
pub(crate) mod throttling;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use self::budget::RetryLimiter;
use self::methods::MethodConfigs;

/// The options of a channel that concern its calls.
#[derive(Debug)]
pub(crate) struct CallConfig {
    pub(crate) timeout: Option<Duration>,
    pub(crate) wait_for_ready: bool,
    pub(crate) user_agent: HeaderValue,
    /// Options of single methods, if there are any.
    pub(crate) methods: Option<MethodConfigs>,
    /// The budget of retries, if they are limited.
    pub(crate) retry_budget: Option<Arc<RetryLimiter>>,
}
