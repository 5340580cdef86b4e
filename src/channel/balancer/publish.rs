//! From the states of all instances to what calls choose from, or to why there is nothing.

use std::mem;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Dirty, FIRST_LIST, List, State, Timer};
use crate::channel::balancer::slow_start::SlowStart;
use crate::channel::picks::pick_queue::Published;
use crate::channel::picks::ready_set::Choice;
use crate::channel::policy::candidate::Candidate;
use crate::channel::subchannel::status::Connectivity;
use crate::channel::subchannel::{Entry, Phase};
use crate::snapshot::MemberState;

impl State {
    pub(crate) fn publish(&mut self) {
        let grew = mem::take(&mut self.grew);
        if self.dirty == Dirty::No && !grew {
            return;
        }
        let shared = &self.driver.shared;
        let before = shared.published.load();
        let is_choice = self.dirty == Dirty::Choice || grew || before.choice.is_none();
        if is_choice || !Arc::ptr_eq(&before.records, &self.records) {
            let growth = self.growth();
            let candidates = self.candidates(growth);
            let choice = (!candidates.is_empty()).then(|| self.choice(candidates, growth));
            let (state, cause) = match choice {
                Some(_) => (Connectivity::Ready, "".into()),
                None => self.why_not(),
            };
            let records = self.records.clone();
            shared.published.store(Arc::new(Published { choice, state, cause, records }));
        }
        drop(before);
        let is_news = mem::replace(&mut self.dirty, Dirty::No) != Dirty::No;
        if is_choice {
            self.grow();
        }
        let shared = &self.driver.shared;
        shared.serve();
        // That shares grew concerns calls alone.
        if is_news {
            self.driver.changed.send_replace(());
        }
    }

    /// What calls choose from.
    fn choice(&self, mut candidates: Vec<Candidate>, growth: Option<Growth>) -> Choice {
        let policy = &*self.driver.policy;
        match &self.driver.spread.zone {
            Some(zone) => {
                let is_known = |entry: &&Entry| {
                    entry.member.state() != MemberState::Draining && !matches!(entry.phase, Phase::Aside | Phase::Gone)
                };
                let known = self.entries.iter().filter(is_known).map(|entry| {
                    let instance = entry.member.instance();
                    (instance, Candidate::full_weight_of(instance) * growth.map_or(1, |growth| growth.most))
                });
                let zoned = zone.prefer(policy, &mut candidates, known);
                let (picker, near) = (zoned.picker(&candidates), zoned.near());
                Choice::of(candidates, picker, near)
            }
            None => Choice::new(candidates, policy),
        }
    }

    /// Sets shares anew after a while, if there is one that has to grow.
    fn grow(&mut self) {
        let Some(slow_start) = self.driver.spread.slow_start else { return };
        let now = Instant::now();
        let grows = |entry: &Entry| entry.is_ready() && entry.percent(slow_start, now) < 100;
        if !self.grows && self.entries.iter().any(grows) {
            self.grows = true;
            self.timer(now + slow_start.step(), Timer::Growth);
        }
    }

    /// If any instance has less than its weight by now.
    fn growth(&self) -> Option<Growth> {
        let (slow_start, now) = (self.driver.spread.slow_start?, Instant::now());
        let grows = |entry: &Entry| entry.percent(slow_start, now) < 100;
        let ready = self.entries.iter().filter(|entry| entry.is_ready());
        let most = ready.map(|entry| entry.percent(slow_start, now)).max().unwrap_or(100);
        self.entries.iter().any(grows).then_some(Growth { slow_start, now, most })
    }

    /// READY instances that stay and are not ejected; without any, ejected ones; without any, those that leave.
    fn candidates(&self, growth: Option<Growth>) -> Vec<Candidate> {
        let ready = |entry: &&Entry| entry.is_ready();
        let stays = |entry: &&Entry| entry.member.state() != MemberState::Draining;
        let wanted = |entry: &&Entry| !entry.ejection.is_out();
        let of =
            |entries: Vec<&Entry>| entries.into_iter().filter_map(|entry| candidate(entry, growth)).collect::<Vec<_>>();
        let best = of(self.entries.iter().filter(ready).filter(stays).filter(wanted).collect());
        if !best.is_empty() {
            return best;
        }
        let ejected = of(self.entries.iter().filter(ready).filter(stays).collect());
        if !ejected.is_empty() {
            return ejected;
        }
        of(self.entries.iter().filter(ready).collect())
    }

    /// The channel's state while there is nothing to choose from.
    fn why_not(&self) -> (Connectivity, Box<str>) {
        let failing = Connectivity::TransientFailure;
        match self.list {
            List::Awaited => return (Connectivity::Connecting, "".into()),
            List::Overdue => {
                return (failing, format!("the registry has not told the instances for {FIRST_LIST:?}").into());
            }
            List::Known => {}
        }
        let mut known =
            self.entries.iter().filter(|entry| !matches!(entry.phase, Phase::Gone | Phase::Aside)).peekable();
        if known.peek().is_none() {
            return (failing, "no instance is registered".into());
        }
        if known.any(|entry| entry.record.state() == Connectivity::Connecting) {
            return (Connectivity::Connecting, "".into());
        }
        let cause = self.cause.as_deref().unwrap_or("all are ejected");
        (failing, format!("no instance can be reached; the last one tried was {cause}").into())
    }

    /// Leaves nothing behind: connections end with the last of their calls.
    fn close(&mut self) {
        let records = Arc::new([]);
        let cause = "the channel is closed".into();
        let nothing = Published { choice: None, state: Connectivity::TransientFailure, cause, records };
        self.driver.shared.published.store(Arc::new(nothing));
        self.driver.shared.serve();
        for entry in &self.entries {
            // A load and its record know each other: neither would be dropped.
            entry.record.load.store(None);
        }
    }
}

/// How instances start slowly: weights are hundredths then.
#[derive(Clone, Copy)]
struct Growth {
    slow_start: SlowStart,
    now: Instant,
    /// What the READY instance that has most of its weight has of it, in percent.
    most: u32,
}

/// A candidate with the share that it has by now.
fn candidate(entry: &Entry, growth: Option<Growth>) -> Option<Candidate> {
    let candidate = entry.candidate()?;
    Some(match growth {
        Some(Growth { slow_start, now, .. }) => {
            let share = candidate.full_weight() * entry.percent(slow_start, now);
            candidate.with_weight(share)
        }
        None => candidate,
    })
}

/// However it ends: its runtime may end under it, and a policy of the user's may panic.
impl Drop for State {
    fn drop(&mut self) {
        self.close();
    }
}
