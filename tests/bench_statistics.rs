//! The benchmark's figures are what they claim to be: medians, and intervals that hold the true median.

#[path = "../benches/side_by_side/statistics.rs"]
mod statistics;

use statistics::{Estimate, estimate, figure, median, quantile, quotient_of_quartiles, rounded};

#[test]
fn a_median_lies_in_the_middle_whatever_the_order() {
    let odd = [3.0, 1.0, 2.0];
    assert!((median(&odd) - 2.0).abs() < f64::EPSILON, "of three figures it is the second");
    let even = [4.0, 1.0, 3.0, 2.0];
    assert!((median(&even) - 2.5).abs() < f64::EPSILON, "of four it is between the second and the third");
}

#[test]
fn the_interval_cuts_off_what_tables_of_the_sign_test_say() {
    // Count of figures, and how many may be cut off at each end with 95 %.
    for (count, cut) in [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (15, 3), (20, 5), (31, 9), (100, 39)] {
        let figures: Vec<f64> = (0..count).map(figure).collect();
        let Estimate { low, high, .. } = estimate(&figures);
        assert!((low - figure(cut)).abs() < f64::EPSILON, "of {count} figures, {cut} are cut off below, not {low}");
        let last = figure(count - 1 - cut);
        assert!((high - last).abs() < f64::EPSILON, "of {count} figures, {cut} are cut off above, so not {high}");
    }
}

#[test]
fn an_interval_holds_the_true_median_nineteen_times_of_twenty() {
    let mut numbers = fastrand::Rng::with_seed(7);
    let rounds = 2_000;
    let held = (0..rounds).filter(|_| {
        let figures: Vec<f64> = (0..15).map(|_| numbers.f64().powi(3)).collect();
        let Estimate { low, high, .. } = estimate(&figures);
        (low..=high).contains(&0.125)
    });
    let share = figure(held.count()) / figure(rounds);
    assert!((0.94..0.99).contains(&share), "{share} of the intervals hold it");
}

#[test]
fn the_interval_of_a_quotient_holds_the_true_one_nineteen_times_of_twenty() {
    let mut numbers = fastrand::Rng::with_seed(11);
    let mut series = |scale: f64| -> Vec<f64> { (0..25).map(|_| scale * numbers.f64().powi(3)).collect() };
    let rounds = 100;
    let mut held = 0;
    for _ in 0..rounds {
        let (mine, theirs) = (series(1.0), series(2.0));
        let Estimate { low, high, .. } = quotient_of_quartiles(&mine, &theirs);
        held += usize::from((low..=high).contains(&0.5));
    }
    let share = figure(held) / figure(rounds);
    assert!((0.9..0.995).contains(&share), "{share} of the intervals hold it");
}

#[test]
fn bursts_in_half_of_the_rounds_leave_a_quotient_of_quartiles_as_it_is() {
    let calm: Vec<f64> = (0..40).map(|round| 100.0 + figure(round)).collect();
    let bursts: Vec<f64> = calm.iter().enumerate().map(|(at, it)| if at % 2 == 0 { it * 20.0 } else { *it }).collect();
    let Estimate { median, high, .. } = quotient_of_quartiles(&bursts, &calm);
    assert!((0.95..1.15).contains(&median) && high < 1.25, "{median}, at most {high}");
}

#[test]
fn rounds_that_are_slow_for_both_do_not_widen_the_interval_of_their_quotient() {
    let mut numbers = fastrand::Rng::with_seed(13);
    let theirs: Vec<f64> = (0..25).map(|_| 1.0 + 9.0 * numbers.f64()).collect();
    let mine: Vec<f64> = theirs.iter().map(|round| 0.8 * round).collect();
    let Estimate { median, low, high } = quotient_of_quartiles(&mine, &theirs);
    assert!((0.79..0.81).contains(&median) && low > 0.79 && high < 0.81, "{median}, from {low} to {high}");
}

#[test]
fn results_have_three_digits_behind_the_point() {
    assert!((rounded(1.234_567) - 1.235).abs() < f64::EPSILON, "the rest is noise");
}

#[test]
fn a_quantile_of_few_or_no_latencies_is_no_panic() {
    assert!(quantile(&[], 990) < f64::EPSILON, "nothing was measured");
    assert!((quantile(&[7], 990) - 7.0).abs() < f64::EPSILON, "one latency is all quantiles");
    let hundred: Vec<u32> = (1..=100).collect();
    assert!((quantile(&hundred, 500) - 51.0).abs() < f64::EPSILON, "half of them lie below it");
    assert!((quantile(&hundred, 990) - 100.0).abs() < f64::EPSILON, "99 of 100 lie below it");
    assert!((quantile(&hundred, 999) - 100.0).abs() < f64::EPSILON, "so do 999 of 1,000, as far as a hundred tell");
}
