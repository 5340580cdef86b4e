//! From the watchers of one or of several registries to channels and streams over the instances that they know.

use std::sync::Arc;

use crate::channel::{ChannelBuilder, Listing};
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
        // The keys begin with its name.
        prefixes if prefixes.is_empty() => format!("{service} under {service}/"),
        prefixes => format!("{service} under {prefixes}"),
    };
    let mut formats: Vec<String> = Vec::new();
    for format in watchers.iter().map(|watchers| watchers.format()) {
        if !formats.contains(&format) {
            formats.push(format);
        }
    }
    let none = format!("no instance is registered in the format {}{}", formats.join(" or "), hint(service));
    let target = format!("etcd:///{service}");
    let service = service.parse::<ServiceName>();
    ChannelBuilder::new(label, target, move || {
        let service = service?;
        let snapshots = snapshots(&watchers, &service)?.into_stream();
        let trouble = move || {
            let troubles: Vec<String> = watchers.iter().filter_map(|watchers| watchers.trouble(&service)).collect();
            (!troubles.is_empty()).then(|| troubles.join("; "))
        };
        Ok((snapshots, Listing::new(none, trouble)))
    })
}

/// What may be wrong where a name looks like that of a gRPC service: `hello.Hello`.
fn hint(service: &str) -> &'static str {
    let is_grpc = service.rsplit_once('.').is_some_and(|(_, name)| name.starts_with(|c: char| c.is_ascii_uppercase()));
    if is_grpc { "; it looks like a gRPC service: give the name that Instance::new(..) was given" } else { "" }
}

/// The changes of a service, wherever its instances are registered.
pub(super) fn discover(watchers: &[Arc<Watchers>], service: &str) -> Result<Discover, ConfigError> {
    let service: ServiceName = service.parse()?;
    let snapshots = snapshots(watchers, &service)?;
    Ok(Discover::new(service, snapshots))
}

fn snapshots(watchers: &[Arc<Watchers>], service: &ServiceName) -> Result<Snapshots, ConfigError> {
    if watchers.is_empty() {
        let (option, value) = ("RegistrySet", "of no registry".to_owned());
        return Err(ConfigError::Option { option, value, expected: "at least one" });
    }
    let listeners: Result<Vec<_>, _> = watchers.iter().map(|watchers| watchers.subscribe(service)).collect();
    Ok(Snapshots::new(listeners?))
}
