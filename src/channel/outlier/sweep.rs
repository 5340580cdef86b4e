//! Who an interval's numbers eject: gRPC's two algorithms (A50), as arithmetic.

use super::ejection::may_eject;
use super::{OutlierDetection, SuccessRate};

/// One instance's calls of an interval.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interval {
    pub(crate) successes: u32,
    pub(crate) failures: u32,
    /// Whether it is out or on probation: it counts towards the limit and is not ejected again.
    pub(crate) is_out: bool,
}

impl Interval {
    fn total(&self) -> u64 {
        u64::from(self.successes) + u64::from(self.failures)
    }

    /// Whether it had at least that many calls. None at all tell nothing, whatever the option says.
    fn has_volume(&self, requests: u32) -> bool {
        self.total() >= u64::from(requests.max(1))
    }

    fn success_rate(&self) -> f64 {
        let successes = f64::from(self.successes);
        successes / (successes + f64::from(self.failures))
    }

    fn fails_more_than(&self, percent: u8) -> bool {
        u64::from(self.failures) * 100 > self.total() * u64::from(percent)
    }
}

/// Which instances the interval's numbers eject, by their index: first by success rate, then by failure percentage, never
/// beyond the share that may be out.
///
/// `draw` is a random number from 0 to 99, drawn once for each outlier.
pub(crate) fn sweep(intervals: &[Interval], detection: &OutlierDetection, mut draw: impl FnMut() -> u8) -> Vec<usize> {
    let mut sweep = Sweep {
        intervals,
        detection,
        out: intervals.iter().map(|interval| interval.is_out).collect(),
        already_out: intervals.iter().filter(|interval| interval.is_out).count(),
        ejected: Vec::new(),
    };
    if let Some(options) = &detection.success_rate {
        let rates = intervals.iter().filter(|interval| interval.has_volume(options.request_volume));
        if let Some(floor) = least_success_rate(rates.map(Interval::success_rate), options) {
            let is_outlier = |interval: &Interval| interval.success_rate() < floor;
            sweep.eject(is_outlier, options.request_volume, || draw() < options.enforcement_percentage);
        }
    }
    if let Some(options) = &detection.failure_percentage {
        let hosts = intervals.iter().filter(|interval| interval.has_volume(options.request_volume)).count();
        if !is_fewer(hosts, options.minimum_hosts) {
            let is_outlier = |interval: &Interval| interval.fails_more_than(options.threshold);
            sweep.eject(is_outlier, options.request_volume, || draw() < options.enforcement_percentage);
        }
    }
    sweep.ejected
}

/// Who is out already in the course of one sweep.
struct Sweep<'a> {
    intervals: &'a [Interval],
    detection: &'a OutlierDetection,
    out: Vec<bool>,
    already_out: usize,
    ejected: Vec<usize>,
}

impl Sweep<'_> {
    fn eject(&mut self, is_outlier: impl Fn(&Interval) -> bool, volume: u32, mut enforced: impl FnMut() -> bool) {
        for (index, interval) in self.intervals.iter().enumerate() {
            if !may_eject(self.already_out, self.intervals.len(), self.detection) {
                return;
            }
            if !self.out[index] && interval.has_volume(volume) && is_outlier(interval) && enforced() {
                self.out[index] = true;
                self.already_out += 1;
                self.ejected.push(index);
            }
        }
    }
}

/// The mean success rate less so many (population) standard deviations; `None` if there are too few hosts to compare.
fn least_success_rate(rates: impl Iterator<Item = f64> + Clone, options: &SuccessRate) -> Option<f64> {
    let hosts = rates.clone().count();
    if hosts == 0 || is_fewer(hosts, options.minimum_hosts) {
        return None;
    }
    let hosts = f64::from(u32::try_from(hosts).ok()?);
    let mean = rates.clone().sum::<f64>() / hosts;
    let variance = rates.map(|rate| (rate - mean).powi(2)).sum::<f64>() / hosts;
    Some(mean - variance.sqrt() * f64::from(options.stdev_factor) / 1000.0 - ROUNDING)
}

fn is_fewer(hosts: usize, minimum: u32) -> bool {
    u32::try_from(hosts).is_ok_and(|hosts| hosts < minimum)
}

/// More than sums of equal rates differ by rounding, less than one call of a billion.
const ROUNDING: f64 = 1e-9;

#[cfg(test)]
mod tests;
