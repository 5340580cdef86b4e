//! From etcd to snapshots to changes: one watcher a service, shared by all channels and streams of a registry.
//!
//! # Layout
//!
//! | file | what flows through it |
//! | --- | --- |
//! | `watcher` | updates of a range to published snapshots: one task a service, while there are listeners |
//! | `membership` | keys to a snapshot: the removal policy and the limits; pure |
//! | `snapshots` | the newest snapshot of one or of several registries, merged |
//! | `stream` | snapshots to changes: the public stream |
//! | `feeder` | snapshots to tonic's own balanced channel |
//! | `inspect` | what stands below the prefix, key by key, and what is made of it |
//! | `metrics` | what is known of a service, to the metrics |
//! | `operate` | what an operator lists, reads and marks, without a watch |
//! | `reweigh` | an operator's weight to the server that keeps it |

mod feeder;
mod inspect;
mod membership;
mod metrics;
mod operate;
mod reweigh;
mod snapshots;
mod stream;
mod watcher;

pub use self::inspect::{StoredKey, StoredKeys, Unusable};
pub(crate) use self::membership::{BYTES_PER_INSTANCE, DEFAULT_HOLD, Layout, Limits};
pub(crate) use self::snapshots::Snapshots;
pub use self::stream::Discover;
pub(crate) use self::watcher::Watchers;
