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
    /// Refuses values out of range, and leaves out what `policy` has no use for.
    pub(crate) fn checked(self, policy: &dyn Policy) -> Result<Self, ConfigError> {
        self.slow_start.map_or(Ok(()), SlowStart::check)?;
        self.subset.map_or(Ok(()), Subset::check)?;
        Ok(Self { slow_start: self.slow_start.filter(|_| !policy.needs().full_weights()), ..self })
    }
}
