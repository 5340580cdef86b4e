//! What a registration's own key holds, so that the key is put back as soon as it is touched.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::Instrument;

use crate::etcd::{Cluster, Event, Followed, Kv, Range, Source, Update, WatchMetrics};
use crate::instance::ServiceName;
use crate::trouble::Trouble;

/// A watch of the key, for as long as this exists.
pub(super) struct Observer {
    pub(super) key: String,
    pub(super) own_key: watch::Receiver<OwnKey>,
    /// How many rollbacks of etcd the claim's revision takes into account.
    pub(super) rollbacks: u64,
}

/// The latest of what the key was seen to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OwnKey {
    /// How often etcd's revisions were seen to go back: revisions from before and after a rollback cannot be compared.
    pub(super) rollbacks: u64,
    /// The revision at which the key was seen; 0 before it was read for the first time.
    pub(super) revision: i64,
    /// The key; `None` if it is absent.
    pub(super) kv: Option<Kv>,
}

/// Watches the key until the observer is dropped, and reads it every `interval`, for what a watch might miss.
pub(super) fn observe(cluster: Arc<Cluster>, service: ServiceName, key: String, interval: Duration) -> Observer {
    let (publisher, own_key) = watch::channel(OwnKey::default());
    let metrics = WatchMetrics::new(service, Followed::OwnKey);
    let source = Source::new(cluster, Range::key(key.clone()), interval, Trouble::default(), metrics);
    tokio::spawn(run(source, publisher).in_current_span());
    Observer { key, own_key, rollbacks: 0 }
}

async fn run(mut source: Source, publisher: watch::Sender<OwnKey>) {
    let mut listed = None;
    loop {
        let mut next = pin!(source.next());
        let update = tokio::select! {
            () = publisher.closed() => return,
            update = &mut next => update,
        };
        let revision = update.revision();
        // `None` if the update leaves the key as it was.
        let seen = match update {
            Update::Page { is_first, kvs } => {
                if is_first {
                    listed = None;
                }
                listed = kvs.into_iter().next().or(listed);
                continue;
            }
            Update::Listed(_) => Some(listed.take()),
            Update::Events(_, events) => events.into_iter().next_back().map(|event| match event {
                Event::Put(kv) => Some(kv),
                Event::Delete { .. } => None,
            }),
        };
        publisher.send_if_modified(|own_key| {
            // No revision: the rest of the message follows, at the same revision.
            let revision = revision.unwrap_or(own_key.revision);
            let rollbacks = own_key.rollbacks + u64::from(revision < own_key.revision);
            let kv = seen.unwrap_or_else(|| own_key.kv.clone());
            let now = OwnKey { rollbacks, revision, kv };
            let is_news = *own_key != now;
            *own_key = now;
            is_news
        });
    }
}
