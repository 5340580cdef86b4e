//! An instance that is slow at first, or stays slow.

use std::time::Duration;

use super::{Call, End, Trial, all_policies, measuring, share_of_first};

/// The first instance is cold: its first five calls take 2 s, and all others 1 ms. Returns the calls, and when the last
/// of those five was answered.
async fn warm_up(trial: &Trial, seconds: u64) -> (Vec<Call>, Duration) {
    let mut warm_at = Duration::MAX;
    let calls = trial
        .run(seconds, |at, to, number| {
            if to == 0 && number == 4 {
                warm_at = at + Duration::from_secs(2);
            }
            (if to == 0 && number < 5 { 2_000 } else { 1 }, End::Answered)
        })
        .await;
    (calls, warm_at)
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_first_calls_are_slow_has_its_share_soon_after() {
    for policy in all_policies() {
        for (instances, rate) in [(2, 50), (2, 200), (3, 50), (3, 200), (10, 50), (10, 200)] {
            let (calls, warm_at) = warm_up(&Trial::new(&policy, instances, rate), 50).await;
            let context = format!("{policy:?}: of {instances} at {rate} calls a second");
            assert!(warm_at < Duration::from_secs(30), "{context}, five calls in sequence took {warm_at:?}");
            let from = warm_at + Duration::from_secs(8);
            let until = from + Duration::from_secs(10);
            let share = share_of_first(calls.iter().filter(|call| (from..until).contains(&call.at)));
            let fair = [0.0, 0.0, 0.5, 0.333, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1][instances];
            assert!(share > fair * 0.6, "{context}, it got {share}, warm at {warm_at:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_stays_fifty_times_slower_gets_a_few_calls_in_a_thousand() {
    for policy in measuring() {
        for (rate, seconds) in [(10, 2_000), (100, 200), (2_000, 10)] {
            let trial = Trial::new(&policy, 10, rate);
            let calls = trial.run(seconds, |_, to, _| (if to == 0 { 50 } else { 1 }, End::Answered)).await;
            let share = share_of_first(calls.iter().filter(|call| call.at > Duration::from_secs(1)));
            assert!((0.0001..0.007).contains(&share), "{policy:?}: of {rate} calls a second it got {share}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_was_slow_for_a_while_has_its_share_within_ten_seconds() {
    for policy in measuring() {
        for instances in [3, 10] {
            let trial = Trial::new(&policy, instances, 200);
            let is_slow = |at: Duration| (20..40).contains(&at.as_secs());
            let calls = trial.run(65, |at, to, _| (if to == 0 && is_slow(at) { 500 } else { 1 }, End::Answered)).await;
            let share = share_of_first(calls.iter().filter(|call| (50..65).contains(&call.at.as_secs())));
            let fair = if instances == 3 { 0.333 } else { 0.1 };
            assert!(share > fair * 0.6, "{policy:?}: one of {instances} got {share}");
        }
    }
}
