//! One instance as its channel sees it: registry news, attempts to connect, connections and calls go in, effects come
//! out.
//!
//! ```text
//!                    its turn                connected
//!  Queued ----------------------> Connecting ----------> Ready --+
//!    ^  ^                             |                          | the connection ended
//!    |  |          failed             v                          |
//!    |  +-------- its time ------- Backoff <------ it failed ----+
//!    |                                                           |
//!    +------------------------------------- it was a good one ---+
//!    |                                                           |
//!    +-- a reason no more -- Idle(Ejected | Unselected | Withdrawn) <-- a reason --+ (from any state)
//!
//!  In ---failures---> Out ---time---> Probation ---a response begins, or time---> In
//!                      ^                  |
//!                      +---a call fails---+
//! ```
//!
//! The reasons: an instance is `Ejected` while it is out and has no connection, `Unselected` while the subset uses
//! others, and `Withdrawn` once its connection ended and it announced its leave or its key is gone.
//!
//! The second machine, [`Ejection`], runs beside the first: an instance that is out keeps a connection that it has. The
//! end of its time retires that and queues the instance anew (from any state but `Unselected` and `Withdrawn`). On
//! probation it takes one call at a time until the head of a response comes, or until nothing was held against it for
//! a while; it comes in at once where another instance fails that may not be ejected. Both are stepped by
//! [`Subchannel::on`] alone, and everything that calls and people see is derived from them: [`Connectivity`] and the
//! view in [`Shared`] there, the places of a quota on probation with each ready set.
//!
//! # Layout
//!
//! | file | |
//! | --- | --- |
//! | `connection` | a READY connection: what calls are picked for, and their feedback |
//! | `ejecting` | the second machine |
//! | `end` | how a connection ended |
//! | `queries` | what the balancer asks |
//! | `state` | states, inputs, effects |
//! | `shared` | the view that calls and people read |
//! | `status` | connectivity and [`InstanceStatus`] |
//! | `ticket` | what tells one attempt from the next |

mod connection;
mod ejecting;
mod end;
mod queries;
mod shared;
mod state;
mod status;
mod ticket;

use std::mem;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use self::shared::View;
use self::state::{FIRST_BACKOFF, MAX_BACKOFF, Ready, Reason, SETTLED, State};
use crate::backoff::Backoff;
use crate::channel::outlier::{Compared, Ejection, Outcome, StatusOrigin, Tally};
use crate::channel::transport::Transport;
use crate::metrics::channel::InstanceFigure;
use crate::snapshot::{Member, MemberState};
use crate::targets::CHANNEL;

#[cfg(feature = "health")]
pub(crate) use self::connection::HealthVerdict;
pub(crate) use self::connection::{FeedbackEvent, ReadyConnection, Reports};
pub(crate) use self::end::{End, EndKind};
pub(crate) use self::shared::Shared;
pub(crate) use self::state::{Effects, Established, Input, Publish, Turn, Wake, Wish};
pub use self::status::{Connectivity, InstanceStatus};
pub(crate) use self::ticket::Ticket;

/// One instance as its channel sees it.
pub(crate) struct Subchannel<T = Transport> {
    member: Member,
    state: State<T>,
    ejection: Ejection,
    /// Why the instance is not READY: the error of the last attempt, of the lost connection, or its health.
    failure: Option<Arc<str>>,
    backoff: Backoff,
    /// Since when the instance is READY as a new process; `None` for one that was not READY since.
    ready_since: Option<Instant>,
    /// Whether an attempt or a connection failed before the present one.
    is_recovering: bool,
    /// The calls that are counted together. Each connection that is made on probation has a tally of its own, so that
    /// calls on earlier ones decide nothing.
    tally: Arc<Tally>,
    /// What the other instances had done when the present row of missed deadlines, or the probation, began.
    others: Option<Compared>,
    /// What it did with its calls on earlier connections, and before earlier tallies.
    past: Compared,
    shared: Arc<Shared>,
    /// Earlier connections whose streams may go on; sending gives those streams a limit.
    retired: Vec<oneshot::Sender<()>>,
    reports: Reports,
    figure: InstanceFigure,
}

impl<T> Subchannel<T> {
    /// A new instance that is selected, and its first effects.
    pub(crate) fn new(member: Member, reports: Reports) -> (Self, Effects) {
        let mut new = Self::unselected(member, reports);
        let mut effects = Effects::default();
        new.queue(&mut effects);
        new.publish_view();
        (new, effects)
    }

    /// A new instance that is not selected.
    fn unselected(member: Member, reports: Reports) -> Self {
        let view = View {
            instance: member.shared_instance().clone(),
            connectivity: Connectivity::Idle,
            is_ejected: false,
            is_draining: member.state() == MemberState::Draining,
            failure: None,
            load: None,
        };
        Self {
            member,
            state: State::Idle(Reason::Unselected),
            ejection: Ejection::default(),
            failure: None,
            backoff: Backoff::new(FIRST_BACKOFF, MAX_BACKOFF),
            ready_since: None,
            is_recovering: false,
            tally: Arc::default(),
            others: None,
            past: Compared::default(),
            shared: Arc::new(Shared::new(view)),
            retired: Vec::new(),
            figure: reports.metrics.instance(),
            reports,
        }
    }

    /// Takes an input in, and returns what follows from it. Stale tickets and tallies change nothing.
    pub(crate) fn on(&mut self, input: Input<T>, now: Instant) -> Effects {
        let mut effects = Effects::default();
        match input {
            Input::Updated(member) => self.on_updated(member, &mut effects),
            Input::Selected => self.on_selected(&mut effects),
            Input::Unselected => self.on_unselected(&mut effects),
            Input::Turn(ticket) => self.on_turn(ticket, &mut effects),
            Input::Connected(ticket, established) => self.on_connected(ticket, established, now, &mut effects),
            Input::ConnectFailed(ticket, cause) => self.on_connect_failed(ticket, cause, now, &mut effects),
            Input::BackoffOver(ticket) => self.on_backoff_over(ticket, &mut effects),
            Input::Ended(ticket, end) => self.on_ended(ticket, end, now, &mut effects),
            #[cfg(feature = "health")]
            Input::Health(ticket, verdict) => self.on_health(ticket, verdict, now, &mut effects),
            Input::Suspected { tally, others } => self.on_suspected(&tally, others),
            Input::Failing { tally, may_eject, others } => {
                self.on_failing(&tally, may_eject, others, now, &mut effects);
            }
            Input::Proved(tally) => self.on_proved(&tally, now, &mut effects),
            Input::Admitted => self.take_back(now, "another instance fails", &mut effects),
            Input::Outlier(method) => self.eject(method, now, &mut effects),
            Input::EjectionOver { others } => self.on_ejection_over(others, now, &mut effects),
            Input::ProbationOver => self.on_probation_over(now, &mut effects),
        }
        self.publish_view();
        effects
    }

    /// The instance left the list: the streams of all its connections finish within a limit.
    pub(crate) fn leave(mut self) {
        self.enter(State::Idle(Reason::Withdrawn));
        for retire in self.retired {
            // The connection may have ended already.
            let _ = retire.send(());
        }
    }

    fn on_updated(&mut self, member: Member, effects: &mut Effects) {
        if self.is_unchanged(&member) {
            return;
        }
        let is_restarted = self.member.lease() != member.lease();
        self.member = member;
        effects.publish = if self.is_ready() { Publish::ReadySet } else { Publish::Status };
        if is_restarted {
            self.forgive();
            // The connection may still lead to the process before, which is gone.
            effects.suspect = self.is_connected();
        }
        match (&self.state, self.member.state()) {
            (State::Ready(_) | State::Idle(Reason::Unselected), _) => {}
            // A suspect lives by its connection alone.
            (_, MemberState::Suspect) => self.enter(State::Idle(Reason::Withdrawn)),
            (State::Idle(Reason::Withdrawn), _) => self.queue(effects),
            (State::Backoff(_) | State::Idle(Reason::Ejected), _) if is_restarted => self.queue(effects),
            _ => {}
        }
    }

    fn on_selected(&mut self, effects: &mut Effects) {
        // A draining instance is no replacement, and a suspect lives by its connection alone.
        // One that is out is dialled, too: where nothing else is READY it takes all calls.
        if self.is_unselected() && self.member.state() == MemberState::Live {
            self.queue(effects);
        }
    }

    fn on_unselected(&mut self, effects: &mut Effects) {
        if !self.is_unselected() {
            self.failure = None;
            self.is_recovering = false;
            self.enter(State::Idle(Reason::Unselected));
            effects.publish = Publish::ReadySet;
        }
    }

    fn on_turn(&mut self, ticket: Ticket, effects: &mut Effects) {
        if matches!(self.state, State::Queued(queued) if queued == ticket) {
            self.enter(State::Connecting(ticket));
            effects.dial = Some(self.wish(ticket));
        }
    }

    fn on_connected(&mut self, ticket: Ticket, new: Established<T>, now: Instant, effects: &mut Effects) {
        if !self.is_connecting(ticket) {
            return;
        }
        let Established { transport, load, retire, health } = new;
        if self.ejection.is_on_probation() {
            self.replace_tally(Tally::on_probation());
            load.quota().set_one_at_a_time(true);
        }
        let connection = Arc::new(ReadyConnection::new(
            transport,
            load,
            (self.address().clone(), ticket),
            self.tally.clone(),
            self.reports.clone(),
        ));
        let is_serving = health.is_none();
        self.failure = None;
        self.enter(State::Ready(Ready { connection, ticket, since: now, is_serving, _health: health, retire }));
        self.begin_if_new(now);
        effects.publish = Publish::ReadySet;
    }

    fn on_connect_failed(&mut self, ticket: Ticket, cause: Arc<str>, now: Instant, effects: &mut Effects) {
        if self.is_connecting(ticket) {
            // The next process at the address is another one, most likely: its key may tell so only later.
            self.ready_since = None;
            self.is_recovering = true;
            self.back_off(now, effects);
            self.fail(cause, effects);
        }
    }

    fn on_backoff_over(&mut self, ticket: Ticket, effects: &mut Effects) {
        if matches!(self.state, State::Backoff(waiting) if waiting == ticket) {
            self.queue(effects);
        }
    }

    fn on_ended(&mut self, ticket: Ticket, end: End, now: Instant, effects: &mut Effects) {
        let Some(ready) = self.ready_with(ticket) else { return };
        let End { kind, cause } = end;
        // What ended as planned is wanted back sooner; only an end right after the beginning is not.
        let long = if kind == EndKind::Planned { SETTLED } else { MAX_BACKOFF };
        let was_good = ready.is_proven(long, now);
        tracing::debug!(target: CHANNEL, address = %self.address(), %cause, "connection ended");
        effects.publish = Publish::ReadySet;
        let was_recovering = mem::replace(&mut self.is_recovering, !was_good);
        if was_good {
            self.backoff.reset();
        }
        self.tally.forget_missed();
        if kind == EndKind::Broken {
            self.on_broken(effects);
        }
        if self.member.state() != MemberState::Live {
            // It announced its leave, or its key is gone: the end of its connection settles that.
            self.enter(State::Idle(Reason::Withdrawn));
        } else if self.ejection.is_out() {
            self.enter(State::Idle(Reason::Ejected));
            self.fail(cause, effects);
        } else if was_good {
            self.queue(effects);
        } else {
            self.back_off(now, effects);
            // One that ends each connection at once is no server for calls, however it says so.
            if kind != EndKind::Planned || was_recovering {
                self.fail(cause, effects);
            }
        }
    }

    /// The calls on the connection were one failure.
    fn on_broken(&mut self, effects: &mut Effects) {
        let outliers = &self.reports.outliers;
        let outcome = Outcome::new(tonic::Code::Unavailable, StatusOrigin::Broken);
        effects.failing = outliers.is_failure(outcome) && self.tally.on_broken(outliers);
    }

    #[cfg(feature = "health")]
    fn on_health(&mut self, ticket: Ticket, verdict: HealthVerdict, now: Instant, effects: &mut Effects) {
        let State::Ready(ready) = &mut self.state else { return };
        if ready.ticket != ticket {
            return;
        }
        ready.is_serving = verdict.is_ok();
        self.failure = verdict.err();
        self.begin_if_new(now);
        effects.failure.clone_from(&self.failure);
        effects.publish = Publish::ReadySet;
    }

    /// A new process stands at the address: the failures of its predecessor do not count.
    fn forgive(&mut self) {
        // A connection that stands is one to the process that it was, under another lease: its health is what it was.
        if !self.is_connected() {
            self.ready_since = None;
            self.failure = None;
        }
        self.ejection.clear();
        self.backoff.reset();
        self.tally.reset();
        self.lift_probation();
    }

    /// An instance that is READY for the first time begins slowly now.
    fn begin_if_new(&mut self, now: Instant) {
        if self.is_ready() {
            self.ready_since.get_or_insert(now);
        }
    }

    /// Wants a connection, in its turn.
    fn queue(&mut self, effects: &mut Effects) {
        if matches!(self.state, State::Idle(_)) {
            // Nothing was tried meanwhile, so nothing failed.
            self.failure = None;
        }
        let ticket = Ticket::next();
        self.enter(State::Queued(ticket));
        effects.queue = Some(self.wish(ticket));
    }

    fn wish(&self, ticket: Ticket) -> Wish {
        let back_off = self.backoff.ceiling();
        let turn = if self.is_recovering && back_off > FIRST_BACKOFF { Turn::Retry } else { Turn::First };
        Wish { ticket, turn, back_off }
    }

    fn back_off(&mut self, now: Instant, effects: &mut Effects) {
        let ticket = Ticket::next();
        self.enter(State::Backoff(ticket));
        effects.wake = Some((now + self.backoff.next(), Wake::Backoff(ticket)));
        effects.publish = effects.publish.max(Publish::Status);
    }

    /// Says why the instance is not READY.
    fn fail(&mut self, cause: Arc<str>, effects: &mut Effects) {
        self.failure = Some(cause.clone());
        effects.failure = Some(cause);
    }

    /// The one place that sets the state. A connection that is left takes no more calls, and its streams go on.
    fn enter(&mut self, state: State<T>) {
        if let State::Ready(left) = mem::replace(&mut self.state, state) {
            left.connection.load().quota().close();
            self.past.answered += u64::from(left.connection.load().answers());
            self.tally.forget_missed();
            self.retired.retain(|retire| !retire.is_closed());
            self.retired.push(left.retire);
        }
    }

    fn publish_view(&mut self) {
        self.figure.set(self.counted_as());
        let load = match &self.state {
            State::Ready(ready) => Some(ready.connection.load().clone()),
            _ => None,
        };
        self.shared.publish(View {
            instance: self.member.shared_instance().clone(),
            connectivity: self.connectivity(),
            is_ejected: self.ejection.is_out(),
            is_draining: self.member.state() == MemberState::Draining,
            failure: self.failure.clone(),
            load,
        });
    }
}

#[cfg(test)]
mod tests;
