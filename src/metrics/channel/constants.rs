//! The metrics of a channel: the rows of `docs/metrics.md`.

use crate::metrics::{Metric, Unit};

pub(super) const ATTEMPT_STARTED: Metric = Metric {
    name: "grpc.client.attempt.started",
    unit: Unit::Count,
    description: "Attempts of calls that have begun, transparent ones and those that have not ended included.",
};

pub(super) const ATTEMPT_DURATION: Metric = Metric {
    name: "grpc.client.attempt.duration",
    unit: Unit::Seconds,
    description: "How long an attempt of a call took, from its pick to its status.",
};

pub(super) const CALL_DURATION: Metric = Metric {
    name: "grpc.client.call.duration",
    unit: Unit::Seconds,
    description: "How long a call took, from the caller's request to its status, all attempts included.",
};

pub(super) const CALL_RETRIES: Metric = Metric {
    name: "grpc.client.call.retries",
    unit: Unit::Count,
    description: "Retries by the retry policy within one call. Calls without any are not counted.",
};

pub(super) const CALL_TRANSPARENT_RETRIES: Metric = Metric {
    name: "grpc.client.call.transparent_retries",
    unit: Unit::Count,
    description: "Repeated attempts within one call because no handler had seen the one before. Calls without any are \
                  not counted.",
};

pub(super) const CALL_RETRY_DELAY: Metric = Metric {
    name: "grpc.client.call.retry_delay",
    unit: Unit::Seconds,
    description: "How long a call that was retried had no attempt under way.",
};

pub(super) const CONNECTION_ATTEMPTS_SUCCEEDED: Metric = Metric {
    name: "grpc.subchannel.connection_attempts_succeeded",
    unit: Unit::Count,
    description: "Attempts to connect to an instance that led to a connection.",
};

pub(super) const CONNECTION_ATTEMPTS_FAILED: Metric = Metric {
    name: "grpc.subchannel.connection_attempts_failed",
    unit: Unit::Count,
    description: "Attempts to connect to an instance that failed.",
};

pub(super) const DISCONNECTIONS: Metric = Metric {
    name: "grpc.subchannel.disconnections",
    unit: Unit::Count,
    description: "Connections that take no more calls, by the reason.",
};

pub(super) const OPEN_CONNECTIONS: Metric = Metric {
    name: "grpc.subchannel.open_connections",
    unit: Unit::Count,
    description: "Connections that are open, those that only finish their calls included.",
};

pub(super) const EJECTIONS_ENFORCED: Metric = Metric {
    name: "grpc.lb.outlier_detection.ejections_enforced",
    unit: Unit::Count,
    description: "Instances that were left out because their calls failed, by how that was found.",
};

pub(super) const EJECTIONS_UNENFORCED: Metric = Metric {
    name: "grpc.lb.outlier_detection.ejections_unenforced",
    unit: Unit::Count,
    description: "Instances that failed and were not left out, by how that was found and why not.",
};

pub(super) const INSTANCES: Metric = Metric {
    name: "tonic_etcd.channel.instances",
    unit: Unit::Count,
    description: "Instances of the service by where they stand, each in one state.",
};

pub(super) const CALLS_IN_FLIGHT: Metric = Metric {
    name: "tonic_etcd.channel.calls_in_flight",
    unit: Unit::Count,
    description: "Calls that have begun and not ended.",
};

pub(super) const CALLS_WAITING: Metric = Metric {
    name: "tonic_etcd.channel.calls_waiting",
    unit: Unit::Count,
    description: "Calls that wait for an instance with room.",
};

pub(super) const PICKS_WAITED: Metric = Metric {
    name: "tonic_etcd.channel.picks_waited",
    unit: Unit::Count,
    description: "Picks that found no instance with room at once.",
};

pub(super) const PICK_WAIT: Metric = Metric {
    name: "tonic_etcd.channel.pick_wait",
    unit: Unit::Seconds,
    description: "How long a pick waited that found no instance with room at once, until it had one or was given up.",
};

pub(super) const RETRIES_REFUSED: Metric = Metric {
    name: "tonic_etcd.channel.retries_refused",
    unit: Unit::Count,
    description: "Retries that the retry policy wanted and the budget did not allow.",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_a_channel_has_a_row_in_the_documentation() {
        let rows = include_str!("../../../docs/metrics.md");
        for metric in [
            ATTEMPT_STARTED,
            ATTEMPT_DURATION,
            CALL_DURATION,
            CALL_RETRIES,
            CALL_TRANSPARENT_RETRIES,
            CALL_RETRY_DELAY,
            CONNECTION_ATTEMPTS_SUCCEEDED,
            CONNECTION_ATTEMPTS_FAILED,
            DISCONNECTIONS,
            OPEN_CONNECTIONS,
            EJECTIONS_ENFORCED,
            EJECTIONS_UNENFORCED,
            INSTANCES,
            CALLS_IN_FLIGHT,
            CALLS_WAITING,
            PICKS_WAITED,
            PICK_WAIT,
            RETRIES_REFUSED,
        ] {
            let row = format!("| `{}` |", metric.name);
            assert!(rows.contains(&row), "docs/metrics.md has no row that begins with {row}");
        }
    }
}
