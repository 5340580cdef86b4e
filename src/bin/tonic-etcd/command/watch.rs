//! Changes of all services, or of one, as they happen.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::ready;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic_etcd::{Address, Change, ConfigError, Instance, Registry, RegistryError, shutdown_signal};

use crate::changes::Line;
use crate::failure::Failure;
use crate::print::Output;

pub(crate) async fn run(registry: &Registry, service: Option<String>, output: Output) -> Result<(), Failure> {
    let mut services = match service {
        Some(service) => stream::once(ready(Ok(vec![service]))).chain(stream::pending()).boxed(),
        None => all_services(registry.clone()),
    };
    let mut changes = SelectAll::new();
    let mut known: HashMap<String, HashMap<Address, Instance>> = HashMap::new();
    let mut shutdown = pin!(shutdown_signal());
    loop {
        tokio::select! {
            Some((service, change)) = changes.next() => {
                if let Some(line) = Line::of(change, known.entry(String::clone(&service)).or_default()) {
                    output.change(&service, &line)?;
                }
            }
            Some(listed) = services.next() => match listed {
                Ok(listed) => {
                    for service in listed {
                        if let Entry::Vacant(place) = known.entry(service) {
                            changes.push(changes_of(registry, place.key().clone())?);
                            place.insert(HashMap::new());
                        }
                    }
                }
                Err(error @ (RegistryError::Unavailable { .. } | RegistryError::Refused { .. })) => {
                    tracing::warn!(%error, "services cannot be listed now");
                }
                Err(error) => return Err(error.into()),
            },
            () = &mut shutdown => return Ok(()),
        }
    }
}

/// The names of all services, now and again.
fn all_services(registry: Registry) -> BoxStream<'static, Result<Vec<String>, RegistryError>> {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let look = async |(registry, mut looks): (Registry, Interval)| {
        looks.tick().await;
        let services = registry.services().await;
        let names = services.map(|services| services.into_keys().map(|name| name.to_string()).collect());
        Some((names, (registry, looks)))
    };
    stream::unfold((registry, looks), look).boxed()
}

fn changes_of(registry: &Registry, service: String) -> Result<BoxStream<'static, Told>, ConfigError> {
    let changes = registry.discover(&service)?;
    Ok(changes.filter_map(move |change| ready(change.ok().map(|change| (service.clone(), change)))).boxed())
}

/// A service and a change of it.
type Told = (String, Change<Address, Instance>);

/// How often a watch of all services looks for new ones.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
