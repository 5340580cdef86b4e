//! A service config becomes options, where the channel's own say nothing.

use super::ChannelBuilder;
use crate::channel::balancer::Subset;
use crate::channel::config::budget::RetryLimit;
use crate::channel::service_config::ServiceConfig;

/// Options that come as gRPC's JSON.
impl ChannelBuilder {
    /// Takes over what a gRPC service config says: of methods, of retries, of health, and how to balance. Another one
    /// takes its place.
    ///
    /// Whatever the order, each option that the channel is given itself takes precedence over what the config says of
    /// the same, and the config's subset does not count where the channel's own policy needs every instance:
    /// [`policy`](Self::policy), [`outlier_detection`](Self::outlier_detection), [`subset`](Self::subset),
    /// `health_check`, [`retry_budget`](Self::retry_budget), [`wait_for_ready`](Self::wait_for_ready) and, for the
    /// calls that they name, [`retry`](Self::retry) and [`retry_for`](Self::retry_for). One call's own
    /// [`WaitForReady`](crate::channel::WaitForReady) takes precedence over all. Of timeouts the shortest counts, as in
    /// gRPC: the call's own, the method's and the [channel's](Self::timeout).
    pub fn service_config(mut self, config: ServiceConfig) -> Self {
        self.service_config = Some(config);
        self
    }

    /// Fills in the options that were not given.
    pub(super) fn take_service_config(&mut self) {
        let Some(config) = self.service_config.take() else { return };
        let balancing = config.balancing;
        let needs_all = self.policy.as_ref().is_some_and(|own| own.needs().every_instance());
        if !self.has_own_subset && !needs_all {
            self.balance.subset = balancing.subset.map(Subset::anonymous);
        }
        if let (None, Some(policy)) = (&self.policy, balancing.policy) {
            (self.policy, self.has_policy_of_config) = (Some(policy.make()), true);
        }
        self.outliers = self.outliers.take().or(balancing.outliers);
        self.retry_limit =
            self.retry_limit.or_else(|| config.throttling.map(|tokens| RetryLimit::Budget(tokens.into())));
        #[cfg(feature = "health")]
        {
            self.health = self.health.take().or(config.health);
        }
        for (name, mut method) in config.methods {
            method.wait_for_ready = method.wait_for_ready.filter(|_| self.wait_for_ready.is_none());
            self.methods.config.insert(&name, method);
        }
    }
}
