//! Options of single methods, found by the path of a call.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::retry::RetryPolicy;
use crate::error::ConfigError;

/// The options of the calls of one method, as a service config has them.
#[derive(Debug, Clone, Default)]
pub(crate) struct MethodConfig {
    pub(crate) timeout: Option<Duration>,
    pub(crate) wait_for_ready: Option<bool>,
    pub(crate) retry: Option<Arc<RetryPolicy>>,
    /// How long each message of a request may be, as it is sent.
    pub(crate) max_request_bytes: Option<u32>,
    /// How long each message of a response may be, as it is sent.
    pub(crate) max_response_bytes: Option<u32>,
}

/// The options that count for one call.
#[derive(Default)]
pub(crate) struct CallOptions<'a> {
    pub(crate) timeout: Option<Duration>,
    pub(crate) wait_for_ready: Option<bool>,
    pub(crate) retry: Option<&'a Arc<RetryPolicy>>,
    pub(crate) max_request_bytes: Option<u32>,
    pub(crate) max_response_bytes: Option<u32>,
}

/// Values by the paths of methods: `/package.Service/Method`, `/package.Service/` or, for all others, the empty path.
#[derive(Debug, Clone)]
pub(crate) struct ByMethod<T>(HashMap<String, T>);

impl<T> Default for ByMethod<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> ByMethod<T> {
    /// Adds a value by a name: `package.Service/Method`, `package.Service`, or the empty name for all others.
    pub(crate) fn insert(&mut self, name: &str, value: T) {
        let path = match name.split_once('/') {
            _ if name.is_empty() => String::new(),
            Some(_) => format!("/{name}"),
            None => format!("/{name}/"),
        };
        self.0.insert(path, value);
    }

    /// The value for the method of this path: by its exact name, or by its service's, or else the one for all others.
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

/// The options of all methods.
#[derive(Debug, Clone, Default)]
pub(crate) struct MethodConfigs {
    /// By the channel's own options.
    pub(crate) retries: ByMethod<Arc<RetryPolicy>>,
    /// By a service config.
    pub(crate) config: ByMethod<MethodConfig>,
}

impl MethodConfigs {
    /// The options of the method of this path. For retries the channel's own options take precedence over the service
    /// config's.
    pub(crate) fn of(&self, path: &str) -> CallOptions<'_> {
        let config = self.config.of(path);
        CallOptions {
            timeout: config.and_then(|method| method.timeout),
            wait_for_ready: config.and_then(|method| method.wait_for_ready),
            retry: self.retries.of(path).or_else(|| config?.retry.as_ref()),
            max_request_bytes: config.and_then(|method| method.max_request_bytes),
            max_response_bytes: config.and_then(|method| method.max_response_bytes),
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        self.retries.check_names()?;
        self.retries.0.values().try_for_each(|retry| retry.check())
    }

    /// Whether calls of any method are retried.
    pub(crate) fn has_retries(&self) -> bool {
        !self.retries.0.is_empty() || self.config.0.values().any(|method| method.retry.is_some())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.retries.0.is_empty() && self.config.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn the_most_exact_name_counts_and_the_channels_own_retries_come_first() {
        let mut methods = MethodConfigs::default();
        for (name, attempts) in [("a.B/C", 2), ("a.B", 3), ("", 4)] {
            let retry = Some(Arc::new(RetryPolicy::new([Code::Aborted]).max_attempts(attempts)));
            let timeout = Some(Duration::from_secs(attempts.into()));
            methods.config.insert(name, MethodConfig { timeout, retry, ..MethodConfig::default() });
        }
        // A whole entry counts or not: one without retries is meant that way.
        methods.config.insert("a.B/D", MethodConfig::default());
        let of = |methods: &MethodConfigs, path| {
            let said = methods.of(path);
            (said.timeout.map(|timeout| timeout.as_secs()), said.retry.map(|retry| retry.attempts()))
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
    fn names_of_no_method_are_refused() {
        let good = || RetryPolicy::new([Code::Unavailable]);
        for name in ["/a", "a/b/c", "/", "a//b"] {
            let mut methods = MethodConfigs::default();
            methods.retries.insert(name, Arc::new(good()));
            assert!(methods.check().is_err(), "{name:?}");
        }
        for name in ["", "a", "a.B", "a.B/C"] {
            let mut methods = MethodConfigs::default();
            methods.retries.insert(name, Arc::new(good()));
            assert!(methods.check().is_ok(), "{name:?}");
        }
    }
}
