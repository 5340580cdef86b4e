//! Streams that stay quiet: no response to them begins before their first message, and that may take hours.

use std::time::Duration;

use super::{Call, End, Trial, all_policies, measuring, share_of_first};

fn share_from(calls: &[Call], second: u64) -> f64 {
    share_of_first(calls.iter().filter(|call| call.at.as_secs() >= second))
}

/// One of three instances, whose call of this number is a stream that stays quiet, has its share.
async fn has_its_share_beside_stream(stream: usize) {
    for policy in all_policies() {
        let behave = |_, to, number| if (to, number) == (0, stream) { (0, End::Never) } else { (20, End::Answered) };
        let calls = Trial::new(&policy, 3, 200).run(60, behave).await;
        let share = share_from(&calls, 10);
        // The stream counts as a call in flight, and there are four of them on average.
        assert!(share > 0.15, "{policy:?}: it got {share} of the calls");
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_three_keeps_its_share_while_a_stream_stays_quiet_there() {
    has_its_share_beside_stream(50).await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_first_call_is_a_stream_that_stays_quiet_has_its_share() {
    has_its_share_beside_stream(0).await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_missed_calls_has_its_share_again_although_a_stream_stays_quiet() {
    for policy in all_policies() {
        let behave = |at: Duration, to, number| match (to, number) {
            (0, 50) => (0, End::Never),
            (0, _) if at.as_secs() == 10 => (300, End::Missed),
            _ => (20, End::Answered),
        };
        let calls = Trial::new(&policy, 3, 200).run(60, behave).await;
        let share = share_from(&calls, 15);
        assert!(share > 0.15, "{policy:?}: it got {share} of the calls");
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_was_slow_has_its_share_again_although_a_stream_stays_quiet_on_each() {
    for policy in measuring() {
        let behave = |at: Duration, to, number| match number {
            0 => (0, End::Never),
            _ if to == 0 && (10..20).contains(&at.as_secs()) => (500, End::Answered),
            _ => (1, End::Answered),
        };
        let calls = Trial::new(&policy, 3, 200).run(60, behave).await;
        let share = share_from(&calls, 35);
        assert!(share > 0.2, "{policy:?}: it got {share} of the calls");
    }
}
