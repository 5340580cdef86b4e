//! The targets of all events and spans, by which subscribers filter: names that stay while modules move.

/// Channels: their calls, their instances, and the connections to those.
pub(crate) const CHANNEL: &str = "tonic_etcd::channel";

/// Registrations, and the servers around them.
pub(crate) const REGISTRATION: &str = "tonic_etcd::registration";

/// What is known of services: watches, snapshots, and what operators ask for.
pub(crate) const DISCOVERY: &str = "tonic_etcd::discovery";

/// Clusters of etcd: their members, logins and streams.
pub(crate) const ETCD: &str = "tonic_etcd::etcd";
