//! Evidence of calls flows in, ejections and returns flow out: which instances are kept from being picked for a while,
//! and why.
//!
//! Pure logic: calls count with atomics in a [`Tally`], a subchannel owns one [`Ejection`] and passes the time in. Here
//! are the options, and what became of a call.

mod compared;
mod detected;
mod ejection;
mod sweep;
mod tally;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tonic::Code;

pub(crate) use self::compared::Compared;
pub(crate) use self::detected::{DetectionMethod, Unenforced};
pub(crate) use self::ejection::{Ejection, may_eject};
pub(crate) use self::sweep::{Interval, Outlier, sweep};
pub(crate) use self::tally::{EndedRow, Tally, Verdict};
use crate::error::ConfigError;

/// When an instance that fails is kept from being picked, and for how long.
///
/// On by default, and off by [`outlier_detection(None)`](crate::ChannelBuilder::outlier_detection): after three
/// failures in a row an instance is out for 5 s, then 10 s, 20 s and 25 s if it goes on like that, and never are more
/// than half of the instances out. It returns on probation: it takes one call at a time until the head of a response
/// comes, or until nothing was held against it for [`ejection_time`](Self::ejection_time). Where nothing else is READY
/// it takes all calls. Comparing the failure rates of whole intervals, as gRPC's A50 has it, is an option:
/// [`failure_percentage`](Self::failure_percentage) and [`success_rate`](Self::success_rate).
///
/// What proves something, and what does not:
///
/// | seen | counts as |
/// | --- | --- |
/// | the head of a gRPC response | a success; its status may still be a failure |
/// | UNAVAILABLE from the server | a failure |
/// | an answer that is no gRPC: an HTTP error or page of a proxy or a stranger, a response without a status | a failure |
/// | the connection breaks unannounced with calls open | one failure, however many calls |
/// | its end after a GOAWAY, or while it was idle | nothing |
/// | a deadline passes, and the instance answered no call since the whole request was sent | a failure, unless the other instances miss theirs as well; one for all calls in a silence of less than a second, two where a ping was answered in it, and two for each call in a longer one |
/// | a deadline passes otherwise: it answered others, or the caller was not done with its request | nothing |
/// | a call that its caller gave up; a failed attempt to connect | nothing |
#[derive(Debug, Clone)]
#[must_use = "it does nothing before a channel is given it"]
pub struct OutlierDetection {
    consecutive_failures: Option<u32>,
    ejection_time: Duration,
    max_ejection_time: Duration,
    max_ejected_percent: u8,
    interval: Duration,
    failure_percentage: Option<FailurePercentage>,
    success_rate: Option<SuccessRate>,
    failure_when: FailureWhen,
    terms: Terms,
}

/// What a failure is by default, how ejection times grow, and how a share of the instances is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Terms {
    /// What speaks against the instance fails, times double, shares are rounded down.
    Own,
    /// Whatever is not OK fails, times are multiples of the first, shares are rounded up: A50.
    Grpc,
}

impl OutlierDetection {
    /// gRPC's terms and defaults (A50), as a service config's `outlier_detection_experimental` has them: nothing is
    /// ejected before [`failure_percentage`](Self::failure_percentage) or [`success_rate`](Self::success_rate) is
    /// given.
    ///
    /// What differs from [`new`](Self::new): failures in a row eject no instance, every status but OK is a failure,
    /// ejections last 30 s, 60 s, 90 s and so on up to 300 s, and 10 % of the instances may be out, rounded up, so that
    /// one always may. An instance still returns on probation. There any answer but UNAVAILABLE shows that it is back:
    /// whether too many fail is for the thresholds to say.
    pub fn grpc() -> Self {
        Self {
            consecutive_failures: None,
            ejection_time: GRPC_EJECTION_TIME,
            max_ejection_time: GRPC_MAX_EJECTION_TIME,
            max_ejected_percent: GRPC_MAX_EJECTED_PERCENT,
            terms: Terms::Grpc,
            ..Self::new()
        }
    }

    /// The defaults: see each method.
    pub fn new() -> Self {
        Self {
            consecutive_failures: Some(DEFAULT_CONSECUTIVE_FAILURES),
            ejection_time: DEFAULT_EJECTION_TIME,
            max_ejection_time: DEFAULT_MAX_EJECTION_TIME,
            max_ejected_percent: DEFAULT_MAX_EJECTED_PERCENT,
            interval: DEFAULT_INTERVAL,
            failure_percentage: None,
            success_rate: None,
            failure_when: FailureWhen(None),
            terms: Terms::Own,
        }
    }

    /// How many failures in a row eject an instance, 1 to 1,000,000; `None` for rows of any length. Defaults to 3.
    pub fn consecutive_failures(mut self, failures: impl Into<Option<u32>>) -> Self {
        self.consecutive_failures = failures.into();
        self
    }

    /// How long the first ejection lasts, at most a day. Each further one lasts twice as long as the one before, or in
    /// [gRPC's terms](Self::grpc) by as much longer as the first one was, unless the instance stayed in for a while:
    /// each [`interval`](Self::interval) takes back one such step. Defaults to 5 s.
    pub fn ejection_time(mut self, time: Duration) -> Self {
        self.ejection_time = time;
        self
    }

    /// The longest ejection: at least [`ejection_time`](Self::ejection_time), at most a day. Defaults to 25 s.
    pub fn max_ejection_time(mut self, time: Duration) -> Self {
        self.max_ejection_time = time;
        self
    }

    /// How many of a hundred instances may be out at once, rounded down: with 50, one of two and one of three. The only
    /// instance is never ejected below 100. In [gRPC's terms](Self::grpc) it is rounded up: above 0, one always may be
    /// out. Defaults to 50.
    pub fn max_ejected_percent(mut self, percent: u8) -> Self {
        self.max_ejected_percent = percent;
        self
    }

    /// How long calls are counted for [`failure_percentage`](Self::failure_percentage) and
    /// [`success_rate`](Self::success_rate), and how long an instance has to stay in to take back one doubling of its
    /// ejection time. At most an hour. Defaults to 10 s, as in gRPC.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Ejects, at the end of each interval, the instances of whose calls too many failed. Off unless given.
    pub fn failure_percentage(mut self, options: FailurePercentage) -> Self {
        self.failure_percentage = Some(options);
        self
    }

    /// Ejects, at the end of each interval, the instances that succeed far less often than the others. Off unless
    /// given.
    pub fn success_rate(mut self, options: SuccessRate) -> Self {
        self.success_rate = Some(options);
        self
    }

    /// What counts as a failure. Defaults to UNAVAILABLE, a broken connection, a missed deadline and an answer that is
    /// no gRPC; in [gRPC's terms](Self::grpc) to every status but OK.
    ///
    /// Asked once for each call that ended, on the task that made it: it should be quick. A broken connection is asked
    /// about once, with UNAVAILABLE, not for each of its calls. What is no failure is a success if the server answered,
    /// and counts as nothing at all otherwise.
    ///
    /// A server of another kind that took over an address answers UNIMPLEMENTED to every call, quickly. Where all
    /// instances implement all methods, count that as well:
    ///
    /// ```
    /// use tonic::Code;
    /// use tonic_etcd::outlier::{OutlierDetection, StatusOrigin};
    ///
    /// let detection = OutlierDetection::new().failure_when(|outcome| {
    ///     let codes = [Code::Unavailable, Code::Unimplemented];
    ///     outcome.origin() != StatusOrigin::Answered || codes.contains(&outcome.code())
    /// });
    /// # _ = detection;
    /// ```
    pub fn failure_when(mut self, failed: impl Fn(&Outcome) -> bool + Send + Sync + 'static) -> Self {
        self.failure_when = FailureWhen(Some(Arc::new(failed)));
        self
    }

    /// Whether all values are within their ranges.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if let Some(failures) = self.consecutive_failures.filter(|row| !(1..=MAX_CONSECUTIVE_FAILURES).contains(row)) {
            return Err(refused("consecutive_failures", &failures, "1 to 1000000; None switches it off"));
        }
        if !is_time(self.ejection_time, MAX_TIME) {
            let value = format!("{:?}", self.ejection_time);
            return Err(refused("ejection_time", &value, "more than zero and at most a day"));
        }
        if self.max_ejection_time < self.ejection_time || self.max_ejection_time > MAX_TIME {
            let value = format!("{:?}", self.max_ejection_time);
            return Err(refused("max_ejection_time", &value, "at least ejection_time and at most a day"));
        }
        if !is_time(self.interval, MAX_INTERVAL) {
            let value = format!("{:?}", self.interval);
            return Err(refused("interval", &value, "more than zero and at most an hour"));
        }
        check_percent("max_ejected_percent", self.max_ejected_percent)?;
        if let Some(options) = &self.failure_percentage {
            check_percent("failure_percentage.threshold", options.threshold)?;
            check_percent("failure_percentage.enforcement_percentage", options.enforcement_percentage)?;
        }
        if let Some(options) = &self.success_rate {
            check_percent("success_rate.enforcement_percentage", options.enforcement_percentage)?;
        }
        Ok(())
    }

    /// How often to [`sweep`], if at all.
    pub(crate) fn sweep_interval(&self) -> Option<Duration> {
        self.counts_intervals().then_some(self.interval)
    }

    fn counts_intervals(&self) -> bool {
        self.failure_percentage.is_some() || self.success_rate.is_some()
    }

    /// How many failures in a row eject an instance: 0, which no row reaches, where none does.
    fn row_limit(&self) -> u32 {
        self.consecutive_failures.unwrap_or(0)
    }

    pub(crate) fn is_failure(&self, outcome: Outcome) -> bool {
        match (&self.failure_when.0, self.terms) {
            (None, Terms::Own) => outcome.origin != StatusOrigin::Answered || outcome.code == Code::Unavailable,
            (None, Terms::Grpc) => outcome.code != Code::Ok,
            (Some(failed), _) => failed(&outcome),
        }
    }

    /// Whether a failure on probation ejects. In gRPC's terms one status that a server answered stays below every
    /// threshold, and what speaks against the instance decides alone.
    fn ends_in_ejection(&self, outcome: Outcome) -> bool {
        let is_answer = outcome.origin == StatusOrigin::Answered && outcome.code != Code::Unavailable;
        self.terms == Terms::Own || !is_answer
    }

    /// How long the ejection lasts that makes it `times` of late: from the base to the maximum.
    fn time_out(&self, times: u32) -> Duration {
        let factor = match self.terms {
            Terms::Own => 1_u32.checked_shl(times.saturating_sub(1)).unwrap_or(u32::MAX),
            Terms::Grpc => times.max(1),
        };
        self.ejection_time.saturating_mul(factor).min(self.max_ejection_time)
    }
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self::new()
    }
}

/// Ejects instances by the share of their calls that failed in an interval; gRPC's terms (A50) and defaults.
#[derive(Debug, Clone)]
#[must_use = "it does nothing before an OutlierDetection is given it"]
pub struct FailurePercentage {
    threshold: u8,
    enforcement_percentage: u8,
    minimum_hosts: u32,
    request_volume: u32,
}

impl FailurePercentage {
    /// gRPC's defaults: see each method.
    pub fn new() -> Self {
        Self { threshold: 85, enforcement_percentage: 100, minimum_hosts: 5, request_volume: 50 }
    }

    /// More failures than this, in percent of an instance's calls, make it an outlier. Defaults to 85.
    pub fn threshold(mut self, percent: u8) -> Self {
        self.threshold = percent;
        self
    }

    /// How many of a hundred outliers are ejected, to introduce it step by step. Defaults to 100.
    pub fn enforcement_percentage(mut self, percent: u8) -> Self {
        self.enforcement_percentage = percent;
        self
    }

    /// Nothing happens while fewer instances than this had the [`request_volume`](Self::request_volume). Defaults to 5.
    pub fn minimum_hosts(mut self, hosts: u32) -> Self {
        self.minimum_hosts = hosts;
        self
    }

    /// With fewer calls in the interval, an instance is not judged. Defaults to 50.
    pub fn request_volume(mut self, requests: u32) -> Self {
        self.request_volume = requests;
        self
    }
}

impl Default for FailurePercentage {
    fn default() -> Self {
        Self::new()
    }
}

/// Ejects instances that succeeded less often than the others in an interval; gRPC's terms (A50) and defaults.
#[derive(Debug, Clone)]
#[must_use = "it does nothing before an OutlierDetection is given it"]
pub struct SuccessRate {
    stdev_factor: u32,
    enforcement_percentage: u8,
    minimum_hosts: u32,
    request_volume: u32,
}

impl SuccessRate {
    /// gRPC's defaults: see each method.
    pub fn new() -> Self {
        Self { stdev_factor: 1900, enforcement_percentage: 100, minimum_hosts: 5, request_volume: 100 }
    }

    /// How many standard deviations below the mean success rate make an outlier, in thousandths. Defaults to 1900
    /// (1.9).
    pub fn stdev_factor(mut self, thousandths: u32) -> Self {
        self.stdev_factor = thousandths;
        self
    }

    /// How many of a hundred outliers are ejected, to introduce it step by step. Defaults to 100.
    pub fn enforcement_percentage(mut self, percent: u8) -> Self {
        self.enforcement_percentage = percent;
        self
    }

    /// Nothing happens while fewer instances than this had the [`request_volume`](Self::request_volume). Defaults to 5.
    pub fn minimum_hosts(mut self, hosts: u32) -> Self {
        self.minimum_hosts = hosts;
        self
    }

    /// With fewer calls in the interval, an instance is not judged and not compared with. Defaults to 100.
    pub fn request_volume(mut self, requests: u32) -> Self {
        self.request_volume = requests;
        self
    }
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self::new()
    }
}

/// What became of one call, for [`OutlierDetection::failure_when`]. A call that its caller gave up is none.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Outcome {
    code: Code,
    origin: StatusOrigin,
}

impl Outcome {
    pub(crate) const fn new(code: Code, origin: StatusOrigin) -> Self {
        Self { code, origin }
    }

    /// The gRPC status that the caller sees.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// Where that status came from.
    #[must_use]
    pub fn origin(&self) -> StatusOrigin {
        self.origin
    }
}

/// Where the end of a call came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StatusOrigin {
    /// The server answered, with whatever status.
    Answered,
    /// The connection broke, unannounced and with calls open.
    Broken,
    /// The deadline passed first, and the instance answered no call since the whole request was sent.
    Missed,
    /// What answered does not speak gRPC: an HTTP error or another content type without a `grpc-status`, or a response
    /// that ended without one.
    NotGrpc,
}

fn is_time(time: Duration, max: Duration) -> bool {
    !time.is_zero() && time <= max
}

fn check_percent(option: &'static str, percent: u8) -> Result<(), ConfigError> {
    if percent > 100 { Err(refused(option, &percent, "0 to 100")) } else { Ok(()) }
}

fn refused(option: &'static str, value: &impl ToString, expected: &'static str) -> ConfigError {
    ConfigError::Option { option, value: value.to_string(), expected }
}

/// The user's own idea of a failure, if there is one; the default needs no call through a pointer.
#[derive(Clone)]
struct FailureWhen(Option<Arc<Judge>>);

type Judge = dyn Fn(&Outcome) -> bool + Send + Sync;

impl fmt::Debug for FailureWhen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "given" } else { "default" })
    }
}

/// One failure happens, two may be chance; and each further one is a call lost.
const DEFAULT_CONSECUTIVE_FAILURES: u32 = 3;

/// Longer than a restart, which clears the ejection by its new lease anyway; short enough to try again soon.
const DEFAULT_EJECTION_TIME: Duration = Duration::from_secs(5);

/// An instance that is still registered shall be tried again before people look for it: gRPC's 300 s are meant for
/// rates.
const DEFAULT_MAX_EJECTION_TIME: Duration = Duration::from_secs(25);

/// Failures of more than half of the instances say something about the network, or about the calls.
const DEFAULT_MAX_EJECTED_PERCENT: u8 = 50;

/// gRPC's.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

/// A50's.
pub(crate) const GRPC_EJECTION_TIME: Duration = Duration::from_secs(30);

/// A50's.
pub(crate) const GRPC_MAX_EJECTION_TIME: Duration = Duration::from_secs(300);

/// A50's.
const GRPC_MAX_EJECTED_PERCENT: u8 = 10;

/// Far above any use, and far below the bits that [`Tally`] keeps beside its count.
const MAX_CONSECUTIVE_FAILURES: u32 = 1_000_000;

/// A day: no clock overflows by it.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// An hour: a count of 32 bits holds a million calls a second for as long.
const MAX_INTERVAL: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests;
