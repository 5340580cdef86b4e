//! Credentials towards etcd, from a value or a provider.

use std::fmt;
use std::future::Future;

use futures_util::FutureExt;

use super::asked::{Answer, Asked};
use crate::error::BoxError;

/// A user of etcd and its password. `Debug` shows the user alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
}

impl Credentials {
    /// The user and its password.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: user.into(), password: password.into() }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Where a cluster's credentials come from.
pub(crate) enum Provider {
    /// One value for every login.
    Fixed(Credentials),
    /// A function of the user's, called for each login.
    Asked(Asked<Credentials>),
}

impl Provider {
    /// Credentials from a function of the user's.
    pub(crate) fn asked<P, F, E>(provider: P) -> Self
    where
        P: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self::Asked(Asked::new(provider))
    }

    /// Whether it names an empty user, with which no login can succeed.
    pub(crate) fn has_no_user(&self) -> bool {
        matches!(self, Self::Fixed(credentials) if credentials.user.is_empty())
    }

    pub(super) fn ask(&self) -> Answer<Credentials> {
        match self {
            Self::Fixed(credentials) => std::future::ready(Ok(credentials.clone())).boxed(),
            Self::Asked(provider) => provider.ask(),
        }
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(credentials) => credentials.fmt(f),
            Self::Asked(_) => f.write_str("Provider"),
        }
    }
}
