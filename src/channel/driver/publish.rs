//! From the states of all instances to what calls choose from, or to why there is nothing.

use std::sync::Arc;

use super::{Dirty, FIRST_LIST, List, State};
use crate::channel::candidate::Candidate;
use crate::channel::choice::Choice;
use crate::channel::entry::{Entry, Phase};
use crate::channel::shared::Published;
use crate::channel::view::Connectivity;
use crate::snapshot::MemberState;

impl State {
    pub(super) fn publish(&mut self) {
        if self.dirty == Dirty::No {
            return;
        }
        let shared = &self.driver.shared;
        let before = shared.published.load();
        let is_choice = self.dirty == Dirty::Choice || before.choice.is_none();
        if is_choice || !Arc::ptr_eq(&before.records, &self.records) {
            let candidates = self.candidates();
            let choice = (!candidates.is_empty()).then(|| Choice::new(candidates, &*self.driver.policy));
            let (state, cause) = match choice {
                Some(_) => (Connectivity::Ready, "".into()),
                None => self.why_not(),
            };
            let records = self.records.clone();
            shared.published.store(Arc::new(Published { choice, state, cause, records }));
        }
        drop(before);
        self.dirty = Dirty::No;
        shared.serve();
        self.driver.changed.send_replace(());
    }

    /// READY instances that stay and are not ejected; without any, ejected ones; without any, those that leave.
    fn candidates(&self) -> Vec<Candidate> {
        let ready = |entry: &&Entry| entry.is_ready();
        let stays = |entry: &&Entry| entry.member.state() != MemberState::Draining;
        let wanted = |entry: &&Entry| !entry.ejection.is_out();
        let of = |entries: Vec<&Entry>| entries.into_iter().filter_map(Entry::candidate).collect::<Vec<_>>();
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
        let mut known = self.entries.iter().filter(|entry| !matches!(entry.phase, Phase::Gone)).peekable();
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
            // A seat and its record know each other: neither would be dropped.
            entry.record.seat.store(None);
        }
    }
}

/// However it ends: its runtime may end under it, and a policy of the user's may panic.
impl Drop for State {
    fn drop(&mut self) {
        self.close();
    }
}
