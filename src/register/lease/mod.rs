//! From an instance to a key in etcd that stays.

mod claims;
mod keepalive;
mod own_key;
mod registrar;
mod task;

pub(super) use self::claims::{Holdings, Plan, random};
pub(crate) use self::registrar::Registrar;
pub(super) use self::task::Task;
