//! What a subscriber sees of the spans of one thread: fields, parents, events, and whether they have closed.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// The spans that began on this thread, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    spans: Vec<Span>,
    /// Where each open span is in the list.
    open: HashMap<u64, usize>,
}

#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) name: &'static str,
    pub(crate) target: &'static str,
    pub(crate) level: Level,
    /// Where its parent is in the list.
    pub(crate) parent: Option<usize>,
    pub(crate) fields: BTreeMap<&'static str, String>,
    /// The messages of the events in it, those of its children aside.
    pub(crate) events: Vec<String>,
    pub(crate) is_closed: bool,
}

impl Span {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }
}

impl Recorder {
    /// Watches this thread until the guard is dropped, from this level on.
    pub(crate) fn watch(level: LevelFilter) -> (Self, DefaultGuard) {
        let recorder = Self::default();
        let subscriber = tracing_subscriber::registry().with(recorder.clone().with_filter(level));
        (recorder, tracing::subscriber::set_default(subscriber))
    }

    /// All spans of this name, each with its place in the list.
    pub(crate) fn named(&self, name: &str) -> Vec<(usize, Span)> {
        let seen = self.seen();
        seen.spans.iter().cloned().enumerate().filter(|(_, span)| span.name == name).collect()
    }

    /// The only span of this name.
    pub(crate) fn only(&self, name: &str) -> (usize, Span) {
        let mut spans = self.named(name);
        assert_eq!(spans.len(), 1, "spans of the name {name}: {spans:?}");
        spans.remove(0)
    }

    /// Waits until all spans are like that.
    pub(crate) async fn until(&self, what: &str, are: impl Fn(&[Span]) -> bool) {
        let reached = async {
            while !are(&self.seen().spans) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let is_reached = timeout(LIMIT, reached).await.is_ok();
        assert!(is_reached, "{what}, and in the end there are {:#?}", self.seen().spans);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let parent = context.span(id).and_then(|span| span.parent()).map(|parent| parent.id().into_u64());
        let mut fields = BTreeMap::new();
        attributes.record(&mut Fields(&mut fields));
        let metadata = attributes.metadata();
        let mut seen = self.seen();
        let parent = parent.and_then(|parent| seen.open.get(&parent).copied());
        let place = seen.spans.len();
        seen.open.insert(id.into_u64(), place);
        let (name, target, level) = (metadata.name(), metadata.target(), *metadata.level());
        seen.spans.push(Span { name, target, level, parent, fields, events: Vec::new(), is_closed: false });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut seen = self.seen();
        let place = seen.open[&id.into_u64()];
        let mut fields = BTreeMap::new();
        values.record(&mut Fields(&mut fields));
        for (name, value) in fields {
            let before = seen.spans[place].fields.insert(name, value);
            assert_eq!(before, None, "{name} is recorded once");
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = BTreeMap::new();
        event.record(&mut Fields(&mut fields));
        let Some(span) = context.event_span(event) else { return };
        let mut seen = self.seen();
        let Some(&place) = seen.open.get(&span.id().into_u64()) else { return };
        seen.spans[place].events.extend(fields.remove("message"));
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        let mut seen = self.seen();
        if let Some(place) = seen.open.remove(&id.into_u64()) {
            seen.spans[place].is_closed = true;
        }
    }
}

struct Fields<'a>(&'a mut BTreeMap<&'static str, String>);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

/// How long a test waits for what should happen at once.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
