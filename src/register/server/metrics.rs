//! The calls and connections of one server, to the metrics.

use crate::metrics::server::{CALLS, CONNECTIONS, DRAINED_CALLS, DRAINED_CONNECTIONS, DRAINS, LOST_LIMITS};
use crate::metrics::{Counter, Gauge};

/// What is open of one kind, and how it ends in a shutdown.
#[derive(Debug)]
pub(super) struct OpenMetrics {
    open: Gauge,
    finished: Counter,
    cut: Counter,
}

/// Of one drain.
#[derive(Debug)]
pub(super) struct DrainMetrics {
    pub(super) calls: OpenMetrics,
    pub(super) connections: OpenMetrics,
    refused: Counter,
    begun: Counter,
    lost: Counter,
}

impl OpenMetrics {
    fn new(open: Gauge, ended: impl Fn(&str) -> Counter) -> Self {
        Self { open, finished: ended("finished"), cut: ended("cut") }
    }

    #[inline]
    pub(super) fn on_opened(&self) {
        self.open.add(1.0);
    }

    /// One ended; it counts as finished where that is in a shutdown, and before the limit.
    #[inline]
    pub(super) fn on_closed(&self, is_draining: bool) {
        self.open.add(-1.0);
        if is_draining {
            self.finished.add(1);
        }
    }

    /// So many were open at the limit.
    pub(super) fn on_cut(&self, open: usize) {
        self.cut.add(open as u64);
    }
}

impl DrainMetrics {
    pub(super) fn new() -> Self {
        Self {
            calls: OpenMetrics::new(CALLS.with(&[]), |outcome| DRAINED_CALLS.with(&[outcome])),
            connections: OpenMetrics::new(CONNECTIONS.with(&[]), |outcome| DRAINED_CONNECTIONS.with(&[outcome])),
            refused: DRAINED_CALLS.with(&["refused"]),
            begun: DRAINS.with(&[]),
            lost: LOST_LIMITS.with(&[]),
        }
    }

    pub(super) fn on_begun(&self) {
        self.begun.add(1);
    }

    /// A call came behind the limit.
    pub(super) fn on_refused(&self) {
        self.refused.add(1);
    }

    /// The limit went with its runtime.
    pub(super) fn on_lost(&self) {
        self.lost.add(1);
    }
}
