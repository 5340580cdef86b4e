use std::time::Duration;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Ejects, waits, probes and proves; returns how long it was out.
fn out_and_back(ejection: &mut Ejection, now: &mut Instant, detection: &OutlierDetection) -> Duration {
    ejection.eject(*now, detection);
    let until = ejection.due().expect("it is out");
    let lasted = until - *now;
    *now = until;
    assert!(ejection.probe(*now), "its time is over");
    ejection.proved(*now);
    lasted
}

#[test]
fn an_ejected_instance_is_out_for_five_seconds_then_on_probation_then_back() {
    let (now, detection) = (Instant::now(), OutlierDetection::new());
    let mut ejection = Ejection::default();
    assert_eq!(ejection, Ejection::In, "nothing is held against a new instance");
    assert!(!ejection.is_out() && !ejection.is_on_probation() && ejection.due().is_none(), "it takes calls");

    ejection.eject(now, &detection);
    let until = now + 5 * SECOND;
    assert_eq!(ejection, Ejection::Out { until, times: 1 }, "the first ejection lasts 5 s");
    assert!(ejection.is_out() && !ejection.is_on_probation(), "it takes no calls");
    assert_eq!(ejection.due(), Some(until), "it is due when its time is over");

    assert!(!ejection.probe(until - Duration::from_nanos(1)), "its time is not over");
    assert!(ejection.is_out(), "so it stays out");
    assert!(ejection.probe(until), "its time is over");
    assert!(ejection.is_on_probation() && !ejection.is_out() && ejection.due().is_none(), "it takes a probe");

    ejection.proved(until);
    assert_eq!(ejection, Ejection::Returned { since: until, times: 1 }, "it is back, and not yet forgotten");
    assert!(!ejection.is_out() && !ejection.is_on_probation() && ejection.due().is_none(), "it takes calls");
}

#[test]
fn each_step_moves_only_the_state_that_it_is_for() {
    let (now, detection) = (Instant::now(), OutlierDetection::new());
    let states = [
        Ejection::In,
        Ejection::Out { until: now + SECOND, times: 2 },
        Ejection::Probation { times: 2 },
        Ejection::Returned { since: now, times: 2 },
    ];
    for state in states {
        let mut ejection = state;
        assert!(!ejection.probe(now), "nobody's time is over");
        assert_eq!(ejection, state, "so nothing moves");

        ejection.proved(now);
        let proved = if state.is_on_probation() { Ejection::Returned { since: now, times: 2 } } else { state };
        assert_eq!(ejection, proved, "only a probation can be proved");

        ejection = state;
        ejection.eject(now, &detection);
        let (until, times) = match state {
            Ejection::Out { until, times } => (until, times),
            Ejection::In => (now + 5 * SECOND, 1),
            Ejection::Probation { .. } | Ejection::Returned { .. } => (now + 20 * SECOND, 3),
        };
        assert_eq!(ejection, Ejection::Out { until, times }, "out, and no longer than before if it was out already");

        ejection = state;
        ejection.clear();
        assert_eq!(ejection, Ejection::In, "all is forgotten");
    }
}

#[test]
fn a_failed_probe_doubles_the_time_up_to_the_maximum() {
    let (mut now, detection) = (Instant::now(), OutlierDetection::new());
    let mut ejection = Ejection::default();
    let mut lasted = Vec::new();
    for _ in 0..6 {
        ejection.eject(now, &detection);
        let until = ejection.due().expect("it is out");
        lasted.push((until - now).as_secs());
        now = until;
        assert!(ejection.probe(now), "its time is over");
    }
    assert_eq!(lasted, [5, 10, 20, 25, 25, 25], "each failed probe doubles it, up to 25 s");
}

#[test]
fn each_interval_that_it_stays_in_takes_back_one_doubling() {
    let (mut now, detection) = (Instant::now(), OutlierDetection::new());
    let mut ejection = Ejection::default();
    assert_eq!(out_and_back(&mut ejection, &mut now, &detection), 5 * SECOND, "the first");
    assert_eq!(out_and_back(&mut ejection, &mut now, &detection), 10 * SECOND, "at once again: the second");
    now += Duration::from_millis(9_999);
    assert_eq!(out_and_back(&mut ejection, &mut now, &detection), 20 * SECOND, "it stayed for less than an interval");
    now += 10 * SECOND;
    assert_eq!(out_and_back(&mut ejection, &mut now, &detection), 20 * SECOND, "one interval takes back one of three");
    now += 29 * SECOND;
    assert_eq!(out_and_back(&mut ejection, &mut now, &detection), 10 * SECOND, "two intervals take back two of three");
    now += Duration::from_secs(1_000_000);
    assert_eq!(out_and_back(&mut ejection, &mut now, &detection), 5 * SECOND, "after a long time all is forgotten");
}

#[test]
fn time_that_seems_to_run_backwards_takes_nothing_back_and_does_not_panic() {
    let (now, detection) = (Instant::now(), OutlierDetection::new());
    let mut ejection = Ejection::Returned { since: now + SECOND, times: 1 };
    ejection.eject(now, &detection);
    assert_eq!(ejection.due(), Some(now + 10 * SECOND), "it counts as ejected twice");
}

#[test]
fn at_most_half_of_the_instances_are_out() {
    let detection = OutlierDetection::new();
    for (of, most) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (10, 5), (101, 50), (10_000, 5_000)] {
        let mut out = 0;
        while may_eject(out, of, &detection) {
            out += 1;
        }
        assert_eq!(out, most, "of {of}");
    }
    assert!(!may_eject(7, 3, &detection), "the set shrank while more than half were out");
}

#[test]
fn other_shares_are_rounded_down_as_well() {
    let most = |of, percent| {
        let detection = OutlierDetection::new().max_ejected_percent(percent);
        (0..=of).find(|out| !may_eject(*out, of, &detection)).unwrap_or(of + 1)
    };
    assert_eq!(most(10, 0), 0, "none of ten");
    assert_eq!(most(9, 10), 0, "less than one of nine");
    assert_eq!(most(10, 10), 1, "one of ten");
    assert_eq!(most(19, 10), 1, "one of nineteen");
    assert_eq!(most(1, 100), 1, "the only one, if that is wanted");
    assert_eq!(most(10, 100), 10, "all of ten, if that is wanted");
}
