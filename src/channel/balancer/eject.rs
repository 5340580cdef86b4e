//! Instances that fail are left out: what calls and sweeps say of them, to what the control task does.

use tokio::time::Instant;

use super::{Dirty, State, Timer};
use crate::channel::outlier::{self, Interval};
use crate::channel::subchannel::{Entry, Phase};

impl State {
    pub(crate) fn eject(&mut self, entry: &mut Entry) {
        let now = Instant::now();
        if let Some(until) = entry.eject(now, &self.driver.shared.settings.outliers) {
            tracing::info!(address = %entry.address(), for_s = (until - now).as_secs(), "instance ejected");
            self.timer(until, Timer::Probe(entry.address().clone()));
            self.mark(Dirty::Choice);
        }
    }

    /// Compares the instances by what their calls came to since the last time.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let interval = |entry: &Entry| {
            let (successes, failures) = entry.record.tally.take_interval();
            Interval { successes, failures, is_out: entry.ejection.is_out() }
        };
        let intervals: Vec<Interval> = self.entries.iter().map(interval).collect();
        for index in outlier::sweep(&intervals, self.outliers(), || fastrand::u8(0..100)) {
            if self.may_eject() {
                self.with(index, Self::eject);
            }
        }
        if let Some(interval) = self.outliers().sweep_interval() {
            self.timer(now + interval, Timer::Sweep);
        }
    }

    pub(crate) fn may_eject(&self) -> bool {
        let is_out = |entry: &&Entry| entry.ejection.is_out() || entry.ejection.is_on_probation();
        let used = || self.entries.iter().filter(|entry| !matches!(entry.phase, Phase::Aside));
        outlier::may_eject(used().filter(is_out).count(), used().count(), self.outliers())
    }

    fn outliers(&self) -> &outlier::OutlierDetection {
        &self.driver.shared.settings.outliers
    }
}
