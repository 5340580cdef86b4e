//! Credentials towards etcd, from a value or a provider.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

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
    Asked(Box<dyn Fn() -> Answer + Send + Sync>),
}

/// The credentials that a provider gives, or why it has none.
pub(super) type Answer = BoxFuture<'static, Result<Credentials, BoxError>>;

impl Provider {
    /// Credentials from a function of the user's. A panic in it is an answer like others that are of no use.
    pub(crate) fn asked<P, F, E>(provider: P) -> Self
    where
        P: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self::Asked(Box::new(move || {
            // Not called before the future is polled, so that its own panic is caught as well.
            let asking = std::panic::catch_unwind(AssertUnwindSafe(&provider));
            async move {
                let Ok(asking) = asking else { return Err(PANICKED.into()) };
                match AssertUnwindSafe(asking).catch_unwind().await {
                    Ok(answer) => answer.map_err(Into::into),
                    Err(_) => Err(PANICKED.into()),
                }
            }
            .boxed()
        }))
    }

    /// Whether it names an empty user, with which no login can succeed.
    pub(crate) fn has_no_user(&self) -> bool {
        matches!(self, Self::Fixed(credentials) if credentials.user.is_empty())
    }

    pub(super) fn ask(&self) -> Answer {
        match self {
            Self::Fixed(credentials) => std::future::ready(Ok(credentials.clone())).boxed(),
            Self::Asked(provider) => provider(),
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

const PANICKED: &str = "it panicked";
