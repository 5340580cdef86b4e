//! What a policy needs of its channel beside candidates.

/// What a [`Policy`](crate::policy::Policy) needs of its channel beside candidates. Nothing, by default.
///
/// ```
/// use tonic_etcd::policy::Needs;
///
/// let needs = Needs::new().with_peak_latency().and(Needs::new().with_full_weights());
/// assert!(needs.peak_latency() && needs.full_weights() && !needs.every_instance());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use = "needs do nothing before Policy::needs returns them"]
pub struct Needs {
    peak_latency: bool,
    full_weights: bool,
    every_instance: bool,
}

impl Needs {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// [`Candidate::peak_latency`](crate::policy::Candidate::peak_latency) is measured, which costs each call a little.
    pub fn with_peak_latency(mut self) -> Self {
        self.peak_latency = true;
        self
    }

    /// Instances have their full weights at once, since calls have to find the same instance again, or weights say
    /// nothing: a channel that is to [start them slowly](crate::ChannelBuilder::slow_start) is refused.
    pub fn with_full_weights(mut self) -> Self {
        self.full_weights = true;
        self
    }

    /// All clients see the same instances, or they would not agree on which one a call belongs to: a channel that is to
    /// use a [subset](crate::ChannelBuilder::subset) is refused.
    pub fn with_every_instance(mut self) -> Self {
        self.every_instance = true;
        self
    }

    /// What either of two policies needs, for one that is made of both.
    pub fn and(self, other: Self) -> Self {
        Self {
            peak_latency: self.peak_latency || other.peak_latency,
            full_weights: self.full_weights || other.full_weights,
            every_instance: self.every_instance || other.every_instance,
        }
    }

    /// Whether peaks of latency are measured.
    #[must_use]
    pub fn peak_latency(&self) -> bool {
        self.peak_latency
    }

    /// Whether instances have their full weights at once.
    #[must_use]
    pub fn full_weights(&self) -> bool {
        self.full_weights
    }

    /// Whether all clients have to see the same instances.
    #[must_use]
    pub fn every_instance(&self) -> bool {
        self.every_instance
    }
}
