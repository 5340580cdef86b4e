//! The control task of a channel: snapshots and what connections and calls report, to the next published choice.
//!
//! It owns every state of every instance and is the only one that changes them; connections and calls send it events. It
//! never waits for an instance: attempts to connect are tasks of their own, [`CONNECTS_AT_ONCE`] at once at most. All
//! that is there at one moment is taken in before one choice is published.

mod eject;
#[cfg(feature = "health")]
pub(crate) mod health;
mod publish;
mod select;
pub(crate) mod slow_start;
pub(crate) mod subset;
pub(crate) mod zone;

use std::collections::{BTreeMap, VecDeque};
use std::future;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::select::Ranked;
use crate::channel::builder::balancing::Spread;
use crate::channel::picks::pick_queue::Shared;
use crate::channel::policy::Policy;
use crate::channel::subchannel::connection::{self as link, Dial};
use crate::channel::subchannel::shared::{Event, Record};
use crate::channel::subchannel::status::Connectivity;
use crate::channel::subchannel::{Entry, Phase};
use crate::channel::transport::connection::Connection;
use crate::instance::Address;
use crate::snapshot::{Member, MemberState, Snapshot};

/// Attempts to connect at once: a set of thousands is connected within seconds without flooding a network or a kernel.
const CONNECTS_AT_ONCE: usize = 32;

/// How long calls wait for the first list of instances: a registry that has not answered by then is down.
const FIRST_LIST: Duration = Duration::from_secs(5);

/// Everything that the control task owns.
pub(crate) struct Driver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) policy: Arc<dyn Policy>,
    pub(crate) spread: Spread,
    pub(crate) dial: Dial,
    pub(crate) snapshots: BoxStream<'static, Arc<Snapshot>>,
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    pub(crate) changed: watch::Sender<()>,
}

/// What the control task knows.
struct State {
    driver: Parts,
    /// One for each member of the last snapshot, in its order.
    entries: Vec<Entry>,
    records: Arc<[Arc<Record>]>,
    /// The entries by their rank in the subset, and of which records that is the order.
    ranked: Ranked,
    /// Whether it was said that there are many instances.
    said_many: bool,
    /// Whether shares that grow are to be set anew, and whether now.
    grows: bool,
    grew: bool,
    /// When it is to be seen whether stand-ins may be let go.
    settles: Option<Instant>,
    /// What is known of the list of instances.
    list: List,
    /// Who waits for a turn to connect, with the generation of that wish.
    queue: VecDeque<(Address, u64)>,
    connects: JoinSet<Attempt>,
    timers: BTreeMap<(Instant, u64), Timer>,
    /// Told apart: wishes, attempts, connections and timers of one instance.
    generation: u64,
    dirty: Dirty,
    /// The newest reason why an instance is not READY.
    cause: Option<Arc<str>>,
}

/// What became of one attempt to connect, or why it failed.
type Attempt = (Address, u64, Result<Connection, Arc<str>>);

struct Parts {
    shared: Arc<Shared>,
    policy: Arc<dyn Policy>,
    spread: Spread,
    dial: Dial,
    changed: watch::Sender<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    /// It did not come yet: calls wait.
    Awaited,
    /// It did not come for so long that calls fail.
    Overdue,
    /// It came.
    Known,
}

/// What has to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Dirty {
    /// Nothing.
    No,
    /// Something that people see, but not what calls are chosen from, unless there is nothing to choose from.
    Seen,
    /// The choice.
    Choice,
}

#[derive(Debug)]
enum Timer {
    /// The instance's back-off of this generation is over.
    Retry(Address, u64),
    /// The instance's ejection is over, if it still ends now.
    Probe(Address),
    /// The instances are compared.
    Sweep,
    /// Shares have grown.
    Growth,
    /// An instance that came back stands long enough to need no stand-in.
    Settled,
    /// The first list is overdue.
    FirstList,
}

impl Driver {
    /// Runs until `alive` says that the last clone of the channel is dropped.
    pub(crate) async fn run(self, mut alive: mpsc::Receiver<std::convert::Infallible>) {
        let Self { shared, policy, spread, dial, mut snapshots, mut events, changed } = self;
        let mut state = State::new(Parts { shared, policy, spread, dial, changed });
        loop {
            let timer = state.timers.first_key_value().map(|(&(at, _), _)| at);
            tokio::select! {
                biased;
                _ = alive.recv() => break,
                event = events.recv() => {
                    if let Some(event) = event {
                        state.event(event);
                    }
                    while let Ok(event) = events.try_recv() {
                        state.event(event);
                    }
                }
                snapshot = snapshots.next() => match snapshot {
                    Some(snapshot) => state.apply(&snapshot),
                    // A list that ends is final.
                    None => snapshots = futures_util::stream::pending().boxed(),
                },
                Some(connected) = state.connects.join_next() => {
                    state.connected(connected);
                    while let Some(connected) = state.connects.try_join_next() {
                        state.connected(connected);
                    }
                }
                () = at(timer) => state.tick(Instant::now()),
            }
            state.choose_subset();
            state.connect();
            state.publish();
        }
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => future::pending().await,
    }
}

impl State {
    fn new(driver: Parts) -> Self {
        let mut state = Self {
            driver,
            entries: Vec::new(),
            records: Arc::new([]),
            ranked: Ranked::default(),
            said_many: false,
            grows: false,
            grew: false,
            settles: None,
            list: List::Awaited,
            queue: VecDeque::new(),
            connects: JoinSet::new(),
            timers: BTreeMap::new(),
            generation: 0,
            dirty: Dirty::No,
            cause: None,
        };
        let now = Instant::now();
        state.timer(now + FIRST_LIST, Timer::FirstList);
        if let Some(interval) = state.driver.shared.settings.outliers.sweep_interval() {
            state.timer(now + interval, Timer::Sweep);
        }
        state
    }

    /// Takes in a snapshot.
    fn apply(&mut self, snapshot: &Snapshot) {
        self.list = List::Known;
        // Also an empty list is news: calls that waited for it fail now.
        self.mark(Dirty::Seen);
        let mut entries = mem::take(&mut self.entries);
        let is_known =
            |(entry, member): (&Entry, &Member)| entry.is_same(member) || *entry.address() == member.instance().address;
        if entries.len() == snapshot.len() && entries.iter().zip(snapshot.iter()).all(is_known) {
            for (entry, member) in entries.iter_mut().zip(snapshot.iter()) {
                self.update(entry, member);
            }
            self.entries = entries;
        } else {
            self.entries = self.merge(entries, snapshot);
            self.records = self.entries.iter().map(|entry| entry.record.clone()).collect();
        }
    }

    /// Some joined or left: a walk along both, since both are ordered by address.
    fn merge(&mut self, entries: Vec<Entry>, snapshot: &Snapshot) -> Vec<Entry> {
        let mut known = entries.into_iter().peekable();
        let mut merged = Vec::with_capacity(snapshot.len());
        for member in snapshot.iter() {
            let address = &member.instance().address;
            while let Some(left) = known.next_if(|entry| !entry.is_same(member) && entry.address() < address) {
                self.remove(left);
            }
            if let Some(mut entry) = known.next_if(|entry| entry.is_same(member) || entry.address() == address) {
                self.update(&mut entry, member);
                merged.push(entry);
            } else {
                tracing::debug!(%address, "instance added");
                let mut entry = Entry::new(member.clone());
                self.admit(&mut entry);
                merged.push(entry);
            }
        }
        known.for_each(|left| self.remove(left));
        merged
    }

    fn remove(&mut self, entry: Entry) {
        tracing::debug!(address = %entry.address(), "instance removed");
        if entry.is_ready() {
            self.mark(Dirty::Choice);
        }
        entry.leave();
    }

    /// Takes over what changed of a known instance: its weight, its tags, its lease or its state.
    fn update(&mut self, entry: &mut Entry, member: &Member) {
        if entry.is_unchanged(member) {
            return;
        }
        let restarted = entry.member.lease() != member.lease();
        self.ranked.follow(entry.member.instance(), member.instance());
        entry.member = member.clone();
        entry.record.instance.store(member.shared_instance().clone());
        entry.record.draining.store(member.state() == MemberState::Draining, Ordering::Relaxed);
        self.mark(if entry.is_ready() { Dirty::Choice } else { Dirty::Seen });
        if restarted {
            entry.forgive();
            if matches!(entry.phase, Phase::Queued { .. } | Phase::Connecting { .. }) {
                entry.record.set_state(Connectivity::Connecting);
            }
        }
        match (&entry.phase, member.state()) {
            // Whoever is in question lives by its connection alone.
            (Phase::Ready { .. }, _) | (Phase::Gone, MemberState::InQuestion) => {}
            (_, MemberState::InQuestion) => {
                entry.phase = Phase::Gone;
                entry.record.set_state(Connectivity::Idle);
            }
            (Phase::Gone, _) => self.enqueue(entry),
            (Phase::Backoff { .. } | Phase::Benched, _) if restarted => self.enqueue(entry),
            _ => {}
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Ended { address, generation, cause } => self.with_seat(&address, generation, |state, entry| {
                state.ended(entry, &cause);
            }),
            #[cfg(feature = "health")]
            Event::Health { address, generation, verdict } => self.with_seat(&address, generation, |state, entry| {
                state.cause = verdict.as_ref().err().cloned().or(state.cause.take());
                entry.hear_health(verdict);
                state.mark(Dirty::Choice);
            }),
            Event::Failing { address, record } => {
                let may = self.may_eject();
                let Some(index) = self.find(&address) else { return };
                if !Arc::ptr_eq(&self.entries[index].record, &record) {
                    return;
                }
                self.with(index, |state, entry| {
                    if may || entry.ejection.is_on_probation() {
                        state.eject(entry);
                    } else {
                        // The next row asks again.
                        entry.record.tally.restart_row();
                    }
                });
            }
            Event::Proved { address, generation } => {
                let Some(index) = self.find(&address) else { return };
                self.with(index, |state, entry| {
                    if !entry.is_seated_by(generation) {
                        // That connection is gone, but its call used the probation up: the next one has to decide.
                        return entry.keep_on_probation();
                    }
                    entry.proved();
                    tracing::info!(address = %entry.address(), "instance answers again");
                    state.mark(Dirty::Choice);
                });
            }
        }
    }

    /// A connection took its last call.
    fn ended(&mut self, entry: &mut Entry, cause: &Arc<str>) {
        tracing::debug!(address = %entry.address(), %cause, "connection ended");
        let was_good = entry.unseat();
        self.mark(Dirty::Choice);
        if was_good {
            entry.backoff.reset();
        }
        if entry.member.state() != MemberState::Live {
            // It said that it leaves, or its key is gone: the end of its connection settles that.
            entry.phase = Phase::Gone;
            entry.record.set_state(Connectivity::Idle);
        } else if entry.ejection.is_out() {
            entry.phase = Phase::Benched;
            entry.record.set_state(Connectivity::Idle);
            entry.record.set_cause(Some(cause.clone()));
            self.cause = Some(cause.clone());
        } else if was_good {
            self.enqueue(entry);
        } else {
            self.back_off(entry, cause.clone());
        }
    }

    /// Wants a connection, in its turn.
    fn enqueue(&mut self, entry: &mut Entry) {
        self.generation += 1;
        entry.phase = Phase::Queued { generation: self.generation };
        if entry.record.cause().is_none() {
            entry.record.set_state(Connectivity::Connecting);
        }
        self.queue.push_back((entry.address().clone(), self.generation));
    }

    fn back_off(&mut self, entry: &mut Entry, cause: Arc<str>) {
        self.generation += 1;
        entry.phase = Phase::Backoff { generation: self.generation };
        entry.record.set_state(Connectivity::TransientFailure);
        entry.record.set_cause(Some(cause.clone()));
        self.cause = Some(cause);
        let wait = entry.backoff.next();
        self.timer(Instant::now() + wait, Timer::Retry(entry.address().clone(), self.generation));
        self.mark(Dirty::Seen);
    }

    /// Begins as many attempts as there is room for.
    fn connect(&mut self) {
        while self.connects.len() < CONNECTS_AT_ONCE
            && let Some((address, generation)) = self.queue.pop_front()
        {
            let Some(index) = self.find(&address) else { continue };
            let entry = &mut self.entries[index];
            if !matches!(entry.phase, Phase::Queued { generation: wish } if wish == generation) {
                continue;
            }
            entry.phase = Phase::Connecting { generation };
            let options = self.driver.dial.options.clone();
            self.connects.spawn(async move {
                // A connector of the user's may panic: that is this instance's failure, and nobody else's.
                let connected = match AssertUnwindSafe(options.connect(&address)).catch_unwind().await {
                    Ok(connected) => connected.map_err(|error| error.describe().into()),
                    Err(_) => Err(format!("{address}: the connector panicked").into()),
                };
                (address, generation, connected)
            });
        }
    }

    fn connected(&mut self, attempt: Result<Attempt, tokio::task::JoinError>) {
        // It neither panics nor is it aborted while somebody listens.
        let Ok((address, generation, connection)) = attempt else { return };
        let Some(index) = self.find(&address) else { return };
        if !matches!(self.entries[index].phase, Phase::Connecting { generation: attempt } if attempt == generation) {
            return;
        }
        self.with(index, |state, entry| match connection {
            Ok(connection) => {
                tracing::debug!(address = %entry.address(), streams = connection.streams, "connected");
                match link::load(entry, connection, generation, &state.driver.shared, &state.driver.dial) {
                    Ok(()) => state.mark(Dirty::Choice),
                    Err(error) => state.back_off(entry, format!("{}: {error}", entry.address()).into()),
                }
            }
            Err(cause) => {
                tracing::debug!(%cause, "cannot connect");
                entry.found_nobody();
                state.back_off(entry, cause);
            }
        });
    }

    fn tick(&mut self, now: Instant) {
        while let Some(first) = self.timers.first_entry()
            && first.key().0 <= now
        {
            match first.remove() {
                Timer::Retry(address, generation) => {
                    let Some(index) = self.find(&address) else { continue };
                    if matches!(self.entries[index].phase, Phase::Backoff { generation: waits } if waits == generation)
                    {
                        self.with(index, Self::enqueue);
                    }
                }
                Timer::Probe(address) => {
                    let Some(index) = self.find(&address) else { continue };
                    self.with(index, |state, entry| {
                        // A new connection shows that somebody is there before a call is risked.
                        let stays_gone = matches!(entry.phase, Phase::Gone);
                        if entry.probe(now) {
                            // Nobody is waited for at an instance that leaves and whose connection ended.
                            if !stays_gone {
                                state.enqueue(entry);
                            }
                            state.mark(Dirty::Choice);
                        }
                    });
                }
                Timer::Sweep => self.sweep(now),
                Timer::Growth => {
                    self.grows = false;
                    self.grew = true;
                }
                Timer::Settled => self.mark(Dirty::Seen),
                Timer::FirstList => {
                    if self.list == List::Awaited {
                        self.list = List::Overdue;
                        self.mark(Dirty::Seen);
                    }
                }
            }
        }
    }

    fn mark(&mut self, dirty: Dirty) {
        self.dirty = self.dirty.max(dirty);
    }

    fn timer(&mut self, at: Instant, timer: Timer) {
        self.generation += 1;
        self.timers.insert((at, self.generation), timer);
    }

    fn find(&self, address: &Address) -> Option<usize> {
        self.entries.binary_search_by(|entry| entry.address().cmp(address)).ok()
    }

    /// Works on an entry of this state's.
    fn with(&mut self, index: usize, work: impl FnOnce(&mut Self, &mut Entry)) {
        let mut entries = mem::take(&mut self.entries);
        work(self, &mut entries[index]);
        self.entries = entries;
    }

    /// Works on the entry whose present connection this is.
    fn with_seat(&mut self, address: &Address, generation: u64, work: impl FnOnce(&mut Self, &mut Entry)) {
        if let Some(index) = self.find(address)
            && self.entries[index].is_seated_by(generation)
        {
            self.with(index, work);
        }
    }
}
