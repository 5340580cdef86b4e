//! An instance that sheds calls at once, among others that answer.

use super::{End, Trial, all_policies, share_of_first};

#[tokio::test(start_paused = true)]
async fn one_of_three_that_sheds_all_calls_gets_a_few_of_them() {
    for policy in all_policies() {
        let calls = Trial::new(&policy, 3, 200).run(30, |_, to, _| shed_by(to == 0)).await;
        let share = share_of_first(&calls);
        assert!((0.002..0.1).contains(&share), "{policy:?}: it got {share} of the calls");
    }
}

#[tokio::test(start_paused = true)]
async fn nine_of_ten_that_shed_all_calls_leave_most_of_them_to_the_tenth() {
    for policy in all_policies() {
        let calls = Trial::new(&policy, 10, 200).run(30, |_, to, _| shed_by(to != 0)).await;
        let share = share_of_first(&calls);
        assert!(share > 0.4, "{policy:?}: the one that answers got {share} of the calls");
    }
}

#[tokio::test(start_paused = true)]
async fn while_all_shed_each_gets_its_share() {
    for policy in all_policies() {
        let calls = Trial::new(&policy, 3, 200).run(30, |_, _, _| (0, End::Shed)).await;
        assert!(calls.len() > 5_000, "{policy:?}: every call went somewhere");
        let share = share_of_first(&calls);
        assert!((0.25..0.42).contains(&share), "{policy:?}: one of three got {share}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_no_longer_sheds_has_its_share_within_two_seconds_and_no_more() {
    for policy in all_policies() {
        let trial = Trial::new(&policy, 3, 200);
        let calls = trial.run(30, |at, to, _| shed_by(to == 0 && at.as_secs() < 10)).await;
        for second in 12..30 {
            let of_second = calls.iter().filter(|call| call.at.as_secs() == second);
            let share = share_of_first(of_second);
            assert!((0.15..0.55).contains(&share), "{policy:?}: in second {second} it got {share}");
        }
    }
}

fn shed_by(sheds: bool) -> (u64, End) {
    if sheds { (0, End::Shed) } else { (20, End::Answered) }
}
