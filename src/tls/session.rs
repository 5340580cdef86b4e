//! Sessions over any bytes, made with the certificates as they are on disk when a session begins.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::pki_types::{InvalidDnsNameError, ServerName};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::config::{ALPN_H2, ClientTls};
use super::reload::{Peer, Reloaded};
use crate::error::ConfigError;
use crate::instance::Host;

impl ClientTls {
    /// What makes sessions with this peer. Refuses what can never verify a server.
    pub(crate) fn build(&self, peer: Peer) -> Result<TlsClient, ConfigError> {
        self.check_roots()?;
        let config = Arc::new(self.config()?);
        let server_name = self.server_name_override().cloned();
        Ok(TlsClient { server_name, reloaded: Reloaded::new(self.clone(), config, peer) })
    }
}

/// The client side of TLS, shared by all connections of a channel or of a cluster, so that they resume each other's
/// sessions.
#[derive(Clone)]
pub(crate) struct TlsClient {
    pub(super) reloaded: Arc<Reloaded>,
    server_name: Option<ServerName<'static>>,
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClient").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// Why there is no TLS session.
#[derive(Debug, Error)]
pub(crate) enum TlsError {
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    #[error("the address's host is no name for TLS")]
    Name(#[source] InvalidDnsNameError),
    #[error("the server did not agree on HTTP/2 by ALPN")]
    NoHttp2,
}

impl TlsError {
    /// Whether an error came from one of these.
    pub(crate) fn is_behind(error: &(dyn std::error::Error + 'static)) -> bool {
        std::iter::successors(Some(error), |error| error.source()).any(<dyn std::error::Error>::is::<Self>)
    }
}

/// What a user may have got wrong, where there is no session for this reason, in the words of rustls.
pub(crate) fn hint(reason: &str) -> Option<&'static str> {
    HINTS.iter().find(|(words, _)| reason.contains(words)).map(|(_, hint)| *hint)
}

impl TlsClient {
    /// Makes a session with the server at `host`, with the certificates as they are on disk now.
    pub(crate) async fn handshake<I>(&self, host: &Host, io: I) -> Result<TlsStream<I>, TlsError>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let name = match (&self.server_name, host) {
            (Some(name), _) => name.clone(),
            (None, Host::Ip(ip)) => ServerName::from(ip.to_canonical()),
            (None, Host::Name(name)) => ServerName::try_from(name.to_string()).map_err(TlsError::Name)?,
        };
        let connector = TlsConnector::from(self.reloaded.config().await);
        let stream = connector.connect(name, io).await.map_err(TlsError::Handshake)?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
            return Err(TlsError::NoHttp2);
        }
        Ok(stream)
    }
}

/// What a user may have got wrong, where a session breaks before it is used: with TLS 1.3 a server refuses a client's
/// certificate, or that there is none, only then. Its alert is not always read before a write fails.
pub(crate) const HINT_ON_BREAK: &str = "it may want a client certificate, or another one: identity_files(..)";

/// Parts of what rustls says about certificates, and the options that are about them.
const HINTS: [(&str, &str); 3] = [
    ("UnknownIssuer", "ca_file(..) names the authority to trust"),
    // Of another authority with the same name.
    ("BadSignature", "ca_file(..) names the authority to trust"),
    ("not valid for name", "server_name(..) sets the name to expect"),
];
