//! The order to leave, to one instance.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tonic_etcd::snapshot::Member;
use tonic_etcd::{Address, Registry, ServiceName};

use crate::failure::{Failure, failed};
use crate::print::Output;
use crate::target::{LOOK_INTERVAL, service_of};

pub(crate) async fn run(
    registry: &Registry,
    address: Address,
    service: Option<ServiceName>,
    output: Output,
) -> Result<(), Failure> {
    let service = service_of(registry, &address, service).await?;
    let before = lease_of(registry, &service, &address).await?;
    match before {
        Some(lease) => registry.drain_leased(&service, address.clone(), lease).await?,
        // It has left since: the error says so.
        None => registry.drain(&service, address.clone()).await?,
    }
    output.drained(service.as_str(), &address, "marked")?;

    // Another lease is another server: the successor at the same address.
    let left = async {
        while before.is_some() && lease_of(registry, &service, &address).await? == before {
            sleep(LOOK_INTERVAL).await;
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

async fn lease_of(registry: &Registry, service: &ServiceName, address: &Address) -> Result<Option<i64>, Failure> {
    Ok(registry.instances(service).await?.get(address).map(Member::lease))
}

/// How long a server that is asked to leave may take.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);
