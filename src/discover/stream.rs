//! The public stream: the difference between one snapshot and the next, pulled by each poll.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::stream::{BoxStream, Stream, StreamExt};
use tonic::transport::{Channel, Endpoint};
use tower::discover::Change;

use super::feeder;
use super::snapshots::Snapshots;
use crate::instance::{Address, Instance, ServiceName};
use crate::snapshot::{Difference, Member, Snapshot};

/// The instances of a service, as a tower [`Discover`](tower::discover::Discover): a stream of changes that never ends.
///
/// It begins with an insert for each instance there is, and goes on with the difference between what was delivered and
/// the newest snapshot: an insert for an instance that joins, an insert of a known address for new weight or tags, a
/// removal for one that leaves. A stream that is not polled for a while catches up in one step; nothing queues up
/// meanwhile.
///
/// An instance that announces its leave is removed at once. One whose key disappears silently stays for two
/// seconds and, if more than half of the service disappears like that, for up to a minute: etcd that stood still or was
/// wiped must not take down servers that are fine.
///
/// All streams and channels of one registry and service share one watch in etcd. It ends when the last of them is
/// dropped.
///
/// # Recovery
///
/// The error is [`Infallible`]: whatever happens to etcd, the stream stays on the last known set and continues when
/// etcd is back.
///
/// # Example
///
/// ```no_run
/// use futures_util::StreamExt;
/// use tonic_etcd::{Change, Registry};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::builder(["http://127.0.0.1:2379"]).build()?;
/// let mut discover = registry.discover("echo")?;
/// while let Some(Ok(change)) = discover.next().await {
///     match change {
///         Change::Insert(address, instance) => println!("{address} has weight {}", instance.weight()),
///         Change::Remove(address) => println!("{address} has left"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "streams do nothing unless polled"]
pub struct Discover {
    service: ServiceName,
    /// Locked to look only; replaced where the runtime of its watcher has ended.
    snapshots: Mutex<Snapshots>,
    newer: BoxStream<'static, Arc<Snapshot>>,
    delivered: Arc<Snapshot>,
    changes: VecDeque<Undelivered>,
}

/// A change that is not delivered yet: of 100,000 instances, few bytes each.
enum Undelivered {
    Insert(Arc<Instance>),
    Remove(Arc<Instance>),
}

impl Undelivered {
    fn deliver(&self) -> Change<Address, Instance> {
        match self {
            Self::Insert(instance) => Change::Insert(instance.address.clone(), Instance::clone(instance)),
            Self::Remove(instance) => Change::Remove(instance.address.clone()),
        }
    }
}

impl Discover {
    pub(crate) fn new(service: ServiceName, mut snapshots: Snapshots) -> Self {
        let newer = snapshots.clone().into_stream();
        // For `ready`, what is there counts as new, too.
        snapshots.mark_changed();
        Self {
            service,
            snapshots: Mutex::new(snapshots),
            newer,
            delivered: Arc::new(Snapshot::new(0, Vec::new())),
            changes: VecDeque::new(),
        }
    }

    /// The newest snapshot, whatever the stream has delivered so far; `None` until etcd was reached for the first time.
    /// Over several registries, until all were reached, or one was and two seconds passed.
    #[must_use]
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner).latest()
    }

    /// Waits until there is a [`snapshot`](Self::snapshot), and returns the newest. It can be empty.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no state is lost.
    pub async fn ready(&mut self) -> Arc<Snapshot> {
        if let Some(snapshot) = self.snapshot() {
            return snapshot;
        }
        let snapshots = self.snapshots.get_mut().unwrap_or_else(PoisonError::into_inner);
        let first = snapshots.next().await;
        // `next_snapshot` returns it as well.
        snapshots.mark_changed();
        first
    }

    /// Waits for a snapshot that this method has not returned yet, and returns the newest: at first the one that is
    /// there. Unlike the stream it also shows what changes in the states of instances, and whether instances are left out.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no snapshot is lost.
    pub async fn next_snapshot(&mut self) -> Arc<Snapshot> {
        self.snapshots.get_mut().unwrap_or_else(PoisonError::into_inner).next().await
    }

    /// A tonic channel that balances over the instances, with tonic's own balancer.
    ///
    /// `endpoint` makes what is dialled from each instance and a prepared [`Endpoint`] (`http://{address}`, one second
    /// to connect); return the second as it is, or with options of your own. It is called when an instance joins. For
    /// TLS, return an endpoint made from an `https` URI: tonic ignores a TLS configuration on the prepared one, as on
    /// any `http` endpoint, and would speak plaintext. New weights and tags do not reach the channel, since for tonic
    /// they would be new connections.
    ///
    /// Know its limits: tonic chooses at random and without weights, goes on calling an instance that refuses
    /// connections until its key is gone, and lets calls wait while the set is empty. No deadline of tonic's ends that
    /// wait (neither `Request::set_timeout` nor `Endpoint::timeout`), `tokio::time::timeout` around the call does.
    /// Changes are handed to it at once and applied with its next call.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, as every tonic channel does.
    #[must_use]
    pub fn balance_channel<F>(self, endpoint: F) -> Channel
    where
        F: Fn(&Instance, Endpoint) -> Endpoint + Send + 'static,
    {
        let snapshots = self.snapshots.into_inner().unwrap_or_else(PoisonError::into_inner);
        feeder::balance_channel(&self.service, snapshots, endpoint)
    }
}

impl Stream for Discover {
    type Item = Result<Change<Address, Instance>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Poll::Ready(Some(Ok(change.deliver())));
            }
            // The first one may have been far longer than those that follow.
            self.changes = VecDeque::new();
            // `newer` never ends.
            if let Some(snapshot) = ready!(self.newer.poll_next_unpin(cx)) {
                self.changes = changes(&self.delivered, &snapshot);
                self.delivered = snapshot;
            }
        }
    }
}

impl fmt::Debug for Discover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discover")
            .field("service", &self.service)
            .field("delivered", &self.delivered)
            .finish_non_exhaustive()
    }
}

/// What turns one snapshot into the other.
fn changes(old: &Snapshot, new: &Snapshot) -> VecDeque<Undelivered> {
    let insert = |member: &Member| Undelivered::Insert(member.shared_instance().clone());
    let remove = |member: &Member| Undelivered::Remove(member.shared_instance().clone());
    let change = |difference: Difference<'_>| match difference {
        Difference::Left(left) => left.is_open().then(|| remove(left)),
        Difference::Joined(joined) => joined.is_open().then(|| insert(joined)),
        Difference::Changed(old, new) => match (old.is_open(), new.is_open()) {
            (true, true) => (old.instance() != new.instance()).then(|| insert(new)),
            (false, true) => Some(insert(new)),
            (true, false) => Some(remove(old)),
            (false, false) => None,
        },
    };
    new.changes_since(old).filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::watch;
    use tokio_test::{assert_pending, task};

    use super::*;
    use crate::discover::watcher::tests::published;
    use crate::snapshot::MemberState;

    fn member(address: &str, weight: u16, state: MemberState) -> Member {
        let address: Address = address.parse().expect("an address");
        Member::new(Arc::new(Instance::new("echo", address).with_weight(weight)), 7, state)
    }

    fn snapshot(members: &[(&str, u16, MemberState)]) -> Arc<Snapshot> {
        let members = members.iter().map(|(address, weight, state)| member(address, *weight, *state));
        Arc::new(Snapshot::new(1, members.collect()))
    }

    fn discover(latest: watch::Receiver<Option<Arc<Snapshot>>>) -> Discover {
        Discover::new("echo".parse().expect("a name"), Snapshots::new([published(latest)]))
    }

    fn drain(stream: &mut task::Spawn<Discover>) -> Vec<String> {
        let mut delivered = Vec::new();
        while let Poll::Ready(Some(Ok(change))) = stream.poll_next() {
            delivered.push(match change {
                Change::Insert(address, instance) => format!("+{address}={}", instance.weight),
                Change::Remove(address) => format!("-{address}"),
            });
        }
        delivered
    }

    #[test]
    fn only_differences_are_yielded() {
        use MemberState::{Draining, Live, Suspect};
        let (publisher, snapshots) = watch::channel(None);
        let mut stream = task::spawn(discover(snapshots));
        assert_pending!(stream.poll_next(), "nothing is delivered before the first list");

        publisher.send_replace(Some(snapshot(&[("a:1", 1, Live), ("b:1", 1, Live), ("c:1", 1, Live)])));
        assert!(stream.is_woken(), "the first snapshot wakes the waiting task");
        assert_eq!(drain(&mut stream), ["+a:1=1", "+b:1=1", "+c:1=1"]);

        publisher.send_replace(Some(snapshot(&[("a:1", 2, Live), ("b:1", 1, Suspect), ("c:1", 1, Draining)])));
        assert_eq!(drain(&mut stream), ["+a:1=2", "-c:1"], "in question stays, draining goes");

        publisher.send_replace(Some(snapshot(&[("a:1", 2, Live), ("b:1", 1, Live)])));
        assert_eq!(drain(&mut stream), [] as [&str; 0], "the DELETE after the mark is no news");
    }

    #[tokio::test]
    async fn what_ready_waited_for_is_the_next_snapshot_too() {
        let (publisher, snapshots) = watch::channel(None);
        let mut discover = discover(snapshots);
        let mut ready = task::spawn(discover.ready());
        assert_pending!(ready.poll());
        publisher.send_replace(Some(snapshot(&[("a:1", 1, MemberState::Live)])));
        assert_eq!(ready.await.len(), 1);
        assert_eq!(discover.next_snapshot().now_or_never().map(|first| first.len()), Some(1));
        assert!(discover.next_snapshot().now_or_never().is_none(), "and no second time");
    }

    #[test]
    fn snapshots_between_two_polls_make_one_difference() {
        use MemberState::Live;
        let (publisher, snapshots) = watch::channel(Some(snapshot(&[("a:1", 1, Live)])));
        let mut stream = task::spawn(discover(snapshots));
        assert_eq!(drain(&mut stream), ["+a:1=1"], "what is there at the start is delivered");
        for weight in 1..100 {
            publisher.send_replace(Some(snapshot(&[("b:1", weight, Live)])));
        }
        assert_eq!(drain(&mut stream), ["-a:1", "+b:1=99"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_stream_outlives_its_watcher() {
        let (publisher, snapshots) = watch::channel(None);
        let mut stream = task::spawn(discover(snapshots));
        drop(publisher);
        for _ in 0..10 {
            assert_pending!(stream.poll_next());
            tokio::time::advance(std::time::Duration::from_millis(60)).await;
        }
    }
}
