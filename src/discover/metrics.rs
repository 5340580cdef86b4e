//! What is known of a service, to the metrics.

use super::membership::Defects;
use crate::instance::ServiceName;
use crate::metrics::discovery::{CUT_OFF, INSTANCES, SIZE, SNAPSHOTS, UNUSABLE};
use crate::metrics::{self, Counter, Share};
use crate::snapshot::{MemberState, Snapshot};

/// Of one watcher.
pub(super) struct SnapshotMetrics {
    live: Share,
    draining: Share,
    suspect: Share,
    cut_off: Share,
    size: Share,
    snapshots: Counter,
    unusable: [Counter; Defects::KINDS.len()],
}

impl SnapshotMetrics {
    pub(super) fn new(service: &ServiceName) -> Self {
        let service = service.as_str();
        let instances = |state| Share::new(INSTANCES.with(&[service, state]), 0.0);
        Self {
            live: instances("live"),
            draining: instances("draining"),
            suspect: instances("suspect"),
            cut_off: Share::new(CUT_OFF.with(&[service]), 0.0),
            size: Share::new(SIZE.with(&[service]), 0.0),
            snapshots: SNAPSHOTS.with(&[service]),
            unusable: Defects::KINDS.map(|kind| UNUSABLE.with(&[service, kind])),
        }
    }

    /// A snapshot is published, whose instances take about so much memory.
    pub(super) fn on_snapshot(&mut self, snapshot: &Snapshot, bytes: usize) {
        self.snapshots.add(1);
        if !metrics::ENABLED {
            return;
        }
        let count = |state| snapshot.iter().filter(|member| member.state() == state).count();
        self.live.set(amount(count(MemberState::Live)));
        self.draining.set(amount(count(MemberState::Draining)));
        self.suspect.set(amount(count(MemberState::Suspect)));
        self.cut_off.set(amount(snapshot.cut_off()));
        self.size.set(amount(bytes));
    }

    /// Keys were read that cannot be used.
    pub(super) fn on_defects(&self, defects: Defects) {
        for (counter, count) in self.unusable.iter().zip(defects.counts()) {
            if count > 0 {
                counter.add(count);
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a million is the most")]
fn amount(count: usize) -> f64 {
    count as f64
}
