//! Changes of all services, or of one, as they happen.

use std::collections::{BTreeSet, HashMap};
use std::future::ready;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll};
use tokio::sync::oneshot;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tonic_etcd::{Address, Change, ConfigError, Instance, Registry, RegistryError, shutdown_signal};

use crate::changes::Line;
use crate::failure::Failure;
use crate::print::{Output, note};

pub(crate) async fn run(registry: &Registry, service: Option<String>, output: Output) -> Result<(), Failure> {
    let mut services = match service {
        Some(service) => stream::once(ready(Ok(BTreeSet::from([service])))).chain(stream::pending()).boxed(),
        None => all_services(registry.clone()),
    };
    let mut changes: SelectAll<BoxStream<'static, Told>> = SelectAll::new();
    let mut followed: HashMap<String, Followed> = HashMap::new();
    let mut is_limit_told = false;
    let mut shutdown = pin!(shutdown_signal());
    loop {
        tokio::select! {
            Some((service, change)) = changes.next() => {
                let known = followed.get_mut(&service).map(|followed| &mut followed.known);
                if let Some(line) = known.and_then(|known| Line::of(change, known)) {
                    output.change(&service, &line)?;
                }
            }
            Some(listed) = services.next() => match listed {
                Ok(listed) => {
                    let now = Instant::now();
                    followed.retain(|service, followed| followed.stays(listed.contains(service), now));
                    for service in listed {
                        if followed.contains_key(&service) {
                            continue;
                        }
                        if followed.len() == MOST_SERVICES {
                            if !std::mem::replace(&mut is_limit_told, true) {
                                note(&format!("there are more services: the first {MOST_SERVICES} are watched"));
                            }
                            break;
                        }
                        let (end, ended) = oneshot::channel();
                        changes.push(changes_of(registry, service.clone(), ended)?);
                        followed.insert(service, Followed { known: HashMap::new(), gone_since: None, _end: end });
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

/// A service that is watched.
struct Followed {
    /// Its instances, as they were printed last.
    known: HashMap<Address, Instance>,
    /// Since when neither a list nor its watch has any of them.
    gone_since: Option<Instant>,
    /// Dropped with the rest, which ends the watch.
    _end: oneshot::Sender<()>,
}

impl Followed {
    /// Whether it is watched on: what has been gone for a while is not.
    fn stays(&mut self, is_listed: bool, now: Instant) -> bool {
        if is_listed || !self.known.is_empty() {
            self.gone_since = None;
            return true;
        }
        now.duration_since(*self.gone_since.get_or_insert(now)) < FORGOTTEN_AFTER
    }
}

/// The names of all services, now and again.
fn all_services(registry: Registry) -> BoxStream<'static, Result<BTreeSet<String>, RegistryError>> {
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

fn changes_of(
    registry: &Registry,
    service: String,
    ended: oneshot::Receiver<()>,
) -> Result<BoxStream<'static, Told>, ConfigError> {
    let changes = registry.discover(&service)?;
    let told = changes.filter_map(move |change| ready(change.ok().map(|change| (service.clone(), change))));
    Ok(told.take_until(ended).boxed())
}

/// A service and a change of it.
type Told = (String, Change<Address, Instance>);

/// How many services are watched: each is a watch at etcd.
const MOST_SERVICES: usize = 1_000;

/// How long a service without instances is watched on: its servers may come back.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// How often a watch of all services looks for new ones.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_service_is_forgotten_once_it_has_been_gone_for_a_while() {
        let (end, mut ended) = oneshot::channel();
        let mut echo = Followed { known: HashMap::new(), gone_since: None, _end: end };
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(echo.stays(false, start) && echo.stays(false, after(59)), "its servers may come back");
        assert!(echo.stays(true, after(61)) && echo.stays(false, after(62)), "they did, and went");
        let instance = Instance::parse("echo", "10.0.0.1:80").expect("a good instance");
        echo.known.insert(instance.address().clone(), instance);
        assert!(echo.stays(false, after(200)), "an instance is held beyond its key");
        echo.known.clear();
        assert!(echo.stays(false, after(201)) && !echo.stays(false, after(261)));
        drop(echo);
        assert!(ended.try_recv().is_err(), "its watch ends");
    }
}
