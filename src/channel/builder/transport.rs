//! Options of connections, named like those of tonic's `Endpoint`.

use std::time::Duration;

use http::Uri;
use http::uri::{Authority, Scheme};
use hyper::rt::{Read, Write};
use tower::Service;

use super::ChannelBuilder;
use crate::channel::transport::{Connector, TransportConfig};
use crate::error::{BoxError, ConfigError};
#[cfg(feature = "_tls")]
use crate::tls::{ClientTls, Peer};

/// Connections to the instances.
impl ChannelBuilder {
    /// How long an attempt to connect to an instance may take: name, TCP, TLS, up to the server's first HTTP/2
    /// SETTINGS. By default 1 s at first, so that a call that waits soon learns of a silent instance, and more after
    /// each failure in a row, up to 20 s, which is what gRPC grants each attempt: a slow network is slow, not out of
    /// reach.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.transport.connect_timeout = Some(timeout);
        self
    }

    /// Whether small packets are sent at once (`TCP_NODELAY`). Defaults to `true`.
    pub fn tcp_nodelay(mut self, enabled: bool) -> Self {
        self.transport.tcp_nodelay = enabled;
        self
    }

    /// How long a connection may be idle before TCP probes it, up to 32,767 s. Defaults to `None`, never: HTTP/2 pings
    /// see more.
    pub fn tcp_keepalive(mut self, idle: impl Into<Option<Duration>>) -> Self {
        self.transport.tcp_keepalive = idle.into();
        self
    }

    /// How long what was sent may stay unacknowledged, or wait for a peer that takes no more, before TCP ends the
    /// connection (`TCP_USER_TIMEOUT`; Linux and Android); `None` leaves that to the system, which takes a quarter of
    /// an hour. Defaults to 20 s, as gRPC's proposal A18 does; where the system refuses the default, connections do
    /// without.
    pub fn tcp_user_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.transport.tcp_user_timeout = timeout.into();
        self
    }

    /// After how much silence of the server an HTTP/2 ping is sent, to find out whether it is still there. Defaults to
    /// 310 s; `None` switches these pings off.
    ///
    /// They are sent while calls are open, and when something was sent for a call and nothing came back. Other gRPC
    /// servers close a connection whose client pings more often than every five minutes, unless they are told to allow
    /// it (`MinTime` in grpc-go's `EnforcementPolicy`): hence the default. tonic's servers allow any interval. Where
    /// all servers do, 10 s finds a frozen one sooner. For a server that says `too_many_pings`, the interval is doubled
    /// on its next connections, and a warning is logged.
    ///
    /// Apart from these pings, one is sent where a call has shown reason for doubt, such as a missed deadline: once for
    /// each silence, and at most every five minutes, or every two hours while no call is open, unless calls are
    /// answered in between.
    pub fn http2_keep_alive_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.transport.http2_keep_alive_interval = interval.into();
        self
    }

    /// How long the answer to a ping may take before the connection counts as broken. Defaults to 5 s.
    pub fn keep_alive_timeout(mut self, timeout: Duration) -> Self {
        self.transport.keep_alive_timeout = timeout;
        self
    }

    /// Whether pings are sent while nothing waits for an answer. Defaults to `false`: servers take that for abuse.
    /// Needs an [interval](Self::http2_keep_alive_interval).
    pub fn keep_alive_while_idle(mut self, enabled: bool) -> Self {
        self.transport.keep_alive_while_idle = enabled;
        self
    }

    /// The HTTP/2 flow-control window of one stream, in bytes, 1 to 2,147,483,647. Defaults to 2 MiB, as with tonic's
    /// `Endpoint`; `None` is the default.
    pub fn initial_stream_window_size(mut self, bytes: impl Into<Option<u32>>) -> Self {
        self.transport.initial_stream_window_size = bytes.into();
        self
    }

    /// The HTTP/2 flow-control window of a connection, in bytes, 1 to 2,147,483,647. Defaults to 1 GiB; `None` is the
    /// default. Unread streams do not block others: memory is bounded by the windows of the streams. The 5 MiB of
    /// tonic's `Endpoint` are used up by three streams.
    pub fn initial_connection_window_size(mut self, bytes: impl Into<Option<u32>>) -> Self {
        self.transport.initial_connection_window_size = bytes.into();
        self
    }

    /// Whether windows follow the measured bandwidth; overrides the two sizes. Defaults to `false`.
    pub fn http2_adaptive_window(mut self, enabled: bool) -> Self {
        self.transport.http2_adaptive_window = Some(enabled);
        self
    }

    /// The largest list of headers that is accepted, in bytes as HTTP/2 counts them: of a response's head, and of its
    /// trailers. Defaults to 16 KiB, as with tonic's `Endpoint`. A call whose response has more fails with INTERNAL,
    /// and the connection and its other calls go on. Beyond four times the limit, and beyond 256 KiB, trailers arrive
    /// without what is in them, and four times that ends the connection.
    pub fn http2_max_header_list_size(mut self, bytes: u32) -> Self {
        self.transport.http2_max_header_list_size = Some(bytes);
        self
    }

    #[cfg(test)]
    pub(in crate::channel) fn first_stream(mut self, number: u32) -> Self {
        self.transport.first_stream = number;
        self
    }

    /// How long the streams of an instance that was removed may go on; `None` is no limit. Defaults to 30 s, which is
    /// what Kubernetes grants the server itself.
    pub fn removed_stream_limit(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.removed_stream_limit = limit.into();
        self
    }

    /// The scheme and authority that requests name, without a path, for servers that look at them. Defaults to `http`
    /// or, with TLS, `https`, and the address of the instance.
    pub fn origin(mut self, origin: Uri) -> Self {
        self.origin = Some(origin);
        self
    }

    /// Connects with `connector` instead of TCP: a Unix socket, a proxy. It is given `http://` and the instance's
    /// address, and is called for each attempt. TLS, if set, goes on top, and the address is `https://` then. The
    /// options of TCP are the connector's own matter, and refused beside it.
    pub fn connector<C>(mut self, connector: C) -> Self
    where
        C: Service<Uri> + Send + 'static,
        C::Response: Read + Write + Send + Unpin + 'static,
        C::Error: Into<BoxError> + Send,
        C::Future: Send,
    {
        self.transport.connector = Some(Connector::new(connector));
        self
    }

    /// TLS towards the instances. Without a [`server_name`](ClientTls::server_name) each must have a certificate for
    /// the host of its address. The methods of [`ClientTls`] read the files that they are given, and fail where they
    /// are called:
    ///
    /// ```no_run
    /// use tonic_etcd::ClientTls;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = tonic_etcd::Registry::builder(["http://127.0.0.1:2379"]).build()?;
    /// let tls = ClientTls::new().ca_file("ca.pem")?.identity_files("client.pem", "client.key")?;
    /// let channel = registry.channel("echo").tls(tls).build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "_tls")]
    #[cfg_attr(docsrs, doc(cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))))]
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Checks the options of connections.
    pub(super) fn take_transport(&mut self) -> Result<TransportConfig, ConfigError> {
        let mut config = std::mem::take(&mut self.transport);
        config.check()?;
        #[cfg(feature = "_tls")]
        {
            config.tls = self.tls.as_ref().map(|tls| tls.build(Peer::Instance)).transpose()?;
        }
        config.origin = self.origin.take().map(origin).transpose()?;
        Ok(config)
    }
}

fn origin(uri: Uri) -> Result<(Scheme, Authority), ConfigError> {
    let value = uri.to_string();
    let parts = uri.into_parts();
    let has_path = parts.path_and_query.is_some_and(|path| path.as_str() != "/");
    match (parts.scheme, parts.authority) {
        (Some(scheme), Some(authority)) if !has_path => Ok((scheme, authority)),
        _ => {
            let expected = "a scheme and an authority without a path: https://echo";
            Err(ConfigError::Option { option: "origin", value, expected })
        }
    }
}
