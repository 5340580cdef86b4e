//! The order of a subset becomes the instances that are connected: as many fit ones as the subset has.

use std::mem;

use tokio::time::Instant;

use super::Balancer;
use super::agenda::Due;
use crate::channel::subchannel::{Input, Publish, Subchannel};
use crate::instance::Address;
use crate::snapshot::MemberState;
use crate::targets::CHANNEL;

impl Balancer {
    /// Selects as many fit instances as the subset has, and all before them that may be fit again; unselects the
    /// others. Instances that were never selected have no subchannel.
    pub(super) fn select_subset(&mut self) {
        let Some(subset) = self.config.subset else { return self.warn_of_many() };
        if self.publish == Publish::Nothing {
            return;
        }
        let (now, order) = (Instant::now(), mem::take(&mut self.order));
        let (mut fit, mut settles_at, mut joined) = (0, None, Vec::new());
        let mut is_wanted = vec![false; self.subchannels.len()];
        for address in order.iter() {
            if fit >= subset.size() {
                break;
            }
            let Some(index) = self.find(address) else {
                let new = self.select_new(address);
                fit += new.iter().filter(|new| new.is_fit(now)).count();
                joined.extend(new);
                continue;
            };
            is_wanted[index] = true;
            if settles_at.is_none() {
                settles_at = self.subchannels[index].settles_at().filter(|at| *at > now);
            }
            if self.subchannels[index].is_unselected() {
                self.step_at(index, Input::Selected);
            }
            fit += usize::from(self.subchannels[index].is_fit(now));
        }
        self.order = order;
        for (index, is_wanted) in is_wanted.into_iter().enumerate() {
            if !is_wanted && !self.subchannels[index].is_unselected() {
                self.step_at(index, Input::Unselected);
            }
        }
        self.subchannels.update(&[], joined);
        if let Some(at) = settles_at.filter(|_| self.settles_at.is_none_or(|settles_at| settles_at <= now)) {
            self.settles_at = Some(at);
            self.agenda.add(at, Due::Settled);
        }
    }

    /// The subchannel of an instance that is selected for the first time.
    fn select_new(&mut self, address: &Address) -> Option<Subchannel> {
        let member = self.snapshot.get(address).filter(|member| member.state() == MemberState::Live)?;
        let (subchannel, effects) = Subchannel::new(member.clone(), self.reports.clone());
        self.carry_out(address, effects);
        Some(subchannel)
    }

    fn warn_of_many(&mut self) {
        if self.subchannels.len() >= MANY && !self.has_warned {
            self.has_warned = true;
            let instances = self.subchannels.len();
            tracing::warn!(
                target: CHANNEL,
                instances,
                "this channel connects to every instance; ChannelBuilder::subset lets it use fewer"
            );
        }
    }
}

/// From this many instances on, clients that connect to all of them cost too many connections.
const MANY: usize = 1_000;
