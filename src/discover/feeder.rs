//! Feeds tonic's own balanced channel: its queue is bounded and emptied only while calls flow, so what waits to go into
//! it is always the difference to the newest snapshot, never a list of old changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::sync::mpsc;
use tonic::transport::channel::Change;
use tonic::transport::{Channel, Endpoint};
use tracing::Instrument;

use super::snapshots::Snapshots;
use crate::instance::{Address, Instance, ServiceName};
use crate::snapshot::{Difference, Member, Snapshot};
use crate::targets::DISCOVERY;

pub(super) fn balance_channel<F>(service: &ServiceName, snapshots: Snapshots, endpoint: F) -> Channel
where
    F: Fn(&Instance, Endpoint) -> Endpoint + Send + 'static,
{
    let (channel, changes) = Channel::balance_channel(QUEUE);
    let span = tracing::info_span!(target: DISCOVERY, parent: None, "balance_channel", %service);
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
            tracing::warn!(target: DISCOVERY, address = %instance.address, %error, "instance cannot be dialled");
            None
        }
    }
}

/// Ends when the channel is dropped.
async fn feed<F>(mut snapshots: Snapshots, changes: mpsc::Sender<Change<Address, Endpoint>>, dial: F)
where
    F: Fn(&Instance) -> Option<Endpoint>,
{
    snapshots.mark_changed();
    let (mut known, mut waiting) = (Arc::new(Snapshot::new(0, Vec::new())), Waiting::default());
    loop {
        tokio::select! {
            () = changes.closed() => return,
            snapshot = snapshots.next() => {
                for difference in snapshot.changes_since(&known) {
                    waiting.on_change(difference);
                }
                known = snapshot;
            }
            permit = changes.reserve(), if !waiting.is_empty() => {
                let Ok(permit) = permit else { return };
                match waiting.take() {
                    Some(FeederStep::Insert(instance)) => {
                        if let Some(endpoint) = dial(&instance) {
                            permit.send(Change::Insert(instance.address.clone(), endpoint));
                        }
                    }
                    Some(FeederStep::Remove(address)) => permit.send(Change::Remove(address)),
                    None => {}
                }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum FeederStep {
    Insert(Arc<Instance>),
    Remove(Address),
}

/// What leads from the addresses that were handed over to the newest snapshot.
#[derive(Debug, Default)]
struct Waiting {
    delivered: BTreeSet<Address>,
    joins: BTreeMap<Address, Arc<Instance>>,
    removals: BTreeSet<Address>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.joins.is_empty() && self.removals.is_empty()
    }

    fn on_change(&mut self, difference: Difference<'_>) {
        match difference {
            Difference::Joined(member) | Difference::Changed(_, member) if member.is_open() => self.want(member),
            Difference::Left(member) | Difference::Joined(member) | Difference::Changed(_, member) => {
                self.drop_address(member.address());
            }
        }
    }

    fn want(&mut self, member: &Member) {
        self.removals.remove(member.address());
        if !self.delivered.contains(member.address()) {
            self.joins.insert(member.address().clone(), member.shared_instance().clone());
        }
    }

    fn drop_address(&mut self, address: &Address) {
        self.joins.remove(address);
        if self.delivered.contains(address) {
            self.removals.insert(address.clone());
        }
    }

    /// The next step, which counts as delivered: joins first, so that the set is not empty in between.
    fn take(&mut self) -> Option<FeederStep> {
        if let Some((address, instance)) = self.joins.pop_first() {
            self.delivered.insert(address);
            return Some(FeederStep::Insert(instance));
        }
        let address = self.removals.pop_first()?;
        self.delivered.remove(&address);
        Some(FeederStep::Remove(address))
    }
}

/// How many changes tonic takes before its next call: it applies all that it finds then.
const QUEUE: usize = 1024;

/// How long a connection to an instance may take: on a network where that is too short, calls would be too slow as
/// well.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::MemberState;

    proptest! {
        #[test]
        fn whatever_was_taken_what_waits_leads_to_the_newest_snapshot(
            history in prop::collection::vec(
                (prop::collection::btree_map(0..9_u8, (1..4_u16, 0..3_u8), 0..9), 0..9_usize),
                0..12,
            ),
        ) {
            let (mut known, mut waiting, mut there) = (Snapshot::new(0, Vec::new()), Waiting::default(), BTreeSet::new());
            let mut apply = |step| match step {
                FeederStep::Insert(instance) => assert!(there.insert(instance.address.clone()), "it comes once"),
                FeederStep::Remove(address) => assert!(there.remove(&address), "it was there"),
            };
            for (members, taken) in history {
                let members = members.iter().map(|(n, (weight, state))| {
                    let address: Address = format!("{}:1", char::from(b'a' + n)).parse().expect("an address");
                    let state = [MemberState::Live, MemberState::Draining, MemberState::Suspect][usize::from(*state)];
                    Member::new(Arc::new(Instance::new("echo", address).with_weight(*weight)), 7, state)
                });
                let snapshot = Snapshot::new(1, members.collect());
                for difference in snapshot.changes_since(&known) {
                    waiting.on_change(difference);
                }
                known = snapshot;
                for (address, instance) in &waiting.joins {
                    let newest = known.get(address).map(Member::shared_instance);
                    prop_assert_eq!(newest, Some(instance), "as it is registered now");
                }
                (0..taken).map_while(|_| waiting.take()).for_each(&mut apply);
            }
            while let Some(step) = waiting.take() {
                apply(step);
            }
            prop_assert!(waiting.is_empty());
            let open = known.iter().filter(|member| member.is_open()).map(|member| member.address().clone());
            prop_assert_eq!(there, open.collect::<BTreeSet<_>>());
        }
    }
}
