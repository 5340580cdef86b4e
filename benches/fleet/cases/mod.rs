//! The cases: each starts its etcds, measures, and leaves its report.

pub(crate) mod changes;
pub(crate) mod frozen;
pub(crate) mod large;
pub(crate) mod logins;
pub(crate) mod proxy;
pub(crate) mod quiet;
pub(crate) mod restart;
pub(crate) mod returning;
pub(crate) mod services;
pub(crate) mod slow;
