//! An instance that fails calls at once, among others that answer.

use super::{End, Trial, measuring, share_of_first};

#[tokio::test(start_paused = true)]
async fn one_of_three_that_fails_at_once_gets_no_more_than_its_share() {
    for policy in measuring() {
        for rate in [20, 50, 200, 1_000] {
            let calls = Trial::new(&policy, 3, rate).run(30, |_, to, _| failed_by(to == 0)).await;
            let share = share_of_first(&calls);
            let slack = if rate < 50 { 0.1 } else { 0.03 };
            assert!(share < 1.0 / 3.0 + slack, "{policy:?}: of {rate} calls a second it got {share}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_three_that_begins_to_fail_at_once_gets_no_more_than_its_share() {
    for policy in measuring() {
        let trial = Trial::new(&policy, 3, 200);
        let calls = trial.run(120, |at, to, _| failed_by(to == 0 && at.as_secs() >= 10)).await;
        for minute in [10..60, 60..120] {
            let share = share_of_first(calls.iter().filter(|call| minute.contains(&call.at.as_secs())));
            assert!(share < 0.36, "{policy:?}: in the seconds {minute:?} it got {share}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn failures_that_all_instances_have_change_no_share() {
    for policy in measuring() {
        let calls = Trial::new(&policy, 3, 500).run(30, |_, _, number| failed_by(number % 10 == 0)).await;
        let share = share_of_first(&calls);
        assert!((0.28..0.39).contains(&share), "{policy:?}: one of three got {share}");
    }
}

fn failed_by(fails: bool) -> (u64, End) {
    if fails { (1, End::Failed) } else { (20, End::Answered) }
}
