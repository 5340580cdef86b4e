//! Services, or the instances of one, as they are now.

use tonic_etcd::Registry;

use crate::failure::{Failure, failed};
use crate::names::similar;
use crate::print::{Output, note, shown};

/// `place` says where in etcd it looks.
pub(crate) async fn run(
    registry: &Registry,
    place: &str,
    service: Option<&str>,
    output: Output,
) -> Result<(), Failure> {
    let Some(service) = service else {
        let services = registry.services().await?;
        if services.is_empty() {
            note(&format!("nothing is registered {place}: --prefix and --format look elsewhere"));
        }
        return Ok(output.services(&services)?);
    };
    let snapshot = registry.instances(service).await?;
    if snapshot.is_empty() {
        return Err(unknown(registry, place, service).await);
    }
    Ok(output.instances(service, &snapshot)?)
}

/// Names what there is instead, as far as it can be listed.
async fn unknown(registry: &Registry, place: &str, service: &str) -> Failure {
    let reason = format!("no server of {service} is registered {place}");
    let Ok(services) = registry.services().await else { return failed(reason) };
    let known: Vec<&str> = services.keys().map(|name| name.as_str()).collect();
    let near = similar(service, known.iter().copied());
    let listed = |names: &[&str]| names.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ");
    failed(match (known.len(), near.is_empty()) {
        (0, _) => format!("{reason}, nor of any other service: --prefix and --format look elsewhere"),
        (_, false) => format!("{reason}; similar names: {}", listed(&near)),
        (1..=SHOWN, true) => format!("{reason}; services there: {}", listed(&known)),
        (count, true) => format!("{reason}; services there: {} and {} more", listed(&known[..SHOWN]), count - SHOWN),
    })
}

/// How many services an error names.
const SHOWN: usize = 8;
