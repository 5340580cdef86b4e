//! Services, or the instances of one, as they are now.

use tonic_etcd::Registry;

use crate::failure::{Failure, failed};
use crate::print::Output;

pub(crate) async fn run(registry: &Registry, service: Option<&str>, output: Output) -> Result<(), Failure> {
    match service {
        None => Ok(output.services(&registry.services().await?)?),
        Some(service) => list(registry, service, output).await,
    }
}

async fn list(registry: &Registry, service: &str, output: Output) -> Result<(), Failure> {
    let snapshot = registry.instances(service).await?;
    if snapshot.is_empty() {
        return Err(failed(format!("no server of {service} is registered")));
    }
    Ok(output.instances(service, &snapshot)?)
}
