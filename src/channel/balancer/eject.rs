//! Tallies of all instances become outliers, within the limit of those that may be out.

use crate::channel::outlier::{self, Compared, Interval, OutlierDetection};
use crate::channel::subchannel::Subchannel;

/// Whether one more instance may be ejected. Those that the subset does not use do not count.
pub(super) fn may_eject(subchannels: &[Subchannel], detection: &OutlierDetection) -> bool {
    let used = || subchannels.iter().filter(|subchannel| !subchannel.is_unselected()).map(Subchannel::ejection);
    let out = used().filter(|ejection| ejection.is_out()).count();
    outlier::may_eject(out, used().count(), detection)
}

/// The instances that failed more often than the others since the last time, by their index.
pub(super) fn outliers(subchannels: &[Subchannel], detection: &OutlierDetection) -> Vec<usize> {
    let interval = |subchannel: &Subchannel| {
        let (successes, failures) = subchannel.tally().take_interval();
        Interval { successes, failures, is_out: subchannel.ejection().is_out() }
    };
    let intervals: Vec<Interval> = subchannels.iter().map(interval).collect();
    outlier::sweep(&intervals, detection, || fastrand::u8(0..100))
}

/// What all instances but the one with this index did with their calls so far.
pub(super) fn others(subchannels: &[Subchannel], index: usize) -> Compared {
    let others = subchannels.iter().enumerate().filter(|(other, _)| *other != index);
    others.fold(Compared::default(), |sum, (_, other)| Compared {
        answered: sum.answered + u64::from(other.answers()),
        missed: sum.missed + u64::from(other.tally().missed()),
        is_missing: sum.is_missing || other.tally().has_missed(),
    })
}
