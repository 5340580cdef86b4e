//! The options of a balanced channel, and its making.

pub(crate) mod balancing;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::stream::{BoxStream, Stream, StreamExt};
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri};
use hyper::rt::{Read, Write};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tower::Service;
use tracing::Instrument;

use crate::channel::balancer::Driver;
use crate::channel::builder::balancing::Spread;
use crate::channel::config::retry::{Budget, Methods, RetryThrottling};
use crate::channel::outlier::OutlierDetection;
use crate::channel::picks::pick_queue::{Published, Settings, Shared};
use crate::channel::picks::wait_queue::Line;
use crate::channel::policy::{LeastRequest, Policy};
use crate::channel::service_config::ServiceConfig;
use crate::channel::subchannel::connection::Dial;
use crate::channel::subchannel::status::Connectivity;
use crate::channel::transport::connect::{Connector, TransportConfig};
#[cfg(feature = "_tls")]
use crate::channel::transport::tls::TlsClient;
use crate::channel::{BalancedChannel, Owner};
use crate::error::ConfigError;
use crate::instance::Instance;
use crate::snapshot::{Member, MemberState, Snapshot};
#[cfg(feature = "_tls")]
use crate::tls::ClientTls;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where a channel's snapshots come from, opened by `build()`.
type Source = Box<dyn FnOnce() -> Result<BoxStream<'static, Arc<Snapshot>>, ConfigError> + Send>;

/// Calls that may wait at once: at some 2 KiB each that is 20 MB, and a server that answers 1,000 calls a second needs
/// ten seconds for them, longer than most callers wait.
const MAX_WAITING: usize = 10_000;

/// How long the streams of a removed instance may go on: what a server that leaves in order grants them itself, and what
/// Kubernetes grants that server.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// The user agent of calls that bring none.
const USER_AGENT: &str = concat!("tonic-etcd/", env!("CARGO_PKG_VERSION"));

/// The options of a [`BalancedChannel`]. Those about connections are named like those of tonic's
/// [`Endpoint`](tonic::transport::Endpoint).
#[must_use = "a builder does nothing before build()"]
pub struct ChannelBuilder {
    label: String,
    source: Source,
    policy: Option<Arc<dyn Policy>>,
    outliers: OutlierDetection,
    timeout: Option<Duration>,
    wait_for_ready: bool,
    max_waiting: usize,
    drain_limit: Duration,
    user_agent: Option<String>,
    origin: Option<Uri>,
    options: TransportConfig,
    pub(crate) spread: Spread,
    pub(crate) methods: Methods,
    pub(crate) throttling: Option<RetryThrottling>,
    pub(crate) config: Option<ServiceConfig>,
    #[cfg(feature = "_tls")]
    tls: Option<ClientTls>,
    #[cfg(feature = "health")]
    health: Option<Arc<str>>,
}

impl BalancedChannel {
    /// A channel over instances that come from elsewhere than etcd: a list in a test, a file, another registry.
    ///
    /// Each item of `instances` is the whole set, and replaces the one before; of two with one address the last counts. What
    /// the stream ends with stays. `service` is for messages. Instances at addresses that no client may be sent to, and
    /// those with weight 0, are left out with a warning. Large sets that change often are best made of `Arc<Instance>`s: what
    /// is the same allocation as before need not be compared.
    ///
    /// ```
    /// use futures_util::stream;
    /// use tonic_etcd::{BalancedChannel, Instance};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let instance = Instance::new("echo", "127.0.0.1:50051".parse::<std::net::SocketAddr>()?);
    /// let channel = BalancedChannel::over("echo", stream::iter([vec![instance]])).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn over<I>(service: impl Into<String>, instances: impl Stream<Item = Vec<I>> + Send + 'static) -> ChannelBuilder
    where
        I: Into<Arc<Instance>>,
    {
        let snapshots =
            instances.enumerate().map(|(revision, set)| Arc::new(snapshot(revision, set.into_iter().map(Into::into))));
        ChannelBuilder::new(service.into(), move || Ok(snapshots.boxed()))
    }
}

impl ChannelBuilder {
    /// `label` says in messages which service it is and where it is looked for.
    pub(crate) fn new(
        label: String,
        source: impl FnOnce() -> Result<BoxStream<'static, Arc<Snapshot>>, ConfigError> + Send + 'static,
    ) -> Self {
        Self {
            label,
            source: Box::new(source),
            policy: None,
            outliers: OutlierDetection::default(),
            timeout: None,
            wait_for_ready: false,
            max_waiting: MAX_WAITING,
            drain_limit: DRAIN_LIMIT,
            user_agent: None,
            origin: None,
            options: TransportConfig::default(),
            spread: Spread::default(),
            methods: Methods::default(),
            throttling: None,
            config: None,
            #[cfg(feature = "_tls")]
            tls: None,
            #[cfg(feature = "health")]
            health: None,
        }
    }

    /// How an instance is chosen for each call. Defaults to [`LeastRequest`].
    pub fn policy(mut self, policy: impl Policy) -> Self {
        self.policy = Some(Arc::new(policy));
        self
    }

    /// When an instance whose calls fail is left out for a while. Defaults to three failures in a row.
    pub fn outlier_detection(mut self, outliers: OutlierDetection) -> Self {
        self.outliers = outliers;
        self
    }

    /// Asks each instance for its health (`grpc.health.v1`) and leaves out those that are not SERVING. `service` is the
    /// name that servers know it by, `package.Service`; an empty one asks for the whole server. Off unless given.
    ///
    /// The question stays open on each connection, so an answer that changes counts at once. An instance gets no calls
    /// before its first answer, which may take the [`connect_timeout`](Self::connect_timeout), and none while its server
    /// does not know the service; one whose server has no health service at all counts as serving. Where no instance serves, calls fail
    /// with UNAVAILABLE. The stream takes one of those that the server allows on a connection.
    #[cfg(feature = "health")]
    pub fn health_check(mut self, service: impl Into<String>) -> Self {
        self.health = Some(service.into().into());
        self
    }

    /// The longest that a call may take, from the call to the end of its response. A shorter one of the call's own
    /// ([`tonic::Request::set_timeout`]) counts instead. Defaults to none, as with tonic's `Endpoint`.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Whether calls wait, under their deadline, where no instance is known or every one failed. Defaults to `false`: such
    /// calls fail at once. A call can say otherwise with [`WaitForReady`](crate::WaitForReady).
    pub fn wait_for_ready(mut self, wait: bool) -> Self {
        self.wait_for_ready = wait;
        self
    }

    /// How many calls may wait for a connection or a turn at once; those beyond fail with `RESOURCE_EXHAUSTED`. Defaults to
    /// 10,000: about 20 MB of calls.
    pub fn max_waiting(mut self, calls: usize) -> Self {
        self.max_waiting = calls;
        self
    }

    /// How long the streams of an instance that was removed may go on. Defaults to 30 s, which is what Kubernetes grants
    /// the server itself.
    pub fn drain_limit(mut self, limit: Duration) -> Self {
        self.drain_limit = limit;
        self
    }

    /// How long connecting to an instance may take, up to the server's first HTTP/2 SETTINGS. Defaults to 1 s: on a network
    /// where that is too short, calls would be too slow as well.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.options.connect_timeout = timeout;
        self
    }

    /// Whether small packets are sent at once (`TCP_NODELAY`). Defaults to `true`.
    pub fn tcp_nodelay(mut self, enabled: bool) -> Self {
        self.options.tcp_nodelay = enabled;
        self
    }

    /// How long a connection may be idle before TCP probes it. Defaults to `None`: HTTP/2 pings see more.
    pub fn tcp_keepalive(mut self, idle: Option<Duration>) -> Self {
        self.options.tcp_keepalive = idle;
        self
    }

    /// How long a connection with calls may be silent before an HTTP/2 ping is sent; `None` switches pings off. Defaults to
    /// 310 s: gRPC servers close a connection whose client pings more often than every five minutes while they themselves
    /// send nothing, unless they are told to allow it (`MinTime` in grpc-go's `EnforcementPolicy`). tonic servers allow any
    /// interval; where all servers do, 10 s finds a frozen one sooner.
    pub fn http2_keep_alive_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.options.http2_keep_alive_interval = interval.into();
        self
    }

    /// How long the answer to a ping may take before the connection counts as broken. Defaults to 5 s.
    pub fn keep_alive_timeout(mut self, timeout: Duration) -> Self {
        self.options.keep_alive_timeout = timeout;
        self
    }

    /// Whether pings are sent while no call is in flight. Defaults to `false`: servers take that for abuse.
    pub fn keep_alive_while_idle(mut self, enabled: bool) -> Self {
        self.options.keep_alive_while_idle = enabled;
        self
    }

    /// The HTTP/2 flow-control window of one stream, in bytes. Defaults to 2 MiB, as with tonic's `Endpoint`.
    pub fn initial_stream_window_size(mut self, bytes: impl Into<Option<u32>>) -> Self {
        self.options.initial_stream_window_size = bytes.into();
        self
    }

    /// The HTTP/2 flow-control window of a connection, in bytes. Defaults to 5 MiB, as with tonic's `Endpoint`.
    pub fn initial_connection_window_size(mut self, bytes: impl Into<Option<u32>>) -> Self {
        self.options.initial_connection_window_size = bytes.into();
        self
    }

    /// Whether windows follow the measured bandwidth; overrides the two sizes. Defaults to `false`.
    pub fn http2_adaptive_window(mut self, enabled: bool) -> Self {
        self.options.http2_adaptive_window = Some(enabled);
        self
    }

    /// The largest list of headers that is accepted, in bytes. Defaults to 16 KiB, as with tonic's `Endpoint`.
    pub fn http2_max_header_list_size(mut self, bytes: u32) -> Self {
        self.options.http2_max_header_list_size = Some(bytes);
        self
    }

    #[cfg(test)]
    pub(crate) fn first_stream(mut self, number: u32) -> Self {
        self.options.first_stream = number;
        self
    }

    /// The user agent of calls that bring none, before our own. Defaults to our own alone: `tonic-etcd/` and the version.
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = Some(user_agent.into());
        self
    }

    /// The scheme and authority that requests name, for servers that look at them. Defaults to `http` or, with TLS,
    /// `https`, and the address of the instance.
    pub fn origin(mut self, origin: Uri) -> Self {
        self.origin = Some(origin);
        self
    }

    /// Connects with `connector` instead of TCP: a Unix socket, a proxy. It is given `http://` and the instance's address,
    /// and is called for each attempt. TLS, if set, goes on top, and the address is `https://` then.
    pub fn connector<C>(mut self, connector: C) -> Self
    where
        C: Service<Uri> + Send + 'static,
        C::Response: Read + Write + Send + Unpin + 'static,
        C::Error: Into<BoxError> + Send,
        C::Future: Send,
    {
        self.options.connector = Some(Connector::new(connector));
        self
    }

    /// TLS towards the instances. Without a [`server_name`](ClientTls::server_name) each must have a certificate for the host
    /// of its address.
    #[cfg(feature = "_tls")]
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Checks everything and makes the channel. No I/O is done here; the channel connects in the background.
    ///
    /// # Errors
    ///
    /// A bad service name, an option out of its range, or no tokio runtime on this thread.
    pub fn build(self) -> Result<BalancedChannel, ConfigError> {
        let runtime = Handle::try_current().map_err(|_| ConfigError::NoRuntime { call: "build" })?;
        self.options.check()?;
        #[cfg(feature = "_tls")]
        let options = TransportConfig { tls: self.tls.as_ref().map(TlsClient::new).transpose()?, ..self.options };
        #[cfg(not(feature = "_tls"))]
        let options = self.options;
        if self.max_waiting == 0 {
            return Err(ConfigError::Option { option: "max_waiting", value: "0".into(), expected: "at least 1" });
        }
        self.outliers.check()?;
        self.spread.check()?;
        self.methods.check()?;
        self.throttling.map_or(Ok(()), |throttling| throttling.check())?;
        let mut methods = self.methods;
        let (mut policy, mut throttling) = (self.policy, self.throttling);
        if let Some(config) = self.config {
            policy = policy.or(config.policy);
            throttling = throttling.or(config.throttling);
            for (name, method) in config.methods {
                methods.config.insert(&name, method);
            }
        }
        let policy = policy.unwrap_or_else(|| Arc::new(LeastRequest::default()));
        let settings = Settings {
            label: self.label.clone().into(),
            timeout: self.timeout,
            wait_for_ready: self.wait_for_ready,
            max_waiting: self.max_waiting,
            user_agent: user_agent(self.user_agent)?,
            outliers: self.outliers,
            policy: policy.clone(),
            budget: throttling.map(|throttling| Arc::new(Budget::new(throttling))),
            methods: Some(methods).filter(|methods| !methods.is_empty()),
        };
        let dial = Dial {
            options: Arc::new(options),
            origin: self.origin.map(origin).transpose()?,
            drain_limit: self.drain_limit,
            #[cfg(feature = "health")]
            health: self.health,
        };
        let snapshots = (self.source)()?;

        let (events, received) = mpsc::unbounded_channel();
        let (changed, seen) = watch::channel(());
        let (alive, ended) = mpsc::channel(1);
        let nothing =
            Published { choice: None, state: Connectivity::Connecting, cause: "".into(), records: Arc::new([]) };
        let shared = Arc::new(Shared {
            published: ArcSwap::from_pointee(nothing),
            line: Line::new(self.max_waiting),
            settings,
            events,
        });
        let spread = self.spread.with(&*policy);
        let driver = Driver { shared: shared.clone(), policy, spread, dial, snapshots, events: received, changed };
        let span = tracing::info_span!("channel", service = %self.label);
        runtime.spawn(driver.run(ended).instrument(span));
        Ok(BalancedChannel { owner: Arc::new(Owner { shared, changed: seen, _alive: alive }) })
    }
}

impl fmt::Debug for ChannelBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelBuilder")
            .field("service", &self.label)
            .field("policy", &self.policy)
            .field("outlier_detection", &self.outliers)
            .finish_non_exhaustive()
    }
}

fn user_agent(own: Option<String>) -> Result<HeaderValue, ConfigError> {
    let text = match own {
        Some(own) => format!("{own} {USER_AGENT}"),
        None => USER_AGENT.to_owned(),
    };
    HeaderValue::try_from(&text).map_err(|_| ConfigError::Option {
        option: "user_agent",
        value: format!("{text:?}"),
        expected: "visible ASCII characters",
    })
}

fn origin(uri: Uri) -> Result<(Scheme, Authority), ConfigError> {
    let value = uri.to_string();
    let parts = uri.into_parts();
    match (parts.scheme, parts.authority) {
        (Some(scheme), Some(authority)) => Ok((scheme, authority)),
        _ => Err(ConfigError::Option { option: "origin", value, expected: "a scheme and an authority: https://echo" }),
    }
}

fn snapshot(revision: usize, set: impl IntoIterator<Item = Arc<Instance>>) -> Snapshot {
    let mut members = Vec::new();
    for instance in set {
        match instance.check_publishable() {
            Ok(()) => members.push(Member::new(instance, 0, MemberState::Live)),
            Err(error) => tracing::warn!(address = %instance.address, %error, "instance left out"),
        }
    }
    // Stable, so that of several with one address the last stays: the others take its place one after the other.
    members.sort_by(|a: &Member, b| a.instance().address.cmp(&b.instance().address));
    members.dedup_by(|later, kept| {
        let is_one = later.instance().address == kept.instance().address;
        if is_one {
            std::mem::swap(later, kept);
        }
        is_one
    });
    Snapshot::new(i64::try_from(revision).unwrap_or(i64::MAX), members)
}
