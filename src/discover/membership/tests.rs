//! The removal policy and the reading of keys, sentence by sentence.

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
        let layout = Layout { base: "p/".into(), format: Arc::new(Kitex), default_weight: 10, hold, limits };
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
        Kv { key, value: value.into(), lease, mod_revision: self.revision, version: 1 }
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
fn limits_cut_off_and_do_not_fail() {
    let mut world = World::new();
    let tags: Vec<String> = (0..100).map(|n| format!(r#""{n:03}":"x""#)).collect();
    world.put_value("a:1", &format!(r#"{{"address":"a:1","tags":{{{}}}}}"#, tags.join(",")), 7);
    assert_eq!(world.membership.snapshot(0).iter().next().map(|member| member.instance().tags.len()), Some(MAX_TAGS));
    for n in 0..DEFAULT_INSTANCES + 10 {
        let address = format!("10.0.{}.{}:1", n / 250, n % 250);
        let kv = world.kv(&address, &format!(r#"{{"address":"{address}"}}"#), 7);
        world.membership.on_events(vec![Event::Put(kv)], world.now);
    }
    assert_eq!(world.membership.index.len(), DEFAULT_INSTANCES);
}

#[test]
fn a_member_of_a_full_service_that_was_away_is_let_in_again() {
    let mut world = World::new();
    for n in 0..DEFAULT_INSTANCES {
        let address = format!("10.0.{}.{}:1", n / 250, n % 250);
        let kv = world.kv(&address, &format!(r#"{{"address":"{address}"}}"#), 7);
        world.membership.on_events(vec![Event::Put(kv)], world.now);
    }
    world.delete("10.0.0.0:1");
    world.put("10.0.0.0:1", 8);
    world.pass(61.0);
    assert_eq!(world.membership.index.len(), DEFAULT_INSTANCES);
}

#[test]
fn a_key_that_is_cut_off_is_counted_and_comes_in_with_the_list_after_another_left() {
    let mut world = World::limited(Limits { instances: 3, ..Limits::default() });
    for address in ["a:1", "b:1", "c:1", "d:1", "d:1", "e:1"] {
        world.put(address, 0);
    }
    assert_eq!(world.shown(), ["a:1", "b:1", "c:1"]);
    assert_eq!(world.membership.snapshot(1).cut_off(), 2, "each key counts once");
    world.delete("e:1");
    assert_eq!(world.membership.snapshot(1).cut_off(), 1, "one that is gone counts no more");
    assert!(!world.membership.has_room_again());
    world.list(&["a:1", "b:1", "c:1", "d:1"]);
    assert_eq!(world.membership.snapshot(1).cut_off(), 1, "a list says the same");
    assert!(!world.membership.has_room_again());
    world.delete("a:1");
    world.pass(61.0);
    assert!(world.membership.has_room_again());
    world.list(&["b:1", "c:1", "d:1"]);
    assert_eq!(world.shown(), ["b:1", "c:1", "d:1"]);
    assert_eq!(world.membership.snapshot(1).cut_off(), 0);
    assert!(!world.membership.has_room_again());
}

#[test]
fn a_key_that_comes_again_while_there_is_room_is_let_in_and_counts_no_more() {
    let mut world = World::limited(Limits { instances: 1, ..Limits::default() });
    world.put("a:1", 0);
    world.put("b:1", 0);
    world.delete("a:1");
    world.put("b:1", 0);
    assert_eq!((world.shown(), world.membership.snapshot(1).cut_off()), (vec!["b:1".to_owned()], 0));
}

#[test]
fn room_for_the_smallest_key_that_was_cut_off_is_what_counts() {
    let mut world = World::limited(Limits { bytes: 2_000, ..Limits::default() });
    for address in ["a:1", "b:1", "c:1", "d:1"] {
        world.put(address, 0);
    }
    assert_eq!(
        (world.shown().len(), world.membership.snapshot(1).cut_off()),
        (3, 1),
        "three take more than 1,500 bytes"
    );
    assert!(!world.membership.has_room_again(), "what is free is too little");
    world.delete("a:1");
    assert!(world.membership.has_room_again());
}

#[test]
fn a_mass_expiry_of_thousands_is_settled_in_one_look_at_each() {
    let mut world = World::new();
    let addresses: Vec<String> = (0..DEFAULT_INSTANCES).map(|n| format!("10.0.{}.{}:1", n / 250, n % 250)).collect();
    for address in &addresses {
        world.put(address, 7);
    }
    // It was quadratic, and this took minutes.
    for address in &addresses {
        world.delete(address);
        assert!(world.membership.deadline().is_some(), "something is in question");
    }
    world.pass(30.0);
    assert_eq!(world.shown().len(), addresses.len(), "all are held");
    world.pass(31.0);
    assert_eq!(world.shown().len(), 0, "until the hold ends");
}

#[test]
fn what_its_instances_take_is_limited_for_known_ones_too() {
    let mut world = World::new();
    let value =
        |address: &str, size: usize| format!(r#"{{"address":"{address}","tags":{{"x":"{}"}}}}"#, "x".repeat(size));
    let address = |n: usize| format!("10.0.{}.{}:1", n / 250, n % 250);
    let all = MOST_BYTES / (MAX_VALUE - 1000);
    for n in 0..all {
        world.put_value(&address(n), &value(&address(n), 100), 7);
    }
    for n in 0..2 * all {
        world.put_value(&address(n), &value(&address(n), MAX_VALUE - 100), 7);
    }
    assert!(world.membership.index.bytes() <= MOST_BYTES, "{} bytes are kept", world.membership.index.bytes());
    assert!((all..=all + 10).contains(&world.shown().len()), "known instances stay, with the last value that fits");
    world.put_value(&address(0), &value(&address(0), 0), 7);
    let snapshot = world.membership.snapshot(0);
    let first = snapshot.iter().find(|member| member.instance().address.to_string() == address(0));
    assert_eq!(first.expect("it is known").instance().tags["x"], "", "to become smaller is always possible");
}

#[test]
fn keys_count_among_what_the_instances_of_a_service_take() {
    let bytes_under = |segment: &str| {
        let mut world = World::new();
        world.put_value(segment, r#"{"address":"a:1"}"#, 7);
        world.put_value("other", r#"{"address":"b:1"}"#, 7);
        let kept = world.membership.index.bytes();
        world.delete(segment);
        assert_eq!(world.membership.index.bytes(), kept, "while it is in question it is there");
        world.pass(61.0);
        assert!(world.membership.index.bytes() < kept, "and nothing is left of it");
        kept
    };
    let long = "x".repeat(MAX_SEGMENT);
    assert_eq!(bytes_under(&long) - bytes_under("x"), MAX_SEGMENT - 1);
}

#[test]
fn a_list_in_which_all_have_grown_is_cut_off_at_its_last_keys() {
    let mut world = World::new();
    let address = |n: usize| format!("10.0.{}.{}:1", n / 250, n % 250);
    let value =
        |n: usize, size: usize| format!(r#"{{"address":"{}","tags":{{"x":"{}"}}}}"#, address(n), "x".repeat(size));
    let all = 2 * MOST_BYTES / MAX_VALUE;
    for n in 0..all {
        world.put_value(&address(n), &value(n, 0), 7);
    }
    let kvs = (0..all + 5).map(|n| world.kv(&address(n), &value(n, MAX_VALUE - 100), 7)).collect();
    world.take_list(kvs);
    assert!(world.membership.index.bytes() <= MOST_BYTES, "{} bytes are kept", world.membership.index.bytes());
    let snapshot = world.membership.snapshot(0);
    assert_eq!(snapshot.len(), all, "known instances stay, and no other is let in");
    let grown: Vec<bool> = (0..all)
        .map(|n| {
            let address = address(n).parse().expect("an address");
            !snapshot.get(&address).expect("it is known").instance().tags["x"].is_empty()
        })
        .collect();
    assert!(grown.is_sorted_by(|before, after| before >= after) && grown[0] && !grown[all - 1], "the first ones grew");
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
