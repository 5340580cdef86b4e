//! What a channel's clones, its calls and its control task share: the published choice and the line of waiting calls.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::candidate::Candidate;
use super::choice::Choice;
use super::link::Link;
use super::outlier::OutlierDetection;
use super::policy::Policy;
use super::retry::{Budget, Methods};
use super::subchannel::{Event, Record};
use super::view::{Connectivity, InstanceStatus};
use super::waiting::{Line, Turn};
use crate::instance::Instance;

/// What a channel's clones, its calls and its control task share.
pub(super) struct Shared {
    pub(super) published: ArcSwap<Published>,
    pub(super) line: Line<Waiting>,
    pub(super) settings: Settings,
    /// To the control task. Bounded by what calls report: a row of failures and a proof once each.
    pub(super) events: mpsc::UnboundedSender<Event>,
}

/// What does not change in a channel's life and concerns its calls.
pub(super) struct Settings {
    /// The service and where it is looked for, for messages.
    pub(super) label: Box<str>,
    pub(super) timeout: Option<Duration>,
    pub(super) wait_for_ready: bool,
    pub(super) max_waiting: usize,
    pub(super) user_agent: HeaderValue,
    pub(super) outliers: OutlierDetection,
    pub(super) policy: Arc<dyn Policy>,
    /// What is said of single methods, if anything is.
    pub(super) methods: Option<Methods>,
    pub(super) budget: Option<Arc<Budget>>,
}

/// What the control task publishes at each change.
pub(super) struct Published {
    /// The instances that can be called; `None` while there are none.
    pub(super) choice: Option<Choice>,
    pub(super) state: Connectivity,
    /// Why calls fail, in [`Connectivity::TransientFailure`].
    pub(super) cause: Box<str>,
    /// Every instance, in the order of addresses.
    pub(super) records: Arc<[Arc<Record>]>,
}

/// A call in the line.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Who refused it just now or was tried before, if anybody was.
    avoid: Vec<Arc<Instance>>,
    wait_for_ready: bool,
    key: u64,
    /// Taken with the answer.
    answer: Option<oneshot::Sender<Result<Place, Status>>>,
}

/// A place on a connection, given back when dropped.
pub(super) struct Place {
    candidate: Candidate,
    shared: Arc<Shared>,
    /// Whether giving it back serves the line.
    serves: bool,
}

impl Shared {
    /// A place for a call, in its turn.
    ///
    /// # Errors
    ///
    /// UNAVAILABLE where there is none and none is on its way, `RESOURCE_EXHAUSTED` where too many wait already.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the line, and gives back a place that came too late.
    pub(super) async fn place(
        self: &Arc<Self>,
        avoid: Vec<Arc<Instance>>,
        wait_for_ready: bool,
        key: u64,
    ) -> Result<Place, Status> {
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { avoid, wait_for_ready, key, answer: Some(answer) };
        let Some(number) = self.line.join(waiting) else {
            let Settings { label, max_waiting, .. } = &self.settings;
            return Err(Status::resource_exhausted(format!("{label}: {max_waiting} calls wait already")));
        };
        let _leave = Leave { shared: self, number };
        self.serve();
        answered.await.unwrap_or_else(|_| Err(Status::unavailable("the channel's line was dropped")))
    }

    /// A place for a call that overtakes nobody, if there is one right now.
    pub(super) fn place_now(self: &Arc<Self>, key: u64) -> Option<Place> {
        if !self.line.is_empty() {
            return None;
        }
        let published = self.published.load();
        let candidate = published.choice.as_ref()?.take(&[], key)?.clone();
        Some(Place::new(candidate, self))
    }

    /// Gives waiting calls what there is for them.
    pub(super) fn serve(self: &Arc<Self>) {
        if self.line.is_empty() {
            return;
        }
        self.line.serve(|waiting| {
            // Loaded a turn: whoever publishes serves the line afterwards, so the last word is always seen.
            let published = self.published.load();
            self.turn(&published, waiting)
        });
    }

    /// All instances as they are now, ordered by address.
    pub(super) fn instances(&self) -> Vec<InstanceStatus> {
        self.published.load().records.iter().map(|record| record.status()).collect()
    }

    fn turn(self: &Arc<Self>, published: &Published, waiting: &mut Waiting) -> Turn {
        let answer = match &published.choice {
            Some(choice) => match choice.take(&waiting.avoid, waiting.key) {
                Some(candidate) => Ok(Place::new(candidate.clone(), self)),
                None => return Turn::Closed,
            },
            None if published.state != Connectivity::TransientFailure => return Turn::Closed,
            None if waiting.wait_for_ready => return Turn::Passed,
            None => Err(Status::unavailable(format!("{}: {}", self.settings.label, published.cause))),
        };
        // The line is locked: a place that comes back because the call was dropped must not serve it again.
        if let Some(sender) = waiting.answer.take()
            && let Err(Ok(mut unwanted)) = sender.send(answer)
        {
            unwanted.serves = false;
        }
        Turn::Answered
    }
}

impl Place {
    /// `candidate` was acquired.
    fn new(candidate: Candidate, shared: &Arc<Shared>) -> Self {
        Self { candidate, shared: shared.clone(), serves: true }
    }

    pub(super) fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The connection. Seats of a channel have one.
    pub(super) fn link(&self) -> &Link {
        self.candidate.seat().link().expect("a channel's seats have a link")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.candidate.seat().release();
        if self.serves {
            self.shared.serve();
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("candidate", &self.candidate).finish_non_exhaustive()
    }
}

/// Leaves the line when dropped.
struct Leave<'a> {
    shared: &'a Arc<Shared>,
    number: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.shared.line.leave(self.number);
    }
}
