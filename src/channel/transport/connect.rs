//! One HTTP/2 connection to one instance: from an address to the server's SETTINGS, and on to its end.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use h2::client::Builder;
use http::Uri;
use http::uri::Scheme;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::channel::transport::connection::{Connection, ConnectionDriver, Ended};
use crate::channel::transport::pings::{PingConfig, Pings};
use crate::channel::transport::socket::{BoxIo, Socket};
#[cfg(feature = "_tls")]
use crate::channel::transport::tls::{TlsClient, TlsError};
use crate::error::{ConfigError, chain};
use crate::instance::{Address, Host, refused_range};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How to connect, for all connections of a channel.
#[derive(Debug, Clone)]
pub(crate) struct TransportConfig {
    /// For all of it: the name, TCP, TLS, and HTTP/2 up to the server's SETTINGS.
    pub(crate) connect_timeout: Duration,
    pub(crate) tcp_nodelay: bool,
    pub(crate) tcp_keepalive: Option<Duration>,
    pub(crate) http2_keep_alive_interval: Option<Duration>,
    pub(crate) keep_alive_timeout: Duration,
    pub(crate) keep_alive_while_idle: bool,
    pub(crate) initial_stream_window_size: Option<u32>,
    pub(crate) initial_connection_window_size: Option<u32>,
    pub(crate) http2_adaptive_window: Option<bool>,
    pub(crate) http2_max_header_list_size: Option<u32>,
    /// The number of a connection's first stream; they end below 2^31, after some thousand million calls.
    #[cfg(test)]
    pub(crate) first_stream: u32,
    /// Connects instead of TCP.
    pub(crate) connector: Option<Connector>,
    #[cfg(feature = "_tls")]
    pub(crate) tls: Option<TlsClient>,
}

impl Default for TransportConfig {
    fn default() -> Self {
        Self {
            connect_timeout: CONNECT_TIMEOUT,
            tcp_nodelay: true,
            tcp_keepalive: None,
            http2_keep_alive_interval: Some(KEEP_ALIVE_INTERVAL),
            keep_alive_timeout: KEEP_ALIVE_TIMEOUT,
            keep_alive_while_idle: false,
            initial_stream_window_size: None,
            initial_connection_window_size: None,
            http2_adaptive_window: None,
            http2_max_header_list_size: None,
            #[cfg(test)]
            first_stream: 1,
            connector: None,
            #[cfg(feature = "_tls")]
            tls: None,
        }
    }
}

impl TransportConfig {
    /// Refuses what no connection can be made with.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let times = [
            ("connect_timeout", Some(self.connect_timeout)),
            ("tcp_keepalive", self.tcp_keepalive),
            ("http2_keep_alive_interval", self.http2_keep_alive_interval),
            ("keep_alive_timeout", Some(self.keep_alive_timeout)),
        ];
        for (option, time) in times {
            if time.is_some_and(|time| time.is_zero() || time > LONGEST) {
                let value = format!("{:?}", time.unwrap_or_default());
                return Err(ConfigError::Option { option, value, expected: "more than zero, and at most a year" });
            }
        }
        let windows = [
            ("initial_stream_window_size", self.initial_stream_window_size),
            ("initial_connection_window_size", self.initial_connection_window_size),
        ];
        for (option, window) in windows {
            if let Some(window) = window.filter(|window| *window > LARGEST_WINDOW) {
                let value = window.to_string();
                return Err(ConfigError::Option { option, value, expected: "at most 2147483647, HTTP/2's largest" });
            }
        }
        Ok(())
    }

    /// One attempt. It ends with a connection whose server has sent its SETTINGS.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] names the step that failed, after `connect_timeout` at the latest. Trying again may help.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the socket.
    pub(crate) async fn connect(&self, address: &Address) -> Result<Connection, ConnectError> {
        let attempt = Attempt { options: self, address, started: Instant::now() };
        if let Some(connector) = &self.connector {
            let limit = self.connect_timeout;
            let io = attempt.within(limit, Step::Connect, connector.connect(attempt.uri()?)).await?;
            let io = io.map_err(|source| attempt.unconnected(source))?;
            return attempt.http2(limit, io).await;
        }
        let dialled = attempt.resolve().await?;
        attempt.dial_in_turn(&dialled).await
    }

    /// What requests on these connections have for a scheme.
    pub(crate) fn scheme(&self) -> Scheme {
        if self.is_secure() { Scheme::HTTPS } else { Scheme::HTTP }
    }

    #[cfg(feature = "_tls")]
    fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    #[cfg(not(feature = "_tls"))]
    #[expect(clippy::unused_self, reason = "with TLS it depends on the options")]
    fn is_secure(&self) -> bool {
        false
    }

    fn http2(&self) -> Builder {
        let (stream, connection) = match self.http2_adaptive_window {
            Some(true) => (SMALLEST_WINDOW, SMALLEST_WINDOW),
            _ => (
                self.initial_stream_window_size.unwrap_or(STREAM_WINDOW),
                self.initial_connection_window_size.unwrap_or(CONNECTION_WINDOW),
            ),
        };
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(stream)
            .initial_connection_window_size(connection)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(RESET_STREAMS)
            .max_local_error_reset_streams(None)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .max_header_list_size(self.http2_max_header_list_size.unwrap_or(HEADER_LIST));
        #[cfg(test)]
        builder.initial_stream_id(self.first_stream);
        builder
    }

    fn pings(&self) -> PingConfig {
        PingConfig {
            interval: self.http2_keep_alive_interval,
            timeout: self.keep_alive_timeout,
            while_idle: self.keep_alive_while_idle,
            adaptive_window: self.http2_adaptive_window.filter(|adapts| *adapts).map(|_| SMALLEST_WINDOW),
        }
    }
}

/// One attempt at one instance.
struct Attempt<'a> {
    options: &'a TransportConfig,
    address: &'a Address,
    started: Instant,
}

impl Attempt<'_> {
    /// The addresses to dial, without those that clients must never be sent to: whoever answers for a name could name them.
    async fn resolve(&self) -> Result<Vec<SocketAddr>, ConnectError> {
        let port = self.address.port();
        let name = match self.address.host() {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
            Host::Name(name) => name,
        };
        let found = self.within(self.options.connect_timeout, Step::Resolve, lookup_host((&**name, port))).await?;
        match found {
            Ok(found) => Ok(found.filter(|found| refused_range(found.ip()).is_none()).collect()),
            Err(source) => Err(ConnectError::Resolve { address: self.address.clone(), source }),
        }
    }

    async fn dial_in_turn(&self, dialled: &[SocketAddr]) -> Result<Connection, ConnectError> {
        let mut last = ConnectError::NoAddress { address: self.address.clone() };
        for (at, socket) in dialled.iter().enumerate() {
            // An equal share of what is left for each, so that a dead address leaves time for the others.
            let elapsed = self.started.elapsed();
            let others = u32::try_from(dialled.len() - at).unwrap_or(u32::MAX);
            let limit = elapsed + self.options.connect_timeout.saturating_sub(elapsed) / others;
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

    fn tuned(&self, stream: TcpStream) -> io::Result<TcpStream> {
        stream.set_nodelay(self.options.tcp_nodelay)?;
        if let Some(idle) = self.options.tcp_keepalive {
            SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
        }
        Ok(stream)
    }

    async fn http2(&self, limit: Duration, io: BoxIo) -> Result<Connection, ConnectError> {
        let io = self.secured(limit, io).await?;
        let (socket, peer) = Socket::new(io);
        let ready = async {
            let (send, mut h2) = self.options.http2().handshake(socket).await.map_err(Ended::Broken)?;
            let pings = Pings::new(&mut h2, self.options.pings());
            let mut driver = ConnectionDriver::new(h2, pings, peer.clone());
            let streams = driver.settings().await?;
            Ok(Connection { send, streams, driver, peer })
        };
        match self.within(limit, Step::Settings, ready).await? {
            Ok(connection) => Ok(connection),
            Err(source) => Err(ConnectError::Http2 { address: self.address.clone(), source }),
        }
    }

    #[cfg(feature = "_tls")]
    async fn secured(&self, limit: Duration, io: BoxIo) -> Result<BoxIo, ConnectError> {
        let Some(tls) = &self.options.tls else {
            return Ok(io);
        };
        let session = self.within(limit, Step::Tls, tls.handshake(self.address, io)).await?;
        session.map_err(|source| ConnectError::Tls { address: self.address.clone(), source })
    }

    #[cfg(not(feature = "_tls"))]
    async fn secured(&self, _: Duration, io: BoxIo) -> Result<BoxIo, ConnectError> {
        std::future::ready(Ok(io)).await
    }

    /// What a user's connector is called with.
    fn uri(&self) -> Result<Uri, ConnectError> {
        let authority = self.address.to_string();
        let uri = Uri::builder().scheme(self.options.scheme()).authority(authority).path_and_query("/").build();
        uri.map_err(|error| self.unconnected(error.into()))
    }

    /// One step, until `limit` after the start of the attempt.
    async fn within<T>(&self, limit: Duration, step: Step, work: impl Future<Output = T>) -> Result<T, ConnectError> {
        let left = limit.saturating_sub(self.started.elapsed());
        timeout(left, work).await.map_err(|_| ConnectError::Timeout {
            address: self.address.clone(),
            step,
            limit: self.options.connect_timeout,
        })
    }

    fn unconnected(&self, source: BoxError) -> ConnectError {
        ConnectError::Connect { address: self.address.clone(), source }
    }
}

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
        // One for all connects, and not a clone each: it need not be Clone. The lock ends with the call, which takes what
        // the service made ready; the connects themselves go on side by side.
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

    async fn connect(&self, uri: Uri) -> Result<BoxIo, BoxError> {
        (self.connect)(uri).await
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

/// Why there is no connection to an instance. Trying again may help.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("{address}: the name cannot be resolved")]
    Resolve { address: Address, source: io::Error },
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
    Http2 { address: Address, source: Ended },
    #[error("{address}: {step} within {limit:?}")]
    Timeout { address: Address, step: Step, limit: Duration },
}

impl ConnectError {
    /// The error with its causes, for a status or a log.
    pub(crate) fn describe(&self) -> String {
        chain(self)
    }
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

/// Ten times what a connect across a continent takes, and short enough to find out about a mute instance while a call waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A little above five minutes. gRPC servers (grpc-go, C++) call it abuse when the third ping in a
/// row comes within five minutes of the one before while they themselves send nothing, and close the connection with
/// `too_many_pings`: a shorter interval would kill every stream that is quiet for a while. tonic servers do not mind.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(310);

/// Enough for any network that calls still make sense on. Not while idle: without calls those servers allow a ping in two
/// hours.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// More is a mistake in units, and would overflow clocks.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const LARGEST_WINDOW: u32 = 0x7fff_ffff;

/// HTTP/2's own windows at first, which adaptive ones grow from.
const SMALLEST_WINDOW: u32 = 65_535;

/// The windows, buffers and lists that tonic's channel has, by hyper's defaults: whoever changes from it finds the same.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 5 * 1024 * 1024;
const SEND_BUFFER: usize = 1024 * 1024;
const HEADER_LIST: u32 = 16 * 1024;

/// For how many calls that were given up h2 remembers, for a second, that an answer may still come. An answer to another is
/// refused, and by default the thousandth of these would end the connection, with all calls on it: a network that stalls
/// makes as many calls miss their deadlines at once. What the limit is there for, a server does not do to its clients.
const RESET_STREAMS: usize = 10_000;

/// What unread frames of less than 256 bytes may lack of that together, before h2 ends the connection. By default that are
/// 10,000 small messages on one stream whose reader lags, and 200 with adaptive windows; here it is a quarter of a million,
/// some 20 MB.
const DATA_FRAME_BUDGET: usize = 64 * 1024 * 1024;

#[cfg(test)]
#[path = "tests/mod.rs"]
mod tests;
