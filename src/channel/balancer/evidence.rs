//! What the balancer knows of all instances together, when it judges one of them.

use crate::channel::outlier::{self, Compared, OutlierDetection};
use crate::channel::subchannel::Subchannel;

/// What the balancer knows of all instances together.
#[derive(Default)]
pub(super) struct Evidence {
    /// What those that left did with their calls: sums must not go backwards.
    departed: Compared,
    /// In this turn, as far as it was asked for: where thousands fail at once, each would look at thousands.
    total: Option<Compared>,
    census: Option<Census>,
    /// Whether an instance failed in this turn that may not be ejected.
    pub(super) admits: bool,
}

/// The instances that may be ejected, and those of them that are out.
#[derive(Debug, Clone, Copy)]
struct Census {
    used: usize,
    out: usize,
}

impl Evidence {
    /// What all instances but the one with this index did with their calls so far.
    pub(super) fn others(&mut self, subchannels: &[Subchannel], index: usize) -> Compared {
        let all = subchannels.iter().map(Subchannel::compared);
        let total = *self.total.get_or_insert_with(|| all.fold(self.departed, |sum, one| sum + one));
        total - subchannels[index].compared()
    }

    /// Whether one more instance may be ejected. Those that the subset does not use do not count.
    pub(super) fn may_eject(&mut self, subchannels: &[Subchannel], detection: &OutlierDetection) -> bool {
        let used = || subchannels.iter().filter(|subchannel| !subchannel.is_unselected());
        let Census { used, out } = *self.census.get_or_insert_with(|| Census {
            used: used().count(),
            out: used().filter(|subchannel| subchannel.ejection().is_out()).count(),
        });
        outlier::may_eject(out, used, detection)
    }

    /// An instance went out or came back in this turn, or neither.
    pub(super) fn on_step(&mut self, was_out: bool, is_out: bool) {
        if let Some(census) = &mut self.census {
            census.out = census.out + usize::from(is_out) - usize::from(was_out);
        }
    }

    /// An instance left the list.
    pub(super) fn on_left(&mut self, did: Compared) {
        self.departed = self.departed + Compared { ready: 0, missing: 0, ..did };
    }

    /// The end of a turn. Returns whether instances on probation come in.
    pub(super) fn on_turn_over(&mut self) -> bool {
        (self.total, self.census) = (None, None);
        std::mem::take(&mut self.admits)
    }
}
