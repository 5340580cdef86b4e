//! Handles of the recorder that the process has installed.

use metrics::{Key, KeyName, Level, Metadata, SharedString};

use super::{Label, Metric, Unit};

impl Metric {
    pub(crate) fn counter(&self, labels: &[Label<'_>]) -> Counter {
        metrics::with_recorder(|recorder| {
            recorder.describe_counter(self.key_name(), self.unit(), SharedString::const_str(self.description));
            Counter(recorder.register_counter(&self.key(labels), &METADATA))
        })
    }

    pub(crate) fn gauge(&self, labels: &[Label<'_>]) -> Gauge {
        metrics::with_recorder(|recorder| {
            recorder.describe_gauge(self.key_name(), self.unit(), SharedString::const_str(self.description));
            Gauge(recorder.register_gauge(&self.key(labels), &METADATA))
        })
    }

    pub(crate) fn histogram(&self, labels: &[Label<'_>]) -> Histogram {
        metrics::with_recorder(|recorder| {
            recorder.describe_histogram(self.key_name(), self.unit(), SharedString::const_str(self.description));
            Histogram(recorder.register_histogram(&self.key(labels), &METADATA))
        })
    }

    fn key(&self, labels: &[Label<'_>]) -> Key {
        let labels = labels.iter().map(|(name, value)| metrics::Label::new(*name, (*value).to_owned()));
        Key::from_parts(self.name, labels.collect::<Vec<_>>())
    }

    fn key_name(&self) -> KeyName {
        KeyName::from_const_str(self.name)
    }

    fn unit(&self) -> Option<metrics::Unit> {
        Some(match self.unit {
            Unit::Count => metrics::Unit::Count,
            Unit::Seconds => metrics::Unit::Seconds,
            Unit::Bytes => metrics::Unit::Bytes,
        })
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

    pub(crate) fn set(&self, value: f64) {
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

/// Every metric is of one target and level: recorders filter by name.
static METADATA: Metadata<'static> = Metadata::new("tonic_etcd", Level::INFO, Some("tonic_etcd"));
