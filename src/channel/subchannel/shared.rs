//! The half of a subchannel that calls and people see: written by its state machine, read from anywhere.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::status::{Connectivity, InstanceStatus};
use crate::channel::policy::load::Load;
use crate::instance::Instance;

/// The last published view of one subchannel. No call needs it on its way to an instance.
#[derive(Debug)]
pub(crate) struct Shared(Mutex<View>);

/// What is published of a subchannel, all of it derived from its state.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) instance: Arc<Instance>,
    pub(super) connectivity: Connectivity,
    pub(super) is_ejected: bool,
    pub(super) is_draining: bool,
    /// Why it is not READY.
    pub(super) failure: Option<Arc<str>>,
    /// The load on its present connection.
    pub(super) load: Option<Arc<Load>>,
}

impl Shared {
    pub(super) fn new(view: View) -> Self {
        Self(Mutex::new(view))
    }

    pub(super) fn publish(&self, view: View) {
        let before = std::mem::replace(&mut *self.view(), view);
        // Not under the lock: it may hold the last handle of an instance with many tags.
        drop(before);
    }

    /// Where the instance stands now, for people and programs.
    pub(crate) fn status(&self) -> InstanceStatus {
        let View { instance, connectivity, is_ejected, is_draining, failure, load } = self.view().clone();
        InstanceStatus {
            instance,
            connectivity,
            in_flight: load.as_ref().map_or(0, |load| load.in_flight()),
            latency: load.as_ref().and_then(|load| load.latency()),
            is_ejected,
            is_draining,
            failure,
        }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
