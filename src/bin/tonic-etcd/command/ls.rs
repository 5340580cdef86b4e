//! Services, or the instances of one, as they are now.

use std::collections::{BTreeSet, HashMap};

use futures_util::stream::{StreamExt, iter};
use tonic_etcd::snapshot::{Member, Snapshot};
use tonic_etcd::{Registry, ServiceName};

use crate::failure::{Failure, failed};
use crate::names::similar;
use crate::print::{Output, note, shown};

/// `place` says where in etcd it looks.
pub(crate) async fn run(
    registry: &Registry,
    place: &str,
    service: Option<&ServiceName>,
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
    Ok(output.instances(service.as_str(), &snapshot, &left(registry, &snapshot).await)?)
}

/// How many seconds each lease has left, where that is known: a lease may have keys that the user may not read.
async fn left(registry: &Registry, snapshot: &Snapshot) -> HashMap<i64, u64> {
    let leases: BTreeSet<i64> = snapshot.iter().map(Member::lease).filter(|lease| *lease != 0).collect();
    let looks = iter(leases.into_iter().take(MOST_LEASES)).map(|id| async move {
        let lease = registry.lease(id).await.ok().flatten()?;
        Some((id, lease.remaining().as_secs()))
    });
    looks.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await
}

/// Names what there is instead, as far as it can be listed.
async fn unknown(registry: &Registry, place: &str, service: &ServiceName) -> Failure {
    let reason = format!("no server of {service} is registered {place}");
    let Ok(services) = registry.services().await else { return failed(reason) };
    let known: Vec<&str> = services.keys().map(ServiceName::as_str).collect();
    let near = similar(service.as_str(), known.iter().copied());
    let listed = |names: &[&str]| names.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ");
    failed(match (known.len(), near.is_empty()) {
        (0, _) => format!("{reason}, nor of any other service: --prefix and --format look elsewhere"),
        (_, false) => format!("{reason}; similar names: {}", listed(&near)),
        (1..=SHOWN, true) => format!("{reason}; services there: {}", listed(&known)),
        (count, true) => format!("{reason}; services there: {} and {} more", listed(&known[..SHOWN]), count - SHOWN),
    })
}

/// How many leases are looked at; each is a request.
const MOST_LEASES: usize = 1_000;

/// How many of them at once.
const AT_ONCE: usize = 16;

/// How many services an error names.
const SHOWN: usize = 8;
