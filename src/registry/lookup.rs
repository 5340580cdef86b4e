//! From the watchers of one or of several registries to channels and streams over the instances that they know.

use std::sync::Arc;

use crate::channel::ChannelBuilder;
use crate::discover::{Discover, Snapshots, Watchers};
use crate::error::ConfigError;
use crate::instance::ServiceName;

/// A channel over the instances of a service, wherever they are registered; the most important registry comes first.
pub(super) fn channel(watchers: Vec<Arc<Watchers>>, service: &str) -> ChannelBuilder {
    let mut prefixes: Vec<&str> = Vec::new();
    for prefix in watchers.iter().map(|watchers| watchers.prefix()) {
        if !prefix.is_empty() && !prefixes.contains(&prefix) {
            prefixes.push(prefix);
        }
    }
    let label = match prefixes.join(" and ") {
        prefixes if prefixes.is_empty() => service.to_owned(),
        prefixes => format!("{service} under {prefixes}"),
    };
    let service = service.parse::<ServiceName>();
    ChannelBuilder::new(label, move || Ok(snapshots(&watchers, &service?)?.into_stream()))
}

/// The changes of a service, wherever its instances are registered.
pub(super) fn discover(watchers: &[Arc<Watchers>], service: &str) -> Result<Discover, ConfigError> {
    let service: ServiceName = service.parse()?;
    let snapshots = snapshots(watchers, &service)?;
    Ok(Discover::new(service, snapshots))
}

fn snapshots(watchers: &[Arc<Watchers>], service: &ServiceName) -> Result<Snapshots, ConfigError> {
    let listeners: Result<Vec<_>, _> = watchers.iter().map(|watchers| watchers.subscribe(service)).collect();
    Ok(Snapshots::new(listeners?))
}
