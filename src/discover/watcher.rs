//! The watchers of a registry: one task a service, which publishes snapshots for as long as there are listeners.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use super::membership::{Complaints, Layout, Membership};
use super::metrics::SnapshotMetrics;
use crate::backoff::{spread, up_to};
use crate::error::ConfigError;
use crate::etcd::{Cluster, Followed, ListCause, Range, Source, Update, WatchMetrics};
use crate::instance::ServiceName;
use crate::snapshot::Snapshot;
use crate::targets::DISCOVERY;
use crate::time::sleep_until;
use crate::trouble::Trouble;

/// A receiver of the snapshots of one service.
#[derive(Debug, Clone)]
pub(crate) struct Listener {
    watchers: Arc<Watchers>,
    service: ServiceName,
    latest: watch::Receiver<Option<Arc<Snapshot>>>,
}

impl Listener {
    /// The latest snapshot; `None` until the watcher's first list came.
    pub(super) fn latest(&mut self) -> Option<Arc<Snapshot>> {
        if self.latest.has_changed().is_err()
            && let Ok(again) = self.watchers.subscribe(&self.service)
        {
            *self = again;
        }
        self.latest.borrow().clone()
    }

    /// Waits until there is a snapshot that was not waited for yet.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: until it returns, nothing counts as waited for.
    pub(super) async fn changed(&mut self) {
        loop {
            if self.latest.changed().await.is_err() {
                // The watcher went down with the runtime of its first listener; this runtime is another.
                self.subscribe_again().await;
            }
            if self.latest.borrow_and_update().is_some() {
                return;
            }
        }
    }

    async fn subscribe_again(&mut self) {
        loop {
            tokio::time::sleep(RESUBSCRIBE_PAUSE).await;
            if let Ok(mut again) = self.watchers.subscribe(&self.service) {
                again.latest.mark_changed();
                *self = again;
                return;
            }
        }
    }
}

type Publisher = watch::Sender<Option<Arc<Snapshot>>>;

/// A watcher that runs.
#[derive(Debug)]
struct Running {
    publisher: Publisher,
    trouble: Trouble,
}

/// The watchers of one registry.
#[derive(Debug)]
pub(crate) struct Watchers {
    pub(super) cluster: Arc<Cluster>,
    pub(super) layout: Layout,
    /// Of reads without a watcher.
    pub(super) complaints: Complaints,
    /// A service is in here from its first listener on until its task sees, under this lock, that there is none left.
    running: Mutex<HashMap<ServiceName, Running>>,
}

impl Watchers {
    pub(crate) fn new(cluster: Arc<Cluster>, layout: Layout) -> Arc<Self> {
        Arc::new(Self { cluster, layout, complaints: Complaints::default(), running: Mutex::default() })
    }

    /// How instances look in etcd, for messages.
    pub(crate) fn format(&self) -> String {
        format!("{:?}", self.layout.format)
    }

    /// Why what is known of a service is old, or nothing is known of it: the failure of the last attempt to look.
    pub(crate) fn trouble(&self, service: &ServiceName) -> Option<String> {
        self.running().get(service).and_then(|watcher| watcher.trouble.get())
    }

    /// What every key begins with, for messages.
    pub(crate) fn prefix(&self) -> &str {
        &self.layout.base
    }

    /// Listens to a service; the first listener starts its watcher.
    ///
    /// # Errors
    ///
    /// Outside of a tokio runtime.
    pub(crate) fn subscribe(self: &Arc<Self>, service: &ServiceName) -> Result<Listener, ConfigError> {
        let runtime = Handle::try_current().map_err(|_| ConfigError::NoRuntime { call: "discover" })?;
        let listen = |latest| Listener { watchers: self.clone(), service: service.clone(), latest };
        let mut running = self.running();
        if let Some(running) = running.get(service) {
            return Ok(listen(running.publisher.subscribe()));
        }
        let (publisher, latest) = watch::channel(None);
        let trouble = Trouble::default();
        running.insert(service.clone(), Running { publisher: publisher.clone(), trouble: trouble.clone() });
        // A runtime that is going down drops the task at once, and that takes the lock.
        drop(running);
        let span = tracing::info_span!(target: DISCOVERY, parent: None, "watch", %service);
        let metrics = SnapshotMetrics::new(service);
        let guard = WatcherGuard { watchers: self.clone(), service: service.clone(), publisher, metrics };
        let (cluster, range) = (self.cluster.clone(), self.layout.range(service));
        let followed = service.clone();
        let source = move || {
            let metrics = WatchMetrics::new(followed.clone(), Followed::Instances);
            Source::new(cluster.clone(), Range::below(range.clone()), ANTI_ENTROPY, trouble.clone(), metrics)
        };
        let membership = Membership::new(self.layout.clone(), service.clone(), Complaints::default());
        runtime.spawn(run(guard, source, membership).instrument(span));
        Ok(listen(latest))
    }

    fn running(&self) -> MutexGuard<'_, HashMap<ServiceName, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a watcher among the running ones; dropping it takes the watcher out, also where a runtime ends under its
/// tasks.
struct WatcherGuard {
    watchers: Arc<Watchers>,
    service: ServiceName,
    publisher: Publisher,
    metrics: SnapshotMetrics,
}

impl WatcherGuard {
    /// Takes the watcher out if it has no listener; the next listener starts another one. Returns whether it is out.
    fn retire_if_idle(&self) -> bool {
        let mut running = self.watchers.running();
        let idle = self.publisher.receiver_count() == 0;
        if idle {
            running.remove(&self.service);
        }
        idle
    }

    /// Publishes what is known, if that is not what was published last. Returns whether it was news.
    fn publish(&mut self, membership: &mut Membership, revision: i64) -> bool {
        let snapshot = membership.snapshot(revision);
        let metrics = &mut self.metrics;
        self.publisher.send_if_modified(|published| {
            let is_news = published.as_ref().is_none_or(|old| !old.is_same(&snapshot));
            if is_news {
                let (instances, cut_off) = (snapshot.len(), snapshot.cut_off());
                tracing::debug!(target: DISCOVERY, revision, instances, cut_off, "snapshot published");
                metrics.on_snapshot(&snapshot, membership.bytes());
                *published = Some(Arc::new(snapshot));
            }
            is_news
        })
    }
}

impl Drop for WatcherGuard {
    fn drop(&mut self) {
        let mut running = self.watchers.running();
        if running.get(&self.service).is_some_and(|running| running.publisher.same_channel(&self.publisher)) {
            running.remove(&self.service);
        }
    }
}

async fn run(mut guard: WatcherGuard, new_source: impl Fn() -> Source, mut membership: Membership) {
    let (mut source, mut revision) = (new_source(), 0);
    let mut pace = Pace::default();
    let mut relist = Relist::Unwanted { not_before: Instant::now() };
    loop {
        let update = {
            let mut next = pin!(source.next());
            loop {
                let now = Instant::now();
                if pace.is_due(now) {
                    pace.on_published(guard.publish(&mut membership, revision), now);
                }
                relist.set_wanted(membership.has_room_again(), now);
                tokio::select! {
                    biased;
                    () = guard.publisher.closed() => {
                        if guard.retire_if_idle() {
                            tracing::debug!(target: DISCOVERY, "watch stopped: no listener is left");
                            return;
                        }
                    }
                    () = sleep_until(pace.due()) => {}
                    update = &mut next => break Some(update),
                    () = sleep_until(membership.deadline()) => {
                        let now = Instant::now();
                        membership.on_deadline(now);
                        pace.on_published(guard.publish(&mut membership, revision), now);
                    }
                    () = sleep_until(relist.due()) => break None,
                }
            }
        };
        let now = Instant::now();
        let Some(update) = update else {
            tracing::info!(target: DISCOVERY, "service has room again; everything is listed anew");
            relist.on_list_start();
            source = new_source().because(ListCause::RoomAgain);
            continue;
        };
        if update.revision().is_some() {
            revision = source.revision();
            pace.on_change();
        }
        if matches!(update, Update::Listed(_)) {
            relist.on_list_end(now);
        }
        take_in(&mut membership, update, now);
        guard.metrics.on_defects(membership.take_defects());
    }
}

fn take_in(membership: &mut Membership, update: Update, now: Instant) {
    match update {
        Update::Page { is_first, kvs } => {
            if is_first {
                membership.on_list_start();
            }
            for kv in kvs {
                membership.on_listed_key(&kv, now);
            }
        }
        Update::Listed(_) => membership.on_list_end(now),
        Update::Events(_, events) => membership.on_events(events, now),
    }
}

/// When what is known is published: the first change at once, and then once an interval while there are changes. The
/// first list is no change: one that comes right behind it is published at once, too.
#[derive(Debug, Default)]
struct Pace {
    has_changed: bool,
    /// `None` before the first list.
    not_before: Option<Instant>,
}

impl Pace {
    /// When there is something to publish later on; `None` where there is nothing.
    fn due(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.has_changed)
    }

    fn is_due(&self, now: Instant) -> bool {
        self.has_changed && self.not_before.is_none_or(|not_before| not_before <= now)
    }

    fn on_change(&mut self) {
        self.has_changed = true;
    }

    /// All that is known was published, if it was news.
    fn on_published(&mut self, was_news: bool, now: Instant) {
        self.has_changed = false;
        if was_news {
            self.not_before = Some(self.not_before.map_or(now, |_| now + PUBLISH_INTERVAL));
        }
    }
}

/// When a service is listed anew because keys that were cut off have room now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relist {
    /// No key was cut off, or none has room.
    Unwanted { not_before: Instant },
    /// There is room.
    Due { at: Instant, not_before: Instant },
    /// The list is under way.
    Listing,
}

impl Relist {
    fn due(self) -> Option<Instant> {
        match self {
            Self::Due { at, .. } => Some(at),
            Self::Unwanted { .. } | Self::Listing => None,
        }
    }

    fn set_wanted(&mut self, is_wanted: bool, now: Instant) {
        *self = match *self {
            Self::Unwanted { not_before } if is_wanted => {
                Self::Due { at: not_before.max(now + up_to(RELIST_WITHIN)), not_before }
            }
            Self::Due { not_before, .. } if !is_wanted => Self::Unwanted { not_before },
            other => other,
        };
    }

    fn on_list_start(&mut self) {
        *self = Self::Listing;
    }

    /// A list is complete, this one or another.
    fn on_list_end(&mut self, now: Instant) {
        if *self == Self::Listing {
            *self = Self::Unwanted { not_before: now + spread(RELIST_INTERVAL, 0.2) };
        }
    }
}

/// How long a listener waits before it looks for another watcher, so that a runtime that is going down is not kept
/// busy.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_millis(100);

/// How often a list verifies the watch without any cause: cheap insurance against unforeseen faults.
const ANTI_ENTROPY: Duration = Duration::from_secs(300);

/// How often a snapshot is published at most while one change follows the other: a restart of thousands of servers is
/// hundreds of changes a second, and each snapshot wakes every channel. No one sees the difference of 20 ms.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(20);

/// How soon a service is listed after there is room for keys that were cut off: not all clients at one moment, and not
/// for room that the next server takes at once.
const RELIST_WITHIN: Duration = Duration::from_secs(5);

/// How often that happens at most: a service at its limit whose servers come and go has room all the time.
const RELIST_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::discover::{DEFAULT_HOLD, Limits};
    use crate::etcd::Endpoints;
    use crate::format::Kitex;

    /// A listener of what a test publishes by itself, for a registry on an etcd that is unreachable.
    pub(in crate::discover) fn published(latest: watch::Receiver<Option<Arc<Snapshot>>>) -> Listener {
        let service = "echo".parse().expect("a good name");
        Listener { watchers: nowhere(), service, latest }
    }

    fn nowhere() -> Arc<Watchers> {
        let urls = ["http://127.0.0.1:1".to_owned()];
        let endpoints = Endpoints::new(&urls, None, None, Duration::from_secs(1)).expect("a good URL");
        let layout = Layout {
            base: "p/".into(),
            format: Arc::new(Kitex::new()),
            default_weight: 10,
            hold: DEFAULT_HOLD,
            limits: Limits::default(),
        };
        Watchers::new(Arc::new(Cluster::new(endpoints, None)), layout)
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    #[test]
    fn the_first_change_is_published_at_once_and_the_others_once_an_interval() {
        let begin = Instant::now();
        let mut pace = Pace::default();
        assert!(!pace.is_due(begin) && pace.due().is_none(), "there is nothing yet");
        pace.on_change();
        assert!(pace.is_due(begin), "the first list at once");
        pace.on_published(true, begin);
        pace.on_change();
        assert!(pace.is_due(begin), "and the first change");
        pace.on_published(true, begin);
        assert_eq!(pace.due(), None);
        let soon = begin + PUBLISH_INTERVAL / 2;
        pace.on_change();
        pace.on_change();
        assert!(!pace.is_due(soon) && pace.due() == Some(begin + PUBLISH_INTERVAL), "the next ones together");
        pace.on_published(true, begin + PUBLISH_INTERVAL);
        assert_eq!(pace.due(), None, "nothing is left");
        let calm = begin + PUBLISH_INTERVAL * 3;
        pace.on_change();
        pace.on_published(false, calm);
        pace.on_change();
        assert!(pace.is_due(calm), "what was no news delays none");
    }

    #[test]
    fn a_service_that_has_room_all_the_time_is_listed_once_a_minute() {
        let begin = Instant::now();
        let mut relist = Relist::Unwanted { not_before: begin };
        relist.set_wanted(false, begin);
        assert_eq!(relist.due(), None);
        relist.set_wanted(true, begin);
        let due = relist.due().expect("there is room");
        assert!(due <= begin + RELIST_WITHIN);
        relist.set_wanted(true, begin);
        relist.on_list_end(begin);
        assert_eq!(relist.due(), Some(due), "its time stands");
        relist.set_wanted(false, begin);
        assert_eq!(relist.due(), None, "the room was taken");
        relist.set_wanted(true, begin);
        relist.on_list_start();
        relist.set_wanted(true, begin + RELIST_INTERVAL * 2);
        assert_eq!(relist.due(), None, "a list that takes long is not begun again");
        relist.on_list_end(begin);
        relist.set_wanted(true, begin + RELIST_WITHIN);
        let due = relist.due().expect("there is room");
        assert!(due >= begin + RELIST_INTERVAL.mul_f64(0.8) && due <= begin + RELIST_INTERVAL.mul_f64(1.2));
    }

    #[test]
    fn a_watcher_that_cannot_be_spawned_leaves_nothing_behind() {
        let watchers = nowhere();
        let service: ServiceName = "echo".parse().expect("a good name");
        let ended = runtime();
        let handle = ended.handle().clone();
        drop(ended);
        let _entered = handle.enter();
        watchers.subscribe(&service).expect("there is a handle of a runtime");
        assert!(watchers.running().is_empty(), "a later listener starts another watcher");
    }

    #[test]
    fn a_watcher_ends_with_its_last_listener() {
        let watchers = nowhere();
        let service: ServiceName = "echo".parse().expect("a good name");
        runtime().block_on(async {
            let one = watchers.subscribe(&service).expect("a runtime");
            let two = watchers.subscribe(&service).expect("a runtime");
            assert_eq!(watchers.running().len(), 1, "both share one");
            drop(one);
            tokio::task::yield_now().await;
            assert_eq!(watchers.running().len(), 1, "one still listens");
            drop(two);
            while !watchers.running().is_empty() {
                tokio::task::yield_now().await;
            }
        });
    }
}
