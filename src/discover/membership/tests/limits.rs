//! What does not fit is cut off, counted, and let in when there is room.

use super::*;

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
    let mut world = World::limited(Limits { bytes: 1_500, ..Limits::default() });
    for address in ["a:1", "b:1", "c:1", "d:1"] {
        world.put(address, 0);
    }
    assert_eq!(
        (world.shown().len(), world.membership.snapshot(1).cut_off()),
        (3, 1),
        "three take more than 1,200 bytes"
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
    assert_eq!(&first.expect("it is known").instance().tags["x"], "", "to become smaller is always possible");
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
fn what_cannot_be_used_is_counted_by_kind_each_time_that_it_is_read() {
    let mut world = World::limited(Limits { instances: 1, ..Limits::default() });
    world.put("a:1", 7);
    world.put("b:1", 7);
    world.put_value("c:1", "{", 7);
    world.put_value("d/e", "{}", 7);
    world.put_value("f:1", &"x".repeat(MAX_VALUE + 1), 7);
    let (foreign, large, malformed, many) =
        (Defect::ForeignKey, Defect::TooLarge, Defect::Malformed, Defect::TooManyKeys);
    let expected = Defects::default().with(foreign).with(large).with(malformed).with(many);
    assert_eq!(world.membership.take_defects(), expected);
    assert_eq!(world.membership.take_defects(), Defects::default(), "they were taken");
    world.list(&["a:1", "b:1"]);
    assert_eq!(world.membership.take_defects(), Defects::default().with(many), "the list read it again");
}
