//! The list of instances and their subchannels become what people see of a channel.

use std::sync::Arc;

use crate::channel::subchannel::{InstanceStatus, Shared};
use crate::snapshot::Snapshot;

/// All instances of a channel.
pub(crate) struct InstanceList {
    snapshot: Arc<Snapshot>,
    /// Of those that the channel uses or has used: the others are in the snapshot alone. In the order of addresses.
    subchannels: Arc<[Arc<Shared>]>,
}

impl InstanceList {
    /// `subchannels` are of instances in the snapshot, in its order.
    pub(crate) fn new(snapshot: Arc<Snapshot>, subchannels: Arc<[Arc<Shared>]>) -> Self {
        Self { snapshot, subchannels }
    }

    pub(crate) fn empty() -> Self {
        Self::new(Arc::new(Snapshot::new(0, Vec::new())), Arc::new([]))
    }

    /// Whether it is made of this snapshot.
    pub(crate) fn is_of(&self, snapshot: &Arc<Snapshot>) -> bool {
        Arc::ptr_eq(&self.snapshot, snapshot)
    }

    /// Whether it is made of these subchannels.
    pub(crate) fn has(&self, subchannels: &Arc<[Arc<Shared>]>) -> bool {
        Arc::ptr_eq(&self.subchannels, subchannels)
    }

    /// All instances as they are now, ordered by address.
    pub(crate) fn statuses(&self) -> Vec<InstanceStatus> {
        let mut used = self.subchannels.iter().map(|shared| shared.status()).peekable();
        let members = self.snapshot.iter();
        let status = members.map(|member| {
            let status = used.next_if(|status| status.instance().address == *member.address());
            status.unwrap_or_else(|| InstanceStatus::unused(member))
        });
        status.collect()
    }
}
