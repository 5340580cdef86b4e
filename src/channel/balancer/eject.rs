//! Evidence about one instance becomes its ejection or return, in the light of what the others do.

use std::mem;
use std::sync::Arc;

use tokio::time::Instant;

use super::Balancer;
use crate::channel::outlier::{self, Compared, Interval, OutlierDetection, Tally};
use crate::channel::subchannel::{Input, Subchannel};
use crate::channel::transport::Transport;
use crate::instance::Address;

/// What the balancer knows of all instances together.
#[derive(Default)]
pub(super) struct Evidence {
    /// What those that left did with their calls: sums must not go backwards.
    departed: Compared,
    /// In this turn, as far as it was asked for: where thousands fail at once, each would look at thousands.
    total: Option<Compared>,
    census: Option<Census>,
    /// Whether an instance failed in this turn that may not be ejected.
    pub(super) admits: bool,
}

/// The instances that may be ejected, and those of them that are out.
#[derive(Debug, Clone, Copy)]
struct Census {
    used: usize,
    out: usize,
}

impl Balancer {
    pub(super) fn on_suspected(&mut self, address: &Address, tally: Arc<Tally>) {
        if let Some(index) = self.find(address) {
            let others = self.others(index);
            self.step_at(index, Input::Suspected { tally, others });
        }
    }

    pub(super) fn on_failing(&mut self, address: &Address, tally: Arc<Tally>) {
        let Some(index) = self.find(address) else { return };
        let (may_eject, others) = (self.may_eject(), self.others(index));
        self.step_towards_ejection(index, Input::Failing { tally, may_eject, others });
    }

    pub(super) fn on_ejection_over(&mut self, address: &Address) {
        if let Some(index) = self.find(address) {
            let others = self.others(index);
            self.step_towards_ejection(index, Input::EjectionOver { others });
        }
    }

    /// Ejects the instances that failed more often than the others since the last time.
    pub(super) fn sweep(&mut self, now: Instant) {
        for index in outliers(&self.subchannels, &self.reports.outliers) {
            if self.may_eject() {
                self.step_towards_ejection(index, Input::Outlier);
            }
        }
        self.schedule_sweep(now);
    }

    /// An instance left the list.
    pub(super) fn on_left(&mut self, did: Compared) {
        let past = Compared { ready: 0, missing: 0, ..did };
        self.evidence.departed = self.evidence.departed + past;
    }

    /// The end of a turn. Where an instance fails that may not be ejected, those on probation come in: one that is
    /// connected must not be kept from taking calls while another one goes on failing.
    pub(super) fn end_evidence(&mut self) {
        let Evidence { total, census, admits, .. } = &mut self.evidence;
        (*total, *census) = (None, None);
        if mem::take(admits) {
            for index in 0..self.subchannels.len() {
                let subchannel = &self.subchannels[index];
                if subchannel.ejection().is_on_probation() && subchannel.is_ready() {
                    self.step_at(index, Input::Admitted);
                }
            }
        }
    }

    /// Whether one more instance may be ejected. Those that the subset does not use do not count.
    fn may_eject(&mut self) -> bool {
        let used = || self.subchannels.iter().filter(|subchannel| !subchannel.is_unselected());
        let Census { used, out } = *self.evidence.census.get_or_insert_with(|| Census {
            used: used().count(),
            out: used().filter(|subchannel| subchannel.ejection().is_out()).count(),
        });
        outlier::may_eject(out, used, &self.reports.outliers)
    }

    /// A step that may take an instance out, or bring one back.
    fn step_towards_ejection(&mut self, index: usize, input: Input<Transport>) {
        let is_out = |balancer: &Self| {
            let subchannel = &balancer.subchannels[index];
            usize::from(subchannel.ejection().is_out() && !subchannel.is_unselected())
        };
        let before = is_out(self);
        self.step_at(index, input);
        let after = is_out(self);
        if let Some(census) = &mut self.evidence.census {
            census.out = census.out + after - before;
        }
    }

    /// What all instances but the one with this index did with their calls so far.
    fn others(&mut self, index: usize) -> Compared {
        let Evidence { departed, total, .. } = &mut self.evidence;
        let all = self.subchannels.iter().map(Subchannel::compared);
        let total = *total.get_or_insert_with(|| all.fold(*departed, |sum, one| sum + one));
        total - self.subchannels[index].compared()
    }
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
