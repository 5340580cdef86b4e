//! The cases: each makes its servers, measures, and leaves its results.

pub(crate) mod connected;
pub(crate) mod faults;
pub(crate) mod join;
pub(crate) mod kinds;
pub(crate) mod many;
pub(crate) mod metrics;
pub(crate) mod paced;
pub(crate) mod slow;
pub(crate) mod unary;
