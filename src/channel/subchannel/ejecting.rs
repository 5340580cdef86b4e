//! The second machine of a subchannel: evidence takes an instance out, and time and evidence bring it back.

use std::sync::Arc;

use tokio::time::Instant;

use super::Subchannel;
use super::state::{Effects, MAX_BACKOFF, Publish, Reason, State, Wake};
use crate::channel::outlier::{Compared, DetectionMethod, Tally, Unenforced};
use crate::targets::CHANNEL;

impl<T> Subchannel<T> {
    pub(super) fn on_suspected(&mut self, tally: &Arc<Tally>, others: Compared) {
        if Arc::ptr_eq(tally, &self.tally) {
            self.others = Some(others);
        }
    }

    pub(super) fn on_failing(
        &mut self,
        tally: &Arc<Tally>,
        may_eject: bool,
        others: Compared,
        now: Instant,
        effects: &mut Effects,
    ) {
        if !Arc::ptr_eq(tally, &self.tally) {
            return;
        }
        let has_missed = tally.has_missed();
        let method = match (has_missed, self.ejection.is_on_probation()) {
            (true, _) => DetectionMethod::MissedDeadlines,
            (false, true) => DetectionMethod::Probation,
            (false, false) => DetectionMethod::FailuresInARow,
        };
        // Where nothing was noted the row is but one missed deadline long, and the latest calls of the others decide.
        if has_missed && others.is_as_slow(self.others.take().unwrap_or(others)) {
            // The method is slow, or its deadline short.
            self.take_back(now, "the others are as slow", effects);
            tally.excuse_row();
        } else if may_eject {
            self.eject(method, now, effects);
        } else {
            // The next row asks again.
            tally.restart_row();
            if !self.ejection.is_out() {
                self.reports.metrics.on_unenforced_ejection(method.label(), Unenforced::MaxEjectionOverflow.label());
                effects.admits = true;
            }
            self.take_back(now, "no more instances may be out", effects);
        }
    }

    pub(super) fn on_proved(&mut self, tally: &Arc<Tally>, now: Instant, effects: &mut Effects) {
        // Where that connection is gone, the first call on the next one decides.
        if Arc::ptr_eq(tally, &self.tally) && self.is_connected() {
            self.take_back(now, "it answers again", effects);
        }
    }

    pub(super) fn on_ejection_over(&mut self, others: Compared, now: Instant, effects: &mut Effects) {
        let Some(until) = self.ejection.begin_probation(now, &self.reports.outliers) else { return };
        effects.wake = Some((until, Wake::Probation));
        effects.publish = Publish::ReadySet;
        self.others = Some(others);
        // Calls that are still open on an earlier connection decide nothing.
        self.replace_tally(Tally::default());
        // A new connection shows that a server is there before a call is risked.
        match &self.state {
            State::Idle(Reason::Unselected | Reason::Withdrawn) => {}
            State::Ready(ready) => {
                self.is_recovering = !ready.is_proven(MAX_BACKOFF, now);
                self.queue(effects);
            }
            _ => self.queue(effects),
        }
    }

    pub(super) fn on_probation_over(&mut self, now: Instant, effects: &mut Effects) {
        if !self.ejection.is_probation_over(now) {
            return;
        }
        // A call that waits for its response may be about to decide.
        if self.connection().is_some_and(|connection| connection.load().is_awaited())
            && let Some(until) = self.ejection.prolong_probation(now, &self.reports.outliers)
        {
            effects.wake = Some((until, Wake::Probation));
        } else {
            self.take_back(now, "nothing was held against it", effects);
        }
    }

    /// Ends a probation, if there is one: the instance takes calls again.
    pub(super) fn take_back(&mut self, now: Instant, evidence: &str, effects: &mut Effects) {
        if self.ejection.take_back(now) {
            tracing::info!(target: CHANNEL, address = %self.address(), evidence, "instance returned");
            // A connection on probation counts as any other from now on.
            self.tally.restart_row();
            self.lift_probation();
            effects.publish = Publish::ReadySet;
        }
    }

    /// Leaves the instance out for a while, unless it is out already.
    pub(super) fn eject(&mut self, method: DetectionMethod, now: Instant, effects: &mut Effects) {
        let Some(until) = self.ejection.eject(now, &self.reports.outliers) else { return };
        tracing::info!(
            target: CHANNEL,
            address = %self.address(),
            for_s = (until - now).as_secs(),
            evidence = %method,
            "instance ejected"
        );
        self.reports.metrics.on_ejection(method.label());
        if !matches!(self.state, State::Ready(_) | State::Idle(_)) {
            self.enter(State::Idle(Reason::Ejected));
        }
        self.tally.reset();
        // Where nothing else is READY it takes all calls, and not one at a time.
        self.lift_probation();
        effects.wake = Some((until, Wake::Ejection));
        effects.publish = Publish::ReadySet;
    }

    pub(super) fn replace_tally(&mut self, tally: Tally) {
        self.past.missed += u64::from(self.tally.missed());
        self.tally = Arc::new(tally);
    }

    /// As many calls may come as the peer allows.
    pub(super) fn lift_probation(&self) {
        if let State::Ready(ready) = &self.state {
            ready.connection.load().quota().set_one_at_a_time(false);
        }
    }
}
