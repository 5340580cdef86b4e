//! Watches of etcd, the lists that they begin with, and what is known of a service by them.

use super::{Counter, Gauge, Histogram, Metric, Unit};

pub(crate) const WATCHES: Metric<Gauge> = Metric::new(
    "tonic_etcd.watches",
    Unit::Count,
    &["service", "of", "state"],
    "What is followed in etcd, by how far it is.",
);

pub(crate) const RESTARTS: Metric<Counter> = Metric::new(
    "tonic_etcd.watch.restarts",
    Unit::Count,
    &["service", "of", "reason"],
    "Watches that were open and ended, so that others had to be opened, by what ended them.",
);

pub(crate) const LISTS: Metric<Counter> = Metric::new(
    "tonic_etcd.watch.lists",
    Unit::Count,
    &["service", "of", "cause"],
    "Lists that are complete, by what made them necessary.",
);

pub(crate) const LIST_DURATION: Metric<Histogram> = Metric::new(
    "tonic_etcd.watch.list.duration",
    Unit::Seconds,
    &["service", "of"],
    "How long a complete list took, from its first page to its last one.",
);

pub(crate) const LISTED_KEYS: Metric<Counter> =
    Metric::new("tonic_etcd.watch.list.keys", Unit::Count, &["service", "of"], "Keys that lists brought.");

pub(crate) const LISTED_SIZE: Metric<Counter> = Metric::new(
    "tonic_etcd.watch.list.size",
    Unit::Bytes,
    &["service", "of"],
    "The size of the keys and values that lists brought.",
);

pub(crate) const LAG: Metric<Gauge> = Metric::new(
    "tonic_etcd.watch.lag",
    Unit::Count,
    &["service", "of"],
    "Revisions between the newest one that a watch's stream has named and the one up to which the watch is complete.",
);

pub(crate) const VERIFIED: Metric<Gauge> = Metric::new(
    "tonic_etcd.watch.verified.timestamp",
    Unit::Seconds,
    &["service", "of"],
    "When etcd last showed that nothing is missing, since 1970; 0 before the first list.",
);

pub(crate) const INSTANCES: Metric<Gauge> = Metric::new(
    "tonic_etcd.discovery.instances",
    Unit::Count,
    &["service", "state"],
    "Instances that are known of a service, by how sure it is that they serve.",
);

pub(crate) const CUT_OFF: Metric<Gauge> = Metric::new(
    "tonic_etcd.discovery.cut_off",
    Unit::Count,
    &["service"],
    "Keys that are left out since there are too many.",
);

pub(crate) const SIZE: Metric<Gauge> = Metric::new(
    "tonic_etcd.discovery.size",
    Unit::Bytes,
    &["service"],
    "About how much memory the instances of a service take.",
);

pub(crate) const SNAPSHOTS: Metric<Counter> = Metric::new(
    "tonic_etcd.discovery.snapshots",
    Unit::Count,
    &["service"],
    "Changes of a service that were handed on, several at once while one follows the other.",
);

pub(crate) const UNUSABLE: Metric<Counter> = Metric::new(
    "tonic_etcd.discovery.unusable",
    Unit::Count,
    &["service", "trouble"],
    "How often a key was read that cannot be used, or not all of it.",
);
