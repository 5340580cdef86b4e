//! The order to leave, to one instance.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tonic_etcd::snapshot::Member;
use tonic_etcd::{Address, Registry};

use crate::failure::{Failure, failed};
use crate::print::Output;

pub(crate) async fn run(
    registry: &Registry,
    address: Address,
    service: Option<String>,
    output: Output,
) -> Result<(), Failure> {
    let service = match service {
        Some(service) => service,
        None => only_service(registry, &address).await?,
    };
    let before = lease_of(registry, &service, &address).await?;
    registry.drain(&service, address.clone()).await?;
    output.drained(&service, &address, "marked")?;

    // Another lease is another server: the successor at the same address.
    let left = async {
        while before.is_some() && lease_of(registry, &service, &address).await? == before {
            sleep(LEAVE_INTERVAL).await;
        }
        Ok::<_, Failure>(())
    };
    let Ok(left) = timeout(LEAVE_LIMIT, left).await else {
        let limit = LEAVE_LIMIT.as_secs();
        return Err(failed(format!("{address} is marked and gets no new calls, but has not left in {limit} s")));
    };
    left?;
    Ok(output.drained(&service, &address, "left")?)
}

async fn lease_of(registry: &Registry, service: &str, address: &Address) -> Result<Option<i64>, Failure> {
    Ok(registry.instances(service).await?.get(address).map(Member::lease))
}

/// The service that a server at this address is registered for.
async fn only_service(registry: &Registry, address: &Address) -> Result<String, Failure> {
    let mut found = Vec::new();
    for service in registry.services().await?.into_keys() {
        if registry.instances(&service).await?.get(address).is_some() {
            found.push(service.to_string());
        }
    }
    match found.len() {
        0 => Err(failed(format!("no server is registered at {address}"))),
        1 => Ok(found.remove(0)),
        _ => {
            let services = found.join(", ");
            Err(Failure::Usage(format!("{address} is registered for {services}: say which with --service").into()))
        }
    }
}

/// How long a server that is asked to leave may take.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// How often it is looked at meanwhile.
const LEAVE_INTERVAL: Duration = Duration::from_millis(50);
