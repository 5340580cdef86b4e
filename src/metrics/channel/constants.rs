//! The metrics of a channel: the rows of `docs/metrics.md`.

use crate::metrics::{Counter, Gauge, Histogram, Metric, Unit};

pub(super) const ATTEMPT_STARTED: Metric<Counter> = Metric::new(
    "grpc.client.attempt.started",
    Unit::Count,
    &["grpc.target", "grpc.method"],
    "Attempts of calls that have begun, transparent ones and those that have not ended included.",
);

pub(super) const ATTEMPT_DURATION: Metric<Histogram> = Metric::new(
    "grpc.client.attempt.duration",
    Unit::Seconds,
    &["grpc.target", "grpc.method", "grpc.status"],
    "How long an attempt of a call took, from its begin to its status.",
);

pub(super) const CALL_DURATION: Metric<Histogram> = Metric::new(
    "grpc.client.call.duration",
    Unit::Seconds,
    &["grpc.target", "grpc.method", "grpc.status"],
    "How long a call took, from the caller's request to its status, all attempts included.",
);

pub(super) const CALL_RETRIES: Metric<Histogram> = Metric::new(
    "grpc.client.call.retries",
    Unit::Count,
    &["grpc.target", "grpc.method"],
    "Retries by the retry policy within one call. Calls without any are not counted.",
);

pub(super) const CALL_TRANSPARENT_RETRIES: Metric<Histogram> = Metric::new(
    "grpc.client.call.transparent_retries",
    Unit::Count,
    &["grpc.target", "grpc.method"],
    "Repeated attempts within one call because no handler had seen the one before. Calls without any are \
     not counted.",
);

pub(super) const CALL_RETRY_DELAY: Metric<Histogram> = Metric::new(
    "grpc.client.call.retry_delay",
    Unit::Seconds,
    &["grpc.target", "grpc.method"],
    "How long a call that was retried had no attempt under way.",
);

pub(super) const CONNECTION_ATTEMPTS_SUCCEEDED: Metric<Counter> = Metric::new(
    "grpc.subchannel.connection_attempts_succeeded",
    Unit::Count,
    &["grpc.target"],
    "Attempts to connect to an instance that led to a connection.",
);

pub(super) const CONNECTION_ATTEMPTS_FAILED: Metric<Counter> = Metric::new(
    "grpc.subchannel.connection_attempts_failed",
    Unit::Count,
    &["grpc.target"],
    "Attempts to connect to an instance that failed.",
);

pub(super) const DISCONNECTIONS: Metric<Counter> = Metric::new(
    "grpc.subchannel.disconnections",
    Unit::Count,
    &["grpc.target", "grpc.disconnect_error"],
    "Connections that take no more calls, by the reason.",
);

pub(super) const OPEN_CONNECTIONS: Metric<Gauge> = Metric::new(
    "grpc.subchannel.open_connections",
    Unit::Count,
    &["grpc.target"],
    "Connections that are open, those that only finish their calls included.",
);

pub(super) const EJECTIONS_ENFORCED: Metric<Counter> = Metric::new(
    "grpc.lb.outlier_detection.ejections_enforced",
    Unit::Count,
    &["grpc.target", "grpc.lb.outlier_detection.detection_method"],
    "Instances that were left out because their calls failed, by how that was found.",
);

pub(super) const EJECTIONS_UNENFORCED: Metric<Counter> = Metric::new(
    "grpc.lb.outlier_detection.ejections_unenforced",
    Unit::Count,
    &["grpc.target", "grpc.lb.outlier_detection.detection_method", "grpc.lb.outlier_detection.unenforced_reason"],
    "Instances that failed and were not left out, by how that was found and why not.",
);

pub(super) const CHANNELS: Metric<Gauge> =
    Metric::new("tonic_etcd.channels", Unit::Count, &["grpc.target"], "Channels that have not ended.");

pub(super) const INSTANCES: Metric<Gauge> = Metric::new(
    "tonic_etcd.channel.instances",
    Unit::Count,
    &["grpc.target", "state"],
    "Instances of the service by where they stand, each in one state.",
);

pub(super) const CALLS_IN_FLIGHT: Metric<Gauge> = Metric::new(
    "tonic_etcd.channel.calls_in_flight",
    Unit::Count,
    &["grpc.target"],
    "Calls that have begun and not ended.",
);

pub(super) const CALLS_WAITING: Metric<Gauge> = Metric::new(
    "tonic_etcd.channel.calls_waiting",
    Unit::Count,
    &["grpc.target"],
    "Calls that wait for an instance with room.",
);

pub(super) const PICKS_WAITED: Metric<Counter> = Metric::new(
    "tonic_etcd.channel.picks_waited",
    Unit::Count,
    &["grpc.target"],
    "Picks that found no instance with room at once.",
);

pub(super) const PICK_WAIT: Metric<Histogram> = Metric::new(
    "tonic_etcd.channel.pick_wait",
    Unit::Seconds,
    &["grpc.target"],
    "How long a pick waited that found no instance with room at once, until it had one or was given up.",
);

pub(super) const RETRIES_REFUSED: Metric<Counter> = Metric::new(
    "tonic_etcd.channel.retries_refused",
    Unit::Count,
    &["grpc.target"],
    "Retries that the retry policy wanted and the budget did not allow.",
);
