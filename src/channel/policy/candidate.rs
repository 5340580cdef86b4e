//! What a policy chooses among: a READY instance, its share, and its load.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::load::Load;
use crate::instance::Instance;

/// One READY instance as a [`Policy`](crate::policy::Policy) sees it.
///
/// A cheap handle. Its counts belong to the connection and survive every rebuild of the picker; weight and tags are as
/// they were when the picker was built.
#[derive(Clone)]
pub struct Candidate {
    load: Arc<Load>,
    instance: Arc<Instance>,
    /// Its weight in hundredths.
    share: u32,
}

impl Candidate {
    pub(crate) fn new(load: Arc<Load>, instance: Arc<Instance>) -> Self {
        let share = Self::full_share_of(&instance);
        Self { load, instance, share }
    }

    /// A candidate with this percentage of its full weight.
    pub(crate) fn with_percent(self, percent: u32) -> Self {
        Self { share: Self::full_weight_of(&self.instance) * percent, ..self }
    }

    /// The instance: its address, weight and tags.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// How much of the load it should bear, against the other candidates' weights: the weight of the instance, and 1
    /// where that states 0. While it [starts slowly](crate::ChannelBuilder::slow_start), the part of it that it has by
    /// now: with a weight of 10 from 1.0 on.
    #[must_use]
    pub fn weight(&self) -> f64 {
        f64::from(self.share) / 100.0
    }

    /// The weight in hundredths: a whole number, also while it starts slowly.
    pub(crate) fn share(&self) -> u32 {
        self.share
    }

    /// The weight without slow start, for policies that opt out of it.
    pub(crate) fn full_weight(&self) -> u32 {
        Self::full_weight_of(&self.instance)
    }

    /// An instance's weight, 1 where it states 0.
    fn full_weight_of(instance: &Instance) -> u32 {
        u32::from(instance.weight().max(1))
    }

    /// An instance's weight in hundredths.
    pub(crate) fn full_share_of(instance: &Instance) -> u32 {
        Self::full_weight_of(instance) * 100
    }

    /// How many calls it has in flight, those of this channel only.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.load.in_flight()
    }

    /// The time until a response begins: a moving average, in microseconds' precision. `None` before the first.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        self.load.latency()
    }

    /// The peak of the time until a response begins: a slower answer counts at once and in full, decays over some ten
    /// seconds down to the latency of faster ones, and doubles with each failure, at least to 100 ms. Where answers are
    /// so rare that what is known is old, after a second or sooner where little is known, the latest one counts alone.
    /// `None` before the first answer, and for policies that do not
    /// [need it](crate::policy::Needs::with_peak_latency).
    #[must_use]
    pub fn peak_latency(&self) -> Option<Duration> {
        match self.load.peak_micros(Instant::now()) {
            0 => None,
            micros => Some(Duration::from_micros(u64::from(micros))),
        }
    }

    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    pub(crate) fn shared_instance(&self) -> &Arc<Instance> {
        &self.instance
    }
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate")
            .field("instance", &self.instance)
            .field("in_flight", &self.in_flight())
            .field("latency", &self.latency())
            .finish_non_exhaustive()
    }
}
