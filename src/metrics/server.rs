//! The calls and connections of servers, and what becomes of them in a shutdown.

use super::{Counter, Gauge, Metric, Unit};

pub(crate) const CALLS: Metric<Gauge> = Metric::new(
    "tonic_etcd.server.calls",
    Unit::Count,
    &[],
    "Calls whose request or response has not ended, as layers count them.",
);

pub(crate) const CONNECTIONS: Metric<Gauge> =
    Metric::new("tonic_etcd.server.connections", Unit::Count, &[], "Connections that servers have accepted and hold.");

pub(crate) const DRAINS: Metric<Counter> =
    Metric::new("tonic_etcd.server.drains", Unit::Count, &[], "Shutdowns in which calls began to get a limit.");

pub(crate) const DRAINED_CALLS: Metric<Counter> =
    Metric::new("tonic_etcd.server.drain.calls", Unit::Count, &["outcome"], "Calls that ended in a shutdown, by how.");

pub(crate) const DRAINED_CONNECTIONS: Metric<Counter> = Metric::new(
    "tonic_etcd.server.drain.connections",
    Unit::Count,
    &["outcome"],
    "Connections that ended in a shutdown, by how.",
);

pub(crate) const LOST_LIMITS: Metric<Counter> = Metric::new(
    "tonic_etcd.server.drain.lost",
    Unit::Count,
    &[],
    "Shutdowns whose limit went with the runtime that counted down to it.",
);
