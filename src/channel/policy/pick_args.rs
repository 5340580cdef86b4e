//! What a picker knows of the call that it picks for.

use std::sync::Arc;

use super::candidate::Candidate;
use crate::instance::Instance;

/// What a [`Picker`](crate::policy::Picker) knows of the call that it picks for. The default is a first attempt without
/// a key.
#[derive(Debug, Clone, Copy, Default)]
pub struct PickArgs<'a> {
    key: Option<u64>,
    tried: &'a [Arc<Instance>],
}

impl<'a> PickArgs<'a> {
    pub(crate) fn new(key: Option<u64>, tried: &'a [Arc<Instance>]) -> Self {
        Self { key, tried }
    }

    /// What [`Policy::key`](crate::policy::Policy::key) made of the call.
    #[must_use]
    pub fn key(&self) -> Option<u64> {
        self.key
    }

    /// Whether the instance of this candidate refused or failed an earlier attempt of the call. Whatever a picker says,
    /// the call goes there again only while no other instance has room.
    #[must_use]
    pub fn has_tried(&self, candidate: &Candidate) -> bool {
        self.tried.iter().any(|instance| instance.address() == candidate.instance().address())
    }
}
