//! How connections are made and kept: the options of a channel that concern its transports.

use std::time::Duration;

use h2::client::Builder;
use http::uri::{Authority, Scheme};

use super::connector::Connector;
use super::incoming_body::HeaderLimit;
use super::names::Names;
use super::pings::PingConfig;
use crate::error::ConfigError;
#[cfg(feature = "_tls")]
use crate::tls::TlsClient;

/// How to connect, for all connections of a channel.
#[derive(Debug, Clone)]
pub(crate) struct TransportConfig {
    /// For all of it: the name, TCP, TLS, and HTTP/2 up to the server's SETTINGS. `None` for a limit that grows.
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) names: Names,
    pub(crate) tcp_nodelay: bool,
    pub(crate) tcp_keepalive: Option<Duration>,
    pub(crate) tcp_user_timeout: Option<Duration>,
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
    /// The scheme and authority that requests name instead of the instance's.
    pub(crate) origin: Option<(Scheme, Authority)>,
    /// Connects instead of TCP.
    pub(crate) connector: Option<Connector>,
    #[cfg(feature = "_tls")]
    pub(crate) tls: Option<TlsClient>,
}

impl Default for TransportConfig {
    fn default() -> Self {
        Self {
            connect_timeout: None,
            names: Names::default(),
            tcp_nodelay: true,
            tcp_keepalive: None,
            tcp_user_timeout: Some(TCP_USER_TIMEOUT),
            http2_keep_alive_interval: Some(KEEP_ALIVE_INTERVAL),
            keep_alive_timeout: KEEP_ALIVE_TIMEOUT,
            keep_alive_while_idle: false,
            initial_stream_window_size: None,
            initial_connection_window_size: None,
            http2_adaptive_window: None,
            http2_max_header_list_size: None,
            #[cfg(test)]
            first_stream: 1,
            origin: None,
            connector: None,
            #[cfg(feature = "_tls")]
            tls: None,
        }
    }
}

impl TransportConfig {
    /// Refuses values that no connection can be made with.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let times = [
            ("connect_timeout", self.connect_timeout),
            ("tcp_keepalive", self.tcp_keepalive),
            ("tcp_user_timeout", self.tcp_user_timeout),
            ("http2_keep_alive_interval", self.http2_keep_alive_interval),
            ("keep_alive_timeout", Some(self.keep_alive_timeout)),
        ];
        for (option, time) in times {
            if time.is_some_and(|time| time.is_zero() || time > LONGEST) {
                let value = format!("{:?}", time.unwrap_or_default());
                return Err(ConfigError::Option { option, value, expected: SOME_TIME });
            }
        }
        let options = [
            ("tcp_keepalive", self.tcp_keepalive, LONGEST_KEEPALIVE, "at most 32767 s, the system's longest"),
            (
                "tcp_user_timeout",
                self.tcp_user_timeout,
                LONGEST_USER_TIMEOUT,
                "at most 2147483647 ms, the system's longest",
            ),
        ];
        for (option, time, longest, expected) in options {
            if let Some(time) = time.filter(|time| *time > longest) {
                return Err(ConfigError::Option { option, value: format!("{time:?}"), expected });
            }
        }
        let windows = [
            ("initial_stream_window_size", self.initial_stream_window_size),
            ("initial_connection_window_size", self.initial_connection_window_size),
        ];
        for (option, window) in windows {
            if let Some(window) = window.filter(|window| !(1..=LARGEST_WINDOW).contains(window)) {
                let value = window.to_string();
                return Err(ConfigError::Option { option, value, expected: "1 to 2147483647, HTTP/2's largest" });
            }
        }
        if self.http2_max_header_list_size == Some(0) {
            let option = "http2_max_header_list_size";
            return Err(ConfigError::Option { option, value: "0".into(), expected: "at least 1" });
        }
        self.check_conflicts()
    }

    /// Refuses options that would have no effect beside others.
    fn check_conflicts(&self) -> Result<(), ConfigError> {
        if self.keep_alive_while_idle && self.http2_keep_alive_interval.is_none() {
            let (option, with) = ("keep_alive_while_idle", "http2_keep_alive_interval(None)".to_owned());
            let reason = "without an interval no ping is sent at regular times; give one, or leave this out";
            return Err(ConfigError::Conflict { option, with, reason });
        }
        let tuned = [
            ("tcp_nodelay", !self.tcp_nodelay),
            ("tcp_keepalive", self.tcp_keepalive.is_some()),
            ("tcp_user_timeout", self.tcp_user_timeout.is_some_and(|timeout| timeout != TCP_USER_TIMEOUT)),
        ];
        match tuned.into_iter().find(|(_, is_tuned)| *is_tuned && self.connector.is_some()) {
            Some((option, _)) => {
                let reason = "a connector makes connections of its own, and sets their options";
                Err(ConfigError::Conflict { option, with: "connector".to_owned(), reason })
            }
            None => Ok(()),
        }
    }

    /// The terms of an attempt, after which a failure is followed by a wait of `back_off` at most.
    pub(crate) fn terms(&self, back_off: Duration) -> Terms {
        let limit = self.connect_timeout.unwrap_or((back_off * 2).clamp(SHORTEST_LIMIT, LONGEST_LIMIT));
        Terms { limit, keep_alive_interval: self.http2_keep_alive_interval }
    }

    /// What requests on these connections have for a scheme.
    pub(crate) fn scheme(&self) -> Scheme {
        if self.is_secure() { Scheme::HTTPS } else { Scheme::HTTP }
    }

    #[cfg(feature = "_tls")]
    pub(super) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    #[cfg(not(feature = "_tls"))]
    #[expect(clippy::unused_self, reason = "with TLS it depends on the options")]
    pub(super) fn is_secure(&self) -> bool {
        false
    }

    pub(super) fn http2(&self) -> Builder {
        let (stream, connection) = match self.http2_adaptive_window {
            Some(true) => (SMALLEST_WINDOW, CONNECTION_WINDOW),
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
            .max_frame_size(FRAME)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(RESET_STREAMS)
            .max_local_error_reset_streams(None)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .max_header_list_size(self.header_limit().0.saturating_mul(4).max(LONGEST_HEADER_LIST));
        #[cfg(test)]
        builder.initial_stream_id(self.first_stream);
        builder
    }

    /// The limit for the headers of a response.
    pub(super) fn header_limit(&self) -> HeaderLimit {
        HeaderLimit(self.http2_max_header_list_size.unwrap_or(HEADER_LIST))
    }

    pub(super) fn pings(&self, interval: Option<Duration>) -> PingConfig {
        PingConfig {
            interval,
            timeout: self.keep_alive_timeout,
            while_idle: self.keep_alive_while_idle,
            adaptive_window: self.http2_adaptive_window.filter(|adapts| *adapts).map(|_| SMALLEST_WINDOW),
        }
    }
}

/// The limits of one attempt and the pings on its connection, which failures at its address change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) limit: Duration,
    pub(crate) keep_alive_interval: Option<Duration>,
}

/// The limit of an attempt at first: ten times what a connect across a continent takes, and short enough to find out
/// about a mute instance while a call waits.
const SHORTEST_LIMIT: Duration = Duration::from_secs(1);

/// The limit after failures. gRPC gives this to each attempt: a server that is slow to accept or a network that is slow
/// for a while must not be out of reach for ever.
const LONGEST_LIMIT: Duration = Duration::from_secs(20);

/// gRPC's value (proposal A18). Without it the kernel sends again for a quarter of an hour before it gives up.
pub(super) const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);

/// What Linux takes: seconds of `TCP_KEEPIDLE` up to 2^15, and milliseconds that are a positive `int`.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(32_767);
const LONGEST_USER_TIMEOUT: Duration = Duration::from_millis(0x7fff_ffff);

/// A little above five minutes. gRPC servers (grpc-go, C++) call it abuse when the third ping in a
/// row comes within five minutes of the one before while they themselves send nothing, and close the connection with
/// `too_many_pings`: a shorter interval would kill every stream that is quiet for a while. tonic servers do not mind.
pub(super) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(310);

/// Enough for any network that calls still make sense on. Not while idle: without calls those servers allow a ping in
/// two hours.
pub(super) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

const SOME_TIME: &str = "more than zero, and at most a year; None switches off what can be";

/// More is a mistake in units, and would overflow clocks.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const LARGEST_WINDOW: u32 = 0x7fff_ffff;

/// HTTP/2's own windows at first, which adaptive ones grow from.
const SMALLEST_WINDOW: u32 = 65_535;

/// The stream's window, buffers and lists of tonic's channel, by hyper's defaults: a change from one to the other
/// changes none of them.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const SEND_BUFFER: usize = 1024 * 1024;
const HEADER_LIST: u32 = 16 * 1024;

/// How much a server may put into one frame. Each frame costs the client a read, a wake-up and a piece of the message
/// to put together: with HTTP/2's own 16 KiB a large answer costs a fifth more CPU. Four times that still lets the
/// frames of other calls through after half a millisecond at a gigabit.
const FRAME: u32 = 64 * 1024;

/// 512 streams that are not read leave the others their windows: what bounds memory are the windows of streams. tonic's
/// 5 MiB are used up by three.
const CONNECTION_WINDOW: u32 = 1024 * 1024 * 1024;

/// h2 cuts longer trailers silently, and ends the connection at four times that, so the limit that counts is our own,
/// and this one, or four times ours, is beyond the statuses that servers send. It bounds what the headers of one stream
/// take in memory, which compressed are a few bytes.
const LONGEST_HEADER_LIST: u32 = 256 * 1024;

/// For how many calls that were given up h2 remembers, for a second, that an answer may still come. An answer to
/// another is refused, and by default the thousandth of these would end the connection, with all calls on it: a network
/// that stalls makes as many calls miss their deadlines at once. What the limit is there for, a server does not do to
/// its clients.
const RESET_STREAMS: usize = 10_000;

/// What unread frames of less than 256 bytes may lack of that together, before h2 ends the connection. By default that
/// are 10,000 small messages on one stream whose reader lags, and 200 with adaptive windows; here it is a quarter of a
/// million, some 20 MB.
const DATA_FRAME_BUDGET: usize = 64 * 1024 * 1024;
