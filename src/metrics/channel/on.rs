//! The metrics of one channel: handles that all of its parts share.

use std::sync::Arc;

use http::Extensions;
use tokio::time::Instant;

use super::InstanceState;
use super::calls::{CallMetrics, Methods};
use super::constants::{
    CALLS_IN_FLIGHT, CALLS_WAITING, CHANNELS, CONNECTION_ATTEMPTS_FAILED, CONNECTION_ATTEMPTS_SUCCEEDED,
    DISCONNECTIONS, EJECTIONS_ENFORCED, EJECTIONS_UNENFORCED, INSTANCES, OPEN_CONNECTIONS, PICK_WAIT, PICKS_WAITED,
    RETRIES_REFUSED,
};
use crate::metrics::{Counter, Gauge, Histogram, Share};

/// What is counted and measured of one channel. Clones are handles to the same metrics.
#[derive(Debug, Clone)]
pub(crate) struct ChannelMetrics(Arc<Handles>);

#[derive(Debug)]
struct Handles {
    target: Arc<str>,
    methods: Methods,
    disconnections: [Counter; DISCONNECT_ERRORS.len()],
    ejections: [Detected; DETECTION_METHODS.len()],
    channels: Gauge,
    /// By [`InstanceState`].
    instances: [Gauge; STATES.len()],
    open_connections: Gauge,
    attempts_succeeded: Counter,
    attempts_failed: Counter,
    waiting: Gauge,
    waited: Counter,
    wait: Histogram,
    retries_refused: Counter,
}

/// What becomes of the instances that one detection method finds.
#[derive(Debug)]
struct Detected {
    enforced: Counter,
    /// By [`UNENFORCED_REASONS`].
    unenforced: [Counter; UNENFORCED_REASONS.len()],
}

impl ChannelMetrics {
    /// The metrics of a channel to this target, with the recorder that is installed by now.
    pub(crate) fn new(target: &str) -> Self {
        let target: Arc<str> = target.into();
        let labels = [&*target];
        Self(Arc::new(Handles {
            methods: Methods::new(target.clone(), CALLS_IN_FLIGHT.with(&labels)),
            disconnections: DISCONNECT_ERRORS.map(|error| DISCONNECTIONS.with(&[&target, error])),
            ejections: DETECTION_METHODS.map(|method| Detected::new(&target, method)),
            channels: CHANNELS.with(&labels),
            instances: STATES.map(|state| INSTANCES.with(&[&target, state])),
            open_connections: OPEN_CONNECTIONS.with(&labels),
            attempts_succeeded: CONNECTION_ATTEMPTS_SUCCEEDED.with(&labels),
            attempts_failed: CONNECTION_ATTEMPTS_FAILED.with(&labels),
            waiting: CALLS_WAITING.with(&labels),
            waited: PICKS_WAITED.with(&labels),
            wait: PICK_WAIT.with(&labels),
            retries_refused: RETRIES_REFUSED.with(&labels),
            target,
        }))
    }

    /// A call that is made now, with a request of these extensions.
    pub(crate) fn call(&self, extensions: &Extensions, now: Instant) -> CallMetrics {
        CallMetrics::new(self.0.methods.of(extensions), now)
    }

    /// A pick waits for an instance with room, for as long as the figure lives.
    pub(crate) fn wait(&self) -> WaitFigure<'_> {
        self.0.waited.add(1);
        self.0.waiting.add(1.0);
        WaitFigure { handles: &self.0, since: Instant::now() }
    }

    /// A retry is wanted, and the budget does not allow it.
    pub(crate) fn on_retry_refused(&self) {
        self.0.retries_refused.add(1);
    }

    /// The channel, for as long as the share lives.
    pub(crate) fn open(&self) -> Share {
        Share::new(self.0.channels.clone(), 1.0)
    }

    /// An instance that the channel knows, for as long as the figure lives.
    pub(crate) fn instance(&self) -> InstanceFigure {
        InstanceFigure { channel: self.clone(), state: None }
    }

    /// Instances that the channel's subset has never used.
    pub(crate) fn unused(&self) -> UnusedFigure {
        UnusedFigure { channel: self.clone(), count: 0, share: None }
    }

    /// An attempt to connect led to a connection, which is open for as long as the figure lives.
    pub(crate) fn connection(&self) -> ConnectionFigure {
        self.0.attempts_succeeded.add(1);
        ConnectionFigure { channel: self.clone(), _open: Share::new(self.0.open_connections.clone(), 1.0) }
    }

    /// An attempt to connect failed.
    pub(crate) fn on_connect_failed(&self) {
        self.0.attempts_failed.add(1);
    }

    /// An instance that failed is left out.
    pub(crate) fn on_ejection(&self, method: &'static str) {
        if let Some(detected) = self.detected(method) {
            detected.enforced.add(1);
        }
    }

    /// An instance that failed is not left out.
    pub(crate) fn on_unenforced_ejection(&self, method: &'static str, reason: &'static str) {
        let at = position(&UNENFORCED_REASONS, reason);
        if let Some((detected, at)) = self.detected(method).zip(at) {
            detected.unenforced[at].add(1);
        }
    }

    fn detected(&self, method: &str) -> Option<&Detected> {
        position(&DETECTION_METHODS, method).map(|at| &self.0.ejections[at])
    }

    fn gauge(&self, state: InstanceState) -> Gauge {
        self.0.instances[state as usize].clone()
    }
}

impl Detected {
    fn new(target: &str, method: &str) -> Self {
        Self {
            enforced: EJECTIONS_ENFORCED.with(&[target, method]),
            unenforced: UNENFORCED_REASONS.map(|reason| EJECTIONS_UNENFORCED.with(&[target, method, reason])),
        }
    }
}

/// Where a label is among all that there are.
fn position(labels: &[&str], label: &str) -> Option<usize> {
    let at = labels.iter().position(|known| *known == label);
    debug_assert!(at.is_some(), "{label} is not among {labels:?}");
    at
}

/// A pick that waits.
#[derive(Debug)]
pub(crate) struct WaitFigure<'a> {
    handles: &'a Handles,
    since: Instant,
}

impl Drop for WaitFigure<'_> {
    fn drop(&mut self) {
        self.handles.waiting.add(-1.0);
        self.handles.wait.record(self.since.elapsed().as_secs_f64());
    }
}

/// One instance, in one state at a time.
#[derive(Debug)]
pub(crate) struct InstanceFigure {
    channel: ChannelMetrics,
    state: Option<(InstanceState, Share)>,
}

impl InstanceFigure {
    pub(crate) fn set(&mut self, state: InstanceState) {
        if self.state.as_ref().is_none_or(|(before, _)| *before != state) {
            self.state = Some((state, Share::new(self.channel.gauge(state), 1.0)));
        }
    }
}

/// The instances that a channel knows and has no subchannels for.
#[derive(Debug)]
pub(crate) struct UnusedFigure {
    channel: ChannelMetrics,
    count: usize,
    share: Option<Share>,
}

impl UnusedFigure {
    pub(crate) fn set(&mut self, count: usize) {
        if count != self.count {
            self.count = count;
            let amount = u32::try_from(count).unwrap_or(u32::MAX).into();
            self.share = Some(Share::new(self.channel.gauge(InstanceState::Unused), amount));
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct ConnectionFigure {
    channel: ChannelMetrics,
    _open: Share,
}

impl ConnectionFigure {
    /// It takes no more calls. It may be open for those that it has.
    pub(crate) fn on_disconnected(&self, error: &'static str) {
        let handles = &self.channel.0;
        match DISCONNECT_ERRORS.iter().position(|known| *known == error) {
            Some(at) => handles.disconnections[at].add(1),
            None => DISCONNECTIONS.with(&[&handles.target, error]).add(1),
        }
    }
}

/// By [`InstanceState`].
const STATES: [&str; 8] =
    ["ready", "connecting", "transient_failure", "idle", "suspect", "draining", "ejected", "unused"];

/// As the outlier detection names them.
const DETECTION_METHODS: [&str; 5] =
    ["consecutive_failures", "missed_deadlines", "probation", "success_rate", "failure_percentage"];

/// As the outlier detection names them.
const UNENFORCED_REASONS: [&str; 2] = ["enforcement_percentage", "max_ejection_overflow"];

/// As connections name them. The codes of a GOAWAY other than `NO_ERROR` are rare, and an alert for none.
const DISCONNECT_ERRORS: [&str; 7] = [
    "subchannel shutdown",
    "connection reset",
    "connection aborted",
    "connection timed out",
    "socket error",
    "unknown",
    "GOAWAY NO_ERROR",
];

const _: () = assert!(InstanceState::Unused as usize == STATES.len() - 1);
