//! Options become a running channel. This room only wires: each option is checked and explained where it is used.
//!
//! # Layout
//!
//! | file | options of |
//! | --- | --- |
//! | `transport` | connections |
//! | `calls` | calls, and retries of those that fail |
//! | `balancing` | which instances are used, and how one is picked |
//! | `service_config` | a gRPC service config, where the others say nothing |
//! | `instances` | channels over a user's own lists |

mod balancing;
mod calls;
mod instances;
mod service_config;
mod transport;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::BoxStream;
use http::Uri;
use tokio::runtime::Handle as Runtime;
use tokio::sync::{mpsc, watch};
use tracing::Instrument;

use super::BalancedChannel;
use super::balancer::{BalanceConfig, Balancer, ConnectConfig, Inputs, Listing};
use super::config::budget::RetryLimit;
use super::config::methods::MethodConfigs;
use super::outlier::OutlierDetection;
use super::picks::{Handle, PickQueue};
use super::policy::{LeastRequest, Policy};
use super::service_config::ServiceConfig;
use super::subchannel::Reports;
use super::transport::TransportConfig;
use crate::error::ConfigError;
use crate::metrics::channel::ChannelMetrics;
use crate::snapshot::Snapshot;
use crate::targets::CHANNEL;
#[cfg(feature = "_tls")]
use crate::tls::ClientTls;

/// Where a channel's snapshots come from, opened by `build()`.
type Source = Box<dyn FnOnce() -> Result<(BoxStream<'static, Arc<Snapshot>>, Listing), ConfigError> + Send>;

/// The options of a [`BalancedChannel`]. Those of connections are named like those of tonic's
/// [`Endpoint`](tonic::transport::Endpoint).
///
/// What can be switched off takes `None` for that, and a value without `Some`: `.timeout(Duration::from_secs(5))`,
/// `.outlier_detection(None)`. The order in which options are given does not matter; of one that is given twice the
/// last counts.
#[must_use = "a builder does nothing before build()"]
pub struct ChannelBuilder {
    label: String,
    /// The channel's target, for metrics and spans.
    target: String,
    source: Source,
    policy: Option<Arc<dyn Policy>>,
    /// Whether the policy is that of the service config.
    has_policy_of_config: bool,
    outliers: Option<OutlierDetection>,
    balance: BalanceConfig,
    /// Whether the channel was given a subset, or none, itself.
    has_own_subset: bool,
    timeout: Option<Duration>,
    wait_for_ready: Option<bool>,
    max_waiting: usize,
    user_agent: Option<String>,
    methods: MethodConfigs,
    retry_limit: Option<RetryLimit>,
    service_config: Option<ServiceConfig>,
    transport: TransportConfig,
    origin: Option<Uri>,
    removed_stream_limit: Option<Duration>,
    #[cfg(feature = "_tls")]
    tls: Option<ClientTls>,
    #[cfg(feature = "health")]
    health: Option<Arc<str>>,
}

impl ChannelBuilder {
    /// `label` names the service, and where it is looked for, in messages; `target` names it in metrics and spans.
    pub(crate) fn new(
        label: String,
        target: String,
        source: impl FnOnce() -> Result<(BoxStream<'static, Arc<Snapshot>>, Listing), ConfigError> + Send + 'static,
    ) -> Self {
        Self {
            label,
            target,
            source: Box::new(source),
            policy: None,
            has_policy_of_config: false,
            outliers: None,
            balance: BalanceConfig::default(),
            has_own_subset: false,
            timeout: None,
            wait_for_ready: None,
            max_waiting: MAX_WAITING,
            user_agent: None,
            methods: MethodConfigs::default(),
            retry_limit: None,
            service_config: None,
            transport: TransportConfig::default(),
            origin: None,
            removed_stream_limit: Some(REMOVED_STREAM_LIMIT),
            #[cfg(feature = "_tls")]
            tls: None,
            #[cfg(feature = "health")]
            health: None,
        }
    }

    /// Checks everything and makes the channel. No I/O is done here; the channel connects in the background.
    ///
    /// # Errors
    ///
    /// A bad service name, an option out of its range, options that do not go with one another or with the policy, or
    /// no tokio runtime on this thread.
    pub fn build(mut self) -> Result<BalancedChannel, ConfigError> {
        let runtime = Runtime::try_current().map_err(|_| ConfigError::NoRuntime { call: "ChannelBuilder::build" })?;
        self.take_service_config();
        let transport = self.take_transport()?;
        let outliers = self.outliers.take().unwrap_or_default();
        outliers.check()?;
        let config = self.take_calls()?;
        let policy = self.policy.unwrap_or_else(|| Arc::new(LeastRequest::default()));
        self.balance.check(&*policy, self.has_policy_of_config)?;
        let connect = ConnectConfig {
            transport: Arc::new(transport),
            removed_stream_limit: self.removed_stream_limit,
            measures_peaks: policy.needs().peak_latency(),
            #[cfg(feature = "health")]
            health: self.health,
        };
        let (snapshots, listing) = (self.source)()?;

        let (events, feedback) = mpsc::unbounded_channel();
        let (changed, seen) = watch::channel(());
        let (alive, handles) = mpsc::channel(1);
        let span = tracing::info_span!(target: CHANNEL, parent: None, "channel", service = %self.label);
        let metrics = ChannelMetrics::new(&self.target);
        let queue = Arc::new(PickQueue::new(self.label.into(), policy, self.max_waiting, metrics.clone()));
        let reports = Reports { outliers: Arc::new(outliers), events, metrics };
        let balancer = Balancer::new(queue.clone(), self.balance, connect, reports, listing, changed);
        runtime.spawn(balancer.run(Inputs { snapshots, feedback, handles }).instrument(span));
        let unknown_logged = Mutex::default();
        Ok(BalancedChannel::new(Handle {
            queue,
            target: self.target.into(),
            config,
            runtime,
            changed: seen,
            _alive: alive,
            unknown_logged,
        }))
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

/// Calls that may wait at once: at some 2 KiB each that is 20 MB, and a server that answers 1,000 calls a second needs
/// ten seconds for them, longer than most callers wait.
const MAX_WAITING: usize = 10_000;

/// How long the streams of a removed instance may go on: as long as a server that leaves in order grants them itself,
/// and as Kubernetes grants that server.
const REMOVED_STREAM_LIMIT: Duration = Duration::from_secs(30);
