//! The options that say which instances a channel uses, and how much of each.

use std::time::Duration;

use crate::channel::balancer::slow_start::SlowStart;
use crate::channel::balancer::subset::Subset;
use crate::channel::balancer::zone::Zone;
use crate::channel::builder::ChannelBuilder;
use crate::channel::policy::Policy;
use crate::error::ConfigError;

/// What was set; everything is off by default.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spread {
    pub(crate) slow_start: Option<SlowStart>,
    pub(crate) zone: Option<Zone>,
    pub(crate) subset: Option<Subset>,
}

impl Spread {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        self.slow_start.map_or(Ok(()), SlowStart::check)?;
        self.subset.map_or(Ok(()), Subset::check)
    }

    /// What of it there is with this policy.
    pub(crate) fn with(self, policy: &dyn Policy) -> Self {
        Self { slow_start: self.slow_start.filter(|_| policy.starts_slowly()), ..self }
    }
}

/// Which instances are used, and how much of each.
impl ChannelBuilder {
    /// Lets the share of a new instance grow from 10 % to 100 % of its weight, in a straight line over `window`: for servers
    /// that have to fill caches or compile first. Off unless given.
    ///
    /// New is an instance that is READY for the first time since it was registered, or since it could not be reached: it is
    /// another process then, most likely. One that only reconnects is not. Where all are new alike, as when the channel
    /// starts, all have the same share. Shares are set anew after each percent, ninety times a window, and every 100 ms at
    /// most. [`PickFirst`](crate::PickFirst) and [`RingHash`](crate::RingHash) do not know of it, and a channel with one of
    /// them pays nothing; [`Policy::starts_slowly`](crate::Policy::starts_slowly) tells.
    pub fn slow_start(mut self, window: Duration) -> Self {
        self.spread.slow_start = Some(SlowStart::new(window));
        self
    }

    /// Prefers the instances whose tag `tag` is `zone`, the client's own. Off unless given.
    ///
    /// They take all calls while those of them that are READY make up 70 % of the weight that would be their zone's fair
    /// share: all instances' weights divided by the number of zones. With fewer, the missing part goes to the other zones by
    /// weight: with half of 70 %, half of the calls. It comes back when they do. Below 70 % those that are left would bear
    /// half as much again as usual; Envoy draws the line there, too. Instances without the tag are a zone of their own. Works
    /// with every policy.
    pub fn prefer_zone(mut self, tag: impl Into<String>, zone: impl Into<String>) -> Self {
        self.spread.zone = Some(Zone { tag: tag.into(), own: zone.into() });
        self
    }

    /// Uses, and connects to, `size` instances only. Off unless given; from 1,000 instances on a warning recommends it: a
    /// thousand clients of a thousand servers hold a million connections.
    ///
    /// Each client has others, chosen by hashing: one that goes is replaced by one, one that comes replaces one at most, and
    /// nothing else changes. Clients know nothing of each other: with 1,000 of them and 20 instances of 200 each, an instance has
    /// 100 clients with a standard deviation of 9.5, and one of 150 is more than a quarter off. With
    /// [`subset_as`](Self::subset_as) and numbers, clients spread more evenly.
    ///
    /// An instance that is not READY is stood in for until it is; calls in flight on the stand-in then finish. While keys are
    /// gone from etcd without a word, those that are connected stay, and nobody stands in for them.
    ///
    /// With [`prefer_zone`](Self::prefer_zone), instances of the own zone come first, and the shares of zones are those in the
    /// subset: an own zone of at least `size` instances takes all calls, also where it is a small part of the service.
    ///
    /// The choice is random for each channel; with [`subset_as`](Self::subset_as) it is the same after a restart.
    pub fn subset(mut self, size: usize) -> Self {
        self.spread.subset = Some(Subset::anonymous(size));
        self
    }

    /// As [`subset`](Self::subset), for the client of this name, which no other one should have: a pod's name for instance.
    /// The same client gets the same instances again.
    ///
    /// Clients whose names differ only in the number at the end, such as `web-0`, `web-1` and so on, as pods of a `StatefulSet`
    /// have them, spread evenly: of 1,000 with 20 instances of 200 each, every instance has 75 to 125.
    pub fn subset_as(mut self, size: usize, client: &str) -> Self {
        self.spread.subset = Some(Subset::of(size, client));
        self
    }
}
