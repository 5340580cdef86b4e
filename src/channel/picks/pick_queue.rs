//! What a channel's clones, its calls and its control task share: the published choice and the line of waiting calls.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::channel::config::retry::{Budget, Methods};
use crate::channel::outlier::OutlierDetection;
use crate::channel::picks::ready_set::Choice;
use crate::channel::picks::wait_queue::{Line, Turn};
use crate::channel::policy::Policy;
use crate::channel::policy::candidate::Candidate;
use crate::channel::subchannel::connection::Link;
use crate::channel::subchannel::shared::{Event, Record};
use crate::channel::subchannel::status::{Connectivity, InstanceStatus};
use crate::instance::Instance;

/// What a channel's clones, its calls and its control task share.
pub(crate) struct Shared {
    pub(crate) published: ArcSwap<Published>,
    pub(crate) line: Line<Waiting>,
    pub(crate) settings: Settings,
    /// To the control task. Bounded by what calls report: a row of failures and a proof once each.
    pub(crate) events: mpsc::UnboundedSender<Event>,
}

/// What does not change in a channel's life and concerns its calls.
pub(crate) struct Settings {
    /// The service and where it is looked for, for messages.
    pub(crate) label: Box<str>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) wait_for_ready: bool,
    pub(crate) max_waiting: usize,
    pub(crate) user_agent: HeaderValue,
    pub(crate) outliers: OutlierDetection,
    pub(crate) policy: Arc<dyn Policy>,
    /// What is said of single methods, if anything is.
    pub(crate) methods: Option<Methods>,
    pub(crate) budget: Option<Arc<Budget>>,
}

/// What the control task publishes at each change.
pub(crate) struct Published {
    /// The instances that can be called; `None` while there are none.
    pub(crate) choice: Option<Choice>,
    pub(crate) state: Connectivity,
    /// Why calls fail, in [`Connectivity::TransientFailure`].
    pub(crate) cause: Box<str>,
    /// Every instance, in the order of addresses.
    pub(crate) records: Arc<[Arc<Record>]>,
}

/// A call in the line.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Who refused it just now or was tried before, if anybody was.
    avoid: Vec<Arc<Instance>>,
    wait_for_ready: bool,
    key: u64,
    /// Taken with the answer.
    answer: Option<oneshot::Sender<Result<Place, Status>>>,
}

/// A place on a connection, given back when dropped.
pub(crate) struct Place {
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
    pub(crate) async fn place(
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
    pub(crate) fn place_now(self: &Arc<Self>, key: u64) -> Option<Place> {
        if !self.line.is_empty() {
            return None;
        }
        let published = self.published.load();
        let candidate = published.choice.as_ref()?.take(&[], key)?.clone();
        Some(Place::new(candidate, self))
    }

    /// Gives waiting calls what there is for them.
    pub(crate) fn serve(self: &Arc<Self>) {
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
    pub(crate) fn instances(&self) -> Vec<InstanceStatus> {
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

    pub(crate) fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The connection. Seats of a channel have one.
    pub(crate) fn link(&self) -> &Link {
        self.candidate.load().link().expect("a channel's loads have a link")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.candidate.load().release();
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
