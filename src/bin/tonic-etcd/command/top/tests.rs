//! Updates and keys to what the screen shows.

use tonic_etcd::Instance;
use tonic_etcd::snapshot::MemberState;

use super::state::{Flow, Key, Now, Seen, State, View, What};
use super::{plain, size};
use crate::services::Names;

const SIZE: (u16, u16) = (80, 24);

fn seen(service: &str, address: &str, weight: u16, state: MemberState) -> Seen {
    let instance = Instance::parse(service, address).expect("a good instance").with_weight(weight);
    Seen { instance, state, lease: 0x70cc }
}

fn live(service: &str, addresses: &[&str]) -> Vec<Seen> {
    addresses.iter().map(|address| seen(service, address, 10, MemberState::Live)).collect()
}

fn at(second: u64) -> Now {
    Now { unix_us: u128::from(second) * 1_000_000, second }
}

fn names(names: &[&str]) -> Names {
    names.iter().map(|name| name.parse().expect("a good name")).collect()
}

fn state(services: &[&str]) -> State {
    let mut state = State::new("kitex/registry-etcd".into(), None);
    state.on_services(&names(services), 0);
    state
}

fn type_text(state: &mut State, text: &str) {
    text.chars().for_each(|char| assert_eq!(state.on_key(Key::Char(char), 10), Flow::Continue));
}

#[test]
fn what_was_there_before_has_not_joined_and_what_comes_later_has() {
    let mut state = state(&["echo"]);
    state.on_instances("echo", live("echo", &["10.0.0.1:80", "10.0.0.2:80"]), at(0));
    assert!(state.events.is_empty(), "{:?}", state.events);

    let later =
        vec![seen("echo", "10.0.0.2:80", 20, MemberState::Draining), seen("echo", "10.0.0.3:80", 7, MemberState::Live)];
    state.on_instances("echo", later, at(3));
    let told: Vec<_> = state.events.iter().rev().map(|event| (event.address.to_string(), event.what)).collect();
    let expected = [
        ("10.0.0.1:80", What::Left),
        ("10.0.0.2:80", What::Draining),
        ("10.0.0.2:80", What::Weight { before: 10, now: 20 }),
        ("10.0.0.3:80", What::Joined { weight: 7 }),
    ];
    assert_eq!(told, expected.map(|(address, what)| (address.to_owned(), what)));
    assert_eq!((state.rate.per_minute(3), state.next_change(3)), (4, Some(63)));

    state.on_services(&names(&["echo", "new"]), 3);
    assert!(plain(&state, 3, SIZE).contains("  2 of 5 services  "));
    state.on_instances("new", live("new", &["10.0.0.9:80"]), at(4));
    assert_eq!(state.events[0].what, What::Joined { weight: 10 }, "a service that is new has joined with all of it");
}

#[test]
fn a_service_without_keys_goes_once_its_instances_have() {
    let mut state = state(&["echo"]);
    state.on_instances("echo", live("echo", &["10.0.0.1:80"]), at(0));
    assert!(state.on_services(&Names::new(), 0).is_empty());
    assert!(state.services.contains_key("echo"), "its instance may be held");
    state.on_instances("echo", Vec::new(), at(1));
    assert_eq!(state.on_services(&Names::new(), 0), ["echo"]);
    assert!(state.services.is_empty());
}

#[test]
fn a_service_that_was_asked_for_is_shown_whatever_comes_first() {
    let mut state = State::new("kitex/registry-etcd".into(), Some("echo"));
    state.on_instances("echo", live("echo", &["10.0.0.1:80"]), at(0));
    state.on_services(&names(&["echo"]), 0);
    assert!(plain(&state, 0, SIZE).contains("10.0.0.1:80"));
}

#[test]
fn events_are_kept_up_to_a_limit() {
    let mut state = state(&["echo"]);
    state.on_instances("echo", Vec::new(), at(0));
    let addresses = (1..=1_500).map(|port| format!("10.0.0.1:{port}"));
    let instances = addresses.map(|address| seen("echo", &address, 1, MemberState::Live)).collect();
    state.on_instances("echo", instances, at(1));
    assert_eq!((state.events.len(), state.rate.per_minute(1)), (1_000, 1_500));
}

#[test]
fn one_screen_shows_services_events_and_keys() {
    let mut state = state(&["echo", "hello"]);
    state.on_instances("echo", live("echo", &["10.0.0.1:80", "10.0.0.2:80"]), at(0));
    state.on_instances("echo", vec![seen("echo", "10.0.0.2:80", 10, MemberState::Suspect)], at(5));
    let screen = plain(&state, 5, SIZE);
    let lines: Vec<&str> = screen.lines().collect();
    assert_eq!(lines.len(), 24);
    assert!(lines[0].starts_with("tonic-etcd top  2 services  1 instances  2 changes/min"), "{screen}");
    assert!(lines[1].contains(" services 1 of 2 "), "{screen}");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(lines[2]), ["SERVICE", "INSTANCES", "LIVE", "DRAINING", "SUSPECT", "WEIGHT", "CHANGES/MIN"]);
    assert_eq!(words(lines[3]), ["echo", "1", "0", "0", "1", "10", "2"], "{screen}");
    assert_eq!(words(lines[4]), ["hello", ".."], "it was not read yet");
    assert!(screen.contains("00:00:05.000  echo  10.0.0.2:80  its key is gone"), "{screen}");
    assert!(screen.contains("00:00:05.000  echo  10.0.0.1:80  left"), "{screen}");
    assert!(lines[23].starts_with("q: quit"), "{screen}");
    assert_eq!(plain(&state, 6, SIZE), screen, "nothing is drawn where nothing happens");
    assert!(plain(&state, 65, SIZE).contains("0 changes/min"), "a minute later");
}

#[test]
fn keys_choose_open_filter_and_quit() {
    let mut state = state(&["a", "b", "c"]);
    for service in ["a", "b", "c"] {
        state.on_instances(service, live(service, &["10.0.0.1:80", "10.0.0.2:80"]), at(0));
    }
    type_text(&mut state, "jj");
    assert_eq!(state.service_list.chosen.as_deref(), Some("c"));
    type_text(&mut state, "jk");
    assert_eq!(state.service_list.chosen.as_deref(), Some("b"), "the last row is the last");
    state.on_key(Key::Enter, 10);
    assert_eq!(state.view, View::Instances("b".into()));
    type_text(&mut state, "G");
    assert!(plain(&state, 0, SIZE).contains("b 2 of 2"));

    type_text(&mut state, "/.1:q");
    state.on_key(Key::Backspace, 10);
    state.on_key(Key::Enter, 10);
    let screen = plain(&state, 0, SIZE);
    assert!(screen.contains("10.0.0.1:80") && !screen.contains("10.0.0.2:80"), "{screen}");
    state.on_key(Key::Escape, 10);
    assert_eq!(state.shown_instances("b").len(), 2, "the filter goes first");
    state.on_key(Key::Escape, 10);
    assert_eq!((&state.view, state.service_list.chosen.as_deref()), (&View::Services, Some("b")), "then the view");

    type_text(&mut state, "/nothing");
    state.on_key(Key::Enter, 10);
    state.on_key(Key::Enter, 10);
    assert_eq!(state.view, View::Services, "there is nothing to open");
    type_text(&mut state, "?");
    assert!(plain(&state, 0, SIZE).contains("any key closes this"));
    type_text(&mut state, "j");
    assert!(!state.is_help_open);
    assert_eq!(state.on_key(Key::Char('q'), 10), Flow::Quit);
}

#[test]
fn a_chosen_row_that_goes_leaves_the_choice_in_its_place() {
    let mut state = state(&["echo"]);
    let all = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
    state.on_instances("echo", live("echo", &all), at(0));
    state.on_key(Key::Enter, 10);
    type_text(&mut state, "j");
    state.on_instances("echo", live("echo", &[all[0], all[2]]), at(1));
    assert!(plain(&state, 1, SIZE).contains("echo 2 of 2"));
    type_text(&mut state, "k");
    assert_eq!(state.instance_list.chosen.as_ref().map(ToString::to_string).as_deref(), Some(all[0]));
}

#[test]
fn hostile_text_is_shown_escaped_on_every_size_of_screen() {
    let mut state = state(&["echo"]);
    let mut hostile = seen("echo", "10.0.0.1:80", 1, MemberState::Live);
    hostile.instance = hostile.instance.with_tag("\u{1b}[31m", "\u{202e}\n".repeat(1_000));
    state.on_instances("echo", vec![hostile], at(0));
    state.on_trouble("\u{1b}]0;title\u{7}".repeat(1_000));
    state.on_key(Key::Enter, 10);
    for size in [(80, 24), (20, 6), (500, 500), (1, 1), (3, 2)] {
        for key in [Key::Char('?'), Key::Up] {
            state.on_key(key, 10);
            let screen = plain(&state, 0, size);
            assert!(screen.chars().all(|char| char == '\n' || !char.is_control()), "{size:?}");
            assert!(!screen.contains('\u{202e}'), "{size:?}");
        }
    }
}

#[test]
fn sizes_are_columns_and_rows_within_limits() {
    assert_eq!(size("80x24"), Ok((80, 24)));
    for bad in ["80", "x", "80x", "19x24", "80x5", "501x24", "-1x24"] {
        assert!(size(bad).is_err(), "{bad}");
    }
}
