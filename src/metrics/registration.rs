//! Registrations: how many there are in which state, how they are lost and put back, and the keepalives of their
//! leases.

use super::{Counter, Gauge, Histogram, Metric, Unit};

pub(crate) const REGISTRATIONS: Metric<Gauge> = Metric::new(
    "tonic_etcd.registrations",
    Unit::Count,
    &["service", "state"],
    "Registrations that have not ended, by what they are at.",
);

pub(crate) const REGISTERED: Metric<Counter> = Metric::new(
    "tonic_etcd.registration.registered",
    Unit::Count,
    &["service"],
    "How often a key came into etcd that was not there, at the start or again.",
);

pub(crate) const LOST: Metric<Counter> = Metric::new(
    "tonic_etcd.registration.lost",
    Unit::Count,
    &["service", "reason"],
    "How often a registration was lost, by what happened to its key or its lease.",
);

pub(crate) const CONFLICTS: Metric<Counter> = Metric::new(
    "tonic_etcd.registration.conflicts",
    Unit::Count,
    &["service"],
    "How often the key was found under the live lease of another server.",
);

pub(crate) const DURATION: Metric<Histogram> = Metric::new(
    "tonic_etcd.registration.duration",
    Unit::Seconds,
    &["service", "cause"],
    "How long a registration was on its way into etcd, by what it came from.",
);

pub(crate) const FAILURES: Metric<Counter> = Metric::new(
    "tonic_etcd.registration.failures",
    Unit::Count,
    &["service"],
    "Grants and claims that failed, on all members that were asked.",
);

pub(crate) const ENDED: Metric<Counter> = Metric::new(
    "tonic_etcd.registration.ended",
    Unit::Count,
    &["service", "ending"],
    "Registrations that ended, by how.",
);

pub(crate) const LEFT_BEHIND: Metric<Counter> = Metric::new(
    "tonic_etcd.registration.left_behind",
    Unit::Count,
    &["service"],
    "Registrations that ended while etcd did not take them out: clients may list them until their leases expire.",
);

pub(crate) const RENEWALS: Metric<Counter> = Metric::new(
    "tonic_etcd.keepalive.renewals",
    Unit::Count,
    &["outcome"],
    "Renewals of leases that fell due, each on one member or two.",
);

pub(crate) const KEEPALIVES: Metric<Counter> = Metric::new(
    "tonic_etcd.keepalive.sent",
    Unit::Count,
    &[],
    "Keepalives that were sent to members, second ones for one renewal included.",
);

pub(crate) const KEEPALIVE_DURATION: Metric<Histogram> = Metric::new(
    "tonic_etcd.keepalive.duration",
    Unit::Seconds,
    &[],
    "From a keepalive to its answer, on a stream that is open.",
);
