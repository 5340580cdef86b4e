//! From etcd to snapshots to changes: one watcher a service, shared by all who listen.

mod feeder;
mod membership;
mod operate;
mod snapshots;
mod stream;
mod watcher;

use std::time::Duration;

pub(crate) use self::membership::Layout;
pub(crate) use self::snapshots::Snapshots;
pub use self::stream::Discover;
pub(crate) use self::watcher::Watchers;

/// How long an instance whose key went without an announcement stays known before it is judged: longer than a server
/// needs to notice that its lease is gone and to register again (a quarter of a second of jitter, a grant, a claim).
const JUDGEMENT: Duration = Duration::from_secs(2);

/// How long instances are held when more than half of a service went without an announcement: long enough for servers
/// that back off up to 10 s from an etcd that recovers, short enough that a dead service is called so within a minute.
pub(crate) const DEFAULT_HOLD: Duration = Duration::from_secs(60);
