//! Other formats and prefixes to a finding, where the one that was asked for has nothing.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic_etcd::{Instance, Registry};

use super::finding::Finding;
use super::kind::Kind;

/// Looks for the service, or for any, in each registry; the text before it names the flags that lead there.
pub(super) async fn look(
    registries: Vec<(String, Registry)>,
    service: Option<&str>,
    deadline: Instant,
) -> Option<Finding> {
    let mut names = Vec::new();
    for (flags, registry) in registries {
        let limit = deadline.min(Instant::now() + LIMIT);
        if let Ok(Some(found)) = timeout_at(limit, found(&registry, service)).await {
            names.push(format!("{flags}: {found}"));
        }
    }
    (!names.is_empty()).then(|| Finding::new(Kind::RegisteredElsewhere, service, names))
}

/// What the registry has, in words.
async fn found(registry: &Registry, service: Option<&str>) -> Option<String> {
    let keys = match service {
        Some(service) => registry.keys_of(service).await,
        // Without a prefix there is nothing to look below.
        None => registry.keys().await,
    };
    let keys = keys.ok()?;
    let instances = keys.keys().iter().filter_map(|key| key.instance().ok());
    let mut services: Vec<&str> = instances.map(Instance::service).collect();
    let count = services.len();
    services.dedup();
    match services[..] {
        [] => None,
        [service] => Some(format!("{count} instances of {service}")),
        [first, ..] => Some(format!("{count} instances of {} services, {first} for one", services.len())),
    }
}

/// How long one of the other places may take.
const LIMIT: Duration = Duration::from_secs(3);
