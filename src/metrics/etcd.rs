//! The members of etcd, and what is asked of them.

use super::{Counter, Gauge, Histogram, Metric, Unit};

pub(crate) const MEMBERS: Metric<Gauge> =
    Metric::new("tonic_etcd.etcd.members", Unit::Count, &["state"], "Members that are named, by how they answer.");

pub(crate) const OUTAGES: Metric<Counter> = Metric::new(
    "tonic_etcd.etcd.outages",
    Unit::Count,
    &["state"],
    "How often a member that was well was found not to be, by how it answered then.",
);

pub(crate) const STRANGERS: Metric<Gauge> = Metric::new(
    "tonic_etcd.etcd.strangers",
    Unit::Count,
    &[],
    "Members that are not used, since members report different clusters.",
);

pub(crate) const CALLS: Metric<Counter> = Metric::new(
    "tonic_etcd.etcd.calls",
    Unit::Count,
    &["operation", "outcome"],
    "Calls of one member, and streams that were opened on it, by how they ended.",
);

pub(crate) const CALL_DURATION: Metric<Histogram> = Metric::new(
    "tonic_etcd.etcd.call.duration",
    Unit::Seconds,
    &["operation"],
    "How long calls took that a member answered, be it with a refusal.",
);

pub(crate) const CONNECTS: Metric<Counter> = Metric::new(
    "tonic_etcd.etcd.connects",
    Unit::Count,
    &["outcome"],
    "Connections to members that were dialled, TLS included, by how that ended.",
);

pub(crate) const LOGINS: Metric<Counter> =
    Metric::new("tonic_etcd.etcd.logins", Unit::Count, &["outcome"], "Logins at members, by how they ended.");
