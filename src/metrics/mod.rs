//! What the crate counts and measures, by the facade `metrics`; nothing at all without that feature.
//!
//! A [`Metric`] is a constant; its handles are made where something begins (a channel, a registration, a watch) and
//! kept, so that what happens often costs a few atomic operations: of a gauge an addition of floats, which is a loop of
//! comparing and swapping on a word that all threads share. A handle belongs to the recorder that was installed when it
//! was made.
//!
//! Constants are kept by room, handles in the room that uses them. Each constant is a row of `docs/metrics.md`:
//!
//! - A name begins with `tonic_etcd.` and has neither a unit nor `total` in it: exporters add both, from the unit and
//!   the type.
//! - A label has values that are known beforehand, or that the program gave itself, such as a service's name. Nothing
//!   that another program wrote into etcd is ever a label, and no address is.

pub(crate) mod channel;
pub(crate) mod discovery;
pub(crate) mod etcd;
#[cfg(feature = "metrics")]
mod moment;
#[cfg(not(feature = "metrics"))]
mod off;
#[cfg(feature = "metrics")]
mod on;
pub(crate) mod registration;
pub(crate) mod server;

#[cfg(feature = "metrics")]
pub(crate) use self::moment::Moment;
#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::{Counter, Gauge, Histogram, Metric, Moment, Share};
#[cfg(feature = "metrics")]
pub(crate) use self::on::{Counter, Gauge, Histogram, Metric, Share};

/// Whether anything is recorded: what has to be counted first need not be without.
pub(crate) const ENABLED: bool = cfg!(feature = "metrics");

/// What a value counts or measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Count,
    Seconds,
    Bytes,
}
