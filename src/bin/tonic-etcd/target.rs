//! An address to the service that it is registered for, and to what an order to it comes to.

use std::time::Duration;

use futures_util::stream::{StreamExt, TryStreamExt, iter};
use tonic_etcd::{Address, Registry, RegistryError};

use crate::failure::{Failure, failed, refused};

/// The service that is meant: the one that is named, or the only one that a server at this address is registered for.
pub(crate) async fn service_of(
    registry: &Registry,
    address: &Address,
    named: Option<String>,
) -> Result<String, Failure> {
    if let Some(service) = named {
        return Ok(service);
    }
    let services = registry.services().await?.into_keys();
    let looks = iter(services).map(|service| async move {
        let is_there = registry.instances(&service).await?.get(address).is_some();
        Ok::<_, RegistryError>(is_there.then(|| service.to_string()))
    });
    let mut found: Vec<String> =
        looks.buffered(AT_ONCE).try_filter_map(|found| async move { Ok(found) }).try_collect().await?;
    match found.len() {
        0 => Err(failed(format!("no server is registered at {address}"))),
        1 => Ok(found.remove(0)),
        _ => {
            let services = found.join(", ");
            Err(refused(format!("{address} is registered for {services}: say which with --service")))
        }
    }
}

/// How many services are looked at once.
const AT_ONCE: usize = 8;

/// How often a key is looked at while its server is waited for.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(50);
