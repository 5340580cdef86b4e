//! The numbers of an interval become outliers: gRPC's two algorithms (A50), as arithmetic.

use super::detected::{DetectionMethod, Unenforced};
use super::ejection::may_eject;
use super::{OutlierDetection, SuccessRate};

/// One instance's calls of an interval.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interval {
    pub(crate) successes: u32,
    pub(crate) failures: u32,
    /// Whether it is out: it counts towards the limit and is not ejected again.
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

/// An instance that fails more often than the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outlier {
    pub(crate) index: usize,
    pub(crate) method: DetectionMethod,
    /// Why it is not to be ejected; `None` if it is.
    pub(crate) unenforced: Option<Unenforced>,
}

/// Which instances the interval's numbers eject: first by success rate, then by failure percentage, never beyond the
/// share that may be out.
///
/// `draw` is a random number from 0 to 99, drawn once for each outlier that may be ejected.
pub(crate) fn sweep(
    intervals: &[Interval],
    detection: &OutlierDetection,
    mut draw: impl FnMut() -> u8,
) -> Vec<Outlier> {
    let mut sweep = Sweep {
        intervals,
        detection,
        out: intervals.iter().map(|interval| interval.is_out).collect(),
        already_out: intervals.iter().filter(|interval| interval.is_out).count(),
        found: Vec::new(),
    };
    if let Some(options) = &detection.success_rate {
        let rates = intervals.iter().filter(|interval| interval.has_volume(options.request_volume));
        if let Some(floor) = least_success_rate(rates.map(Interval::success_rate), options) {
            let is_outlier = |interval: &Interval| interval.success_rate() < floor;
            let volume = options.request_volume;
            sweep.eject(DetectionMethod::SuccessRate, is_outlier, volume, || draw() < options.enforcement_percentage);
        }
    }
    if let Some(options) = &detection.failure_percentage {
        let hosts = intervals.iter().filter(|interval| interval.has_volume(options.request_volume)).count();
        if !is_fewer(hosts, options.minimum_hosts) {
            let is_outlier = |interval: &Interval| interval.fails_more_than(options.threshold);
            let (method, volume) = (DetectionMethod::FailurePercentage, options.request_volume);
            sweep.eject(method, is_outlier, volume, || draw() < options.enforcement_percentage);
        }
    }
    sweep.found
}

/// The instances that are out in the course of one sweep.
struct Sweep<'a> {
    intervals: &'a [Interval],
    detection: &'a OutlierDetection,
    out: Vec<bool>,
    already_out: usize,
    found: Vec<Outlier>,
}

impl Sweep<'_> {
    fn eject(
        &mut self,
        method: DetectionMethod,
        is_outlier: impl Fn(&Interval) -> bool,
        volume: u32,
        mut enforced: impl FnMut() -> bool,
    ) {
        for (index, interval) in self.intervals.iter().enumerate() {
            if self.out[index] || !interval.has_volume(volume) || !is_outlier(interval) {
                continue;
            }
            let unenforced = if !may_eject(self.already_out, self.intervals.len(), self.detection) {
                Some(Unenforced::MaxEjectionOverflow)
            } else if enforced() {
                self.out[index] = true;
                self.already_out += 1;
                None
            } else {
                Some(Unenforced::EnforcementPercentage)
            };
            self.found.push(Outlier { index, method, unenforced });
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
mod tests {
    use super::super::FailurePercentage;
    use super::*;

    const NONE: [usize; 0] = [];

    /// The indices of those that are ejected.
    fn ejected(intervals: &[Interval], detection: &OutlierDetection, draw: impl FnMut() -> u8) -> Vec<usize> {
        let found = sweep(intervals, detection, draw).into_iter();
        found.filter(|outlier| outlier.unenforced.is_none()).map(|outlier| outlier.index).collect()
    }

    fn calls(successes: u32, failures: u32) -> Interval {
        Interval { successes, failures, is_out: false }
    }

    fn rates(options: SuccessRate) -> OutlierDetection {
        OutlierDetection::new().success_rate(options)
    }

    fn percentages(options: FailurePercentage) -> OutlierDetection {
        OutlierDetection::new().failure_percentage(options)
    }

    fn always() -> u8 {
        0
    }

    fn not_drawn() -> u8 {
        panic!("there is no outlier, so no number is drawn")
    }

    #[test]
    fn nothing_is_ejected_without_an_algorithm() {
        let intervals = [calls(0, 1000), calls(1000, 0), calls(1000, 0), calls(1000, 0), calls(1000, 0)];
        assert_eq!(ejected(&intervals, &OutlierDetection::new(), not_drawn), NONE, "both are off");
        assert_eq!(ejected(&[], &rates(SuccessRate::new()), not_drawn), NONE, "there is no host");
        assert_eq!(
            ejected(&[], &rates(SuccessRate::new().minimum_hosts(0)), not_drawn),
            NONE,
            "there is no host to compare"
        );
    }

    // Nine at 100 % and one at 50 %: mean 0.95, standard deviation sqrt((9 * 0.05^2 + 0.45^2) / 10) = 0.15.
    // The floor is 0.95 - 0.15 * factor: 0.665 at 1.9, 0.5 at 3.
    #[test]
    fn a_success_rate_far_below_the_others_ejects() {
        let mut intervals = [calls(100, 0); 10];
        intervals[4] = calls(50, 50);
        assert_eq!(ejected(&intervals, &rates(SuccessRate::new()), always), [4], "0.5 is below 0.665");
        let factor = |thousandths| rates(SuccessRate::new().stdev_factor(thousandths));
        assert_eq!(ejected(&intervals, &factor(2999), always), [4], "0.5 is below 0.50015");
        assert_eq!(ejected(&intervals, &factor(3000), not_drawn), NONE, "0.5 is not below 0.5");
        assert_eq!(ejected(&intervals, &factor(3001), not_drawn), NONE, "0.5 is not below 0.49985");
    }

    // Four at 90 % and one at 60 %: mean 0.84, deviation sqrt((4 * 0.06^2 + 0.24^2) / 5) = 0.12,
    // floor 0.84 - 0.228 = 0.612.
    #[test]
    fn five_are_enough_to_compare_and_four_are_not() {
        let mut intervals = vec![calls(90, 10); 4];
        intervals.push(calls(60, 40));
        assert_eq!(ejected(&intervals, &rates(SuccessRate::new()), always), [4], "0.6 is below 0.612");
        intervals[4] = calls(62, 38);
        // Mean 0.844, deviation 0.112, floor 0.6312.
        assert_eq!(ejected(&intervals, &rates(SuccessRate::new()), always), [4], "0.62 is below 0.6312");
        intervals.remove(0);
        assert_eq!(
            ejected(&intervals, &rates(SuccessRate::new()), not_drawn),
            NONE,
            "four are fewer than minimum_hosts"
        );
        // Mean 0.83, deviation sqrt((3 * 0.07^2 + 0.21^2) / 4) = 0.1212, floor 0.83 - 0.2304 = 0.5996.
        let four = rates(SuccessRate::new().minimum_hosts(4));
        assert_eq!(ejected(&intervals, &four, not_drawn), NONE, "they are enough then, but 0.62 is not below 0.5996");
    }

    #[test]
    fn an_instance_with_few_calls_is_neither_judged_nor_compared_with() {
        let mut intervals = [calls(100, 0); 6];
        intervals[0] = calls(0, 99);
        assert_eq!(
            ejected(&intervals, &rates(SuccessRate::new()), not_drawn),
            NONE,
            "99 calls are less than request_volume"
        );
        intervals[0] = calls(0, 100);
        assert_eq!(ejected(&intervals, &rates(SuccessRate::new()), always), [0], "100 calls are enough");
        intervals[1] = calls(99, 0);
        intervals[2] = calls(99, 0);
        assert_eq!(
            ejected(&intervals, &rates(SuccessRate::new()), not_drawn),
            NONE,
            "four with volume are too few to compare"
        );
    }

    #[test]
    fn a_rate_is_a_share_however_many_calls_there_were() {
        let mut intervals = [calls(10_000, 0); 10];
        intervals[3] = calls(100, 0);
        assert_eq!(ejected(&intervals, &rates(SuccessRate::new()), not_drawn), NONE, "all of few is no less");
        intervals[5] = calls(5_000, 5_000);
        assert_eq!(ejected(&intervals, &rates(SuccessRate::new()), always), [5], "half of many is");
    }

    #[test]
    fn equal_rates_eject_nothing_whatever_the_factor() {
        for hosts in [5, 7, 11, 999] {
            for (successes, failures) in [(100, 0), (0, 100), (90, 10), (70, 49), (1, 998)] {
                let intervals = vec![calls(successes, failures); hosts];
                for factor in [0, 1, 500, 1900] {
                    let detection = rates(SuccessRate::new().stdev_factor(factor));
                    assert_eq!(ejected(&intervals, &detection, not_drawn), NONE, "{hosts} of {successes}/{failures}");
                }
            }
        }
    }

    #[test]
    fn no_calls_at_all_tell_nothing_even_if_no_volume_is_asked_for() {
        let intervals = [calls(0, 0); 10];
        let rate = rates(SuccessRate::new().request_volume(0).minimum_hosts(0));
        assert_eq!(ejected(&intervals, &rate, not_drawn), NONE, "there is no rate");
        let percentage = percentages(FailurePercentage::new().request_volume(0).minimum_hosts(0).threshold(0));
        assert_eq!(ejected(&intervals, &percentage, not_drawn), NONE, "there is no percentage");
    }

    #[test]
    fn more_failures_than_the_threshold_eject() {
        let mut intervals = [calls(100, 0); 5];
        intervals[2] = calls(15, 85);
        let detection = percentages(FailurePercentage::new());
        assert_eq!(ejected(&intervals, &detection, not_drawn), NONE, "85 of 100 are not more than 85 %");
        intervals[2] = calls(14, 86);
        assert_eq!(ejected(&intervals, &detection, always), [2], "86 of 100 are");
        intervals[2] = calls(149, 851);
        assert_eq!(ejected(&intervals, &detection, always), [2], "851 of 1000 are: nothing is rounded");
        intervals[2] = calls(0, u32::MAX);
        assert_eq!(ejected(&intervals, &detection, always), [2], "no number overflows");
        intervals[2] = calls(u32::MAX, u32::MAX);
        assert_eq!(ejected(&intervals, &detection, not_drawn), NONE, "no number overflows, and 50 % are fine");
    }

    #[test]
    fn thresholds_of_zero_and_a_hundred_mean_what_they_say() {
        let mut intervals = [calls(1000, 0); 5];
        intervals[0] = calls(999, 1);
        intervals[1] = calls(0, 1000);
        let threshold = |percent| percentages(FailurePercentage::new().threshold(percent));
        assert_eq!(ejected(&intervals, &threshold(0), always), [0, 1], "any failure is more than none");
        assert_eq!(ejected(&intervals, &threshold(100), not_drawn), NONE, "nothing is more than all");
    }

    #[test]
    fn a_percentage_needs_enough_calls_and_enough_hosts() {
        let detection = percentages(FailurePercentage::new());
        let mut intervals = [calls(50, 0); 6];
        intervals[5] = calls(0, 49);
        assert_eq!(ejected(&intervals, &detection, not_drawn), NONE, "49 calls are less than request_volume");
        intervals[5] = calls(0, 50);
        assert_eq!(ejected(&intervals, &detection, always), [5], "50 calls are enough");
        intervals[0] = calls(49, 0);
        assert_eq!(ejected(&intervals, &detection, always), [5], "five hosts with volume are enough");
        intervals[1] = calls(49, 0);
        assert_eq!(ejected(&intervals, &detection, not_drawn), NONE, "four hosts with volume are too few");
    }

    #[test]
    fn at_most_half_are_out_and_those_out_already_count() {
        let detection = percentages(FailurePercentage::new());
        let mut intervals = [calls(0, 100); 7];
        assert_eq!(ejected(&intervals, &detection, always), [0, 1, 2], "three of seven");
        intervals[0].is_out = true;
        intervals[6].is_out = true;
        assert_eq!(ejected(&intervals, &detection, always), [1], "two of the three are out already");
        intervals[3].is_out = true;
        assert_eq!(ejected(&intervals, &detection, not_drawn), NONE, "all three are out already");
    }

    #[test]
    fn enforcement_ejects_that_share_of_the_outliers() {
        let intervals = [calls(0, 100); 10];
        let enforced = |percent, drawn| {
            let options = FailurePercentage::new().enforcement_percentage(percent);
            !ejected(&intervals, &percentages(options), || drawn).is_empty()
        };
        for percent in [0, 1, 50, 99, 100] {
            let ejecting = (0..100).filter(|drawn| enforced(percent, *drawn)).count();
            assert_eq!(ejecting, usize::from(percent), "that many of the hundred numbers eject");
        }

        let mut intervals = [calls(100, 0); 10];
        intervals[9] = calls(0, 100);
        let rate = rates(SuccessRate::new().enforcement_percentage(30));
        assert_eq!(ejected(&intervals, &rate, || 29), [9], "29 is below 30");
        assert_eq!(ejected(&intervals, &rate, || 30), NONE, "30 is not");
    }

    #[test]
    fn a_number_is_drawn_for_each_outlier_and_for_no_other_host() {
        let mut intervals = [calls(100, 0); 8];
        for outlier in [1, 4, 6] {
            intervals[outlier] = calls(0, 100);
        }
        let mut drawn = [99, 10, 49].into_iter();
        let detection = percentages(FailurePercentage::new().enforcement_percentage(50));
        let ejected = ejected(&intervals, &detection, || drawn.next().expect("three outliers, three numbers"));
        assert_eq!(ejected, [4, 6], "the first was lucky");
        assert_eq!(drawn.next(), None, "each outlier drew its own");
    }

    #[test]
    fn outliers_that_are_not_ejected_are_told_with_the_reason() {
        let intervals = [calls(0, 100); 5];
        let mut drawn = [99, 0, 0].into_iter();
        let detection = percentages(FailurePercentage::new().enforcement_percentage(50));
        let found = sweep(&intervals, &detection, || drawn.next().expect("no more than two of five may be out"));
        let unenforced: Vec<_> = found.iter().map(|outlier| outlier.unenforced).collect();
        let (lucky, overflow) = (Some(Unenforced::EnforcementPercentage), Some(Unenforced::MaxEjectionOverflow));
        assert_eq!(unenforced, [lucky, None, None, overflow, overflow]);
        assert!(found.iter().all(|outlier| outlier.method == DetectionMethod::FailurePercentage));
    }

    #[test]
    fn both_algorithms_together_eject_no_host_twice() {
        let mut intervals = [calls(100, 0); 10];
        intervals[3] = calls(50, 50);
        intervals[7] = calls(0, 100);
        // Mean 0.85, deviation sqrt((8 * 0.15^2 + 0.35^2 + 0.85^2) / 10) = 0.3202, floor 0.2416: one outlier.
        let detection = OutlierDetection::new()
            .success_rate(SuccessRate::new())
            .failure_percentage(FailurePercentage::new().threshold(40));
        assert_eq!(ejected(&intervals, &detection, always), [7, 3], "first by rate, then the other by percentage");
    }
}
