//! Which instances a channel uses, and the share of the load of each.

use super::slow_start::SlowStart;
use super::subset::Subset;
use super::zone::Zone;
use crate::channel::policy::Policy;
use crate::error::ConfigError;

/// The options of balancing; everything is off by default.
#[derive(Debug, Clone, Default)]
pub(crate) struct BalanceConfig {
    pub(crate) slow_start: Option<SlowStart>,
    pub(crate) zone: Option<Zone>,
    pub(crate) subset: Option<Subset>,
}

impl BalanceConfig {
    /// Refuses values out of range, and what `policy` cannot work with, which may be that of the service config.
    pub(crate) fn check(&self, policy: &dyn Policy, is_of_config: bool) -> Result<(), ConfigError> {
        self.slow_start.map_or(Ok(()), SlowStart::check)?;
        self.subset.map_or(Ok(()), Subset::check)?;
        self.zone.as_ref().map_or(Ok(()), Zone::check)?;
        let needs = policy.needs();
        let origin = if is_of_config { " of the service config" } else { "" };
        let conflict = |option, reason| {
            let with = format!("{policy:?}{origin}");
            Err(ConfigError::Conflict { option, with, reason })
        };
        if self.subset.is_some() && needs.every_instance() {
            return conflict("subset", EVERY_INSTANCE);
        }
        if self.slow_start.is_some() && needs.full_weights() {
            return conflict("slow_start", FULL_WEIGHTS);
        }
        Ok(())
    }
}

const EVERY_INSTANCE: &str = "all clients of this policy have to see the same instances, or they do not agree on which one \
                              a call belongs to; leave subset out, or take another policy";

const FULL_WEIGHTS: &str = "the policy does not share calls by weight, or calls have to find the same instance again; \
                            leave slow_start out, or take another policy";
