//! The published state of the channel, and a pick for each call from it: at once, or in the call's turn.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::oneshot;
use tonic::{Code, Status};

use super::instance_list::InstanceList;
use super::ready_set::ReadySet;
use super::wait_queue::{Turn, WaitQueue};
use crate::channel::error::ChannelError;
use crate::channel::policy::{CallHead, PickArgs, Policy};
use crate::channel::subchannel::{Connectivity, InstanceStatus, ReadyConnection, Shared};
use crate::instance::{Address, Instance};
use crate::metrics::channel::ChannelMetrics;
use crate::snapshot::Snapshot;

/// Where calls and the balancer meet: the balancer publishes, calls pick.
pub(crate) struct PickQueue {
    /// The service and where it is looked for, for messages.
    label: Box<str>,
    policy: Arc<dyn Policy>,
    state: ArcSwap<LbState>,
    instances: ArcSwap<InstanceList>,
    waiting: WaitQueue<Waiting>,
    max_waiting: usize,
    metrics: ChannelMetrics,
}

/// What the balancer publishes at each change.
pub(crate) struct LbState {
    pub(crate) connectivity: Connectivity,
    /// There exactly while the channel is READY.
    pub(crate) ready: Option<ReadySet<Arc<ReadyConnection>>>,
    /// Why calls fail, in [`Connectivity::TransientFailure`] and [`Connectivity::Shutdown`]; why they wait, as far as
    /// is known, in others.
    pub(crate) cause: Option<Arc<ChannelError>>,
}

/// A call that waits.
#[derive(Debug)]
struct Waiting {
    /// Instances that refused or failed it.
    avoid: Vec<Arc<Instance>>,
    wait_for_ready: bool,
    key: Option<u64>,
    /// Taken with the answer.
    answer: Option<oneshot::Sender<Result<Pick, Status>>>,
}

/// A connection that was chosen for a call, with a place on it that is given back on drop.
pub(crate) struct Pick {
    instance: Arc<Instance>,
    connection: Arc<ReadyConnection>,
    queue: Arc<PickQueue>,
    /// Whether giving the place back serves the calls that wait.
    serves: bool,
}

impl PickQueue {
    /// A queue for at most `max_waiting` calls at once, with nothing published yet.
    pub(crate) fn new(label: Box<str>, policy: Arc<dyn Policy>, max_waiting: usize, metrics: ChannelMetrics) -> Self {
        let nothing = LbState { connectivity: Connectivity::Connecting, ready: None, cause: None };
        Self {
            label,
            policy,
            state: ArcSwap::from_pointee(nothing),
            instances: ArcSwap::from_pointee(InstanceList::empty()),
            waiting: WaitQueue::new(max_waiting),
            max_waiting,
            metrics,
        }
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn metrics(&self) -> &ChannelMetrics {
        &self.metrics
    }

    pub(crate) fn policy(&self) -> &Arc<dyn Policy> {
        &self.policy
    }

    pub(crate) fn connectivity(&self) -> Connectivity {
        self.state.load().connectivity
    }

    /// The published state, for comparison with the next.
    pub(crate) fn state(&self) -> Arc<LbState> {
        self.state.load_full()
    }

    /// Whether no call waits.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// All instances as they are now, ordered by address.
    pub(crate) fn instances(&self) -> Vec<InstanceStatus> {
        self.instances.load().statuses()
    }

    /// Publishes the list of instances, if it is not the published one. Returns whether other subchannels are in it.
    pub(crate) fn set_instances(&self, snapshot: &Arc<Snapshot>, subchannels: &Arc<[Arc<Shared>]>) -> bool {
        let before = self.instances.load();
        let (is_other_list, has_others) = (!before.is_of(snapshot), !before.has(subchannels));
        if is_other_list || has_others {
            self.instances.store(Arc::new(InstanceList::new(snapshot.clone(), subchannels.clone())));
        }
        has_others
    }

    /// No instance is known any more, and nothing will be.
    pub(crate) fn clear_instances(&self) {
        self.instances.store(Arc::new(InstanceList::empty()));
    }

    /// The status of a call whose deadline passed before there was a pick for it. `earlier` is the instance that may
    /// have handled it in an earlier attempt.
    pub(crate) fn deadline_passed(&self, earlier: Option<&Address>) -> Status {
        ChannelError::deadline_passed_picking(&self.label, earlier, self.state.load().cause.clone())
    }

    /// The key that the policy makes of a request.
    ///
    /// # Errors
    ///
    /// INTERNAL where the policy panics.
    pub(crate) fn key(&self, head: &http::request::Parts) -> Result<Option<u64>, Status> {
        panic::catch_unwind(AssertUnwindSafe(|| self.policy.key(&CallHead::from(head))))
            .map_err(|_| Arc::new(ChannelError::PolicyPanicked).status_of(Code::Internal, &self.label))
    }

    /// Publishes a state, and gives the calls that wait what there is for them.
    pub(crate) fn publish(self: &Arc<Self>, state: LbState) {
        self.state.store(Arc::new(state));
        self.serve();
    }

    /// A pick for a call that overtakes no other, if there is one right now.
    pub(crate) fn pick_now(self: &Arc<Self>, key: Option<u64>) -> Option<Pick> {
        if !self.waiting.is_empty() {
            return None;
        }
        self.state.load().ready.as_ref().and_then(|ready| self.pick_from(ready, &PickArgs::new(key, &[])))
    }

    /// A pick for a call, in its turn.
    ///
    /// # Errors
    ///
    /// UNAVAILABLE where there is none and none is on its way, `RESOURCE_EXHAUSTED` where too many calls wait already.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the queue, and gives back a pick that came too late.
    pub(crate) async fn pick(
        self: &Arc<Self>,
        avoid: Vec<Arc<Instance>>,
        wait_for_ready: bool,
        key: Option<u64>,
    ) -> Result<Pick, Status> {
        let (answer, mut answered) = oneshot::channel();
        let Some(number) = self.waiting.join(Waiting { avoid, wait_for_ready, key, answer: Some(answer) }) else {
            let cause = Arc::new(ChannelError::TooManyWaiting { limit: self.max_waiting });
            return Err(cause.status_of(Code::ResourceExhausted, &self.label));
        };
        let _leave = LeaveOnDrop { queue: self, number };
        self.serve();
        if let Ok(answer) = answered.try_recv() {
            return answer;
        }
        let _figure = self.metrics.wait();
        answered.await.unwrap_or_else(|_| Err(self.unavailable(&Arc::new(ChannelError::Closed))))
    }

    /// Gives the calls that wait what there is for them.
    pub(crate) fn serve(self: &Arc<Self>) {
        // The state is loaded once a turn: it is published before the queue is served, so the newest is always seen.
        self.waiting.serve(|waiting| self.turn(&self.state.load(), waiting));
    }

    fn turn(self: &Arc<Self>, state: &LbState, waiting: &mut Waiting) -> Turn {
        if waiting.answer.is_none() {
            return Turn::Answered;
        }
        let fails = matches!(state.connectivity, Connectivity::TransientFailure | Connectivity::Shutdown);
        let answer = match (&state.ready, &state.cause) {
            (Some(ready), _) => match self.pick_from(ready, &PickArgs::new(waiting.key, &waiting.avoid)) {
                Some(pick) => Ok(pick),
                None => return Turn::Closed,
            },
            (None, _) if waiting.wait_for_ready && state.connectivity == Connectivity::TransientFailure => {
                return Turn::Passed;
            }
            (None, Some(cause)) if fails => Err(self.unavailable(cause)),
            (None, _) => return Turn::Closed,
        };
        // The queue is locked: a place that comes back because the call was dropped must not serve it again.
        if let Some(sender) = waiting.answer.take()
            && let Err(Ok(mut unwanted)) = sender.send(answer)
        {
            unwanted.serves = false;
        }
        Turn::Answered
    }

    fn unavailable(&self, cause: &Arc<ChannelError>) -> Status {
        cause.status_of(Code::Unavailable, &self.label)
    }

    fn pick_from(self: &Arc<Self>, ready: &ReadySet<Arc<ReadyConnection>>, call: &PickArgs<'_>) -> Option<Pick> {
        let index = ready.acquire(call)?;
        Some(Pick {
            instance: ready.candidate(index).shared_instance().clone(),
            connection: ready.connection(index).clone(),
            queue: self.clone(),
            serves: true,
        })
    }
}

impl Pick {
    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    pub(crate) fn connection(&self) -> &ReadyConnection {
        &self.connection
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.connection.load().quota().release();
        if self.serves {
            self.queue.serve();
        }
    }
}

impl fmt::Debug for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pick").field("instance", &self.instance).finish_non_exhaustive()
    }
}

struct LeaveOnDrop<'a> {
    queue: &'a PickQueue,
    number: u64,
}

impl Drop for LeaveOnDrop<'_> {
    fn drop(&mut self) {
        self.queue.waiting.leave(self.number);
    }
}
