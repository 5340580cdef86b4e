//! The states of all instances become the ready set that calls pick from, or the reason why there is none.

use std::sync::Arc;

use tokio::time::Instant;

use super::config::BalanceConfig;
use super::slow_start::SlowStart;
use crate::channel::error::ChannelError;
use crate::channel::picks::LbState;
use crate::channel::picks::ready_set::ReadySet;
use crate::channel::policy::Policy;
use crate::channel::policy::candidate::Candidate;
use crate::channel::subchannel::{Connectivity, ReadyConnection, Subchannel};
use crate::snapshot::MemberState;

/// What a state is made of.
pub(super) struct Published<'a> {
    pub(super) subchannels: &'a [Subchannel],
    pub(super) config: &'a BalanceConfig,
    pub(super) policy: &'a dyn Policy,
    /// Why calls fail where there are no instances.
    pub(super) none: &'a str,
    pub(super) now: Instant,
}

impl Published<'_> {
    /// The state of the channel. `no_list` is what follows from there being no list of instances, if there is none, and
    /// `failure` the newest reason why an instance is not READY.
    pub(super) fn state(&self, no_list: Option<NotReady>, failure: Option<&str>) -> LbState {
        let growth = self.growth();
        let members = self.members(growth);
        if members.is_empty() {
            let (connectivity, cause) = no_list.unwrap_or_else(|| self.why_not(failure));
            return LbState { connectivity, ready: None, cause: cause.map(Arc::new) };
        }
        let ready = Some(self.ready_set(members, growth));
        LbState { connectivity: Connectivity::Ready, ready, cause: None }
    }

    fn ready_set(&self, mut members: Vec<Member>, growth: Option<Growth>) -> ReadySet<Arc<ReadyConnection>> {
        let Some(zone) = &self.config.zone else {
            return ReadySet::new(members, 0, |candidates| self.policy.picker(candidates));
        };
        let near = zone.sort(&mut members);
        let counts =
            |subchannel: &&Subchannel| subchannel.member().state() != MemberState::Draining && subchannel.is_in_use();
        let known = self.subchannels.iter().filter(counts).map(|subchannel| {
            let instance = subchannel.instance();
            (instance, Candidate::full_share_of(instance) / 100 * growth.map_or(100, |growth| growth.most))
        });
        ReadySet::new(members, near, |candidates| zone.picker(self.policy, candidates, near, known))
    }

    /// READY instances that stay and are not ejected; without any, ejected ones; without any, draining ones.
    fn members(&self, growth: Option<Growth>) -> Vec<Member> {
        let stays = |subchannel: &Subchannel| subchannel.member().state() != MemberState::Draining;
        let is_in = |subchannel: &Subchannel| !subchannel.ejection().is_out();
        let of = |wanted: &dyn Fn(&Subchannel) -> bool| -> Vec<Member> {
            let wanted = self.subchannels.iter().filter(|subchannel| wanted(subchannel));
            wanted.filter_map(|subchannel| member(subchannel, growth)).collect()
        };
        let best = of(&|subchannel| stays(subchannel) && is_in(subchannel));
        if !best.is_empty() {
            self.limit_probations();
            return best;
        }
        let ejected = of(&stays);
        if ejected.is_empty() { of(&|_| true) } else { ejected }
    }

    /// On probation an instance takes one call at a time; where nothing else is READY it takes all calls.
    fn limit_probations(&self) {
        let is_on_probation = |subchannel: &&Subchannel| subchannel.ejection().is_on_probation();
        let has_others = self.subchannels.iter().any(|subchannel| {
            let is_staying = subchannel.member().state() != MemberState::Draining;
            subchannel.is_ready() && is_staying && !subchannel.ejection().is_out() && !is_on_probation(&subchannel)
        });
        for (candidate, _) in self.subchannels.iter().filter(is_on_probation).filter_map(Subchannel::candidate) {
            candidate.load().quota().set_one_at_a_time(has_others);
        }
    }

    /// The state of a channel without a READY instance.
    fn why_not(&self, failure: Option<&str>) -> NotReady {
        let mut used = self.subchannels.iter().filter(|subchannel| subchannel.is_in_use()).peekable();
        if used.peek().is_none() {
            return (Connectivity::TransientFailure, Some(ChannelError::NoInstances { reason: self.none.into() }));
        }
        if used.any(|subchannel| subchannel.connectivity() == Connectivity::Connecting) {
            return (Connectivity::Connecting, None);
        }
        (Connectivity::TransientFailure, Some(ChannelError::NoneReachable { last: failure.map(str::to_owned) }))
    }

    /// How instances start slowly, if any instance has less than its weight by now.
    fn growth(&self) -> Option<Growth> {
        let (slow_start, now) = (self.config.slow_start?, self.now);
        let percent = |subchannel: &Subchannel| slow_start.percent(subchannel.ready_since(), now);
        let ready = self.subchannels.iter().filter(|subchannel| subchannel.is_ready());
        let most = ready.map(percent).max().unwrap_or(100);
        self.subchannels.iter().any(|subchannel| percent(subchannel) < 100).then_some(Growth { slow_start, now, most })
    }
}

/// A state without a READY instance, and why calls fail if they do.
pub(super) type NotReady = (Connectivity, Option<ChannelError>);

type Member = (Candidate, Arc<ReadyConnection>);

/// How instances start slowly.
#[derive(Clone, Copy)]
struct Growth {
    slow_start: SlowStart,
    now: Instant,
    /// The percentage of its weight that the READY instance with most of it has.
    most: u32,
}

/// A candidate with the share that it has by now, and its connection.
fn member(subchannel: &Subchannel, growth: Option<Growth>) -> Option<Member> {
    let (candidate, connection) = subchannel.candidate()?;
    let candidate = match growth {
        Some(Growth { slow_start, now, .. }) => {
            candidate.with_percent(slow_start.percent(subchannel.ready_since(), now))
        }
        None => candidate,
    };
    Some((candidate, connection))
}
