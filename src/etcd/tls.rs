//! TLS towards etcd: TCP to one member, and the session on top. tonic's own TLS reads no file twice.

use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tower::Service;

use super::connects::tcp;
use crate::error::BoxError;
use crate::instance::Host;
use crate::tls::TlsClient;

/// Connects to one member alone: by its own URL, and never without TLS.
#[derive(Debug, Clone)]
pub(super) struct SecureConnector {
    tcp: HttpConnector,
    url: Uri,
    host: Host,
    tls: TlsClient,
}

impl SecureConnector {
    pub(super) fn new(url: Uri, host: Host, tls: TlsClient, dial_timeout: Duration) -> Self {
        Self { tcp: tcp(dial_timeout), url, host, tls }
    }
}

impl Service<Uri> for SecureConnector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    /// tonic's URI is that of an endpoint without TLS, so that tonic adds none of its own.
    fn call(&mut self, _: Uri) -> Self::Future {
        let connecting = self.tcp.call(self.url.clone());
        let Self { host, tls, .. } = self.clone();
        Box::pin(async move {
            let tcp = connecting.await?.into_inner();
            Ok(TokioIo::new(tls.handshake(&host, tcp).await?))
        })
    }
}
