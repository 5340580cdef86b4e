//! From an address to an HTTP/2 connection whose server has sent its SETTINGS: name, TCP, TLS, HTTP/2.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::Uri;
use http::uri::{Authority, InvalidUri, Scheme};
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::config::{Terms, TransportConfig};
use super::connection::{Connection, ConnectionDriver, Ended};
use super::exchange::Transport;
use super::names::LookupError;
use super::pings::Pings;
use super::socket::{BoxIo, Socket};
use crate::error::{BoxError, chain};
use crate::instance::{Address, Host, refused_range};
use crate::targets::CHANNEL;
#[cfg(feature = "_tls")]
use crate::tls::TlsError;

/// Makes one connection to an instance.
///
/// # Errors
///
/// [`ConnectError`] names the step that failed, at the limit at the latest. Trying again may help.
///
/// # Cancel safety
///
/// Dropping the future closes the socket. The lookup of a name goes on, for the next attempt.
pub(crate) async fn connect(
    config: &TransportConfig,
    address: &Address,
    terms: Terms,
) -> Result<Connection, ConnectError> {
    let attempt = Attempt::new(config, address, terms)?;
    if let Some(connector) = &config.connector {
        let limit = terms.limit;
        let io = attempt.within(limit, Step::Connect, connector.connect(attempt.uri()?)).await?;
        let io = io.map_err(|source| attempt.unconnected(source))?;
        return attempt.http2(limit, io).await;
    }
    let dialled = attempt.resolve().await?;
    attempt.dial_in_turn(&dialled).await
}

/// One attempt at one instance.
pub(super) struct Attempt<'a> {
    config: &'a TransportConfig,
    address: &'a Address,
    terms: Terms,
    /// Requests name this, and the connection's user may have given another one than the address.
    scheme: Scheme,
    authority: Authority,
    started: Instant,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(config: &'a TransportConfig, address: &'a Address, terms: Terms) -> Result<Self, ConnectError> {
        let (scheme, authority) = match &config.origin {
            Some(origin) => origin.clone(),
            None => (config.scheme(), authority(address)?),
        };
        Ok(Self { config, address, terms, scheme, authority, started: Instant::now() })
    }

    /// The addresses to dial, without those that clients must never be sent to, which the resolver of a name could
    /// return.
    pub(super) async fn resolve(&self) -> Result<Vec<SocketAddr>, ConnectError> {
        let port = self.address.port();
        let name = match self.address.host() {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
            Host::Name(name) => name,
        };
        match self.within(self.terms.limit, Step::Resolve, self.config.names.resolve(name)).await? {
            Ok(found) => {
                let allowed = found.iter().filter(|found| refused_range(**found).is_none());
                Ok(allowed.map(|found| SocketAddr::new(*found, port)).collect())
            }
            Err(source) => Err(ConnectError::Resolve { address: self.address.clone(), source }),
        }
    }

    pub(super) async fn dial_in_turn(&self, dialled: &[SocketAddr]) -> Result<Connection, ConnectError> {
        let mut last = ConnectError::NoAddress { address: self.address.clone() };
        for (at, socket) in dialled.iter().enumerate() {
            // An equal share of what is left for each, so that a dead address leaves time for the others.
            let elapsed = self.started.elapsed();
            let others = u32::try_from(dialled.len() - at).unwrap_or(u32::MAX);
            let limit = elapsed + self.terms.limit.saturating_sub(elapsed) / others;
            match self.dial(limit, *socket).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn dial(&self, limit: Duration, socket: SocketAddr) -> Result<Connection, ConnectError> {
        let stream = self.within(limit, Step::Connect, TcpStream::connect(socket)).await?;
        let stream = stream.and_then(|stream| self.tuned(stream)).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => ConnectError::Refused { address: self.address.clone() },
            _ => self.unconnected(error.into()),
        })?;
        self.http2(limit, Box::new(stream)).await
    }

    pub(super) fn tuned(&self, stream: TcpStream) -> io::Result<TcpStream> {
        stream.set_nodelay(self.config.tcp_nodelay)?;
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        match SockRef::from(&stream).set_tcp_user_timeout(self.config.tcp_user_timeout) {
            // Not all that passes for Linux knows the option. Only a value that was asked for has to be there.
            Err(error) if matches!(self.config.tcp_user_timeout, None | Some(super::config::TCP_USER_TIMEOUT)) => {
                tracing::debug!(target: CHANNEL, address = %self.address, %error, "cannot set TCP_USER_TIMEOUT");
            }
            set => set?,
        }
        if let Some(idle) = self.config.tcp_keepalive {
            SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
        }
        Ok(stream)
    }

    async fn http2(&self, limit: Duration, io: BoxIo) -> Result<Connection, ConnectError> {
        let io = self.secured(limit, io).await?;
        let (socket, peer) = Socket::new(io);
        let ready = async {
            let (send, h2) = self.config.http2().handshake(socket).await.map_err(Ended::Broken)?;
            // Boxed: each future on the way to its task would be larger by its size.
            let mut h2 = Box::new(h2);
            let pings = Pings::new(&mut h2, self.config.pings(self.terms.keep_alive_interval));
            let mut driver = ConnectionDriver::new(h2, pings, peer.clone());
            let max_streams = driver.settings().await?;
            let origin = (self.scheme.clone(), self.authority.clone());
            let transport = Transport::new(send, peer, origin, self.config.header_limit());
            Ok(Connection { transport, max_streams, driver })
        };
        match self.within(limit, Step::Settings, ready).await? {
            Ok(connection) => Ok(connection),
            Err(source) => {
                let is_secure = self.config.is_secure();
                Err(ConnectError::Http2 { address: self.address.clone(), is_secure, source })
            }
        }
    }

    #[cfg(feature = "_tls")]
    async fn secured(&self, limit: Duration, io: BoxIo) -> Result<BoxIo, ConnectError> {
        let Some(tls) = &self.config.tls else {
            return Ok(io);
        };
        let session = self.within(limit, Step::Tls, Box::pin(tls.handshake(self.address.host(), io))).await?;
        match session {
            Ok(session) => Ok(Box::new(session)),
            Err(source) => Err(ConnectError::Tls { address: self.address.clone(), source }),
        }
    }

    #[cfg(not(feature = "_tls"))]
    async fn secured(&self, _: Duration, io: BoxIo) -> Result<BoxIo, ConnectError> {
        std::future::ready(Ok(io)).await
    }

    /// What a user's connector is called with.
    fn uri(&self) -> Result<Uri, ConnectError> {
        let authority = self.address.to_string();
        let uri = Uri::builder().scheme(self.config.scheme()).authority(authority).path_and_query("/").build();
        uri.map_err(|error| self.unconnected(error.into()))
    }

    /// One step, until `limit` after the start of the attempt.
    async fn within<T>(&self, limit: Duration, step: Step, work: impl Future<Output = T>) -> Result<T, ConnectError> {
        let left = limit.saturating_sub(self.started.elapsed());
        timeout(left, work).await.map_err(|_| ConnectError::Timeout {
            address: self.address.clone(),
            step,
            limit: self.terms.limit,
        })
    }

    fn unconnected(&self, source: BoxError) -> ConnectError {
        ConnectError::Connect { address: self.address.clone(), source }
    }
}

/// Why there is no connection to an instance. Trying again may help.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("{address}: the address cannot stand in a request")]
    Authority { address: Address, source: InvalidUri },
    #[error("{address}: the name cannot be resolved")]
    Resolve { address: Address, source: LookupError },
    #[error("{address}: the name has no address that may be dialled")]
    NoAddress { address: Address },
    #[error("{address}: connection refused")]
    Refused { address: Address },
    #[error("{address}: cannot connect")]
    Connect { address: Address, source: BoxError },
    #[cfg(feature = "_tls")]
    #[error("{address}: no TLS session")]
    Tls { address: Address, source: TlsError },
    #[error("{address}: no HTTP/2 connection")]
    Http2 { address: Address, is_secure: bool, source: Ended },
    #[error("{address}: {step} within {limit:?} (connect_timeout)")]
    Timeout { address: Address, step: Step, limit: Duration },
}

impl ConnectError {
    /// In words, with the cause, and with what a user may have got wrong where it looks like that.
    pub(crate) fn reason(&self) -> String {
        let reason = chain(self);
        match self.hint() {
            Some(hint) => format!("{reason}; {hint}"),
            None => reason,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Refused { address } if is_loopback(address) => {
                Some("a loopback address is this host's own: servers on other hosts must publish theirs")
            }
            Self::Http2 { is_secure: false, source: Ended::Broken(_) | Ended::Closed, .. } => {
                Some("it may want TLS: tls(..)")
            }
            #[cfg(feature = "_tls")]
            Self::Http2 { source: Ended::Broken(_) | Ended::Closed, .. } => Some(crate::tls::HINT_ON_BREAK),
            #[cfg(feature = "_tls")]
            Self::Tls { source, .. } => tls_hint(&chain(source)),
            _ => None,
        }
    }
}

fn is_loopback(address: &Address) -> bool {
    match address.host() {
        Host::Ip(ip) => ip.is_loopback(),
        Host::Name(name) => &**name == "localhost",
    }
}

#[cfg(feature = "_tls")]
fn tls_hint(reason: &str) -> Option<&'static str> {
    if NO_TLS.iter().any(|words| reason.contains(words)) {
        return Some("it may speak plaintext: leave tls(..) out");
    }
    crate::tls::hint(reason)
}

/// What a TLS handshake fails with at a server that does not speak TLS: its own frames, or the end of the connection.
#[cfg(feature = "_tls")]
const NO_TLS: [&str; 2] = ["InvalidContentType", "handshake eof"];

fn authority(address: &Address) -> Result<Authority, ConnectError> {
    let parsed = address.to_string().parse();
    parsed.map_err(|source| ConnectError::Authority { address: address.clone(), source })
}

/// What an attempt waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Resolve,
    Connect,
    #[cfg(feature = "_tls")]
    Tls,
    Settings,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "the name was not resolved",
            Self::Connect => "not connected",
            #[cfg(feature = "_tls")]
            Self::Tls => "no TLS session",
            Self::Settings => "no HTTP/2 SETTINGS from the server",
        })
    }
}
