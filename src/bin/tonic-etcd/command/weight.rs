//! Another weight to one instance, which its server keeps.

use tonic_etcd::{Address, Registry, ServiceName};

use crate::failure::Failure;
use crate::print::Output;
use crate::target::service_of;

pub(crate) async fn run(
    registry: &Registry,
    address: Address,
    weight: u16,
    service: Option<ServiceName>,
    output: Output,
) -> Result<(), Failure> {
    let service = service_of(registry, &address, service).await?;
    registry.set_weight(&service, address.clone(), weight).await?;
    Ok(output.reweighed(service.as_str(), &address, weight)?)
}
