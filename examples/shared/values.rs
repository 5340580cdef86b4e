//! Numbers on the command lines of the echo programs. What is refused says what was expected.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

pub(crate) fn number<T>(allowed: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: FromStr + PartialOrd + Display + Clone,
{
    move |value| match value.parse() {
        Ok(number) if allowed.contains(&number) => Ok(number),
        _ => Err(format!("expected a whole number from {} to {}", allowed.start(), allowed.end())),
    }
}

pub(crate) fn seconds(value: &str) -> Result<Duration, &'static str> {
    let seconds = value.parse().map_err(|_| "expected a number of seconds, such as 15 or 0.5")?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "expected a number of seconds from 0 on, such as 15 or 0.5")
}

pub(crate) fn millis(value: &str) -> Result<Duration, &'static str> {
    value.parse().map(Duration::from_millis).map_err(|_| "expected a whole number of milliseconds, such as 250")
}
