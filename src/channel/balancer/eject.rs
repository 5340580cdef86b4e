//! Tallies of all instances become outliers, within the limit of those that may be out.

use crate::channel::outlier::{self, Interval, OutlierDetection};
use crate::channel::subchannel::Subchannel;

/// Whether one more instance may be ejected. Those that the subset does not use do not count; those on probation count
/// as out, since they carry no load yet.
pub(super) fn may_eject(subchannels: &[Subchannel], detection: &OutlierDetection) -> bool {
    let used = || subchannels.iter().filter(|subchannel| !subchannel.is_unselected()).map(Subchannel::ejection);
    let out = used().filter(|ejection| ejection.is_out() || ejection.is_on_probation()).count();
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
