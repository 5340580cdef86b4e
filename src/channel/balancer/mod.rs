//! Snapshots and feedback become ready sets: the one task of a channel.
//!
//! It owns every subchannel, feeds inputs to them and carries out their effects. It never waits for an instance:
//! attempts to connect, connections and calls run on tasks of their own and send feedback. All that is there at one
//! moment is taken in before one ready set is published.
//!
//! # Layout
//!
//! | file | |
//! | --- | --- |
//! | `dialer` | wishes to connect -> attempts |
//! | `connecting` | transports -> connections that are driven |
//! | `publish` | subchannels -> the ready set, or the reason for none |
//! | `eject`, `evidence` | evidence -> ejections and returns, within the limit |
//! | `select` | the order of a subset -> the instances that are used |
//! | `subset`, `zone`, `slow_start`, `config` | which instances are used, and the share of each |
//! | `subchannels` | all of them, in order |
//! | `agenda`, `pulse` | what is due later, and whether that came far too late |
//! | `health` | `grpc.health.v1` answers -> feedback |

mod agenda;
mod config;
mod connecting;
mod dialer;
mod eject;
mod evidence;
#[cfg(feature = "health")]
mod health;
mod listing;
mod publish;
mod pulse;
mod select;
mod slow_start;
mod subchannels;
mod subset;
mod zone;

use std::convert::Infallible;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::agenda::{Agenda, Due};
use self::dialer::{Attempt, Dialer};
use self::evidence::Evidence;
use self::listing::{FIRST_LIST, LOOK_INTERVAL};
use self::publish::Published;
use self::pulse::Pulse;
use self::subchannels::Subchannels;
use self::subset::SubsetOrder;
use super::error::ChannelError;
use super::picks::{LbState, PickQueue};
use super::subchannel::{Connectivity, Effects, FeedbackEvent, Input, Publish, Reports, Subchannel, Wake};
use crate::instance::Address;
use crate::metrics::Share;
use crate::metrics::channel::UnusedFigure;
use crate::snapshot::{Difference, Member, Snapshot};
use crate::targets::CHANNEL;
use crate::time::sleep_until;

pub(crate) use self::config::BalanceConfig;
pub(crate) use self::connecting::ConnectConfig;
pub(crate) use self::listing::Listing;
pub(crate) use self::slow_start::SlowStart;
pub(crate) use self::subset::Subset;
pub(crate) use self::zone::Zone;

/// The one task of a channel, and all that it owns.
pub(crate) struct Balancer {
    queue: Arc<PickQueue>,
    config: BalanceConfig,
    connect: ConnectConfig,
    reports: Reports,
    changed: watch::Sender<()>,
    /// The last snapshot.
    snapshot: Arc<Snapshot>,
    /// One per member of it; with a subset, one per member that was ever selected.
    subchannels: Subchannels,
    order: SubsetOrder,
    dialer: Dialer,
    agenda: Agenda,
    pulse: Pulse,
    list: List,
    listing: Listing,
    evidence: Evidence,
    /// What has to be published.
    publish: Publish,
    growth: Growth,
    /// When an instance that came back may need no replacement any more.
    settles_at: Option<Instant>,
    /// The newest reason why an instance is not READY.
    failure: Option<Arc<str>>,
    /// Whether the warning of many instances was logged.
    has_warned: bool,
    /// The channel among those that have not ended.
    _open: Share,
    /// The members without a subchannel.
    unused: UnusedFigure,
}

/// What the balancer listens to.
pub(crate) struct Inputs {
    pub(crate) snapshots: BoxStream<'static, Arc<Snapshot>>,
    pub(crate) feedback: mpsc::UnboundedReceiver<FeedbackEvent>,
    /// Ends with the last handle of the channel.
    pub(crate) handles: mpsc::Receiver<Infallible>,
}

/// What is known of the list of instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    /// It did not come yet: calls wait.
    Awaited,
    /// It did not come for so long that calls fail.
    Overdue,
    /// It came.
    Known,
}

/// Whether shares of new instances grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Growth {
    /// None does, as far as is known.
    Still,
    /// They are to be set anew later.
    Scheduled,
    /// They are to be set anew now.
    Due,
}

impl Balancer {
    pub(crate) fn new(
        queue: Arc<PickQueue>,
        config: BalanceConfig,
        connect: ConnectConfig,
        reports: Reports,
        listing: Listing,
        changed: watch::Sender<()>,
    ) -> Self {
        let dialer = Dialer::new(connect.transport.clone());
        let (open, unused) = (reports.metrics.open(), reports.metrics.unused());
        Self {
            queue,
            config,
            connect,
            reports,
            changed,
            snapshot: Arc::new(Snapshot::new(0, Vec::new())),
            subchannels: Subchannels::new(),
            order: SubsetOrder::default(),
            dialer,
            agenda: Agenda::default(),
            pulse: Pulse::new(Instant::now(), SystemTime::now()),
            list: List::Awaited,
            listing,
            evidence: Evidence::default(),
            publish: Publish::Nothing,
            growth: Growth::Still,
            settles_at: None,
            failure: None,
            has_warned: false,
            _open: open,
            unused,
        }
    }

    /// Runs until the last handle of the channel is dropped.
    pub(crate) async fn run(mut self, mut inputs: Inputs) {
        let now = Instant::now();
        self.agenda.add(now + FIRST_LIST, Due::FirstList);
        self.agenda.add(now + LOOK_INTERVAL, Due::List);
        self.agenda.add(self.pulse.due(), Due::Pulse);
        self.schedule_sweep(now);
        loop {
            let next_time = self.next_time();
            tokio::select! {
                biased;
                _ = inputs.handles.recv() => return,
                Some(event) = inputs.feedback.recv() => {
                    self.on_feedback(event);
                    // Not all of them: where thousands fail there are always more, and calls wait for what is
                    // published.
                    for _ in 0..EVENTS_PER_TURN {
                        let Ok(event) = inputs.feedback.try_recv() else { break };
                        self.on_feedback(event);
                    }
                }
                snapshot = AssertUnwindSafe(inputs.snapshots.next()).catch_unwind() => match snapshot {
                    Ok(Some(snapshot)) => self.on_snapshot(&snapshot),
                    // A list that ends is final, and so is one of the user's that panics.
                    Ok(None) | Err(_) => inputs.snapshots = futures_util::stream::pending().boxed(),
                },
                Some(attempt) = self.dialer.next() => {
                    self.on_attempt(attempt);
                    while let Some(attempt) = self.dialer.try_next() {
                        self.on_attempt(attempt);
                    }
                }
                () = sleep_until(next_time) => self.on_time(Instant::now()),
            }
            self.end_evidence();
            self.select_subset();
            self.dial();
            self.publish();
        }
    }

    /// When something is due next.
    fn next_time(&self) -> Option<Instant> {
        [self.agenda.next(), self.dialer.next_release()].into_iter().flatten().min()
    }

    /// Subchannels of instances that stay are kept, and updated. What it costs goes by what changed.
    fn on_snapshot(&mut self, snapshot: &Arc<Snapshot>) {
        let now = Instant::now();
        self.list = List::Known;
        if snapshot.is_empty() {
            self.listing.on_none();
        }
        // Also an empty list is news: calls that waited for it fail now.
        self.publish = self.publish.max(Publish::Status);
        let before = mem::replace(&mut self.snapshot, snapshot.clone());
        if let Some(subset) = self.config.subset {
            let was_selected = |address: &Address| self.subchannels.find(address).is_some();
            self.order.on_snapshot(subset, self.config.zone.as_ref(), was_selected, (&before, snapshot));
        }
        let (mut left, mut joined) = (Vec::new(), Vec::new());
        for difference in snapshot.changes_since(&before) {
            match difference {
                Difference::Changed(_, member) => self.update(member, now),
                Difference::Joined(member) => joined.extend(self.admit(member)),
                Difference::Left(member) => {
                    tracing::info!(target: CHANNEL, address = %member.address(), "instance removed");
                    left.extend(self.find(member.address()));
                }
            }
        }
        for subchannel in self.subchannels.update(&left, joined) {
            self.remove(subchannel);
        }
    }

    fn update(&mut self, member: &Member, now: Instant) {
        let Some(index) = self.find(member.address()) else { return };
        let subchannel = &mut self.subchannels[index];
        let effects = subchannel.on(Input::Updated(member.clone()), now);
        if effects.suspect
            && let Some(connection) = subchannel.connection()
        {
            connection.transport().suspect();
        }
        self.carry_out(member.address(), effects);
    }

    /// The subchannel of a new instance, unless the subset has to select it first.
    fn admit(&mut self, member: &Member) -> Option<Subchannel> {
        tracing::info!(target: CHANNEL, address = %member.address(), "instance added");
        if self.config.subset.is_some() {
            return None;
        }
        let (subchannel, effects) = Subchannel::new(member.clone(), self.reports.clone());
        self.carry_out(member.address(), effects);
        Some(subchannel)
    }

    fn remove(&mut self, subchannel: Subchannel) {
        if subchannel.is_ready() {
            self.publish = Publish::ReadySet;
        }
        self.dialer.forget(subchannel.address());
        self.evidence.on_left(subchannel.compared());
        subchannel.leave();
    }

    fn on_feedback(&mut self, event: FeedbackEvent) {
        match event {
            FeedbackEvent::Ended { address, ticket, end } => self.step(&address, Input::Ended(ticket, end)),
            #[cfg(feature = "health")]
            FeedbackEvent::Health { address, ticket, verdict } => self.step(&address, Input::Health(ticket, verdict)),
            FeedbackEvent::Suspected { address, tally } => self.on_suspected(&address, tally),
            FeedbackEvent::Failing { address, tally } => self.on_failing(&address, tally),
            FeedbackEvent::TooManyPings { address } => {
                if self.find(&address).is_some() {
                    self.dialer.on_too_many_pings(&address);
                }
            }
            FeedbackEvent::Proved { address, tally } => self.step(&address, Input::Proved(tally)),
        }
    }

    fn on_attempt(&mut self, Attempt { address, ticket, result, .. }: Attempt) {
        let Some(index) = self.find(&address).filter(|&index| self.subchannels[index].is_connecting(ticket)) else {
            return;
        };
        let input = match result {
            Ok(connection) => {
                tracing::debug!(target: CHANNEL, %address, streams = connection.max_streams, "connected");
                let events = &self.reports.events;
                let established =
                    connecting::establish((&address, ticket), connection, &self.connect, &self.queue, events);
                Input::Connected(ticket, established)
            }
            Err(cause) => {
                tracing::debug!(target: CHANNEL, %cause, "cannot connect");
                self.reports.metrics.on_connect_failed();
                Input::ConnectFailed(ticket, cause)
            }
        };
        self.step_at(index, input);
    }

    fn on_time(&mut self, now: Instant) {
        while let Some(due) = self.agenda.take_due(now) {
            match due {
                Due::Wake(address, Wake::Backoff(ticket)) => self.step(&address, Input::BackoffOver(ticket)),
                Due::Wake(address, Wake::Ejection) => self.on_ejection_over(&address),
                Due::Wake(address, Wake::Probation) => self.step(&address, Input::ProbationOver),
                Due::Sweep => self.sweep(now),
                Due::Growth => self.growth = Growth::Due,
                Due::Settled => self.publish = self.publish.max(Publish::Status),
                Due::Pulse => self.on_pulse(now),
                Due::List => {
                    if self.list == List::Awaited {
                        if self.listing.on_awaited() {
                            self.publish = self.publish.max(Publish::Status);
                        }
                        self.agenda.add(now + LOOK_INTERVAL, Due::List);
                    }
                }
                Due::FirstList => {
                    if self.list != List::Known {
                        self.list = List::Overdue;
                        if self.listing.on_overdue(now) {
                            self.publish = self.publish.max(Publish::Status);
                        }
                        self.agenda.add(now + FIRST_LIST, Due::FirstList);
                    }
                }
            }
        }
    }

    /// Doubts all connections after the process was stopped: what lies between may have forgotten them.
    fn on_pulse(&mut self, now: Instant) {
        if self.pulse.beat(now, SystemTime::now()) {
            for connection in self.subchannels.iter().filter_map(Subchannel::connection) {
                connection.transport().suspect();
            }
        }
        if self.list == List::Known && self.snapshot.is_empty() && self.listing.on_none() {
            self.publish = self.publish.max(Publish::Status);
        }
        self.agenda.add(self.pulse.due(), Due::Pulse);
    }

    fn schedule_sweep(&mut self, now: Instant) {
        if let Some(interval) = self.reports.outliers.sweep_interval() {
            self.agenda.add(now + interval, Due::Sweep);
        }
    }

    /// Begins as many attempts as there is room for.
    fn dial(&mut self) {
        while let Some((address, ticket)) = self.dialer.next_turn(Instant::now()) {
            self.step(&address, Input::Turn(ticket));
        }
    }

    fn publish(&mut self) {
        let what = mem::take(&mut self.publish);
        let has_grown = self.growth == Growth::Due;
        if what == Publish::Nothing && !has_grown {
            return;
        }
        self.unused.set(self.snapshot.len().saturating_sub(self.subchannels.len()));
        let before = self.queue.state();
        let is_ready_set = what == Publish::ReadySet || has_grown || before.ready.is_none();
        drop(before);
        let has_others = self.queue.set_instances(&self.snapshot, self.subchannels.shared());
        let now = Instant::now();
        if is_ready_set || has_others {
            let state = self.state(now);
            self.queue.publish(state);
        } else {
            self.queue.serve();
        }
        if is_ready_set {
            self.schedule_growth(now);
        }
        // That shares grew concerns calls alone.
        if what != Publish::Nothing {
            self.changed.send_replace(());
        }
    }

    fn state(&self, now: Instant) -> LbState {
        let no_list = match self.list {
            List::Awaited => Some((Connectivity::Connecting, self.listing.awaited().map(no_list))),
            List::Overdue => Some((Connectivity::TransientFailure, Some(no_list(self.listing.overdue())))),
            List::Known => None,
        };
        let Self { subchannels, config, .. } = self;
        let none = self.listing.none();
        let published = Published { subchannels, config, policy: &**self.queue.policy(), none, now };
        published.state(no_list, self.failure.as_deref())
    }

    /// Has shares set anew after a while, if there is one that has to grow.
    fn schedule_growth(&mut self, now: Instant) {
        let Some(slow_start) = self.config.slow_start else { return };
        if self.growth == Growth::Due {
            self.growth = Growth::Still;
        }
        let grows =
            |subchannel: &Subchannel| subchannel.is_ready() && slow_start.percent(subchannel.ready_since(), now) < 100;
        if self.growth == Growth::Still && self.subchannels.iter().any(grows) {
            self.growth = Growth::Scheduled;
            self.agenda.add(now + slow_start.step(), Due::Growth);
        }
    }

    /// Feeds an input to the subchannel at an address, if there is one.
    fn step(&mut self, address: &Address, input: Input<super::transport::Transport>) {
        if let Some(index) = self.find(address) {
            self.step_at(index, input);
        }
    }

    fn step_at(&mut self, index: usize, input: Input<super::transport::Transport>) {
        let subchannel = &mut self.subchannels[index];
        let effects = subchannel.on(input, Instant::now());
        let address = subchannel.address().clone();
        self.carry_out(&address, effects);
    }

    fn carry_out(&mut self, address: &Address, effects: Effects) {
        let Effects { queue, dial, wake, publish, admits, failing, failure, suspect: _ } = effects;
        self.evidence.admits |= admits;
        self.publish = self.publish.max(publish);
        if failure.is_some() {
            self.failure = failure;
        }
        if let Some(wish) = queue {
            self.dialer.queue(address.clone(), wish);
        }
        if let Some(wish) = dial {
            self.dialer.dial(address.clone(), wish, Instant::now());
        }
        if let Some((at, wake)) = wake {
            self.agenda.add(at, Due::Wake(address.clone(), wake));
        }
        if failing && let Some(index) = self.find(address) {
            self.on_failing(address, self.subchannels[index].tally().clone());
        }
    }

    fn find(&self, address: &Address) -> Option<usize> {
        self.subchannels.find(address)
    }
}

fn no_list(reason: &str) -> ChannelError {
    ChannelError::ListOverdue { reason: reason.to_owned() }
}

/// However the task ends: its last handle may be dropped, its runtime may end under it, and it may panic. Connections
/// end with the last of their calls.
impl Drop for Balancer {
    fn drop(&mut self) {
        self.queue.clear_instances();
        self.queue.publish(LbState {
            connectivity: Connectivity::Shutdown,
            ready: None,
            cause: Some(Arc::new(ChannelError::Closed)),
        });
    }
}

/// How much feedback is taken in before the ready set is published.
const EVENTS_PER_TURN: usize = 256;
