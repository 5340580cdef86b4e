//! Handles of the recorder that the process has installed.

use std::marker::PhantomData;

use metrics::{Key, KeyName, Level, Metadata, Recorder, SharedString};

use super::Unit;

/// One row of the table in `docs/metrics.md`, whose handles are [`Counter`], [`Gauge`] or [`Histogram`].
#[derive(Debug)]
pub(crate) struct Metric<H> {
    name: &'static str,
    unit: Unit,
    labels: &'static [&'static str],
    description: &'static str,
    handle: PhantomData<H>,
}

impl<H> Metric<H> {
    pub(crate) const fn new(
        name: &'static str,
        unit: Unit,
        labels: &'static [&'static str],
        description: &'static str,
    ) -> Self {
        Self { name, unit, labels, description, handle: PhantomData }
    }

    fn key(&self, values: &[&str]) -> Key {
        debug_assert_eq!(self.labels.len(), values.len(), "{} has the labels {:?}", self.name, self.labels);
        let labels = self.labels.iter().zip(values);
        let labels = labels.map(|(name, value)| metrics::Label::new(*name, (*value).to_owned()));
        Key::from_parts(self.name, labels.collect::<Vec<_>>())
    }

    fn description(&self) -> (KeyName, Option<metrics::Unit>, SharedString) {
        let unit = match self.unit {
            Unit::Count => metrics::Unit::Count,
            Unit::Seconds => metrics::Unit::Seconds,
        };
        (KeyName::from_const_str(self.name), Some(unit), SharedString::const_str(self.description))
    }

    fn register<T>(&self, describe: Describe, register: impl Fn(&dyn Recorder) -> T) -> T {
        metrics::with_recorder(|recorder| {
            let (name, unit, description) = self.description();
            describe(recorder, name, unit, description);
            register(recorder)
        })
    }
}

type Describe = fn(&dyn Recorder, KeyName, Option<metrics::Unit>, SharedString);

impl Metric<Counter> {
    /// The handle for these values of the labels, in their order.
    pub(crate) fn with(&self, values: &[&str]) -> Counter {
        let key = self.key(values);
        let describe: Describe = |recorder, name, unit, text| recorder.describe_counter(name, unit, text);
        Counter(self.register(describe, |recorder| recorder.register_counter(&key, &METADATA)))
    }
}

impl Metric<Gauge> {
    /// The handle for these values of the labels, in their order.
    pub(crate) fn with(&self, values: &[&str]) -> Gauge {
        let key = self.key(values);
        let describe: Describe = |recorder, name, unit, text| recorder.describe_gauge(name, unit, text);
        Gauge(self.register(describe, |recorder| recorder.register_gauge(&key, &METADATA)))
    }
}

impl Metric<Histogram> {
    /// The handle for these values of the labels, in their order.
    pub(crate) fn with(&self, values: &[&str]) -> Histogram {
        let key = self.key(values);
        let describe: Describe = |recorder, name, unit, text| recorder.describe_histogram(name, unit, text);
        Histogram(self.register(describe, |recorder| recorder.register_histogram(&key, &METADATA)))
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Counter(metrics::Counter);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.increment(count);
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Gauge(metrics::Gauge);

impl Gauge {
    pub(crate) fn add(&self, amount: f64) {
        self.0.increment(amount);
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Histogram(metrics::Histogram);

impl Histogram {
    pub(crate) fn record(&self, value: f64) {
        self.0.record(value);
    }
}

/// A part of a gauge, which the gauge loses when the share goes: no path out of a state can leave it behind.
#[derive(Debug)]
pub(crate) struct Share {
    gauge: Gauge,
    amount: f64,
}

impl Share {
    pub(crate) fn new(gauge: Gauge, amount: f64) -> Self {
        gauge.0.increment(amount);
        Self { gauge, amount }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.gauge.0.decrement(self.amount);
    }
}

/// Every metric is of one target and level: recorders filter by name.
static METADATA: Metadata<'static> = Metadata::new("tonic_etcd", Level::INFO, Some("tonic_etcd"));
