//! Figures of promises: each is held by the test that measures it, and printed in a line of its own, of which
//! `scripts/test.sh --soak` makes a table.

use std::time::Duration;

/// Holds a promise about time.
///
/// # Panics
///
/// If it took longer than `limit`.
pub fn within(promise: &str, took: Duration, limit: Duration) {
    tell(promise, took.as_secs_f64(), limit.as_secs_f64(), "s");
    assert!(took <= limit, "{promise}: it took {took:?}, and {limit:?} are promised");
}

/// Holds a promise about a number of things, called `unit`.
///
/// # Panics
///
/// If there are more than `limit`.
pub fn at_most(promise: &str, count: usize, limit: usize, unit: &str) {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    tell(promise, number(count), number(limit), unit);
    assert!(count <= limit, "{promise}: {count} {unit}, and {limit} are promised");
}

fn tell(promise: &str, figure: f64, limit: f64, unit: &str) {
    println!("figure\t{promise}\t{figure:.3}\t{limit}\t{unit}");
}
