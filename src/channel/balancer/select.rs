//! Which instances are used, where that is not all of them.

use std::cmp::Reverse;
use std::mem;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Dirty, State, Timer};
use crate::channel::balancer::subset::MANY;
use crate::channel::subchannel::shared::Record;
use crate::channel::subchannel::{Entry, Phase};
use crate::instance::Instance;
use crate::snapshot::MemberState;

/// The places of all entries, the one that is used first at first.
#[derive(Default)]
pub(crate) struct Ranked {
    /// Whose order it is.
    records: Option<Arc<[Arc<Record>]>>,
    order: Vec<usize>,
}

impl Ranked {
    /// An instance has other tags now, so its zone may be another one.
    pub(crate) fn follow(&mut self, before: &Instance, after: &Instance) {
        if before.tags != after.tags {
            self.records = None;
        }
    }
}

impl State {
    /// Takes in a new instance.
    pub(crate) fn admit(&mut self, entry: &mut Entry) {
        match self.driver.spread.subset {
            Some(subset) => {
                entry.rank = subset.rank(entry.address());
                entry.phase = Phase::Aside;
            }
            None => self.enqueue(entry),
        }
    }

    /// Uses so many fit instances as the subset has, and all before them that may be fit again; sets the others aside.
    pub(crate) fn choose_subset(&mut self) {
        let Some(subset) = self.driver.spread.subset else { return self.warn_of_many() };
        if self.dirty == Dirty::No {
            return;
        }
        if !self.ranked.records.as_ref().is_some_and(|records| Arc::ptr_eq(records, &self.records)) {
            self.rank();
        }
        let order = mem::take(&mut self.ranked.order);
        let mut fit = 0;
        let now = Instant::now();
        for &index in &order {
            let is_wanted = fit < subset.size();
            self.with(index, |state, entry| {
                let is_aside = matches!(entry.phase, Phase::Aside);
                if let Some(at) = entry.settles_at().filter(|at| is_wanted && *at > now)
                    && state.settles.is_none_or(|settles| settles <= now)
                {
                    state.settles = Some(at);
                    state.timer(at, Timer::Settled);
                }
                if is_wanted && is_aside {
                    // Whoever leaves is no stand-in, and whose key is gone lives by its connection alone.
                    if entry.member.state() == MemberState::Live {
                        state.enqueue(entry);
                    }
                } else if !is_wanted && !is_aside {
                    entry.set_aside();
                    state.mark(Dirty::Choice);
                }
                fit += usize::from(is_wanted && entry.is_fit());
            });
        }
        self.ranked.order = order;
    }

    fn rank(&mut self) {
        let zone = self.driver.spread.zone.as_ref();
        let is_elsewhere = |entry: &Entry| zone.is_some_and(|zone| !zone.is_own(entry.member.instance()));
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        order.sort_by_key(|&index| (is_elsewhere(&self.entries[index]), Reverse(self.entries[index].rank)));
        self.ranked = Ranked { records: Some(self.records.clone()), order };
    }

    fn warn_of_many(&mut self) {
        if self.entries.len() >= MANY && !self.said_many {
            self.said_many = true;
            let instances = self.entries.len();
            tracing::warn!(
                instances,
                "this channel connects to every instance; ChannelBuilder::subset lets it use fewer"
            );
        }
    }
}
