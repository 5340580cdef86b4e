//! An instance that freezes, or answers pings alone: no call that it has is answered.

use std::time::Duration;

use super::{Call, End, Trial, all_policies, measuring, share_of_first};

const FREEZES: Duration = Duration::from_secs(10);

/// How long a call takes, and so for how long answers of earlier calls come.
const USUAL: Duration = Duration::from_millis(20);

/// When silence shows at the latest, after the first call that none of those answers overtakes: twice the usual time,
/// and what a look at milliseconds may miss.
const SHOWS_AFTER: Duration = Duration::from_millis(45);

/// Ten instances of which the first freezes after ten seconds. How many calls go there until silence shows, and in each
/// second after that.
async fn freeze(trial: &Trial, frozen: (u64, End), seconds: u64) -> (usize, Vec<usize>) {
    let freezes = |at: Duration, to| to == 0 && at >= FREEZES;
    let behave = |at, to, _| if freezes(at, to) { frozen } else { (20, End::Answered) };
    let calls = trial.run(seconds, behave).await;
    let times: Vec<Duration> = calls.iter().filter(|call| freezes(call.at, call.to)).map(|call| call.at).collect();
    let begins = times.iter().find(|&&at| at > times[0] + USUAL);
    let shows = begins.or(times.last()).map_or(FREEZES, |&begins| begins + SHOWS_AFTER);
    let in_second = |second| {
        let from = shows + Duration::from_secs(second);
        times.iter().filter(|&&at| (from..from + Duration::from_secs(1)).contains(&at)).count()
    };
    let later = (0..seconds - FREEZES.as_secs() - 2).map(in_second).collect();
    (times.iter().filter(|&&at| at < shows).count(), later)
}

#[tokio::test(start_paused = true)]
async fn a_frozen_instance_gets_calls_until_its_silence_shows_and_then_one_a_second() {
    for policy in measuring() {
        for (rate, most) in [(50, 5), (200, 8), (1_000, 20)] {
            let (at_once, later) = freeze(&Trial::new(&policy, 10, rate), (0, End::Never), 60).await;
            assert!(at_once <= most, "{policy:?}: of {rate} calls a second {at_once} went there before it showed");
            assert!(later.iter().all(|&calls| calls <= 1), "{policy:?}, {rate} calls a second: {later:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_frozen_instance_whose_calls_miss_their_deadlines_gets_one_call_a_second() {
    for policy in measuring() {
        for (rate, deadline) in [(50, 100), (200, 100), (200, 1_000), (1_000, 300)] {
            let (at_once, later) = freeze(&Trial::new(&policy, 10, rate), (deadline, End::Missed), 60).await;
            assert!(at_once <= 20, "{policy:?}: of {rate} calls a second {at_once} went there before it showed");
            assert!(later.iter().all(|&calls| calls <= 1), "{policy:?}, {rate}, {deadline} ms: {later:?}");
            assert!(later.iter().sum::<usize>() > 5, "{policy:?}, {rate}, {deadline} ms: it is tried, {later:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn policies_that_see_no_silence_see_missed_deadlines() {
    for policy in all_policies() {
        let (_, later) = freeze(&Trial::new(&policy, 10, 200), (300, End::Missed), 60).await;
        assert!(later[1..].iter().all(|&calls| calls <= 1), "{policy:?}: {later:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_frozen_instance_that_answers_again_has_its_share_within_three_seconds() {
    for policy in all_policies() {
        let trial = Trial::new(&policy, 10, 200);
        let is_frozen = |at: Duration, to| to == 0 && (10..20).contains(&at.as_secs());
        let calls: Vec<Call> =
            trial.run(40, |at, to, _| if is_frozen(at, to) { (300, End::Missed) } else { (20, End::Answered) }).await;
        let share = share_of_first(calls.iter().filter(|call| call.at.as_secs() >= 23));
        assert!((0.07..0.13).contains(&share), "{policy:?}: one of ten got {share}");
    }
}
