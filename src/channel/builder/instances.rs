//! A user's own lists of instances become snapshots.

use std::sync::Arc;

use futures_util::stream::{Stream, StreamExt};

use super::ChannelBuilder;
use crate::channel::{BalancedChannel, Listing};
use crate::instance::Instance;
use crate::snapshot::{Member, MemberState, Snapshot};
use crate::targets::CHANNEL;

impl BalancedChannel {
    /// A channel over instances that come from elsewhere than etcd: a list in a test, a file, another registry.
    ///
    /// Each item of `instances` is the whole set, and replaces the one before; of two with one address the last counts.
    /// What the stream ends with stays. `service` is for messages and metrics. Instances at addresses that no client
    /// may be sent to, and those with weight 0, are left out with a warning. Large sets that change often are best made
    /// of `Arc<Instance>`s: what is the same allocation as before need not be compared.
    ///
    /// ```
    /// use futures_util::stream;
    /// use tonic_etcd::{BalancedChannel, Instance};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let instance = Instance::new("echo", "127.0.0.1:50051".parse::<std::net::SocketAddr>()?);
    /// let channel = BalancedChannel::from_instances("echo", stream::iter([vec![instance]])).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_instances<I>(
        service: impl Into<String>,
        instances: impl Stream<Item = Vec<I>> + Send + 'static,
    ) -> ChannelBuilder
    where
        I: Into<Arc<Instance>>,
    {
        let snapshots =
            instances.enumerate().map(|(revision, set)| Arc::new(snapshot(revision, set.into_iter().map(Into::into))));
        let service = service.into();
        let target = format!("instances:///{service}");
        ChannelBuilder::new(service, target, move || Ok((snapshots.boxed(), Listing::of_the_program())))
    }
}

fn snapshot(revision: usize, set: impl IntoIterator<Item = Arc<Instance>>) -> Snapshot {
    let mut members = Vec::new();
    for instance in set {
        match instance.check_publishable() {
            Ok(()) => members.push(Member::new(instance, 0, MemberState::Live)),
            Err(error) => tracing::warn!(target: CHANNEL, address = %instance.address, %error, "instance left out"),
        }
    }
    // Stable, so that of several with one address the last stays: the others take its place one after the other.
    members.sort_by(|a: &Member, b| a.instance().address.cmp(&b.instance().address));
    members.dedup_by(|later, kept| {
        let is_one = later.instance().address == kept.instance().address;
        if is_one {
            std::mem::swap(later, kept);
        }
        is_one
    });
    Snapshot::new(i64::try_from(revision).unwrap_or(i64::MAX), members)
}
