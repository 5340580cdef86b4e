//! Feeds tonic's own balanced channel: its queue is bounded and emptied only while calls flow, so what waits to go into
//! it is always the difference to the newest snapshot, never a list of old changes.

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

pub(super) fn balance_channel<F>(service: &ServiceName, snapshots: Snapshots, endpoint: F) -> Channel
where
    F: Fn(&Instance, Endpoint) -> Endpoint + Send + 'static,
{
    let (channel, changes) = Channel::balance_channel(QUEUE);
    let span = tracing::info_span!(parent: None, "balance_channel", %service);
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
    let mut delivered = BTreeSet::new();
    snapshots.mark_changed();
    let mut waiting = VecDeque::new();
    loop {
        tokio::select! {
            () = changes.closed() => return,
            snapshot = snapshots.next() => waiting = steps(&delivered, &snapshot),
            permit = changes.reserve(), if !waiting.is_empty() => {
                let Ok(permit) = permit else { return };
                match waiting.pop_front() {
                    Some(FeederStep::Insert(instance)) => {
                        if let Some(endpoint) = dial(&instance) {
                            permit.send(Change::Insert(instance.address.clone(), endpoint));
                        }
                        delivered.insert(instance.address.clone());
                    }
                    Some(FeederStep::Remove(address)) => {
                        delivered.remove(&address);
                        permit.send(Change::Remove(address));
                    }
                    None => {}
                }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum FeederStep {
    Insert(Instance),
    Remove(Address),
}

/// What leads from the addresses that were handed over to a snapshot: joins first, so that the set is not empty in
/// between.
fn steps(delivered: &BTreeSet<Address>, snapshot: &Snapshot) -> VecDeque<FeederStep> {
    let (mut joins, mut removals) = (VecDeque::new(), Vec::new());
    for difference in diff(delivered, open(snapshot)) {
        match difference {
            Difference::Joined(member) => joins.push_back(FeederStep::Insert(member.instance().clone())),
            Difference::Left(address) => removals.push(FeederStep::Remove(address.clone())),
            Difference::Kept(..) => {}
        }
    }
    joins.extend(removals);
    joins
}

/// How many changes tonic takes before its next call: it applies all that it finds then.
const QUEUE: usize = 1024;

/// How long a connection to an instance may take: on a network where that is too short, calls would be too slow as
/// well.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
