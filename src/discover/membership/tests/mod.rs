//! The removal policy and the reading of keys, sentence by sentence.

mod limits;

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::format::Kitex;
use crate::snapshot::{Member, MemberState};

const MOST_BYTES: usize = DEFAULT_INSTANCES * BYTES_PER_INSTANCE;

/// A membership of the service `echo` with its own clock.
struct World {
    membership: Membership,
    now: Instant,
    revision: i64,
}

impl World {
    fn new() -> Self {
        Self::holding(DEFAULT_HOLD)
    }

    fn holding(hold: Duration) -> Self {
        Self::of(hold, Limits::default())
    }

    fn limited(limits: Limits) -> Self {
        Self::of(DEFAULT_HOLD, limits)
    }

    fn of(hold: Duration, limits: Limits) -> Self {
        let layout = Layout { base: "p/".into(), format: Arc::new(Kitex::new()), default_weight: 10, hold, limits };
        let membership = Membership::new(layout, "echo".parse().expect("a name"), Complaints::default());
        Self { membership, now: Instant::now(), revision: 0 }
    }

    fn with(addresses: &[&str]) -> Self {
        let mut world = Self::new();
        for address in addresses {
            world.put(address, 7);
        }
        world
    }

    fn kv(&mut self, segment: &str, value: &str, lease: i64) -> Kv {
        self.revision += 1;
        let key = format!("p/echo/{segment}").into_bytes();
        Kv { key, value: value.into(), lease, create_revision: 1, mod_revision: self.revision, version: 1 }
    }

    fn put(&mut self, address: &str, lease: i64) {
        self.put_value(address, &format!(r#"{{"address":"{address}","weight":1}}"#), lease);
    }

    fn put_value(&mut self, segment: &str, value: &str, lease: i64) {
        let kv = self.kv(segment, value, lease);
        self.membership.on_events(vec![Event::Put(kv)], self.now);
    }

    fn announce(&mut self, address: &str) {
        self.put_value(address, &format!(r#"{{"address":"{address}","draining":true}}"#), 7);
    }

    fn delete(&mut self, segment: &str) {
        self.revision += 1;
        let event = Event::Delete { key: format!("p/echo/{segment}").into_bytes(), mod_revision: self.revision };
        self.membership.on_events(vec![event], self.now);
    }

    fn list(&mut self, addresses: &[&str]) {
        let value = |address: &&str| format!(r#"{{"address":"{address}","weight":1}}"#);
        let kvs = addresses.iter().map(|address| self.kv(address, &value(address), 7)).collect();
        self.take_list(kvs);
    }

    fn take_list(&mut self, kvs: Vec<Kv>) {
        self.membership.on_list_start();
        for kv in kvs {
            self.membership.on_listed_key(&kv, self.now);
        }
        self.membership.on_list_end(self.now);
    }

    /// Lets time pass as the watcher does: deadline by deadline.
    fn pass(&mut self, seconds: f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        while let Some(deadline) = self.membership.deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.membership.on_deadline(self.now);
        }
        self.now = end;
        self.membership.on_deadline(end);
    }

    fn shown(&mut self) -> Vec<String> {
        let show = |member: &Member| {
            let mark = match member.state() {
                MemberState::Live => "",
                MemberState::Draining => " draining",
                MemberState::Suspect => " in question",
            };
            format!("{}{mark}", member.instance().address)
        };
        self.membership.snapshot(self.revision).iter().map(show).collect()
    }
}

#[test]
fn an_announced_leave_drains_at_the_mark_and_ends_at_the_delete() {
    let mut world = World::with(&["a:1", "b:1"]);
    world.announce("a:1");
    assert_eq!(world.shown(), ["a:1 draining", "b:1"]);
    world.delete("a:1");
    assert_eq!(world.shown(), ["b:1"]);
}

#[test]
fn an_announced_leave_of_all_empties_the_service_at_once() {
    let mut world = World::with(&["a:1", "b:1"]);
    for address in ["a:1", "b:1"] {
        world.announce(address);
        world.delete(address);
    }
    assert_eq!(world.shown(), [] as [&str; 0]);
    assert_eq!(world.membership.deadline(), None);
}

#[test]
fn a_key_without_a_lease_goes_at_once() {
    let mut world = World::new();
    world.put("a:1", 0);
    world.delete("a:1");
    assert_eq!(world.shown(), [] as [&str; 0]);
}

#[test]
fn one_of_several_that_goes_silently_is_gone_after_two_seconds() {
    let mut world = World::with(&["a:1", "b:1", "c:1"]);
    world.delete("a:1");
    world.pass(1.9);
    assert_eq!(world.shown(), ["a:1 in question", "b:1", "c:1"]);
    world.pass(0.2);
    assert_eq!(world.shown(), ["b:1", "c:1"]);
}

#[test]
fn half_of_a_service_is_not_most_of_it() {
    let mut world = World::with(&["a:1", "b:1"]);
    world.delete("a:1");
    world.pass(2.1);
    assert_eq!(world.shown(), ["b:1"]);
}

#[test]
fn leases_that_die_together_hold_the_service_for_a_minute() {
    let mut world = World::with(&["a:1", "b:1", "c:1", "d:1", "e:1"]);
    for address in ["a:1", "b:1", "c:1", "d:1", "e:1"] {
        world.delete(address);
        world.pass(0.004);
    }
    world.pass(59.0);
    assert_eq!(world.shown().len(), 5, "all are held");
    world.pass(1.1);
    assert_eq!(world.shown(), [] as [&str; 0], "nothing is held for ever");
}

#[test]
fn instances_that_come_back_one_after_the_other_are_all_kept() {
    let addresses = ["a:1", "b:1", "c:1", "d:1", "e:1"];
    let mut world = World::with(&addresses);
    for address in addresses {
        world.delete(address);
    }
    world.pass(10.0);
    for address in addresses {
        world.put(address, 8);
        assert_eq!(world.shown().len(), 5, "those that are still away when {address} is back are kept");
        world.pass(1.5);
    }
    assert_eq!(world.shown(), addresses, "all are live again");
    assert_eq!(world.membership.deadline(), None);
}

#[test]
fn an_instance_that_stays_missing_goes_two_seconds_after_the_last_return() {
    let mut world = World::with(&["a:1", "b:1", "c:1"]);
    for address in ["a:1", "b:1", "c:1"] {
        world.delete(address);
    }
    world.pass(10.0);
    world.put("a:1", 8);
    world.put("b:1", 8);
    world.pass(1.9);
    assert_eq!(world.shown(), ["a:1", "b:1", "c:1 in question"]);
    world.pass(0.2);
    assert_eq!(world.shown(), ["a:1", "b:1"]);
}

#[test]
fn a_rolling_replacement_at_new_addresses_holds_no_dead_instance() {
    let mut world = World::with(&["a:1", "b:1"]);
    world.delete("a:1");
    world.delete("b:1");
    world.put("c:1", 8);
    world.pass(1.0);
    world.put("d:1", 8);
    world.pass(2.1);
    assert_eq!(world.shown(), ["c:1", "d:1"]);
}

#[test]
fn without_a_hold_everything_is_gone_after_the_removal_delay() {
    let mut world = World::holding(Duration::ZERO);
    world.put("a:1", 7);
    world.delete("a:1");
    world.pass(1.9);
    assert_eq!(world.shown(), ["a:1 in question"]);
    world.pass(0.2);
    assert_eq!(world.shown(), [] as [&str; 0]);
}

#[test]
fn an_address_under_two_keys_is_there_until_the_last_key_goes() {
    let mut world = World::new();
    world.put_value("1", r#"{"address":"a:1","weight":1}"#, 7);
    world.put_value("2", r#"{"address":"a:1","weight":2}"#, 8);
    world.put("b:1", 7);
    assert_eq!(world.shown(), ["a:1", "b:1"]);
    let weight = |world: &mut World| world.membership.snapshot(0).iter().next().map(|member| member.instance().weight);
    assert_eq!(weight(&mut world), Some(2), "the newest key gives the weight");
    world.put_value("1", r#"{"address":"a:1","draining":true}"#, 7);
    assert_eq!(world.shown(), ["a:1", "b:1"], "it is draining only if all of its keys are");
    world.delete("2");
    assert_eq!(world.shown(), ["a:1 draining", "b:1"]);
    world.delete("1");
    assert_eq!(world.shown(), ["b:1"]);
}

#[test]
fn an_address_registered_anew_under_another_key_is_live() {
    let mut world = World::new();
    world.put_value("1", r#"{"address":"a:1"}"#, 7);
    world.delete("1");
    world.put_value("2", r#"{"address":"a:1"}"#, 8);
    assert_eq!(world.shown(), ["a:1"]);
    assert_eq!(world.membership.deadline(), None);
}

#[test]
fn what_a_list_lacks_is_treated_like_a_delete() {
    let mut world = World::with(&["a:1", "b:1", "c:1"]);
    world.list(&["b:1", "c:1", "d:1"]);
    assert_eq!(world.shown(), ["a:1 in question", "b:1", "c:1", "d:1"]);
    world.pass(2.1);
    assert_eq!(world.shown(), ["b:1", "c:1", "d:1"]);
    world.list(&[]);
    world.pass(50.0);
    assert_eq!(world.shown().len(), 3, "a wiped etcd takes nothing away at once");
    world.list(&["b:1", "c:1", "d:1"]);
    assert_eq!(world.shown(), ["b:1", "c:1", "d:1"]);
}

#[test]
fn what_cannot_be_used_is_skipped_alone() {
    let mut world = World::with(&["a:1"]);
    for (segment, value) in [
        ("x", "no json"),
        ("x", r#"{"address":"0.0.0.0:1"}"#),
        ("x", r#"{"address":"[::ffff:169.254.1.1]:1"}"#),
        (&"x".repeat(crate::etcd::MAX_SEGMENT + 1), r#"{"address":"x:1"}"#),
        ("deeper/x", r#"{"address":"x:1"}"#),
        ("", r#"{"address":"x:1"}"#),
    ] {
        world.put_value(segment, value, 7);
    }
    let huge = format!(r#"{{"address":"x:1","more":"{}"}}"#, "x".repeat(MAX_VALUE));
    world.put_value("x", &huge, 7);
    let kv = Kv {
        key: b"p/echo/\xff".to_vec(),
        value: br#"{"address":"x:1"}"#.to_vec(),
        lease: 7,
        create_revision: 99,
        mod_revision: 99,
        version: 1,
    };
    world.membership.on_events(vec![Event::Put(kv)], world.now);
    assert_eq!(world.shown(), ["a:1"]);
}

#[test]
fn a_known_key_keeps_its_last_good_value() {
    let mut world = World::with(&["a:1"]);
    world.put_value("a:1", "no json", 0);
    assert_eq!(world.shown(), ["a:1"]);
    world.delete("a:1");
    assert_eq!(world.shown(), [] as [&str; 0], "it had no lease any more, so its leave is no expiry");
}

#[test]
fn a_list_that_is_not_finished_changes_nothing() {
    let mut world = World::with(&["a:1", "b:1"]);
    let kv = world.kv("c:1", r#"{"address":"c:1"}"#, 7);
    world.membership.on_list_start();
    world.membership.on_listed_key(&kv, world.now);
    world.pass(61.0);
    assert_eq!(world.shown(), ["a:1", "b:1"]);
    world.list(&["a:1", "b:1", "d:1"]);
    assert_eq!(world.shown(), ["a:1", "b:1", "d:1"], "what the other one had shown is void");
}

#[test]
fn a_list_of_another_history_counts_whatever_its_revisions() {
    let mut world = World::with(&["a:1"]);
    let mut kv = world.kv("a:1", r#"{"address":"a:1","weight":99}"#, 8);
    kv.mod_revision = 1;
    world.take_list(vec![kv]);
    let snapshot = world.membership.snapshot(1);
    let member = snapshot.iter().next().expect("it is there");
    assert_eq!((member.instance().weight, member.lease()), (99, 8));
}

#[test]
fn a_weight_that_is_not_stated_is_the_default() {
    let mut world = World::new();
    world.put_value("a:1", r#"{"address":"a:1","weight":0}"#, 7);
    let snapshot = world.membership.snapshot(0);
    assert_eq!(snapshot.iter().next().map(|member| member.instance().weight), Some(10));
}

proptest! {
    /// The next snapshot is made of the one before and what changed, and equals one that is made of everything.
    #[test]
    fn after_any_history_a_snapshot_is_the_one_made_from_scratch(
        history in proptest::collection::vec((0..7u8, 0..6usize, 0.0..3.0f64), 0..60),
    ) {
        let addresses = ["a:1", "b:1", "c:1", "d:1", "e:1", "f:1"];
        let mut world = World::limited(Limits { instances: 5, ..Limits::default() });
        for (act, which, seconds) in history {
            match act {
                0 | 1 => world.put(addresses[which], 7),
                2 => world.delete(addresses[which]),
                3 => world.announce(addresses[which]),
                4 => world.put_value("x", &format!(r#"{{"address":"{}"}}"#, addresses[which]), 7),
                5 => world.list(&addresses[which..]),
                _ => world.pass(seconds),
            }
            let shown = world.shown();
            world.membership.members = MemberList::default();
            for address in addresses {
                world.membership.index.touch(&address.parse().expect("an address"));
            }
            prop_assert_eq!(shown, world.shown());
        }
    }

    /// Whatever happens, a list settles it: what it shows is live, and nothing else is left a minute later.
    #[test]
    fn after_any_history_a_list_wins(history in proptest::collection::vec((0..5u8, 0..6usize, 0.0..3.0f64), 0..60)) {
        let addresses = ["a:1", "b:1", "c:1", "d:1", "e:1", "f:1"];
        let mut world = World::new();
        for (act, which, seconds) in history {
            match act {
                0 | 1 => world.put(addresses[which], 7),
                2 => world.delete(addresses[which]),
                3 => world.announce(addresses[which]),
                _ => world.pass(seconds),
            }
        }
        world.list(&["a:1", "b:1"]);
        world.pass(61.0);
        prop_assert_eq!(world.shown(), ["a:1", "b:1"]);
        prop_assert_eq!(world.membership.deadline(), None);
        prop_assert_eq!(world.membership.index.missing_since(), None);
    }
}
