//! Evidence about one instance becomes its ejection or return, in the light of what the others do.

use std::sync::Arc;

use tokio::time::Instant;

use super::Balancer;
use crate::channel::outlier::{self, Compared, Interval, Outlier, OutlierDetection, Tally, Unenforced};
use crate::channel::subchannel::{Input, Subchannel};
use crate::channel::transport::Transport;
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
        for Outlier { index, method, unenforced } in outliers(&self.subchannels, &self.reports.outliers) {
            let overflow = || (!self.may_eject()).then_some(Unenforced::MaxEjectionOverflow);
            match unenforced.or_else(overflow) {
                None => self.step_towards_ejection(index, Input::Outlier(method)),
                Some(reason) => self.reports.metrics.on_unenforced_ejection(method.label(), reason.label()),
            }
        }
        self.schedule_sweep(now);
    }

    /// The end of a turn. Where an instance failed that may not be ejected, those on probation come in: one that is
    /// connected must not be kept from taking calls while another one goes on failing.
    pub(super) fn end_evidence(&mut self) {
        if self.evidence.on_turn_over() {
            for index in 0..self.subchannels.len() {
                let subchannel = &self.subchannels[index];
                if subchannel.ejection().is_on_probation() && subchannel.is_ready() {
                    self.step_at(index, Input::Admitted);
                }
            }
        }
    }

    fn may_eject(&mut self) -> bool {
        self.evidence.may_eject(&self.subchannels, &self.reports.outliers)
    }

    fn others(&mut self, index: usize) -> Compared {
        self.evidence.others(&self.subchannels, index)
    }

    /// A step that may take an instance out, or bring one back.
    fn step_towards_ejection(&mut self, index: usize, input: Input<Transport>) {
        let is_out = |balancer: &Self| {
            let subchannel = &balancer.subchannels[index];
            subchannel.ejection().is_out() && !subchannel.is_unselected()
        };
        let was_out = is_out(self);
        self.step_at(index, input);
        let is_out = is_out(self);
        self.evidence.on_step(was_out, is_out);
    }
}

/// The instances that failed more often than the others since the last time.
fn outliers(subchannels: &[Subchannel], detection: &OutlierDetection) -> Vec<Outlier> {
    let interval = |subchannel: &Subchannel| {
        let (successes, failures) = subchannel.tally().take_interval();
        Interval { successes, failures, is_out: subchannel.ejection().is_out() }
    };
    let intervals: Vec<Interval> = subchannels.iter().map(interval).collect();
    outlier::sweep(&intervals, detection, || fastrand::u8(0..100))
}
