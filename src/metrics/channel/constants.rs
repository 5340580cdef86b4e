//! The metrics of a channel: the rows of `docs/metrics.md`.

use crate::metrics::{Counter, Gauge, Histogram, Metric, Unit};

pub(super) const ATTEMPT_STARTED: Metric<Counter> = Metric::new(
    "grpc.client.attempt.started",
    Unit::Count,
    &[TARGET, METHOD],
    "Attempts of calls that have begun, transparent ones and those that have not ended included.",
);

pub(super) const ATTEMPT_DURATION: Metric<Histogram> = Metric::new(
    "grpc.client.attempt.duration",
    Unit::Seconds,
    &[TARGET, METHOD, STATUS],
    "How long an attempt of a call took, from its pick to its status.",
);

pub(super) const CALL_DURATION: Metric<Histogram> = Metric::new(
    "grpc.client.call.duration",
    Unit::Seconds,
    &[TARGET, METHOD, STATUS],
    "How long a call took, from the caller's request to its status, all attempts included.",
);

pub(super) const CALL_RETRIES: Metric<Histogram> = Metric::new(
    "grpc.client.call.retries",
    Unit::Count,
    &[TARGET, METHOD],
    "Retries by the retry policy within one call. Calls without any are not counted.",
);

pub(super) const CALL_TRANSPARENT_RETRIES: Metric<Histogram> = Metric::new(
    "grpc.client.call.transparent_retries",
    Unit::Count,
    &[TARGET, METHOD],
    "Repeated attempts within one call because no handler had seen the one before. Calls without any are \
                  not counted.",
);

pub(super) const CALL_RETRY_DELAY: Metric<Histogram> = Metric::new(
    "grpc.client.call.retry_delay",
    Unit::Seconds,
    &[TARGET, METHOD],
    "How long a call that was retried had no attempt under way.",
);

pub(super) const CONNECTION_ATTEMPTS_SUCCEEDED: Metric<Counter> = Metric::new(
    "grpc.subchannel.connection_attempts_succeeded",
    Unit::Count,
    &[TARGET],
    "Attempts to connect to an instance that led to a connection.",
);

pub(super) const CONNECTION_ATTEMPTS_FAILED: Metric<Counter> = Metric::new(
    "grpc.subchannel.connection_attempts_failed",
    Unit::Count,
    &[TARGET],
    "Attempts to connect to an instance that failed.",
);

pub(super) const DISCONNECTIONS: Metric<Counter> = Metric::new(
    "grpc.subchannel.disconnections",
    Unit::Count,
    &[TARGET, "grpc.disconnect_error"],
    "Connections that take no more calls, by the reason.",
);

pub(super) const OPEN_CONNECTIONS: Metric<Gauge> = Metric::new(
    "grpc.subchannel.open_connections",
    Unit::Count,
    &[TARGET],
    "Connections that are open, those that only finish their calls included.",
);

pub(super) const EJECTIONS_ENFORCED: Metric<Counter> = Metric::new(
    "grpc.lb.outlier_detection.ejections_enforced",
    Unit::Count,
    &[TARGET, DETECTION_METHOD],
    "Instances that were left out because their calls failed, by how that was found.",
);

pub(super) const EJECTIONS_UNENFORCED: Metric<Counter> = Metric::new(
    "grpc.lb.outlier_detection.ejections_unenforced",
    Unit::Count,
    &[TARGET, DETECTION_METHOD, "grpc.lb.outlier_detection.unenforced_reason"],
    "Instances that failed and were not left out, by how that was found and why not.",
);

pub(super) const INSTANCES: Metric<Gauge> = Metric::new(
    "tonic_etcd.channel.instances",
    Unit::Count,
    &[TARGET, "state"],
    "Instances of the service by where they stand, each in one state.",
);

pub(super) const CALLS_IN_FLIGHT: Metric<Gauge> =
    Metric::new("tonic_etcd.channel.calls_in_flight", Unit::Count, &[TARGET], "Calls that have begun and not ended.");

pub(super) const CALLS_WAITING: Metric<Gauge> = Metric::new(
    "tonic_etcd.channel.calls_waiting",
    Unit::Count,
    &[TARGET],
    "Calls that wait for an instance with room.",
);

pub(super) const PICKS_WAITED: Metric<Counter> = Metric::new(
    "tonic_etcd.channel.picks_waited",
    Unit::Count,
    &[TARGET],
    "Picks that found no instance with room at once.",
);

pub(super) const PICK_WAIT: Metric<Histogram> = Metric::new(
    "tonic_etcd.channel.pick_wait",
    Unit::Seconds,
    &[TARGET],
    "How long a pick waited that found no instance with room at once, until it had one or was given up.",
);

pub(super) const RETRIES_REFUSED: Metric<Counter> = Metric::new(
    "tonic_etcd.channel.retries_refused",
    Unit::Count,
    &[TARGET],
    "Retries that the retry policy wanted and the budget did not allow.",
);

const TARGET: &str = "grpc.target";
const METHOD: &str = "grpc.method";
const STATUS: &str = "grpc.status";
const DETECTION_METHOD: &str = "grpc.lb.outlier_detection.detection_method";

#[cfg(test)]
mod tests {
    #[test]
    fn every_metric_of_a_channel_has_a_row_in_the_documentation() {
        let (here, rows) = (include_str!("constants.rs"), include_str!("../../../docs/metrics.md"));
        let of_metrics = here.lines().zip(here.lines().skip(1)).filter(|(line, _)| line.ends_with("= Metric::new("));
        let names: Vec<_> = of_metrics.map(|(_, next)| next.trim().trim_matches(['"', ','])).collect();
        assert_eq!(names.len(), 18, "{names:?}");
        for name in names {
            assert!(rows.contains(&format!("| `{name}` | ")), "docs/metrics.md has no row of {name}");
        }
    }
}
