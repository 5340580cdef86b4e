//! The subchannels of a channel in the order of their addresses, and their halves that calls and people see.

use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::channel::subchannel::{Shared, Subchannel};
use crate::instance::Address;

/// All subchannels of a channel, ordered by address.
pub(super) struct Subchannels {
    ordered: Vec<Subchannel>,
    /// Their shared halves, in the same order.
    shared: Arc<[Arc<Shared>]>,
}

impl Subchannels {
    pub(super) fn new() -> Self {
        Self { ordered: Vec::new(), shared: Arc::new([]) }
    }

    pub(super) fn find(&self, address: &Address) -> Option<usize> {
        self.ordered.binary_search_by(|subchannel| subchannel.address().cmp(address)).ok()
    }

    /// The same ones until any joins or leaves.
    pub(super) fn shared(&self) -> &Arc<[Arc<Shared>]> {
        &self.shared
    }

    /// Lets some in, whatever their order, and returns those that left, whose indices come in ascending order.
    pub(super) fn update(&mut self, left: &[usize], joined: Vec<Subchannel>) -> Vec<Subchannel> {
        if left.is_empty() && joined.is_empty() {
            return Vec::new();
        }
        let (mut gone, mut left) = (Vec::with_capacity(left.len()), left.iter().copied().peekable());
        if left.peek().is_some() {
            let mut kept = Vec::with_capacity(self.ordered.len() + joined.len());
            for (index, subchannel) in mem::take(&mut self.ordered).into_iter().enumerate() {
                let has_left = left.next_if_eq(&index).is_some();
                if has_left { &mut gone } else { &mut kept }.push(subchannel);
            }
            self.ordered = kept;
        }
        if !joined.is_empty() {
            self.ordered.extend(joined);
            // Both parts are in order, as a rule, and are merged in one pass then.
            self.ordered.sort_by(|a, b| a.address().cmp(b.address()));
        }
        self.shared = self.ordered.iter().map(|subchannel| subchannel.shared().clone()).collect();
        gone
    }
}

impl Deref for Subchannels {
    type Target = [Subchannel];

    fn deref(&self) -> &[Subchannel] {
        &self.ordered
    }
}

impl DerefMut for Subchannels {
    fn deref_mut(&mut self) -> &mut [Subchannel] {
        &mut self.ordered
    }
}
