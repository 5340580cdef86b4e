//! Feeds tonic's own balanced channel: its queue is bounded and emptied only while calls flow, so what waits for a place
//! in it is always the difference to the newest snapshot, never a list of old changes.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use http::Uri;
use tokio::sync::mpsc;
use tonic::transport::channel::Change;
use tonic::transport::{Channel, Endpoint};
use tracing::Instrument;

use super::snapshots::Snapshots;
use crate::instance::{Address, Instance, ServiceName};
use crate::snapshot::{Difference, Snapshot, diff, open};

/// How many changes tonic takes before its next call: it applies all that it finds then.
const QUEUE: usize = 1024;

/// How long a connection to an instance may take: on a network where that is too short, calls would be too slow as well.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn balance_channel<F>(service: &ServiceName, snapshots: Snapshots, endpoint: F) -> Channel
where
    F: Fn(&Instance, Endpoint) -> Endpoint + Send + 'static,
{
    let (channel, changes) = Channel::balance_channel(QUEUE);
    let span = tracing::info_span!("balance_channel", %service);
    tokio::spawn(feed(snapshots, changes, move |instance| dial(instance, &endpoint)).instrument(span));
    channel
}

fn dial<F>(instance: &Instance, endpoint: &F) -> Option<Endpoint>
where
    F: Fn(&Instance, Endpoint) -> Endpoint,
{
    let uri = Uri::builder().scheme("http").authority(instance.address.to_string()).path_and_query("/").build();
    match uri {
        Ok(uri) => Some(endpoint(instance, Endpoint::from(uri).connect_timeout(CONNECT_TIMEOUT))),
        Err(error) => {
            tracing::warn!(address = %instance.address, %error, "instance cannot be dialled");
            None
        }
    }
}

/// Ends when the channel is dropped.
async fn feed<F>(mut snapshots: Snapshots, changes: mpsc::Sender<Change<Address, Endpoint>>, dial: F)
where
    F: Fn(&Instance) -> Option<Endpoint>,
{
    let mut told = BTreeSet::new();
    snapshots.mark_changed();
    let mut waiting = VecDeque::new();
    loop {
        tokio::select! {
            () = changes.closed() => return,
            snapshot = snapshots.next() => waiting = steps(&told, &snapshot),
            place = changes.reserve(), if !waiting.is_empty() => {
                let Ok(place) = place else { return };
                match waiting.pop_front() {
                    Some(Step::Insert(instance)) => {
                        if let Some(endpoint) = dial(&instance) {
                            place.send(Change::Insert(instance.address.clone(), endpoint));
                        }
                        told.insert(instance.address.clone());
                    }
                    Some(Step::Remove(address)) => {
                        told.remove(&address);
                        place.send(Change::Remove(address));
                    }
                    None => {}
                }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Insert(Instance),
    Remove(Address),
}

/// What leads from the addresses that were handed over to a snapshot: joins first, so that the set is not empty in between.
fn steps(told: &BTreeSet<Address>, snapshot: &Snapshot) -> VecDeque<Step> {
    let (mut joins, mut removals) = (VecDeque::new(), Vec::new());
    for difference in diff(told, open(snapshot)) {
        match difference {
            Difference::Joined(member) => joins.push_back(Step::Insert(member.instance().clone())),
            Difference::Left(address) => removals.push(Step::Remove(address.clone())),
            Difference::Kept(..) => {}
        }
    }
    joins.extend(removals);
    joins
}
