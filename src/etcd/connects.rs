//! Connections to a member, as they are dialled: counted by how that ends.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use pin_project_lite::pin_project;
use tower::Service;

use super::metrics::ConnectMetrics;

/// TCP to whichever address of a name takes it, within this time in all.
pub(super) fn tcp(dial_timeout: Duration) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    // Shared out among the addresses of a name.
    tcp.set_connect_timeout(Some(dial_timeout));
    tcp
}

/// A connector whose attempts are counted.
#[derive(Debug, Clone)]
pub(super) struct Counted<C> {
    inner: C,
    metrics: ConnectMetrics,
}

impl<C> Counted<C> {
    pub(super) fn new(inner: C) -> Self {
        Self { inner, metrics: ConnectMetrics::new() }
    }
}

impl<C: Service<Uri>> Service<Uri> for Counted<C> {
    type Response = C::Response;
    type Error = C::Error;
    type Future = Connecting<C::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Connecting {
            connecting: self.inner.call(uri),
            attempt: Attempt { metrics: self.metrics.clone(), is_made: false },
        }
    }
}

pin_project! {
    /// One attempt.
    pub(super) struct Connecting<F> {
        #[pin]
        connecting: F,
        attempt: Attempt,
    }
}

impl<F, T, E> Future for Connecting<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let connected = ready!(this.connecting.poll(cx));
        this.attempt.is_made = connected.is_ok();
        Poll::Ready(connected)
    }
}

/// Counts as it is dropped: an attempt that takes too long ends so.
struct Attempt {
    metrics: ConnectMetrics,
    is_made: bool,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.is_made {
            self.metrics.on_made();
        } else {
            self.metrics.on_failed();
        }
    }
}
