//! The registry to the board: the services that there are, and every snapshot of each.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep};
use tonic_etcd::ServiceName;
use tonic_etcd::snapshot::Snapshot;

use super::board::News;
use super::hub::Hub;
use super::wire;
use crate::failure::{Failure, with_causes};
use crate::services::{Services, Update};

/// Follows these services until something fails that no retry mends. Those that were asked for are shown at once.
pub(crate) async fn follow(
    mut services: Services<Arc<Snapshot>>,
    wanted: &[ServiceName],
    hub: &Hub,
) -> Result<(), Failure> {
    for name in wanted {
        hub.board().add(name.as_str(), false);
    }
    let mut beats = interval(BEAT_INTERVAL);
    // After a pause of the machine one beat is enough.
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_first_look = true;
    loop {
        let update = tokio::select! {
            update = services.next() => update?,
            _ = beats.tick() => {
                hub.update(|board, now| vec![News::Event(board.beat(now))]);
                continue;
            }
        };
        match update {
            Update::Of(name, snapshot) => {
                hub.update(|board, now| board.on_snapshot(name.as_str(), &snapshot, now));
                // Each stream skips to its newest, so that there is an end to this.
                for _ in 0..services.len() {
                    let Some((name, snapshot)) = services.next_ready() else { break };
                    hub.update(|board, now| board.on_snapshot(name.as_str(), &snapshot, now));
                }
                // A service that changes all the time is shown twenty times a second.
                sleep(PAUSE).await;
            }
            Update::Listed(listed) => {
                for name in &listed.names {
                    hub.board().add(name.as_str(), !is_first_look);
                }
                is_first_look = false;
                let empty = hub.board().empty_since(wire::now().saturating_sub(EMPTY_KEPT_MS));
                for name in empty.iter().filter(|name| !listed.names.contains(&***name)) {
                    services.forget(name);
                    hub.update(|board, _| board.remove(name));
                }
                hub.update(|board, now| board.on_answer(listed.left_out, now));
            }
            Update::Trouble(error) => hub.update(|board, now| board.on_trouble(with_causes(&error), now)),
        }
    }
}

/// How often pages hear that the server lives.
const BEAT_INTERVAL: Duration = Duration::from_secs(3);
/// Between two steps of the board.
const PAUSE: Duration = Duration::from_millis(50);
/// For how long a service is shown that has no instance any more: an outage of all must be seen.
const EMPTY_KEPT_MS: u64 = 10 * 60 * 1_000;
