//! Options of balancing: which instances are used, how one is picked, and when one is left out.

use std::sync::Arc;
use std::time::Duration;

use super::ChannelBuilder;
use crate::channel::balancer::{SlowStart, Subset, Zone};
use crate::channel::outlier::OutlierDetection;
use crate::channel::policy::Policy;

/// Balancing: which instances are used, and how much of each.
impl ChannelBuilder {
    /// How an instance is picked for each call. Defaults to [`LeastRequest`](crate::policy::LeastRequest).
    pub fn policy(mut self, policy: impl Policy) -> Self {
        self.policy = Some(Arc::new(policy));
        self
    }

    /// When an instance whose calls fail is left out for a while; `None` for never. Defaults to three failures in a
    /// row.
    pub fn outlier_detection(mut self, outliers: impl Into<Option<OutlierDetection>>) -> Self {
        let off = || OutlierDetection::new().consecutive_failures(None);
        self.outliers = Some(outliers.into().unwrap_or_else(off));
        self
    }

    /// Asks each instance for its health (`grpc.health.v1`) and leaves out those that are not SERVING. `service` is the
    /// name that servers know it by, `package.Service`; an empty one asks for the whole server. Off unless given.
    ///
    /// The question stays open on each connection, so an answer that changes counts at once. An instance gets no calls
    /// before its first answer, which may take the [`connect_timeout`](Self::connect_timeout), and none while its
    /// server does not know the service; one whose server has no health service at all counts as serving. Where no
    /// instance serves, calls fail with UNAVAILABLE. The stream takes one of those that the server allows on a
    /// connection.
    #[cfg(feature = "health")]
    pub fn health_check(mut self, service: impl Into<String>) -> Self {
        self.health = Some(service.into().into());
        self
    }

    /// Lets the share of a new instance grow from 10 % to 100 % of its weight, in a straight line over `window`: for
    /// servers that have to fill caches or compile first. Off unless given.
    ///
    /// New is an instance that is READY for the first time since it was registered, or since it could not be reached:
    /// it is another process then, most likely. One that only reconnects is not. Where all are new alike, as when the
    /// channel starts, all have the same share. Shares are set anew after each percent, ninety times per window, and
    /// every 100 ms at most. Refused with [`PickFirst`](crate::policy::PickFirst),
    /// [`RingHash`](crate::policy::RingHash) and others that [need full
    /// weights](crate::policy::Needs::with_full_weights).
    pub fn slow_start(mut self, window: impl Into<Option<Duration>>) -> Self {
        self.balance.slow_start = window.into().map(SlowStart::new);
        self
    }

    /// Prefers the instances whose tag `tag` is `zone`, the client's own. Off unless given.
    ///
    /// They take all calls while the READY ones among them have at least 70 % of their zone's fair share of the weight:
    /// all instances' weights divided by the number of zones. If less is READY, the shortfall goes to the other zones,
    /// by weight: if 35 % is READY, half of the calls go to other zones. At 70 % the remaining instances already carry
    /// about
    /// 1.4 times their usual load; Envoy draws the line there, too. Instances without the tag are a zone of their own.
    ///
    /// Works with every policy: with [`PickFirst`](crate::policy::PickFirst) one instance of the own zone takes its
    /// calls, and one elsewhere those that spill; with [`RingHash`](crate::policy::RingHash) a key has an owner in each
    /// zone, and clients of one zone agree on it.
    pub fn prefer_zone(mut self, tag: impl Into<String>, zone: impl Into<String>) -> Self {
        self.balance.zone = Some(Zone { tag: tag.into(), own: zone.into() });
        self
    }

    /// Uses, and connects to, `size` instances only. Off unless given; from 1,000 instances on a warning recommends it:
    /// a thousand clients of a thousand servers hold a million connections.
    ///
    /// Each client has a different set, chosen by hashing: an instance that leaves is replaced by one, one that joins
    /// replaces one at most, and nothing else changes. Clients know nothing of each other: with 1,000 of them and 20
    /// instances of 200 each, an instance has 100 clients with a standard deviation of 9.5, and one of 150 is more than
    /// a quarter off. With [`subset_as`](Self::subset_as) and numbers, clients spread more evenly.
    ///
    /// An instance that is not READY has a replacement until it is; calls in flight on the replacement then finish.
    /// While keys are gone from etcd unannounced, those that are connected stay, and none is replaced.
    ///
    /// With [`prefer_zone`](Self::prefer_zone), instances of the own zone come first, and the shares of zones are those
    /// in the subset: an own zone of at least `size` instances takes all calls, also where it is a small part of the
    /// service.
    ///
    /// The choice is random for each channel; with [`subset_as`](Self::subset_as) it is the same after a restart.
    ///
    /// Refused with [`RingHash`](crate::policy::RingHash) and others that [need every
    /// instance](crate::policy::Needs::with_every_instance). With [`PickFirst`](crate::policy::PickFirst) each client
    /// picks the first of its own subset.
    pub fn subset(mut self, size: impl Into<Option<usize>>) -> Self {
        (self.balance.subset, self.has_own_subset) = (size.into().map(Subset::anonymous), true);
        self
    }

    /// As [`subset`](Self::subset), for a client with a name of its own: a pod's name for instance. A client of that
    /// name gets the same instances again after a restart.
    ///
    /// Clients whose names differ only in the number at the end, such as `web-0`, `web-1` and so on, as pods of a
    /// `StatefulSet` have them, spread evenly: of 1,000 with 20 instances of 200 each, every instance has 75 to 125.
    pub fn subset_as(mut self, size: usize, client: &str) -> Self {
        (self.balance.subset, self.has_own_subset) = (Some(Subset::of(size, client)), true);
        self
    }
}
