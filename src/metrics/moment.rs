//! When something was so the last time, as a gauge in seconds since 1970.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use metrics::Key;

use super::on::{Gauge, Metric};

/// The gauge shows the oldest of all moments that have the same labels, and 0 where there is none: of two registries
/// that follow one service, the one that fell behind counts. Clones are the same moment.
#[derive(Debug, Clone)]
pub(crate) struct Moment(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    key: Key,
    id: u64,
    gauge: Gauge,
    /// The second that it is set to.
    second: AtomicU64,
}

impl Moment {
    pub(crate) fn new(metric: &Metric<Gauge>, values: &[&str]) -> Self {
        let (key, gauge) = (metric.key(values), metric.with(values));
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Kept { key, id, gauge, second: AtomicU64::new(0) }))
    }

    /// It is so now.
    pub(crate) fn set_now(&self) {
        self.set(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    }

    fn set(&self, second: u64) {
        if self.0.second.swap(second, Ordering::Relaxed) != second {
            self.0.show(Some(second));
        }
    }
}

impl Kept {
    fn show(&self, second: Option<u64>) {
        let mut moments = moments();
        let same = moments.entry(self.key.clone()).or_default();
        match second {
            Some(second) => _ = same.insert(self.id, second),
            None => _ = same.remove(&self.id),
        }
        let oldest = same.values().min().copied();
        // Under the lock: the gauge must not show what another one replaced.
        #[expect(clippy::cast_precision_loss, reason = "a float tells seconds apart for very long")]
        self.gauge.set(oldest.map_or(0.0, |second| second as f64));
        if oldest.is_none() {
            moments.remove(&self.key);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.show(None);
    }
}

/// The moments of one key, by their ids.
type Same = BTreeMap<u64, u64>;

fn moments() -> MutexGuard<'static, HashMap<Key, Same>> {
    static MOMENTS: LazyLock<Mutex<HashMap<Key, Same>>> = LazyLock::new(Mutex::default);
    MOMENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

static NEXT: AtomicU64 = AtomicU64::new(0);

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::metrics::Unit;

    #[test]
    fn the_oldest_moment_of_several_is_shown_until_it_goes() {
        const SEEN: Metric<Gauge> = Metric::new("seen", Unit::Seconds, &["service"], "A moment.");
        let recorder = PrometheusBuilder::new().build_recorder();
        let shows = |value: &str| {
            let text = recorder.handle().render();
            assert!(text.contains(&format!("seen{{service=\"echo\"}} {value}\n")), "{value} is not in {text}");
        };
        metrics::with_local_recorder(&recorder, || {
            let [one, other] = [(); 2].map(|()| Moment::new(&SEEN, &["echo"]));
            one.set(100);
            shows("100");
            other.set(70);
            shows("70");
            one.clone().set(130);
            shows("70");
            drop(other);
            shows("130");
            drop(one);
            shows("0");
        });
    }
}
