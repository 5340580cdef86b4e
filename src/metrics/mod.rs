//! What the crate counts and measures, by the facade `metrics`; nothing at all without that feature.
//!
//! A [`Metric`] is a constant; its handles are made where something begins (a channel, a registration, a watch) and
//! kept, so that what happens often costs an atomic operation. A handle belongs to the recorder that was installed
//! when it was made.

pub(crate) mod channel;
#[cfg(not(feature = "metrics"))]
mod off;
#[cfg(feature = "metrics")]
mod on;

#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::{Counter, Gauge, Histogram};
#[cfg(feature = "metrics")]
pub(crate) use self::on::{Counter, Gauge, Histogram};

/// A label's name and its value.
pub(crate) type Label<'a> = (&'static str, &'a str);

/// One row of the table in `docs/metrics.md`.
#[derive(Debug)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) description: &'static str,
}

/// What a value counts or measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Count,
    Seconds,
    Bytes,
}

/// A part of a gauge, which the gauge loses when the share goes: no path out of a state can leave it behind.
#[derive(Debug)]
pub(crate) struct Share {
    gauge: Gauge,
    amount: f64,
}

impl Share {
    pub(crate) fn new(gauge: Gauge, amount: f64) -> Self {
        gauge.add(amount);
        Self { gauge, amount }
    }

    pub(crate) fn set(&mut self, amount: f64) {
        self.gauge.add(amount - self.amount);
        self.amount = amount;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.gauge.add(-self.amount);
    }
}
