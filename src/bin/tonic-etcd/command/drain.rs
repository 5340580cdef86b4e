//! The order to leave, to one instance.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tonic_etcd::inspect::StoredKey;
use tonic_etcd::{Address, Registry, ServiceName};

use crate::failure::{Failure, failed};
use crate::print::Output;
use crate::target::{keys_at, service_of};

pub(crate) async fn run(
    registry: &Registry,
    address: Address,
    service: Option<ServiceName>,
    output: Output,
) -> Result<(), Failure> {
    let service = service_of(registry, &address, service).await?;
    let keys = registry.keys_of(&service).await?;
    // Clients read the newest key of an address.
    let newest = keys_at(&keys, &address).max_by_key(|key| key.mod_revision());
    if newest.is_none() && keys.is_cut_off() {
        return Err(failed(format!("{service} has more keys than can be looked through")));
    }
    // Where there is none, the order fails and says so.
    let lease = newest.map_or(0, StoredKey::lease);
    registry.drain_leased(&service, address.clone(), lease).await?;
    output.drained(service.as_str(), &address, "marked")?;

    // Another lease is another server: the successor at the same address.
    let left = async {
        let mut pause = SHORTEST_PAUSE;
        while keys_at(&registry.keys_of(&service).await?, &address).any(|key| key.lease() == lease) {
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok::<_, Failure>(())
    };
    let Ok(left) = timeout(LEAVE_LIMIT, left).await else {
        let limit = LEAVE_LIMIT.as_secs();
        return Err(failed(format!(
            "{address} is marked, and clients of tonic-etcd send it no new calls unless it is the last one, but it has \
             not left in {limit} s: it is another program's, frozen, or cut off from etcd; other clients still call it"
        )));
    };
    left?;
    Ok(output.drained(service.as_str(), &address, "left")?)
}

/// How long a server that is asked to leave may take.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// How soon the keys are read again, at first: a server leaves within milliseconds.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// How soon in the end: a service may have many keys.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
