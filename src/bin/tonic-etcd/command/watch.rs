//! Changes of all services, or of one, as they happen.

use std::collections::HashMap;
use std::mem;
use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;
use tonic_etcd::{Address, Instance, Registry, RegistryError, ServiceName, shutdown_signal};

use crate::changes::Line;
use crate::failure::{Failure, with_causes};
use crate::print::{Output, note};
use crate::services::{Services, Update};

pub(crate) async fn run(registry: &Registry, service: Option<ServiceName>, output: Output) -> Result<(), Failure> {
    let mut services = Services::changes(registry, service.as_slice())?;
    let mut known: HashMap<ServiceName, Known> = HashMap::new();
    let (mut was_listed, mut is_limit_reported, mut is_outage_reported) = (false, false, false);
    let mut shutdown = pin!(shutdown_signal());
    loop {
        let update = tokio::select! {
            update = services.next() => update?,
            () = &mut shutdown => return Ok(()),
        };
        match update {
            Update::Of(service, change) => {
                let known = known.entry(service.clone()).or_default();
                if let Some(line) = Line::of(change, &mut known.instances) {
                    output.change(service.as_str(), &line)?;
                }
            }
            Update::Listed(listed) => {
                (was_listed, is_outage_reported) = (true, false);
                if listed.left_out > 0 && !mem::replace(&mut is_limit_reported, true) {
                    note(&format!("there are more services: the first {} are watched", services.len()));
                }
                for name in &listed.names {
                    known.entry(name.clone()).or_default();
                }
                let now = Instant::now();
                known.retain(|service, known| {
                    let stays = known.stays(listed.names.contains(service), now);
                    if !stays {
                        services.forget(service.as_str());
                    }
                    stays
                });
            }
            Update::Trouble(error) if !was_listed && !may_pass(&error) => return Err(error.into()),
            Update::Trouble(error) => {
                if !mem::replace(&mut is_outage_reported, true) {
                    tracing::warn!(error = with_causes(&error), "services cannot be read now");
                }
            }
        }
    }
}

/// Whether it may be an outage. A wrong password or certificate is to be seen at once; later, what worked may do so
/// again.
fn may_pass(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Unavailable { .. } | RegistryError::Refused { .. })
}

/// What was printed of a service.
#[derive(Default)]
struct Known {
    /// Its instances, as they were printed last.
    instances: HashMap<Address, Instance>,
    /// Since when neither a list nor its watch has any of them.
    gone_since: Option<Instant>,
}

impl Known {
    /// Whether it is watched on: what has been gone for a while is not.
    fn stays(&mut self, is_listed: bool, now: Instant) -> bool {
        if is_listed || !self.instances.is_empty() {
            self.gone_since = None;
            return true;
        }
        now.duration_since(*self.gone_since.get_or_insert(now)) < FORGOTTEN_AFTER
    }
}

/// How long a service without instances is watched on: its servers may come back.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_forgotten_once_it_has_been_gone_for_a_while() {
        let (mut echo, start) = (Known::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(echo.stays(false, start) && echo.stays(false, after(59)), "its servers may come back");
        assert!(echo.stays(true, after(61)) && echo.stays(false, after(62)), "they did, and went");
        let instance = Instance::parse("echo", "10.0.0.1:80").expect("a good instance");
        echo.instances.insert(instance.address().clone(), instance);
        assert!(echo.stays(false, after(200)), "an instance is held beyond its key");
        echo.instances.clear();
        assert!(echo.stays(false, after(201)) && !echo.stays(false, after(261)));
    }
}
