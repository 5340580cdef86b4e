//! Snapshots and keys to what is on the screen: pure, time comes in as an argument.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

use tonic_etcd::snapshot::MemberState;
use tonic_etcd::{Address, Instance};

use super::rate::Rate;
use crate::services::Names;

/// All that is known, and where the user is.
#[derive(Debug)]
pub(super) struct State {
    /// What every key begins with.
    pub(super) prefix: String,
    pub(super) services: BTreeMap<String, Service>,
    /// How many services there are besides those.
    pub(super) left_out: usize,
    /// The newest comes first.
    pub(super) events: VecDeque<Event>,
    pub(super) rate: Rate,
    /// Why services cannot be listed now.
    pub(super) trouble: Option<String>,
    pub(super) view: View,
    pub(super) service_list: List<String>,
    pub(super) instance_list: List<Address>,
    pub(super) is_help_open: bool,
    pub(super) is_filter_open: bool,
    /// Whether services were listed: what is there by then has not joined.
    is_started: bool,
}

/// A service, as it was seen last.
#[derive(Debug)]
pub(super) struct Service {
    /// In the order of their addresses; `None` until etcd was read.
    pub(super) instances: Option<Vec<Seen>>,
    pub(super) counts: Counts,
    pub(super) rate: Rate,
    /// Whether its first instances were there before.
    is_old: bool,
}

/// An instance, as it was seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) instance: Instance,
    pub(super) state: MemberState,
    /// The id of its lease; 0 for none.
    pub(super) lease: i64,
}

/// The instances of a service, counted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) all: usize,
    pub(super) live: usize,
    pub(super) draining: usize,
    pub(super) suspect: usize,
    /// Their weights together.
    pub(super) weight: u64,
}

/// What the upper part of the screen shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum View {
    Services,
    /// The instances of a service.
    Instances(String),
}

/// Which rows of a table are shown, and which one is chosen.
#[derive(Debug)]
pub(super) struct List<K> {
    pub(super) chosen: Option<K>,
    pub(super) filter: String,
}

impl<K> Default for List<K> {
    fn default() -> Self {
        Self { chosen: None, filter: String::new() }
    }
}

/// Something that happened to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) unix_us: u128,
    pub(super) service: String,
    pub(super) address: Address,
    pub(super) what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Joined {
        weight: u16,
    },
    Left,
    Draining,
    /// Its key went without an announcement.
    Lost,
    /// It is live again.
    Returned,
    Weight {
        before: u16,
        now: u16,
    },
    Tags,
}

/// When something is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) unix_us: u128,
    /// Whole seconds since the begin.
    pub(super) second: u64,
}

/// What the user did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Enter,
    Escape,
    Backspace,
    Char(char),
}

/// Whether it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Continue,
    Quit,
}

impl State {
    /// Of all services, or of one.
    pub(super) fn new(prefix: String, service: Option<&str>) -> Self {
        Self {
            prefix,
            services: service.map(|service| (service.to_owned(), Service::new(true))).into_iter().collect(),
            left_out: 0,
            events: VecDeque::new(),
            rate: Rate::new(),
            trouble: None,
            view: service.map_or(View::Services, |service| View::Instances(service.to_owned())),
            service_list: List::default(),
            instance_list: List::default(),
            is_help_open: false,
            is_filter_open: false,
            is_started: false,
        }
    }

    /// These services have keys, and so many more that are not shown. Returns those that are shown no more.
    pub(super) fn on_services(&mut self, listed: &Names, left_out: usize) -> Vec<String> {
        (self.trouble, self.left_out) = (None, left_out);
        let is_old = !self.is_started;
        for name in listed {
            self.services.entry(name.to_string()).or_insert_with(|| Service::new(is_old));
        }
        self.is_started = true;
        let is_gone = |(name, service): &(&String, &Service)| !listed.contains(name.as_str()) && service.is_gone();
        let gone: Vec<String> = self.services.iter().filter(is_gone).map(|(name, _)| name.clone()).collect();
        for name in &gone {
            self.services.remove(name);
        }
        gone
    }

    /// Services cannot be listed now.
    pub(super) fn on_trouble(&mut self, trouble: String) {
        self.trouble = Some(trouble);
    }

    /// The instances of a service are these.
    pub(super) fn on_instances(&mut self, name: &str, instances: Vec<Seen>, now: Now) {
        let Some(service) = self.services.get_mut(name) else { return };
        service.counts = Counts::of(&instances);
        let before = service.instances.replace(instances);
        if before.is_none() && service.is_old {
            return;
        }
        let mut count = 0;
        let mut on_change = |address: &Address, what| {
            count += 1;
            self.events.push_front(Event {
                unix_us: now.unix_us,
                service: name.to_owned(),
                address: address.clone(),
                what,
            });
            self.events.truncate(MOST_EVENTS);
        };
        diff(before.as_deref().unwrap_or_default(), service.instances.as_deref().unwrap_or_default(), &mut on_change);
        if count > 0 {
            service.rate.add(count, now.second);
            self.rate.add(count, now.second);
        }
    }

    /// The second at which the screen changes though nothing happens.
    pub(super) fn next_change(&self, second: u64) -> Option<u64> {
        self.rate.next_change(second)
    }

    /// The services that are shown.
    pub(super) fn shown_services(&self) -> Vec<(&String, &Service)> {
        let filter = &self.service_list.filter;
        self.services.iter().filter(|(name, _)| name.contains(filter.as_str())).collect()
    }

    /// The instances that are shown.
    pub(super) fn shown_instances(&self, service: &str) -> Vec<&Seen> {
        let filter = self.instance_list.filter.as_str();
        let instances = self.services.get(service).and_then(|service| service.instances.as_deref());
        let matches = |Seen { instance, state, .. }: &&Seen| {
            filter.is_empty()
                || instance.address().to_string().contains(filter)
                || state.to_string().contains(filter)
                || instance.tags().iter().any(|(name, value)| format!("{name}={value}").contains(filter))
        };
        instances.unwrap_or_default().iter().filter(matches).collect()
    }

    /// The user pressed a key. `rows` is how many rows of a table are on the screen.
    pub(super) fn on_key(&mut self, key: Key, rows: usize) -> Flow {
        if self.is_help_open {
            self.is_help_open = false;
            return if key == Key::Char('q') { Flow::Quit } else { Flow::Continue };
        }
        if self.is_filter_open {
            self.on_filter_key(key);
            return Flow::Continue;
        }
        match key {
            Key::Char('q') => return Flow::Quit,
            Key::Char('?') => self.is_help_open = true,
            Key::Char('/') => self.is_filter_open = true,
            Key::Up | Key::Char('k') => self.step(|at, _| at.saturating_sub(1)),
            Key::Down | Key::Char('j') => self.step(|at, last| (at + 1).min(last)),
            Key::PageUp => self.step(|at, _| at.saturating_sub(rows)),
            Key::PageDown => self.step(|at, last| (at + rows).min(last)),
            Key::First | Key::Char('g') => self.step(|_, _| 0),
            Key::Last | Key::Char('G') => self.step(|_, last| last),
            Key::Enter => self.open(),
            Key::Escape | Key::Backspace => self.back(),
            Key::Char(_) => {}
        }
        Flow::Continue
    }

    fn on_filter_key(&mut self, key: Key) {
        let filter = match self.view {
            View::Services => &mut self.service_list.filter,
            View::Instances(_) => &mut self.instance_list.filter,
        };
        match key {
            Key::Enter => self.is_filter_open = false,
            Key::Escape => {
                filter.clear();
                self.is_filter_open = false;
            }
            Key::Backspace => _ = filter.pop(),
            Key::Char(char) if !char.is_control() && filter.len() < LONGEST_FILTER => filter.push(char),
            _ => {}
        }
    }

    /// Chooses another row: of the place of the chosen one and the last.
    fn step(&mut self, to: impl Fn(usize, usize) -> usize) {
        match self.view.clone() {
            View::Services => {
                let shown: Vec<&String> = self.shown_services().into_iter().map(|(name, _)| name).collect();
                let at = place(&shown, self.service_list.chosen.as_ref());
                self.service_list.chosen = shown.get(to(at, shown.len().saturating_sub(1))).map(|name| (*name).clone());
            }
            View::Instances(service) => {
                let instances = self.shown_instances(&service);
                let shown: Vec<&Address> = instances.into_iter().map(Seen::address).collect();
                let at = place(&shown, self.instance_list.chosen.as_ref());
                let chosen = shown.get(to(at, shown.len().saturating_sub(1))).map(|address| (*address).clone());
                self.instance_list.chosen = chosen;
            }
        }
    }

    fn open(&mut self) {
        if self.view == View::Services {
            let shown: Vec<&String> = self.shown_services().into_iter().map(|(name, _)| name).collect();
            let chosen = shown.get(place(&shown, self.service_list.chosen.as_ref())).map(|name| (*name).clone());
            if let Some(name) = chosen {
                self.view = View::Instances(name);
                self.instance_list = List::default();
            }
        }
    }

    /// The filter goes first, then the view.
    fn back(&mut self) {
        match &self.view {
            View::Services => self.service_list.filter.clear(),
            View::Instances(_) if !self.instance_list.filter.is_empty() => self.instance_list.filter.clear(),
            View::Instances(_) => self.view = View::Services,
        }
    }
}

impl Service {
    fn new(is_old: bool) -> Self {
        Self { instances: None, counts: Counts::default(), rate: Rate::new(), is_old }
    }

    fn is_gone(&self) -> bool {
        self.instances.as_ref().is_some_and(Vec::is_empty)
    }
}

impl Seen {
    pub(super) fn address(&self) -> &Address {
        self.instance.address()
    }
}

impl Counts {
    fn of(instances: &[Seen]) -> Self {
        let mut counts = Self { all: instances.len(), ..Self::default() };
        for Seen { instance, state, .. } in instances {
            counts.weight += u64::from(instance.weight());
            match state {
                MemberState::Draining => counts.draining += 1,
                MemberState::Suspect => counts.suspect += 1,
                _ => counts.live += 1,
            }
        }
        counts
    }
}

/// The place of the chosen row, or of the one that took its place.
pub(super) fn place<K: Ord>(shown: &[&K], chosen: Option<&K>) -> usize {
    let Some(chosen) = chosen else { return 0 };
    shown.partition_point(|key| *key < chosen).min(shown.len().saturating_sub(1))
}

/// Reports of each address what became of it. Both are in the order of addresses.
fn diff(before: &[Seen], now: &[Seen], on_change: &mut impl FnMut(&Address, What)) {
    let (mut before, mut now) = (before.iter().peekable(), now.iter().peekable());
    loop {
        let order = match (before.peek(), now.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.address().cmp(new.address()),
        };
        let old = if order.is_le() { before.next() } else { None };
        let new = if order.is_ge() { now.next() } else { None };
        match (old, new) {
            (Some(old), None) => on_change(old.address(), What::Left),
            (None, Some(new)) => on_change(new.address(), What::Joined { weight: new.instance.weight() }),
            (Some(old), Some(new)) => {
                changes(old, new).into_iter().flatten().for_each(|what| on_change(new.address(), what));
            }
            (None, None) => return,
        }
    }
}

fn changes(old: &Seen, new: &Seen) -> [Option<What>; 3] {
    let state = (old.state != new.state).then_some(match new.state {
        MemberState::Draining => What::Draining,
        MemberState::Suspect => What::Lost,
        _ => What::Returned,
    });
    let (before, now) = (old.instance.weight(), new.instance.weight());
    let weight = (before != now).then_some(What::Weight { before, now });
    let tags = (old.instance.tags() != new.instance.tags()).then_some(What::Tags);
    [state, weight, tags]
}

/// How many events are kept.
const MOST_EVENTS: usize = 1_000;

/// The longest filter in bytes.
const LONGEST_FILTER: usize = 60;
