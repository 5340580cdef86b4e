//! One instance as its channel sees it: where it stands, and what its calls tell about it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::mpsc;

use crate::channel::outlier::{Outcome, OutlierDetection, Tally, Verdict};
use crate::channel::policy::candidate::Load;
use crate::channel::subchannel::status::{Connectivity, InstanceStatus};
use crate::instance::{Address, Instance};

/// What is known about one instance, for as long as it is one: written by the control task and by calls.
#[derive(Debug)]
pub(crate) struct Record {
    /// As it is registered now.
    pub(crate) instance: ArcSwap<Instance>,
    state: AtomicU8,
    pub(crate) ejected: AtomicBool,
    pub(crate) draining: AtomicBool,
    pub(crate) tally: Tally,
    /// Its present connection, and the generation of that.
    pub(crate) load: ArcSwapOption<Load>,
    pub(crate) generation: AtomicU64,
    /// Why it is not READY.
    cause: Mutex<Option<Arc<str>>>,
}

impl Record {
    /// A new instance, which nothing is known about.
    pub(crate) fn new(instance: Arc<Instance>) -> Self {
        Self {
            instance: ArcSwap::new(instance),
            state: AtomicU8::new(Connectivity::Connecting as u8),
            ejected: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            tally: Tally::default(),
            load: ArcSwapOption::const_empty(),
            generation: AtomicU64::new(0),
            cause: Mutex::new(None),
        }
    }

    /// Where it stands, for people.
    pub(crate) fn status(&self) -> InstanceStatus {
        let load = self.load.load();
        InstanceStatus::new(
            self.instance.load_full(),
            self.state(),
            load.as_ref().map_or(0, |load| load.in_flight()),
            load.as_ref().and_then(|load| load.latency()),
            self.ejected.load(Ordering::Relaxed),
            self.draining.load(Ordering::Relaxed),
            self.cause(),
        )
    }

    pub(crate) fn state(&self) -> Connectivity {
        Connectivity::from_u8(self.state.load(Ordering::Relaxed))
    }

    pub(crate) fn set_state(&self, state: Connectivity) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub(crate) fn cause(&self) -> Option<Arc<str>> {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_cause(&self, cause: Option<Arc<str>>) {
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = cause;
    }
}

/// What the control task is told. A generation tells one connection of an instance from the next.
#[derive(Debug)]
pub(crate) enum Event {
    /// A connection takes no more calls: it ended, or its server said GOAWAY.
    Ended { address: Address, generation: u64, cause: Arc<str> },
    /// The calls to an instance failed in a row, on whatever connections, or the one that was to decide failed.
    Failing { address: Address, record: Arc<Record> },
    /// An instance on probation answered a call.
    Proved { address: Address, generation: u64 },
    /// What the server behind a connection says of its health.
    #[cfg(feature = "health")]
    Health { address: Address, generation: u64, verdict: crate::channel::balancer::health::Verdict },
}

/// How calls on one connection report about it.
#[derive(Debug)]
pub(crate) struct Report {
    address: Address,
    generation: u64,
    record: Arc<Record>,
    /// Calls whose response began.
    answered: AtomicU64,
    events: mpsc::UnboundedSender<Event>,
}

impl Report {
    pub(crate) fn new(
        address: Address,
        generation: u64,
        record: Arc<Record>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        Self { address, generation, record, answered: AtomicU64::new(0), events }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// How many calls were answered so far: a deadline miss counts only if that did not change meanwhile.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Whether the instance has answered nobody since its connection had answered that many: neither there, nor on the
    /// connection that took its place.
    pub(crate) fn is_silent_since(&self, answered: u64) -> bool {
        let load = self.record.load.load();
        let present = load.as_ref().and_then(|load| load.link()).map(|link| &link.report);
        let successor = present.filter(|report| report.generation != self.generation);
        self.answered() == answered && successor.is_none_or(|report| report.answered() == 0)
    }

    /// A response has begun.
    pub(crate) fn answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// A call has ended. One that its caller gave up is not told here. Tells whether it counts as a failure.
    pub(crate) fn outcome(&self, outcome: Outcome, outliers: &OutlierDetection) -> bool {
        let (address, generation) = (&self.address, self.generation);
        // On probation, what was sent before that on an earlier connection decides nothing.
        if self.is_on_probation() && self.record.generation.load(Ordering::Relaxed) != generation {
            return false;
        }
        let failed = outliers.is_failure(outcome);
        match self.record.tally.record(failed, outcome, outliers) {
            None => {}
            Some(Verdict::Failing) => {
                self.tell(Event::Failing { address: address.clone(), record: self.record.clone() });
            }
            Some(Verdict::Proved) => self.tell(Event::Proved { address: address.clone(), generation }),
        }
        failed
    }

    pub(crate) fn is_on_probation(&self) -> bool {
        self.record.tally.is_on_probation()
    }

    pub(crate) fn ended(&self, cause: Arc<str>) {
        self.tell(Event::Ended { address: self.address.clone(), generation: self.generation, cause });
    }

    fn tell(&self, event: Event) {
        // Without a control task the channel is gone, and nobody asks any more.
        let _ = self.events.send(event);
    }
}
