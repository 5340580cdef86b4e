//! A function of the user's that is asked for a value again and again.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::error::BoxError;

/// The function. A panic in it is an answer like others that are of no use.
pub(crate) struct Asked<T>(Box<dyn Fn() -> Answer<T> + Send + Sync>);

/// What it gives, or why it gives nothing.
pub(super) type Answer<T> = BoxFuture<'static, Result<T, BoxError>>;

impl<T: 'static> Asked<T> {
    pub(super) fn new<P, F, E>(function: P) -> Self
    where
        P: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self(Box::new(move || {
            // Both may panic, the function and its future.
            let asking = std::panic::catch_unwind(AssertUnwindSafe(&function));
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

    pub(super) fn ask(&self) -> Answer<T> {
        (self.0)()
    }
}

const PANICKED: &str = "it panicked";
