//! Evidence about one instance becomes its ejection or return, in the light of what the others do.

use std::sync::Arc;

use tokio::time::Instant;

use super::Balancer;
use crate::channel::outlier::{self, Compared, Interval, OutlierDetection, Tally};
use crate::channel::subchannel::{Input, Subchannel};
use crate::instance::Address;

impl Balancer {
    pub(super) fn on_suspected(&mut self, address: &Address, tally: Arc<Tally>) {
        if let Some(index) = self.find(address) {
            let others = self.others(index);
            self.step_at(index, Input::Suspected { tally, others });
        }
    }

    pub(super) fn on_failing(&mut self, address: &Address, tally: Arc<Tally>) {
        let Some(index) = self.find(address) else { return };
        let may_eject = may_eject(&self.subchannels, &self.reports.outliers);
        let others = self.others(index);
        self.step_at(index, Input::Failing { tally, may_eject, others });
        if !may_eject {
            // A connected instance must not be kept from taking calls while this one goes on failing.
            for other in 0..self.subchannels.len() {
                let subchannel = &self.subchannels[other];
                if other != index && subchannel.ejection().is_on_probation() && subchannel.is_ready() {
                    self.step_at(other, Input::Admitted);
                }
            }
        }
    }

    pub(super) fn on_ejection_over(&mut self, address: &Address) {
        if let Some(index) = self.find(address) {
            let others = self.others(index);
            self.step_at(index, Input::EjectionOver { others });
        }
    }

    /// What all instances but the one with this index did with their calls so far.
    fn others(&mut self, index: usize) -> Compared {
        let all = self.subchannels.iter().map(Subchannel::compared);
        // Once for all evidence that is there at one moment: where thousands fail, each would look at thousands.
        let total = self.total.get_or_insert_with(|| all.fold(Compared::default(), |sum, one| sum + one));
        *total - self.subchannels[index].compared()
    }

    /// Ejects the instances that failed more often than the others since the last time.
    pub(super) fn sweep(&mut self, now: Instant) {
        for index in outliers(&self.subchannels, &self.reports.outliers) {
            if may_eject(&self.subchannels, &self.reports.outliers) {
                self.step_at(index, Input::Outlier);
            }
        }
        self.schedule_sweep(now);
    }
}

/// Whether one more instance may be ejected. Those that the subset does not use do not count.
fn may_eject(subchannels: &[Subchannel], detection: &OutlierDetection) -> bool {
    let used = || subchannels.iter().filter(|subchannel| !subchannel.is_unselected()).map(Subchannel::ejection);
    let out = used().filter(|ejection| ejection.is_out()).count();
    outlier::may_eject(out, used().count(), detection)
}

/// The instances that failed more often than the others since the last time, by their index.
fn outliers(subchannels: &[Subchannel], detection: &OutlierDetection) -> Vec<usize> {
    let interval = |subchannel: &Subchannel| {
        let (successes, failures) = subchannel.tally().take_interval();
        Interval { successes, failures, is_out: subchannel.ejection().is_out() }
    };
    let intervals: Vec<Interval> = subchannels.iter().map(interval).collect();
    outlier::sweep(&intervals, detection, || fastrand::u8(0..100))
}
