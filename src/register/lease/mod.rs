//! From an instance to a key in etcd that stays.

mod claims;
mod keepalive;
mod own_key;
mod task;

pub(crate) use self::claims::Registrar;
pub(super) use self::claims::{Holdings, Plan, random};
pub(super) use self::task::Task;
