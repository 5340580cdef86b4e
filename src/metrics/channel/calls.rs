//! One call's moments become counts and durations, under the name of its method.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Extensions;
use tokio::time::Instant;
use tonic::{Code, GrpcMethod};

use super::constants::{
    ATTEMPT_DURATION, ATTEMPT_STARTED, CALL_DURATION, CALL_RETRIES, CALL_RETRY_DELAY, CALL_TRANSPARENT_RETRIES,
};
use crate::codes;
use crate::metrics::{Counter, Gauge, Histogram};

/// What is measured of one call, which ends once: with a status, or CANCELLED where it is dropped before.
#[derive(Debug, Default)]
pub(crate) struct CallMetrics {
    /// `None` from the call's end on.
    open: Option<Open>,
}

/// A call that has not ended.
#[derive(Debug)]
struct Open {
    method: Arc<Method>,
    /// When the caller made it, which is when its first attempt begins as well.
    started: Instant,
    has_begun: bool,
    /// Only from its second attempt on.
    repeats: Option<Box<Repeats>>,
}

/// The attempts of a call after its first.
#[derive(Debug)]
struct Repeats {
    phase: Phase,
    retries: u32,
    replays: u32,
    /// How long there was no attempt under way.
    delay: Duration,
}

/// What goes on, and since when.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Attempt(Instant),
    Pause(Instant),
}

impl CallMetrics {
    pub(super) fn new(method: Arc<Method>, started: Instant) -> Self {
        Self { open: Some(Open { method, started, has_begun: false, repeats: None }) }
    }

    /// The call begins, and its first attempt. One that never does is not counted.
    pub(crate) fn on_begin(&mut self) {
        if let Some(open) = &mut self.open {
            open.has_begun = true;
            open.method.in_flight.add(1.0);
            open.method.attempts.add(1);
        }
    }

    /// An attempt ended, and the next one begins at once, since no handler had seen it.
    pub(crate) fn on_replay(&mut self, code: Code) {
        if let Some(open) = &mut self.open {
            let now = Instant::now();
            open.end_attempt(code, now);
            let repeats = open.repeats(now);
            repeats.replays += 1;
            repeats.phase = Phase::Attempt(now);
            open.method.attempts.add(1);
        }
    }

    /// An attempt ended, and the retry policy wants another one after a pause.
    pub(crate) fn on_pause(&mut self, code: Code) {
        if let Some(open) = &mut self.open {
            let now = Instant::now();
            open.end_attempt(code, now);
            open.repeats(now).phase = Phase::Pause(now);
        }
    }

    /// The pause is over, and the next attempt begins.
    pub(crate) fn on_retry(&mut self) {
        if let Some(open) = &mut self.open {
            let now = Instant::now();
            let repeats = open.repeats(now);
            repeats.retries += 1;
            repeats.end_pause(now);
            repeats.phase = Phase::Attempt(now);
            open.method.attempts.add(1);
        }
    }

    /// The call ended, and with it the attempt that was under way. What comes after the first end counts for nothing.
    pub(crate) fn on_end(&mut self, code: Code) {
        if let Some(open) = self.open.take() {
            open.end(code);
        }
    }
}

impl Drop for CallMetrics {
    fn drop(&mut self) {
        self.on_end(Code::Cancelled);
    }
}

impl Open {
    fn end(mut self, code: Code) {
        if !self.has_begun {
            return;
        }
        let now = Instant::now();
        self.end_attempt(code, now);
        self.method.on_status(code).call.record((now - self.started).as_secs_f64());
        if let Some(mut repeats) = self.repeats.take() {
            repeats.end_pause(now);
            self.method.on_repeats(&repeats);
        }
        self.method.in_flight.add(-1.0);
    }

    fn end_attempt(&self, code: Code, now: Instant) {
        let started = match self.repeats.as_ref().map(|repeats| repeats.phase) {
            None => self.started,
            Some(Phase::Attempt(started)) => started,
            Some(Phase::Pause(_)) => return,
        };
        self.method.on_status(code).attempt.record((now - started).as_secs_f64());
    }

    fn repeats(&mut self, now: Instant) -> &mut Repeats {
        let none = || Box::new(Repeats { phase: Phase::Pause(now), retries: 0, replays: 0, delay: Duration::ZERO });
        self.repeats.get_or_insert_with(none)
    }
}

impl Repeats {
    fn end_pause(&mut self, now: Instant) {
        if let Phase::Pause(since) = self.phase {
            self.delay += now - since;
        }
    }
}

/// The methods that a channel was called for, each with its handles.
#[derive(Debug)]
pub(super) struct Methods {
    target: Arc<str>,
    in_flight: Gauge,
    /// In the order of their keys. One that is compiled in twice may be here twice, with the same handles.
    known: ArcSwap<Vec<(Key, Arc<Method>)>>,
    /// Of calls that no generated client made, and of methods beyond [`METHODS`].
    other: Arc<Method>,
}

/// Where the names of a method lie, and how long they are: they are `'static`, so that there are no others there.
type Key = [usize; 4];

impl Methods {
    pub(super) fn new(target: Arc<str>, in_flight: Gauge) -> Self {
        let other = Arc::new(Method::new(target.clone(), OTHER.into(), in_flight.clone()));
        Self { target, in_flight, known: ArcSwap::default(), other }
    }

    /// The method of a request with these extensions.
    pub(super) fn of(&self, extensions: &Extensions) -> Arc<Method> {
        let Some(method) = extensions.get::<GrpcMethod<'static>>() else { return self.other.clone() };
        let key = key(method);
        self.find(key).unwrap_or_else(|| self.learn(key, method))
    }

    fn find(&self, key: Key) -> Option<Arc<Method>> {
        let known = self.known.load();
        position(&known, key).ok().map(|at| known[at].1.clone())
    }

    fn learn(&self, key: Key, method: &GrpcMethod<'static>) -> Arc<Method> {
        if self.known.load().len() >= METHODS {
            return self.other.clone();
        }
        let name = format!("{}/{}", method.service(), method.method());
        let new = Arc::new(Method::new(self.target.clone(), name.into(), self.in_flight.clone()));
        // Other calls may have brought it in meanwhile, or the last one that there is room for.
        self.known.rcu(|known| {
            let mut known = Vec::clone(known);
            if let Err(at) = position(&known, key)
                && known.len() < METHODS
            {
                known.insert(at, (key, new.clone()));
            }
            known
        });
        self.find(key).unwrap_or_else(|| self.other.clone())
    }
}

fn key(method: &GrpcMethod<'static>) -> Key {
    let (service, method) = (method.service(), method.method());
    [service.as_ptr().addr(), service.len(), method.as_ptr().addr(), method.len()]
}

fn position(known: &[(Key, Arc<Method>)], key: Key) -> Result<usize, usize> {
    known.binary_search_by_key(&key, |(key, _)| *key)
}

/// The handles of one method. Those of a status are made with the first call that ends with it, but for [`ALERTING`].
#[derive(Debug)]
pub(super) struct Method {
    target: Arc<str>,
    name: Box<str>,
    in_flight: Gauge,
    attempts: Counter,
    /// By their codes.
    statuses: [OnceLock<StatusHandles>; codes::COUNT],
    repeats: OnceLock<RepeatHandles>,
}

#[derive(Debug)]
struct StatusHandles {
    call: Histogram,
    attempt: Histogram,
}

#[derive(Debug)]
struct RepeatHandles {
    retries: Histogram,
    replays: Histogram,
    delay: Histogram,
}

impl Method {
    fn new(target: Arc<str>, name: Box<str>, in_flight: Gauge) -> Self {
        let attempts = ATTEMPT_STARTED.with(&[&target, &name]);
        let method = Self { target, name, in_flight, attempts, statuses: Default::default(), repeats: OnceLock::new() };
        for code in ALERTING {
            method.on_status(code);
        }
        method
    }

    fn on_status(&self, code: Code) -> &StatusHandles {
        self.statuses[code as usize].get_or_init(|| {
            let labels = [&*self.target, &*self.name, codes::name(code)];
            StatusHandles { call: CALL_DURATION.with(&labels), attempt: ATTEMPT_DURATION.with(&labels) }
        })
    }

    fn on_repeats(&self, repeats: &Repeats) {
        let handles = self.repeats.get_or_init(|| {
            let labels = [&*self.target, &*self.name];
            RepeatHandles {
                retries: CALL_RETRIES.with(&labels),
                replays: CALL_TRANSPARENT_RETRIES.with(&labels),
                delay: CALL_RETRY_DELAY.with(&labels),
            }
        });
        if repeats.retries > 0 {
            handles.retries.record(repeats.retries.into());
        }
        if repeats.replays > 0 {
            handles.replays.record(repeats.replays.into());
        }
        if !repeats.delay.is_zero() {
            handles.delay.record(repeats.delay.as_secs_f64());
        }
    }
}

/// The method of calls whose own name is not told: as gRPC has it.
const OTHER: &str = "other";

/// How many methods of a channel are told apart: more than programs have clients for, and few enough to store.
const METHODS: usize = 200;

/// The statuses that alerts are made of: a rate does not see the first of a series that begins with it.
const ALERTING: [Code; 2] = [Code::Unavailable, Code::DeadlineExceeded];

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use metrics::{HistogramFn, Key, KeyName, Metadata, Recorder, SharedString};

    use super::super::ChannelMetrics;
    use super::super::constants::CALLS_IN_FLIGHT;
    use super::*;

    /// A recorder that allocates for handles alone.
    struct Frugal;

    #[derive(Default)]
    struct Last(AtomicU64);

    impl HistogramFn for Last {
        fn record(&self, value: f64) {
            self.0.store(value.to_bits(), std::sync::atomic::Ordering::Relaxed);
        }
    }

    impl Recorder for Frugal {
        fn describe_counter(&self, _: KeyName, _: Option<metrics::Unit>, _: SharedString) {}

        fn describe_gauge(&self, _: KeyName, _: Option<metrics::Unit>, _: SharedString) {}

        fn describe_histogram(&self, _: KeyName, _: Option<metrics::Unit>, _: SharedString) {}

        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> metrics::Counter {
            metrics::Counter::from_arc(Arc::<AtomicU64>::default())
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> metrics::Gauge {
            metrics::Gauge::from_arc(Arc::<AtomicU64>::default())
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> metrics::Histogram {
            metrics::Histogram::from_arc(Arc::<Last>::default())
        }
    }

    #[test]
    fn from_its_second_time_on_a_call_allocates_nothing_for_its_figures() {
        metrics::with_local_recorder(&Frugal, || {
            let metrics = ChannelMetrics::new("etcd:///echo");
            let mut extensions = Extensions::new();
            extensions.insert(GrpcMethod::new("echo.Echo", "UnaryEcho"));
            let call = |extensions: &Extensions| {
                for code in [Code::Ok, Code::NotFound, Code::Cancelled] {
                    let mut call = metrics.call(extensions, Instant::now());
                    call.on_begin();
                    if code != Code::Cancelled {
                        call.on_end(code);
                    }
                }
            };
            for extensions in [extensions, Extensions::new()] {
                call(&extensions);
                let counted = allocation_counter::measure(|| (0..1_000).for_each(|_| call(&extensions)));
                assert_eq!(counted.count_total, 0, "{} bytes", counted.bytes_total);
            }
        });
    }

    #[test]
    fn the_figures_of_a_call_are_small() {
        assert!(size_of::<CallMetrics>() <= 40, "{} bytes", size_of::<CallMetrics>());
    }

    #[test]
    fn methods_learnt_by_many_threads_at_once_are_each_there_once() {
        let names: Vec<&'static str> = (0..50).map(|number| &*format!("Method{number}").leak()).collect();
        metrics::with_local_recorder(&Frugal, || {
            let methods = Methods::new("etcd:///echo".into(), CALLS_IN_FLIGHT.with(&["etcd:///echo"]));
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for name in &names {
                            let mut extensions = Extensions::new();
                            extensions.insert(GrpcMethod::new("echo.Echo", name));
                            assert_eq!(*methods.of(&extensions).name, *format!("echo.Echo/{name}"));
                        }
                    });
                }
            });
            assert_eq!(methods.known.load().len(), names.len());
            assert!(methods.known.load().is_sorted_by_key(|(key, _)| *key));
        });
    }
}
