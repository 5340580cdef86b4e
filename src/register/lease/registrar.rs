//! What all registrations of a registry share.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::keepalive::Keepalives;
use crate::etcd::Cluster;
use crate::format::Format;

/// What all registrations of a registry share.
#[derive(Debug)]
pub(crate) struct Registrar {
    pub(in crate::register) cluster: Arc<Cluster>,
    /// What stands before the service's name in keys: empty, or ending in a slash.
    pub(in crate::register) base: String,
    pub(in crate::register) format: Arc<dyn Format>,
    keepalives: Mutex<Weak<Keepalives>>,
}

impl Registrar {
    pub(crate) fn new(cluster: Arc<Cluster>, base: String, format: Arc<dyn Format>) -> Arc<Self> {
        Arc::new(Self { cluster, base, format, keepalives: Mutex::default() })
    }

    /// The streams that are there, or new ones: for the first registration, and after the runtime that they ran on has
    /// ended. Needs a tokio runtime.
    pub(super) fn keepalives(&self) -> Arc<Keepalives> {
        let mut keepalives = self.keepalives.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = keepalives.upgrade().filter(|running| running.is_running()) {
            return running;
        }
        let spawned = Keepalives::spawn(&self.cluster);
        *keepalives = Arc::downgrade(&spawned);
        spawned
    }
}
