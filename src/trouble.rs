//! What keeps something from being done that is tried again and again: one task says it, others show it to a user.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

/// The failure of the last attempt, in words; none once one succeeded. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trouble(Arc<ArcSwapOption<String>>);

impl Trouble {
    pub(crate) fn set(&self, failure: String) {
        self.0.store(Some(Arc::new(failure)));
    }

    pub(crate) fn clear(&self) {
        if self.0.load().is_some() {
            self.0.store(None);
        }
    }

    pub(crate) fn get(&self) -> Option<String> {
        self.0.load().as_deref().cloned()
    }
}
