//! Snapshots to what is known of every service, and to what changed since the last one.
//!
//! The board does no IO: it takes what happened and the time, and returns the news for the pages that are open.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tonic_etcd::Address;
use tonic_etcd::snapshot::{Member, MemberState, Snapshot};

use super::wire::{self, Begin, Entry, What, event};

/// All that pages show.
pub(crate) struct Board {
    begin: Begin,
    services: BTreeMap<Arc<str>, Service>,
    /// Grows with every change of any service, so that a page can tell which of two is newer.
    version: u64,
    log: VecDeque<Entry>,
    answered: Option<u64>,
    trouble: Option<String>,
    left_out: usize,
    figures: Option<Bytes>,
}

struct Service {
    /// Whether it was not there at the first look: its first instances have joined, then.
    is_late: bool,
    /// `None` until the first one.
    snapshot: Option<Arc<Snapshot>>,
    version: u64,
    /// When each instance joined, of those that did so before the board's eyes.
    since: HashMap<Address, u64>,
    /// Since when it has no instance.
    empty_since: Option<u64>,
    /// All of it as an event, until it changes.
    encoded: Option<Bytes>,
}

/// What every open page has to hear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    Event(Bytes),
    /// So much of a service changed that all of it is sent, as it is by then.
    Service(Arc<str>),
}

impl Board {
    pub(crate) fn new(version: &'static str, registry: String, may_drain: bool) -> Self {
        Self {
            begin: Begin { time: 0, version, registry, may_drain },
            services: BTreeMap::new(),
            version: 0,
            log: VecDeque::new(),
            answered: None,
            trouble: None,
            left_out: 0,
            figures: None,
        }
    }

    /// All that is known, as a page that was just opened reads it.
    pub(crate) fn everything(&mut self, now: u64) -> VecDeque<Bytes> {
        let begin = Begin { time: now, ..self.begin.clone() };
        let mut events = VecDeque::from([event("begin", &begin)]);
        let names: Vec<_> = self.services.keys().cloned().collect();
        events.extend(names.iter().filter_map(|name| self.service(name)));
        events.push_back(event("log", &self.log));
        events.extend(self.figures.clone());
        events.extend([self.beat(now), event("live", &())]);
        events
    }

    /// All of a service; `None` until something is known of it.
    pub(crate) fn service(&mut self, name: &str) -> Option<Bytes> {
        let service = self.services.get_mut(name)?;
        if service.encoded.is_none() {
            let snapshot = service.snapshot.as_ref()?;
            let instances = snapshot.iter().map(|member| service.instance(member)).collect();
            let (version, cut_off) = (service.version, snapshot.cut_off());
            let data = wire::Service { name, version, cut_off, instances };
            service.encoded = Some(event("service", &data));
        }
        service.encoded.clone()
    }

    pub(crate) fn instance(&self, service: &str, address: &Address) -> Option<&Member> {
        self.services.get(service)?.snapshot.as_ref()?.get(address)
    }

    /// Whether the key of an instance hangs on it.
    pub(crate) fn has_lease(&self, lease: i64) -> bool {
        let mut snapshots = self.services.values().filter_map(|service| service.snapshot.as_ref());
        lease != 0 && snapshots.any(|snapshot| snapshot.iter().any(|member| member.lease() == lease))
    }

    /// Makes place for a service, of which nothing is known yet.
    pub(crate) fn add(&mut self, name: &str, is_late: bool) {
        self.services.entry(name.into()).or_insert_with(|| Service {
            is_late,
            snapshot: None,
            version: 0,
            since: HashMap::new(),
            empty_since: None,
            encoded: None,
        });
    }

    /// The services without an instance since before `then`.
    pub(crate) fn empty_since(&self, then: u64) -> Vec<Arc<str>> {
        let is_old = |service: &Service| service.empty_since.is_some_and(|since| since < then);
        self.services.iter().filter(|(_, service)| is_old(service)).map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn remove(&mut self, name: &str) -> Vec<News> {
        if self.services.remove(name).is_none() {
            return Vec::new();
        }
        self.version += 1;
        vec![News::Event(event("gone", &wire::Gone { name, version: self.version }))]
    }

    /// Takes in the newest snapshot of a service.
    pub(crate) fn on_snapshot(&mut self, name: &str, new: &Arc<Snapshot>, now: u64) -> Vec<News> {
        let Some(service) = self.services.get_mut(name) else { return Vec::new() };
        let old = service.snapshot.replace(new.clone());
        let is_first = old.is_none();
        let steps = match &old {
            Some(old) => steps(old, new),
            None => new.iter().map(Step::Joined).collect(),
        };
        if steps.is_empty() && old.as_ref().is_some_and(|old| old.cut_off() == new.cut_off()) {
            return Vec::new();
        }
        self.version += 1;
        service.version = self.version;
        service.encoded = None;
        service.empty_since = new.is_empty().then(|| service.empty_since.unwrap_or(now));
        let was_there = is_first && !service.is_late;
        if !was_there {
            for step in &steps {
                match step {
                    Step::Joined(member) | Step::Changed(What::Again, member) => {
                        service.since.insert(member.instance().address().clone(), now);
                    }
                    Step::Gone(_, member) => drop(service.since.remove(member.instance().address())),
                    Step::Changed(..) => {}
                }
            }
        }
        let news = service.news(name, is_first, &steps, new.cut_off());
        let entries = if was_there { found(name, new.len(), now) } else { entries(name, &steps, now) };
        [Some(news), self.write_down(entries)].into_iter().flatten().collect()
    }

    /// Takes in that etcd answered, and how many services there are besides those that are shown.
    pub(crate) fn on_answer(&mut self, left_out: usize, now: u64) -> Vec<News> {
        self.answered = Some(now);
        self.left_out = left_out;
        let was_lost = self.trouble.take().is_some();
        let entry = was_lost.then_some(Entry::of_etcd(What::EtcdBack, now));
        self.write_down(entry.into_iter().collect()).into_iter().chain([News::Event(self.beat(now))]).collect()
    }

    /// Takes in that etcd did not answer.
    pub(crate) fn on_trouble(&mut self, trouble: String, now: u64) -> Vec<News> {
        let is_new = self.trouble.replace(trouble).is_none();
        let entry = is_new.then_some(Entry::of_etcd(What::EtcdLost, now));
        self.write_down(entry.into_iter().collect()).into_iter().chain([News::Event(self.beat(now))]).collect()
    }

    /// Takes in other figures, and none where there is no file of them.
    pub(crate) fn on_figures(&mut self, figures: &wire::Figures) -> Vec<News> {
        let event = event("figures", figures);
        self.figures = Some(event.clone());
        vec![News::Event(event)]
    }

    /// The time, and how it stands with etcd.
    pub(crate) fn beat(&self, now: u64) -> Bytes {
        let (answered, trouble, left_out) = (self.answered, self.trouble.as_deref(), self.left_out);
        event("beat", &wire::Beat { time: now, answered, trouble, left_out })
    }

    fn write_down(&mut self, entries: Vec<Entry>) -> Option<News> {
        if entries.is_empty() {
            return None;
        }
        let news = News::Event(event("log", &entries));
        self.log.extend(entries);
        self.log.drain(..self.log.len().saturating_sub(LOG));
        Some(news)
    }
}

impl Service {
    fn instance<'a>(&self, member: &'a Member) -> wire::Instance<'a> {
        wire::Instance::new(member, self.since.get(member.instance().address()).copied())
    }

    fn news(&self, name: &str, is_first: bool, steps: &[Step<'_>], cut_off: usize) -> News {
        if is_first || steps.len() > MAX_STEPS {
            return News::Service(name.into());
        }
        let (mut set, mut gone) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Joined(member) | Step::Changed(_, member) => set.push(self.instance(member)),
                Step::Gone(_, member) => gone.push(member.instance().address()),
            }
        }
        let event = event("change", &wire::Change { name, version: self.version, cut_off, set, gone });
        if event.len() > MAX_CHANGE { News::Service(name.into()) } else { News::Event(event) }
    }
}

/// What happened to one instance.
enum Step<'a> {
    Joined(&'a Member),
    Changed(What, &'a Member),
    Gone(What, &'a Member),
}

impl Step<'_> {
    fn what(&self) -> What {
        match self {
            Self::Joined(_) => What::Joined,
            Self::Changed(what, _) | Self::Gone(what, _) => *what,
        }
    }

    fn member(&self) -> &Member {
        match self {
            Self::Joined(member) | Self::Changed(_, member) | Self::Gone(_, member) => member,
        }
    }
}

/// What turned one snapshot into the other. Both are ordered by address.
fn steps<'a>(old: &'a Snapshot, new: &'a Snapshot) -> Vec<Step<'a>> {
    let gone = |member: &'a Member| {
        let is_suspect = member.state() == MemberState::Suspect;
        Step::Gone(if is_suspect { What::Lost } else { What::Left }, member)
    };
    let mut steps = Vec::new();
    let mut old = old.iter().peekable();
    for member in new {
        let address = member.instance().address();
        while let Some(before) = old.next_if(|before| before.instance().address() < address) {
            steps.push(gone(before));
        }
        match old.next_if(|before| before.instance().address() == address) {
            None => steps.push(Step::Joined(member)),
            Some(before) => steps.extend(change(before, member).map(|what| Step::Changed(what, member))),
        }
    }
    steps.extend(old.map(gone));
    steps
}

/// What is new about an instance; the weightiest, where it is more than one thing.
fn change(old: &Member, new: &Member) -> Option<What> {
    if old.state() != new.state() {
        return Some(match new.state() {
            MemberState::Draining => What::Draining,
            MemberState::Suspect => What::Suspect,
            _ => What::Back,
        });
    }
    if old.lease() != new.lease() {
        return Some(What::Again);
    }
    (old.instance() != new.instance()).then_some(What::Changed)
}

/// The first look at a service; no entry where it has no instance.
fn found(service: &str, count: usize, time: u64) -> Vec<Entry> {
    if count == 0 {
        return Vec::new();
    }
    let service = Some(service.to_owned());
    vec![Entry { time, what: What::Found, service, address: None, count }]
}

/// What happened, in few lines however much it is.
fn entries(service: &str, steps: &[Step<'_>], time: u64) -> Vec<Entry> {
    let mut counts: BTreeMap<What, usize> = BTreeMap::new();
    for step in steps {
        *counts.entry(step.what()).or_default() += 1;
    }
    let entry = |what, address, count| Entry { time, what, service: Some(service.to_owned()), address, count };
    let (named, counted): (BTreeMap<_, _>, BTreeMap<_, _>) =
        counts.into_iter().partition(|(_, count)| *count <= MAX_NAMED);
    let named = steps.iter().filter(|step| named.contains_key(&step.what()));
    let named = named.map(|step| entry(step.what(), Some(step.member().instance().address().to_string()), 1));
    named.chain(counted.into_iter().map(|(what, count)| entry(what, None, count))).collect()
}

/// What is remembered of what happened: more than is ever scrolled through.
const LOG: usize = 300;
/// Changes of one kind in one step that are named one by one.
const MAX_NAMED: usize = 8;
/// Changed instances up to which only they are sent, not all of the service.
const MAX_STEPS: usize = 200;
/// Bytes up to which a change is sent as such. With the places of the hub's queue, this bounds what slow pages cost.
const MAX_CHANGE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn text(news: &[News]) -> Vec<String> {
        let text = |news: &News| match news {
            News::Event(event) => String::from_utf8_lossy(event).into_owned(),
            News::Service(name) => name.to_string(),
        };
        news.iter().map(text).collect()
    }

    #[test]
    fn an_outage_of_etcd_is_written_down_once_and_its_end_once() {
        let mut board = Board::new("1.0.0", String::new(), false);
        assert_eq!(board.on_answer(0, 1).len(), 1, "an answer is no news beside the beat");
        let news = text(&board.on_trouble("refused".to_owned(), 2));
        assert!(news[0].contains("etcd-lost") && news[1].contains(r#""answered":1,"trouble":"refused""#), "{news:?}");
        assert_eq!(board.on_trouble("refused".to_owned(), 3).len(), 1, "it goes on");
        let news = text(&board.on_answer(0, 4));
        assert!(news[0].contains("etcd-back") && news[1].contains(r#""answered":4,"trouble":null"#), "{news:?}");
        assert_eq!(board.on_answer(0, 5).len(), 1);
    }

    #[test]
    fn what_happened_is_remembered_up_to_a_limit() {
        let mut board = Board::new("1.0.0", String::new(), false);
        for time in 0..LOG as u64 {
            board.on_trouble(String::new(), time);
            board.on_answer(0, time);
        }
        assert_eq!(board.log.len(), LOG);
        assert_eq!(board.log.back().map(|entry| entry.time), Some(LOG as u64 - 1), "the newest stays");
    }

    #[test]
    fn instances_that_are_found_are_written_down_and_their_absence_is_not() {
        let found_two = found("echo", 2, 7);
        assert_eq!((found_two.len(), found_two[0].what, found_two[0].count), (1, What::Found, 2));
        assert_eq!(found("echo", 0, 7), [], "a page would count at least one");
    }

    #[test]
    fn a_service_of_which_nothing_is_known_yet_is_not_told() {
        let mut board = Board::new("1.0.0", String::new(), false);
        board.add("echo", false);
        let events = board.everything(1);
        assert!(events.iter().all(|event| !event.starts_with(b"event: service")), "{events:?}");
        assert_eq!(text(&board.remove("echo")).len(), 1);
        assert!(board.remove("echo").is_empty(), "it is gone");
    }
}
