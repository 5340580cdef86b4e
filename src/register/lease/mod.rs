//! From an instance to a key in etcd that stays: a lease, a claim of the key, and their return whenever either is lost.

mod claims;
mod keepalive;
mod leave;
mod metrics;
mod orders;
mod own_key;
mod pace;
mod reports;
mod setbacks;
mod streams;
mod task;

pub(crate) use self::claims::Registrar;
pub(super) use self::claims::{ClaimConfig, Claims, random};
pub(super) use self::task::LeaseTask;
