//! What is wrong with a service config, and where.

use std::fmt;

use thiserror::Error;

/// What is wrong with a service config that was refused, or was passed over in one that was read
/// [leniently](crate::channel::ServiceConfig::lenient).
///
/// `Debug` shows what `Display` does: it is what a `main` prints that returns an error.
#[derive(Clone, PartialEq, Eq, Error)]
pub struct ServiceConfigError {
    pub(super) path: String,
    pub(super) problem: String,
}

impl ServiceConfigError {
    /// Where: `methodConfig[0].retryPolicy.maxAttempts` for instance. Empty where the text is no JSON, or names a field
    /// twice.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Debug for ServiceConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ServiceConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, problem } = self;
        if path.is_empty() { f.write_str(problem) } else { write!(f, "{path}: {problem}") }
    }
}
