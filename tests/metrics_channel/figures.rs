//! What Prometheus' recorder has of one channel, by gRPC's names.

use std::collections::BTreeSet;
use std::time::Duration;

use metrics::LocalRecorderGuard;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// How long a test waits for something that must happen: only a failing one reaches it.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// The figures of the channels to one target, by a recorder for this test's thread alone: what Prometheus' recorder is
/// given on one thread while another one reads may get lost.
pub(crate) struct Figures {
    target: String,
    recorder: PrometheusHandle,
    _installed: LocalRecorderGuard<'static>,
}

impl Figures {
    /// Of channels over instances of this name that are built from now on, on this thread.
    pub(crate) fn of(service: &str) -> Self {
        Self::to(format!("instances:///{service}"))
    }

    /// Of channels to this target.
    pub(crate) fn to(target: String) -> Self {
        let recorder = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
        Self { target, recorder: recorder.handle(), _installed: metrics::set_default_local_recorder(recorder) }
    }

    /// The sum of all series of a counter or a gauge that have these labels, among others.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let series = self.series(&name.replace('.', "_"));
        let wanted: Vec<String> = labels.iter().map(|(name, value)| label(name, value)).collect();
        let fits = |(labels, _): &&(String, f64)| wanted.iter().all(|label| labels.contains(label));
        series.iter().filter(fits).map(|(_, value)| value).sum()
    }

    /// How many values a histogram was given.
    pub(crate) fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.sum(&format!("{name}_count"), labels)
    }

    /// The sum of all values that a histogram was given.
    pub(crate) fn total(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.sum(&format!("{name}_sum"), labels)
    }

    /// How many calls ended with a status.
    pub(crate) fn calls(&self, status: &str) -> f64 {
        self.count("grpc.client.call.duration", &[("grpc.status", status)])
    }

    /// How many attempts ended with a status.
    pub(crate) fn attempts(&self, status: &str) -> f64 {
        self.count("grpc.client.attempt.duration", &[("grpc.status", status)])
    }

    /// How many instances are in a state.
    pub(crate) fn instances(&self, state: &str) -> f64 {
        self.sum("tonic_etcd.channel.instances", &[("state", state)])
    }

    /// The values of a label of a counter or a gauge.
    pub(crate) fn values(&self, name: &str, label: &str) -> BTreeSet<String> {
        let begin = format!("{}=\"", label.replace('.', "_"));
        let series = self.series(&name.replace('.', "_")).into_iter();
        let value =
            |labels: String| labels.split_once(&begin).and_then(|(_, rest)| Some(rest.split_once('"')?.0.to_owned()));
        series.filter_map(|(labels, _)| value(labels)).collect()
    }

    /// Waits until a figure has a value.
    pub(crate) async fn until(&self, what: &str, wanted: f64, figure: impl Fn(&Self) -> f64) {
        let reached = async {
            while !is(figure(self), wanted) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(LIMIT, reached).await.is_ok();
        assert!(in_time, "{what}: {wanted} were due, and there are {}:\n{}", figure(self), self.recorder.render());
    }

    /// Asserts that nothing is left in any gauge.
    pub(crate) async fn until_all_gauges_are_zero(&self) {
        self.until("nothing is in flight", 0.0, |it| it.sum("tonic_etcd.channel.calls_in_flight", &[])).await;
        self.until("nothing waits", 0.0, |it| it.sum("tonic_etcd.channel.calls_waiting", &[])).await;
        self.until("no instance is known", 0.0, |it| it.sum("tonic_etcd.channel.instances", &[])).await;
        self.until("no connection is open", 0.0, |it| it.sum("grpc.subchannel.open_connections", &[])).await;
    }

    /// The labels and the value of each series of this target.
    fn series(&self, name: &str) -> Vec<(String, f64)> {
        let (begin, target) = (format!("{name}{{"), label("grpc.target", &self.target));
        let text = self.recorder.render();
        let lines = text.lines().filter_map(|line| line.strip_prefix(&begin)?.rsplit_once("} "));
        let mine = lines.filter(|(labels, _)| labels.contains(&target));
        mine.map(|(labels, value)| (labels.to_owned(), value.parse().expect("a value is a number"))).collect()
    }
}

/// Whether two counts are the same, which are whole numbers.
pub(crate) fn is(a: f64, b: f64) -> bool {
    (a - b).abs() < 0.5
}

fn label(name: &str, value: &str) -> String {
    format!("{}=\"{value}\"", name.replace('.', "_"))
}
