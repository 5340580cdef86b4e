//! A user's own way to reach an instance, in place of TCP.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::sync::Mutex;

use super::socket::BoxIo;
use crate::error::BoxError;

/// A user's way to an instance, called with the URI of its address.
#[derive(Clone)]
pub(crate) struct Connector {
    connect: Arc<dyn Fn(Uri) -> BoxFuture<'static, Result<BoxIo, BoxError>> + Send + Sync>,
}

impl Connector {
    /// Accepts what tonic's `Endpoint::connect_with_connector` does.
    pub(crate) fn new<C>(connector: C) -> Self
    where
        C: tower::Service<Uri> + Send + 'static,
        C::Response: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
    {
        // One for all connects, and not a clone each: it need not be Clone. The lock ends with the call, which takes
        // what the service made ready; the connects themselves go on side by side.
        let connector = Arc::new(Mutex::new(connector));
        let connect = move |uri| -> BoxFuture<'static, Result<BoxIo, BoxError>> {
            let connector = connector.clone();
            Box::pin(async move {
                let connecting = {
                    let mut connector = connector.lock().await;
                    poll_fn(|cx| connector.poll_ready(cx)).await.map_err(Into::into)?;
                    connector.call(uri)
                };
                let io = connecting.await.map_err(Into::into)?;
                Ok(Box::new(TokioIo::new(io)) as BoxIo)
            })
        };
        Self { connect: Arc::new(connect) }
    }

    pub(crate) async fn connect(&self, uri: Uri) -> Result<BoxIo, BoxError> {
        (self.connect)(uri).await
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}
