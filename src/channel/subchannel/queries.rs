//! What the balancer asks of a subchannel; nothing here changes one.

use std::sync::Arc;

use tokio::time::Instant;

use super::Subchannel;
use super::connection::ReadyConnection;
use super::shared::Shared;
use super::state::{Ready, Reason, SETTLED, State};
use super::status::Connectivity;
use super::ticket::Ticket;
use crate::channel::outlier::{Compared, Ejection, Tally};
use crate::channel::policy::candidate::Candidate;
use crate::instance::{Address, Instance};
use crate::metrics::channel::InstanceState;
use crate::snapshot::{Member, MemberState};

impl<T> Subchannel<T> {
    pub(crate) fn member(&self) -> &Member {
        &self.member
    }

    pub(crate) fn instance(&self) -> &Instance {
        self.member.instance()
    }

    pub(crate) fn address(&self) -> &Address {
        &self.member.instance().address
    }

    /// gRPC's state, derived from ours.
    pub(crate) fn connectivity(&self) -> Connectivity {
        self.state.connectivity(self.failure.is_some())
    }

    /// Where it is counted: what keeps it from taking calls goes before the state of its connection.
    pub(super) fn counted_as(&self) -> InstanceState {
        if self.is_unselected() {
            return InstanceState::Unused;
        }
        if self.ejection.is_out() {
            return InstanceState::Ejected;
        }
        match (self.member.state(), self.connectivity()) {
            (MemberState::Draining, _) => InstanceState::Draining,
            (MemberState::Suspect, Connectivity::Ready) => InstanceState::Suspect,
            (_, Connectivity::Ready) => InstanceState::Ready,
            (_, Connectivity::Connecting) => InstanceState::Connecting,
            (_, Connectivity::TransientFailure) => InstanceState::TransientFailure,
            (_, Connectivity::Idle | Connectivity::Shutdown) => InstanceState::Idle,
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn ejection(&self) -> &Ejection {
        &self.ejection
    }

    pub(crate) fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Since when the instance is READY as a new process; `None` before that.
    pub(crate) fn ready_since(&self) -> Option<Instant> {
        self.ready_since
    }

    pub(crate) fn is_unselected(&self) -> bool {
        matches!(self.state, State::Idle(Reason::Unselected))
    }

    /// Whether a connection is or will be wanted without news from the registry or the subset.
    pub(crate) fn is_in_use(&self) -> bool {
        !matches!(self.state, State::Idle(Reason::Unselected | Reason::Withdrawn))
    }

    /// Whether the attempt with this ticket is under way.
    pub(crate) fn is_connecting(&self, ticket: Ticket) -> bool {
        matches!(self.state, State::Connecting(attempt) if attempt == ticket)
    }

    /// Whether calls may be picked for it: it is connected, and its server serves as far as that is known.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(&self.state, State::Ready(ready) if ready.is_serving)
    }

    /// What calls are picked from, if it is READY.
    pub(crate) fn candidate(&self) -> Option<(Candidate, Arc<ReadyConnection<T>>)> {
        match &self.state {
            State::Ready(ready) if ready.is_serving => {
                let candidate = Candidate::new(ready.connection.load().clone(), self.member.shared_instance().clone());
                Some((candidate, ready.connection.clone()))
            }
            _ => None,
        }
    }

    /// Whether calls go to it, or will soon: it neither failed nor leaves.
    pub(crate) fn is_fit(&self, now: Instant) -> bool {
        let stays = match self.member.state() {
            MemberState::Live => true,
            // It lives by its connection: an etcd that forgets everything must not make each client dial all instances.
            MemberState::Suspect => self.is_ready(),
            MemberState::Draining => false,
        };
        let is_trusted = !self.ejection.is_out() && !self.ejection.is_on_probation();
        let is_good = match &self.state {
            State::Queued(_) | State::Connecting(_) => self.failure.is_none(),
            State::Ready(ready) => {
                let is_settled = !self.is_recovering || ready.is_proven(SETTLED, now);
                // A server that has not reported its health yet will soon.
                is_settled && (ready.is_serving || self.failure.is_none())
            }
            State::Idle(_) | State::Backoff(_) => false,
        };
        stays && is_trusted && is_good
    }

    /// When an instance that came back stands long enough to need no replacement: one that comes back only to fail
    /// again would let the replacement come and go as often.
    pub(crate) fn settles_at(&self) -> Option<Instant> {
        match &self.state {
            State::Ready(ready) if self.is_recovering => Some(ready.since + SETTLED),
            _ => None,
        }
    }

    /// What it did with its calls so far.
    pub(crate) fn compared(&self) -> Compared {
        let is_ready = self.is_ready() && !self.ejection.is_out();
        let present = Compared {
            answered: self.connection().map_or(0, |connection| connection.load().answers().into()),
            missed: self.tally.missed().into(),
            ready: is_ready.into(),
            missing: (is_ready && self.tally.has_missed()).into(),
        };
        self.past + present
    }

    /// Its connection, whether its server serves or not.
    pub(crate) fn connection(&self) -> Option<&Arc<ReadyConnection<T>>> {
        match &self.state {
            State::Ready(ready) => Some(&ready.connection),
            _ => None,
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    pub(super) fn ready_with(&self, ticket: Ticket) -> Option<&Ready<T>> {
        match &self.state {
            State::Ready(ready) if ready.ticket == ticket => Some(ready),
            _ => None,
        }
    }

    /// Whether a member of a snapshot says nothing new.
    pub(super) fn is_unchanged(&self, member: &Member) -> bool {
        let is_same = Arc::ptr_eq(self.member.shared_instance(), member.shared_instance());
        self.member.state() == member.state()
            && self.member.lease() == member.lease()
            && (is_same || self.member.instance() == member.instance())
    }
}
