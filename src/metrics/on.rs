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

    pub(super) fn key(&self, values: &[&str]) -> Key {
        debug_assert_eq!(self.labels.len(), values.len(), "{} has the labels {:?}", self.name, self.labels);
        let labels = self.labels.iter().zip(values);
        let labels = labels.map(|(name, value)| metrics::Label::new(*name, (*value).to_owned()));
        Key::from_parts(self.name, labels.collect::<Vec<_>>())
    }

    fn description(&self) -> (KeyName, Option<metrics::Unit>, SharedString) {
        let unit = match self.unit {
            Unit::Count => metrics::Unit::Count,
            Unit::Seconds => metrics::Unit::Seconds,
            Unit::Bytes => metrics::Unit::Bytes,
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

    pub(super) fn set(&self, value: f64) {
        self.0.set(value);
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

    pub(crate) fn set(&mut self, amount: f64) {
        self.gauge.0.increment(amount - self.amount);
        self.amount = amount;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.gauge.0.decrement(self.amount);
    }
}

/// Every metric is of one target and level: recorders filter by name.
static METADATA: Metadata<'static> = Metadata::new("tonic_etcd", Level::INFO, Some("tonic_etcd"));

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn a_handle_is_of_its_labels_and_exporters_add_unit_and_total() {
        const LOST: Metric<Counter> = Metric::new("a.lost", Unit::Bytes, &["service", "reason"], "What is lost.");
        let recorder = PrometheusBuilder::new().with_recommended_naming(true).build_recorder();
        metrics::with_local_recorder(&recorder, || LOST.with(&["echo", "gone"]).add(2));
        let text = recorder.handle().render();
        assert!(text.contains("# HELP a_lost_bytes_total What is lost.\n"), "{text}");
        assert!(text.contains("a_lost_bytes_total{service=\"echo\",reason=\"gone\"} 2\n"), "{text}");
    }

    #[test]
    fn a_gauge_loses_each_share_that_goes() {
        const OPEN: Metric<Gauge> = Metric::new("open", Unit::Count, &[], "What is open.");
        let recorder = PrometheusBuilder::new().build_recorder();
        let shows = |value: &str| {
            let text = recorder.handle().render();
            assert!(text.contains(&format!("open {value}\n")), "{value} is not in {text}");
        };
        metrics::with_local_recorder(&recorder, || {
            let one = Share::new(OPEN.with(&[]), 1.0);
            let mut other = Share::new(OPEN.with(&[]), 2.0);
            shows("3");
            drop(one);
            shows("2");
            other.set(5.0);
            shows("5");
            drop(other);
            shows("0");
        });
    }
}
