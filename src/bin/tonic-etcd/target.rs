//! An address to the service that is meant, and to the keys that have it.

use std::collections::BTreeSet;

use tonic_etcd::inspect::{StoredKey, StoredKeys};
use tonic_etcd::{Address, Registry, ServiceName};

use crate::failure::{Failure, failed, refused};

/// The service that is meant: the one that is named, or the only one that a server at this address is registered for.
pub(crate) async fn service_of(
    registry: &Registry,
    address: &Address,
    named: Option<ServiceName>,
) -> Result<ServiceName, Failure> {
    if let Some(service) = named {
        return Ok(service);
    }
    let keys = registry.keys().await?;
    if keys.is_cut_off() {
        return Err(failed("there are more keys than can be looked through: say which service with --service"));
    }
    let mut found: BTreeSet<&ServiceName> = keys_at(&keys, address).filter_map(StoredKey::service).collect();
    match (found.pop_first(), found.len()) {
        (None, _) => Err(failed(format!("no server is registered at {address}"))),
        (Some(service), 0) => Ok(service.clone()),
        (Some(first), _) => {
            let services = [first].into_iter().chain(found).map(ServiceName::as_str).collect::<Vec<_>>().join(", ");
            Err(refused(format!("{address} is registered for {services}: say which with --service")))
        }
    }
}

/// The keys whose values have this address.
pub(crate) fn keys_at<'a>(keys: &'a StoredKeys, address: &'a Address) -> impl Iterator<Item = &'a StoredKey> {
    keys.keys().iter().filter(move |key| key.instance().is_ok_and(|instance| instance.address() == address))
}
