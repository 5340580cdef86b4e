//! The registry to the board: the services that there are, and every snapshot of each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, BoxStream, SelectAll};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use tokio::time::{interval, sleep};
use tonic_etcd::snapshot::Snapshot;
use tonic_etcd::{Registry, RegistryError};

use super::board::News;
use super::hub::Hub;
use super::wire;
use crate::failure::{Failure, with_causes};

/// Follows these services, or all that there are, until something fails that no retry mends.
pub(crate) async fn follow(registry: &Registry, wanted: &[String], hub: &Hub) -> Result<(), Failure> {
    let mut followed = Followed::default();
    for name in wanted {
        followed.add(registry, hub, name, false)?;
    }
    let mut looks = looks(registry.clone(), wanted.to_vec());
    let mut beats = interval(BEAT_INTERVAL);
    let mut is_first_look = true;
    loop {
        tokio::select! {
            Some((name, snapshot)) = followed.snapshots.next() => {
                hub.update(|board, now| board.on_snapshot(&name, &snapshot, now));
                // Each stream skips to its newest, so that there is an end to this.
                for _ in 0..followed.ends.len() {
                    let Some(Some((name, snapshot))) = followed.snapshots.next().now_or_never() else { break };
                    hub.update(|board, now| board.on_snapshot(&name, &snapshot, now));
                }
                // A service that changes all the time is shown twenty times a second.
                sleep(PAUSE).await;
            }
            Some(listed) = looks.next() => match listed {
                Ok(listed) => {
                    let left_out = followed.on_list(registry, hub, &listed, wanted, !is_first_look)?;
                    is_first_look = false;
                    hub.update(|board, now| board.on_answer(left_out, now));
                }
                Err(RegistryError::Config(error)) => return Err(error.into()),
                Err(error) => hub.update(|board, now| board.on_trouble(with_causes(&error), now)),
            },
            _ = beats.tick() => hub.update(|board, now| vec![News::Event(board.beat(now))]),
        }
    }
}

/// The services whose snapshots come in.
#[derive(Default)]
struct Followed {
    snapshots: SelectAll<BoxStream<'static, (Arc<str>, Arc<Snapshot>)>>,
    /// What ends each of the streams when it is dropped.
    ends: HashMap<Arc<str>, oneshot::Sender<()>>,
}

impl Followed {
    fn add(&mut self, registry: &Registry, hub: &Hub, name: &str, is_late: bool) -> Result<(), Failure> {
        if self.ends.contains_key(name) {
            return Ok(());
        }
        let snapshots = stream::unfold(registry.discover(name)?, async |mut discover| {
            Some((discover.next_snapshot().await, discover))
        });
        let (end, ended) = oneshot::channel();
        let name: Arc<str> = name.into();
        hub.board().add(&name, is_late);
        self.ends.insert(name.clone(), end);
        self.snapshots.push(snapshots.map(move |snapshot| (name.clone(), snapshot)).take_until(ended).boxed());
        Ok(())
    }

    /// Takes in which services there are, and returns how many of them are not followed since they are too many.
    fn on_list(
        &mut self,
        registry: &Registry,
        hub: &Hub,
        listed: &[String],
        wanted: &[String],
        is_late: bool,
    ) -> Result<usize, Failure> {
        let kept_since = wire::now().saturating_sub(EMPTY_KEPT_MS);
        let empty = hub.board().empty_since(kept_since);
        for name in empty {
            let name: &str = &name;
            if !listed.iter().chain(wanted).any(|listed| listed == name) {
                self.ends.remove(name);
                hub.update(|board, _| board.remove(name));
            }
        }
        let mut left_out = 0;
        for name in listed {
            if self.ends.contains_key(name.as_str()) {
                continue;
            }
            if self.ends.len() < MAX_SERVICES {
                self.add(registry, hub, name, is_late)?;
            } else {
                left_out += 1;
            }
        }
        Ok(left_out)
    }
}

/// What is registered, now and again: the names of all services; or those that were asked for, if etcd answers.
fn looks(registry: Registry, wanted: Vec<String>) -> BoxStream<'static, Result<Vec<String>, RegistryError>> {
    let look = async |(registry, wanted, pause): (Registry, Vec<String>, Duration)| {
        sleep(pause).await;
        let begin = Instant::now();
        let names = match wanted.first() {
            Some(_) => answers(&registry).await.map(|()| wanted.clone()),
            None => registry.services().await.map(|all| all.into_keys().map(String::from).collect()),
        };
        // A registry that takes long to list is not asked more than a tenth of the time.
        let pause = LOOK_INTERVAL.max(begin.elapsed() * 10);
        Some((names, (registry, wanted, pause)))
    };
    stream::unfold((registry, wanted, Duration::ZERO), look).boxed()
}

/// Whether any member answers, without a read of anything.
async fn answers(registry: &Registry) -> Result<(), RegistryError> {
    let mut last = Ok(());
    for (_, status) in registry.members().await {
        match status {
            Ok(_) => return Ok(()),
            Err(error) => last = Err(error),
        }
    }
    last
}

/// How often it is looked for new services, and whether etcd answers.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How often pages hear that the server lives.
const BEAT_INTERVAL: Duration = Duration::from_secs(3);
/// Between two steps of the board.
const PAUSE: Duration = Duration::from_millis(50);
/// Each is a watch in etcd.
const MAX_SERVICES: usize = 1_000;
/// For how long a service is shown that has no instance any more: an outage of all must be seen.
const EMPTY_KEPT_MS: u64 = 10 * 60 * 1_000;
