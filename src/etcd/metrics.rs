//! What happens to watches, members, calls, connections and logins, to the metrics.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{EtcdError, EtcdErrorKind};
use crate::instance::ServiceName;
use crate::metrics::discovery::{LAG, LIST_DURATION, LISTED_KEYS, LISTED_SIZE, LISTS, RESTARTS, VERIFIED, WATCHES};
use crate::metrics::etcd::{CALL_DURATION, CALLS, CONNECTS, LOGINS, MEMBERS, OUTAGES, STRANGERS};
use crate::metrics::{Counter, Histogram, Moment, Share};

/// Of one source.
pub(crate) struct WatchMetrics {
    service: ServiceName,
    of: Followed,
    /// The state that it is counted in.
    state: Option<(&'static str, Share)>,
    keys: Counter,
    size: Counter,
    duration: Histogram,
    progress: Progress,
}

/// What a source follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Followed {
    Instances,
    OwnKey,
}

/// What made a list necessary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListCause {
    /// Nothing is known yet.
    Start,
    /// The revision to go on from is compacted.
    Compacted,
    /// The store is behind what was seen of it.
    RolledBack,
    /// A check showed another number of keys, or one that was written and not told of: perhaps the event is on its way.
    Check,
    /// A message was too large to be read.
    TooLarge,
    /// The member turned out to be of another cluster.
    OtherCluster,
    /// Keys that were left out for want of room have room now.
    RoomAgain,
}

/// What ended a watch that was open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restart {
    /// The member ended it.
    Cancelled,
    Compacted,
    /// The stream broke.
    StreamEnded,
    /// The stream was silent, and its member answered nothing else either.
    Silent,
    Denied,
    TooLarge,
    OtherCluster,
    RolledBack,
    /// Nothing was wrong: another member was drawn, or is named.
    Moved,
    /// It was not read in time, or went with a runtime.
    LeftBehind,
    /// Its member gives no signs of life, so that a list had to show what it may have missed.
    Mute,
}

/// Up to which revision a watch is complete, and when it was last known to be: shared by a source and the stream that
/// its watch is on.
#[derive(Clone)]
pub(super) struct Progress(Arc<Shown>);

struct Shown {
    complete: AtomicI64,
    verified: Moment,
    lag: Mutex<Share>,
    /// How many watches were opened: the lag is that of the latest. Written under the lock of the lag.
    opened: AtomicU64,
}

/// How far an open watch is behind its stream.
pub(super) struct Lag {
    progress: Progress,
    number: u64,
}

impl WatchMetrics {
    pub(crate) fn new(service: ServiceName, of: Followed) -> Self {
        let labels = [service.as_str(), of.label()];
        let (lag, verified) = (Share::new(LAG.with(&labels), 0.0), Moment::new(&VERIFIED, &labels));
        Self {
            of,
            state: None,
            keys: LISTED_KEYS.with(&labels),
            size: LISTED_SIZE.with(&labels),
            duration: LIST_DURATION.with(&labels),
            progress: Progress(Arc::new(Shown {
                complete: AtomicI64::default(),
                verified,
                lag: Mutex::new(lag),
                opened: AtomicU64::default(),
            })),
            service,
        }
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    pub(super) fn set_state(&mut self, state: &'static str) {
        if self.state.as_ref().is_none_or(|(before, _)| *before != state) {
            let gauge = WATCHES.with(&[self.service.as_str(), self.of.label(), state]);
            self.state = Some((state, Share::new(gauge, 1.0)));
        }
    }

    pub(super) fn on_page(&self, keys: usize, bytes: usize) {
        self.keys.add(keys as u64);
        self.size.add(bytes as u64);
    }

    /// A list is complete.
    pub(super) fn on_listed(&self, cause: ListCause, took: Duration, revision: i64) {
        // Each cause is rare, and an alert for none.
        LISTS.with(&[self.service.as_str(), self.of.label(), cause.label()]).add(1);
        self.duration.record(took.as_secs_f64());
        self.progress.on_complete(revision);
    }

    pub(super) fn on_restart(&self, restart: Restart) {
        RESTARTS.with(&[self.service.as_str(), self.of.label(), restart.label()]).add(1);
    }
}

impl Progress {
    /// All that happened up to this revision was told of.
    pub(super) fn on_complete(&self, revision: i64) {
        self.0.complete.store(revision, Ordering::Relaxed);
        self.0.verified.set_now();
    }

    /// Nothing is missing up to this revision, the newest one of the store: whatever the stream named is behind it.
    pub(super) fn on_checked(&self, revision: i64) {
        self.on_complete(revision);
        self.show(0.0);
    }

    /// Of a watch that is open and begins behind this revision.
    pub(super) fn lag(&self, revision: i64) -> Lag {
        let mut lag = self.0.lag.lock().unwrap_or_else(PoisonError::into_inner);
        lag.set(0.0);
        self.0.complete.store(revision, Ordering::Relaxed);
        let number = self.0.opened.fetch_add(1, Ordering::Relaxed) + 1;
        Lag { progress: self.clone(), number }
    }

    fn show(&self, lag: f64) {
        self.0.lag.lock().unwrap_or_else(PoisonError::into_inner).set(lag);
    }
}

impl Lag {
    pub(super) fn on_complete(&self, revision: i64) {
        if self.is_latest() {
            self.progress.on_complete(revision);
        }
    }

    /// Shows how far behind this revision the watch is.
    pub(super) fn show(&self, newest: i64) {
        let lag = newest - self.progress.0.complete.load(Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "so many revisions are not told apart")]
        self.set(lag.max(0) as f64);
    }

    fn set(&self, lag: f64) {
        let mut shown = self.progress.0.lag.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_latest() {
            shown.set(lag);
        }
    }

    /// A watch that another one has followed shows nothing any more.
    fn is_latest(&self) -> bool {
        self.progress.0.opened.load(Ordering::Relaxed) == self.number
    }
}

impl Drop for Lag {
    fn drop(&mut self) {
        self.set(0.0);
    }
}

impl Followed {
    fn label(self) -> &'static str {
        match self {
            Self::Instances => "instances",
            Self::OwnKey => "own_key",
        }
    }
}

impl ListCause {
    fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Compacted => "compacted",
            Self::RolledBack => "rolled_back",
            Self::Check => "check",
            Self::TooLarge => "too_large",
            Self::OtherCluster => "other_cluster",
            Self::RoomAgain => "room_again",
        }
    }
}

impl Restart {
    /// By the error of a watch that is over.
    pub(super) fn of(kind: EtcdErrorKind) -> Self {
        match kind {
            EtcdErrorKind::Unreachable | EtcdErrorKind::Tls => Self::StreamEnded,
            EtcdErrorKind::Deadline(_) => Self::Silent,
            EtcdErrorKind::Token | EtcdErrorKind::Denied => Self::Denied,
            EtcdErrorKind::TooLarge => Self::TooLarge,
            _ => Self::Cancelled,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Compacted => "compacted",
            Self::StreamEnded => "stream_ended",
            Self::Silent => "silent",
            Self::Denied => "denied",
            Self::TooLarge => "too_large",
            Self::OtherCluster => "other_cluster",
            Self::RolledBack => "rolled_back",
            Self::Moved => "moved",
            Self::LeftBehind => "left_behind",
            Self::Mute => "mute",
        }
    }
}

/// One member, in the gauge of its state.
#[derive(Default)]
pub(super) struct MemberGauge(Option<(&'static str, Share)>);

impl MemberGauge {
    /// Of a member that was not heard yet.
    pub(super) fn new() -> Self {
        Self(Some(counted("unknown")))
    }

    /// A member that is counted answers like this from now on.
    pub(super) fn set_state(&mut self, state: &'static str) {
        if let Some(counted_in) = self.0.as_mut().filter(|(before, _)| *before != state) {
            *counted_in = counted(state);
        }
    }

    /// A member that is counted was well and is not: an outage begins.
    pub(super) fn on_outage(&self, state: &'static str) {
        if self.0.is_some() {
            OUTAGES.with(&[state]).add(1);
        }
    }
}

fn counted(state: &'static str) -> (&'static str, Share) {
    (state, Share::new(MEMBERS.with(&[state]), 1.0))
}

/// How many members are not used since they report different clusters.
pub(super) fn strangers() -> Share {
    Share::new(STRANGERS.with(&[]), 0.0)
}

/// A call of a member ended after this time.
pub(super) fn on_call(operation: &'static str, error: Option<&EtcdError>, took: Duration) {
    let outcome = error.map_or("ok", |error| outcome(error.kind));
    CALLS.with(&[operation, outcome]).add(1);
    if error.is_none_or(|error| !error.is_worth_another_member()) {
        CALL_DURATION.with(&[operation]).record(took.as_secs_f64());
    }
}

fn outcome(kind: EtcdErrorKind) -> &'static str {
    match kind {
        EtcdErrorKind::Unreachable => "unreachable",
        EtcdErrorKind::Unavailable => "unavailable",
        EtcdErrorKind::Deadline(_) => "late",
        EtcdErrorKind::Tls => "tls",
        EtcdErrorKind::Login | EtcdErrorKind::Withheld | EtcdErrorKind::LoginPending => "no_login",
        EtcdErrorKind::Denied => "denied",
        EtcdErrorKind::Token => "token",
        EtcdErrorKind::NotFound => "not_found",
        EtcdErrorKind::AlreadyExists => "exists",
        EtcdErrorKind::Compacted => "compacted",
        EtcdErrorKind::TooLarge => "too_large",
        EtcdErrorKind::Incapable => "incapable",
        // No call ends with a split: that is what comes of several answers.
        EtcdErrorKind::Refused | EtcdErrorKind::Split => "refused",
    }
}

/// Of the connections to one member.
#[derive(Debug, Clone)]
pub(super) struct ConnectMetrics {
    made: Counter,
    failed: Counter,
}

impl ConnectMetrics {
    pub(super) fn new() -> Self {
        let [made, failed] = ["made", "failed"].map(|outcome| CONNECTS.with(&[outcome]));
        Self { made, failed }
    }

    pub(super) fn on_made(&self) {
        self.made.add(1);
    }

    pub(super) fn on_failed(&self) {
        self.failed.add(1);
    }
}

/// Of the logins of one cluster.
#[derive(Debug)]
pub(super) struct LoginMetrics {
    ok: Counter,
    refused: Counter,
    failed: Counter,
    late: Counter,
    no_credentials: Counter,
}

impl LoginMetrics {
    pub(super) fn new() -> Self {
        let with = |outcome| LOGINS.with(&[outcome]);
        Self {
            ok: with("ok"),
            refused: with("refused"),
            failed: with("failed"),
            late: with("late"),
            no_credentials: with("no_credentials"),
        }
    }

    /// A login brought a token.
    pub(super) fn on_success(&self) {
        self.ok.add(1);
    }

    /// The member refused the credentials.
    pub(super) fn on_refused(&self) {
        self.refused.add(1);
    }

    /// The member could not be reached, or answered something else.
    pub(super) fn on_failed(&self) {
        self.failed.add(1);
    }

    /// The member did not answer in time.
    pub(super) fn on_late(&self) {
        self.late.add(1);
    }

    /// The provider of credentials failed.
    pub(super) fn on_no_credentials(&self) {
        self.no_credentials.add(1);
    }
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn a_check_settles_the_lag_that_a_stream_has_shown_and_so_does_its_end() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let shows = |value: &str| {
            let text = recorder.handle().render();
            let line = format!("tonic_etcd_watch_lag{{service=\"echo\",of=\"instances\"}} {value}\n");
            assert!(text.contains(&line), "{value} is not in {text}");
        };
        metrics::with_local_recorder(&recorder, || {
            let metrics = WatchMetrics::new("echo".parse().expect("a good name"), Followed::Instances);
            let lag = metrics.progress().lag(5);
            shows("0");
            lag.show(9);
            shows("4");
            metrics.progress().on_checked(9);
            shows("0");
            lag.show(12);
            shows("3");
            let next = metrics.progress().lag(9);
            shows("0");
            lag.show(20);
            shows("0");
            next.show(14);
            drop(lag);
            shows("5");
            drop(next);
            shows("0");
        });
    }
}
