//! Evidence about an instance: out, on probation, back.

use std::time::Duration;

use super::*;
use crate::channel::outlier::EndedRow;

const FAILED: Outcome = Outcome::new(tonic::Code::Unavailable, StatusOrigin::Answered);
const ANSWERED: Outcome = Outcome::new(tonic::Code::NotFound, StatusOrigin::Answered);

/// Ejects it, lets the time pass, and returns what the end of that leads to.
async fn to_probation(machine: &mut Machine) -> Effects {
    let (until, _) = machine.on(OUTLIER, now()).wake.expect("it is out");
    assert_eq!(machine.on(OVER, now()), Effects::default(), "its time is not over");
    tokio::time::advance(until - now()).await;
    machine.on(OVER, now())
}

/// An instance on probation, what its calls report, and its connection.
async fn probing() -> (Machine, mpsc::UnboundedReceiver<FeedbackEvent>, Arc<ReadyConnection<()>>) {
    let mut machine = at("Ready");
    to_probation(&mut machine).await;
    let reported = listen(&mut machine);
    let on_probation = reconnect(&mut machine);
    (machine, reported, on_probation)
}

#[tokio::test(start_paused = true)]
async fn the_end_of_an_ejection_dials_anew_what_is_used() {
    let ends = ["Queued", "Unselected", "Withdrawn", "Queued", "Queued", "Queued", "Queued", "Queued"];
    for (state, end) in STATES.into_iter().zip(ends) {
        // It is out already in the first.
        let mut machine = at(if state == "Ejected" { "Backoff" } else { state });
        let effects = to_probation(&mut machine).await;
        assert_eq!(name(&machine), end, "{state}");
        assert_eq!((effects.queue.is_some(), effects.publish), (end == "Queued", Publish::ReadySet), "{state}");
        assert!(machine.ejection.is_on_probation() && !machine.shared.status().is_ejected(), "{state}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_dialled_after_an_ejection_says_connecting() {
    let mut machine = at("Ready");
    let (until, _) = machine.on(OUTLIER, now()).wake.expect("it is out");
    assert_eq!(machine.connectivity(), Connectivity::Ready, "its connection stands");
    machine.on(Input::Ended(ticket(&machine), broken()), now());
    let status = machine.shared.status();
    assert_eq!((status.state(), status.cause()), (Connectivity::Idle, Some("broken")), "nothing is tried");
    tokio::time::advance(until - now()).await;
    machine.on(OVER, now());
    let status = machine.shared.status();
    assert_eq!((status.state(), status.cause()), (Connectivity::Connecting, None), "it is tried");
}

#[tokio::test(start_paused = true)]
async fn three_calls_in_a_row_that_fail_eject_on_whatever_connections() {
    let mut machine = at("Queued");
    let mut reported = listen(&mut machine);
    let first = reconnect(&mut machine);
    first.on_outcome(FAILED, EndedRow::default());
    machine.on(Input::Ended(ticket(&machine), planned("closed while idle")), now());
    machine.on(Input::BackoffOver(ticket(&machine)), now());
    let second = reconnect(&mut machine);
    first.on_outcome(FAILED, EndedRow::default());
    assert_eq!(feed(&mut machine, &mut reported, true), [], "two are no row");
    second.on_outcome(FAILED, EndedRow::default());
    let effects = feed(&mut machine, &mut reported, true);
    assert!(machine.ejection.is_out() && effects.len() == 1, "three are");
    assert_eq!(name(&machine), "Ready", "its connection stands");
}

#[tokio::test(start_paused = true)]
async fn a_row_of_failures_that_may_not_eject_begins_anew() {
    let mut machine = at("Queued");
    let mut reported = listen(&mut machine);
    let connection = reconnect(&mut machine);
    for row in 1..=3 {
        for failures in 1..=3 {
            connection.on_outcome(FAILED, EndedRow::default());
            let asked = feed(&mut machine, &mut reported, false).len();
            assert_eq!(asked, usize::from(failures == 3), "row {row}, failure {failures}");
        }
    }
    assert!(!machine.ejection.is_out());
}

#[tokio::test(start_paused = true)]
async fn on_probation_one_call_comes_at_a_time_until_one_is_answered() {
    let (mut machine, mut reported, on_probation) = probing().await;
    let quota = on_probation.load().quota();
    assert!(quota.acquire() && !quota.acquire(), "one at a time");
    on_probation.on_outcome(ANSWERED, EndedRow::default());
    let effects = feed(&mut machine, &mut reported, true);
    assert_eq!(effects.iter().map(|effects| effects.publish).collect::<Vec<_>>(), [Publish::ReadySet]);
    assert!(!machine.ejection.is_on_probation() && quota.acquire(), "it is back");
}

#[tokio::test(start_paused = true)]
async fn on_probation_one_failure_ejects_for_longer() {
    let (mut machine, mut reported, on_probation) = probing().await;
    fail(&on_probation, FAILED, 1);
    let effects = feed(&mut machine, &mut reported, true);
    let (until, _) = effects.iter().find_map(|effects| effects.wake).expect("it is out again");
    assert_eq!(until - now(), Duration::from_secs(10), "twice as long");
    let quota = on_probation.load().quota();
    assert!(quota.acquire() && quota.acquire(), "where nothing else is READY it takes all calls");
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_on_probation_comes_in_where_no_more_may_be_out() {
    let (mut machine, mut reported, on_probation) = probing().await;
    fail(&on_probation, FAILED, 1);
    let effects = feed(&mut machine, &mut reported, false);
    assert!(effects.iter().any(|effects| effects.admits), "and so do others on probation");
    assert!(!machine.ejection.is_out() && !machine.ejection.is_on_probation());
    fail(&on_probation, FAILED, 3);
    feed(&mut machine, &mut reported, true);
    assert!(machine.ejection.is_out(), "the next row asks again");
}

#[tokio::test(start_paused = true)]
async fn calls_on_a_connection_from_before_the_probation_decide_nothing() {
    for outcome in [FAILED, ANSWERED] {
        let mut machine = at("Queued");
        let mut reported = listen(&mut machine);
        let earlier = reconnect(&mut machine);
        to_probation(&mut machine).await;
        assert!(!earlier.load().quota().acquire(), "it takes no more calls");
        (0..10).for_each(|_| _ = earlier.on_outcome(outcome, EndedRow::default()));
        feed(&mut machine, &mut reported, true);
        reconnect(&mut machine);
        (0..10).for_each(|_| _ = earlier.on_outcome(outcome, EndedRow::default()));
        feed(&mut machine, &mut reported, true);
        assert!(machine.ejection.is_on_probation(), "{outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_a_proof_outlives_its_connection_the_next_call_decides() {
    let mut machine = at("Ready");
    to_probation(&mut machine).await;
    let mut reported = listen(&mut machine);
    reconnect(&mut machine).on_outcome(ANSWERED, EndedRow::default());
    machine.on(Input::Ended(ticket(&machine), broken()), now());
    feed(&mut machine, &mut reported, true);
    assert!(machine.ejection.is_on_probation(), "that connection is gone");
    machine.on(Input::BackoffOver(ticket(&machine)), now());
    reconnect(&mut machine).on_outcome(ANSWERED, EndedRow::default());
    feed(&mut machine, &mut reported, true);
    assert!(!machine.ejection.is_on_probation(), "the next one decided");
}

#[tokio::test(start_paused = true)]
async fn a_new_lease_ends_an_ejection_and_a_probation() {
    let mut machine = at("Ready");
    machine.on(OUTLIER, now());
    machine.on(Input::Updated(member(2, 10, MemberState::Live)), now());
    assert!(!machine.ejection.is_out() && !machine.shared.status().is_ejected());
    to_probation(&mut machine).await;
    let on_probation = reconnect(&mut machine);
    machine.on(Input::Updated(member(3, 10, MemberState::Live)), now());
    let quota = on_probation.load().quota();
    assert!(quota.acquire() && quota.acquire(), "as many calls as the peer allows");
}

#[tokio::test(start_paused = true)]
async fn a_selected_instance_that_is_out_is_dialled_as_a_last_resort() {
    let mut machine = at("Ready");
    machine.on(OUTLIER, now());
    machine.on(Input::Unselected, now());
    machine.on(Input::Selected, now());
    let connection = reconnect(&mut machine);
    let quota = connection.load().quota();
    assert!(machine.ejection.is_out() && quota.acquire() && quota.acquire(), "it takes all calls");
    assert!(!machine.is_fit(now()), "and needs a replacement");
}

/// A call that missed its deadline in silence.
const MISSED: Outcome = Outcome::new(tonic::Code::DeadlineExceeded, StatusOrigin::Missed);

fn fail(connection: &ReadyConnection<()>, outcome: Outcome, times: usize) {
    (0..times).for_each(|_| _ = connection.on_outcome(outcome, EndedRow::default()));
}

#[tokio::test(start_paused = true)]
async fn the_head_of_a_response_ends_a_probation_whatever_becomes_of_it() {
    let (mut machine, mut reported, on_probation) = probing().await;
    let ended = on_probation.on_head();
    feed(&mut machine, &mut reported, true);
    assert!(!machine.ejection.is_on_probation(), "it takes calls");
    on_probation.on_outcome(FAILED, ended);
    feed(&mut machine, &mut reported, true);
    assert!(!machine.ejection.is_out(), "the failure later is the first of a row");
}

#[tokio::test(start_paused = true)]
async fn responses_that_begin_and_then_fail_are_failures_in_a_row() {
    let mut machine = at("Queued");
    let mut reported = listen(&mut machine);
    let connection = reconnect(&mut machine);
    for _ in 0..3 {
        let ended = connection.on_head();
        connection.on_outcome(FAILED, ended);
    }
    feed(&mut machine, &mut reported, true);
    assert!(machine.ejection.is_out());
}

#[tokio::test(start_paused = true)]
async fn a_probation_without_calls_ends_with_its_time() {
    let mut machine = at("Ready");
    let (until, wake) = to_probation(&mut machine).await.wake.expect("it has a way out");
    assert_eq!((until - now(), wake), (Duration::from_secs(5), Wake::Probation));
    let on_probation = reconnect(&mut machine);
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(machine.on(Input::ProbationOver, now()), Effects::default(), "not yet");
    tokio::time::advance(Duration::from_secs(1)).await;
    on_probation.load().quota().acquire();
    let prolonged = machine.on(Input::ProbationOver, now());
    assert_eq!(prolonged.wake, Some((now() + Duration::from_secs(5), Wake::Probation)), "a call is on its way");
    // It waits on: a stream whose head comes with its first message.
    tokio::time::advance(Duration::from_secs(5)).await;
    let effects = machine.on(Input::ProbationOver, now());
    assert_eq!((effects.wake, effects.publish), (None, Publish::ReadySet));
    assert!(!machine.ejection.is_on_probation());
    let quota = on_probation.load().quota();
    assert!(quota.acquire() && quota.acquire(), "it takes all calls again");
    let mut reported = listen(&mut machine);
    fail(&on_probation, FAILED, 1);
    assert_eq!(feed(&mut machine, &mut reported, true), [], "and three failures");
}

#[tokio::test(start_paused = true)]
async fn an_instance_on_probation_is_admitted_where_another_may_not_be_ejected() {
    let mut machine = at("Ready");
    to_probation(&mut machine).await;
    let on_probation = reconnect(&mut machine);
    assert_eq!(machine.on(Input::Admitted, now()).publish, Publish::ReadySet);
    let quota = on_probation.load().quota();
    assert!(!machine.ejection.is_on_probation() && quota.acquire() && quota.acquire());
    let mut out = at("Ready");
    out.on(OUTLIER, now());
    assert_eq!(out.on(Input::Admitted, now()), Effects::default(), "one that is out stays out");
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_is_one_failure_and_only_while_it_is_the_present_one() {
    let mut machine = at("Queued");
    let breaks = |end: End, machine: &mut Machine| {
        reconnect(machine);
        let present = ticket(machine);
        let failing = machine.on(Input::Ended(present, end), now()).failing;
        machine.on(Input::Ended(present, broken()), now());
        machine.on(Input::BackoffOver(ticket(machine)), now());
        failing
    };
    for _ in 0..10 {
        assert!(!breaks(planned("closed while idle"), &mut machine), "planned");
        let refused = End { kind: EndKind::Refused, cause: "too many pings".into() };
        assert!(!breaks(refused, &mut machine), "announced");
    }
    assert!(!breaks(broken(), &mut machine) && !breaks(broken(), &mut machine), "two of a row");
    assert!(breaks(broken(), &mut machine), "the third one");
}

#[tokio::test(start_paused = true)]
async fn what_ends_as_planned_never_shows_as_a_failure() {
    let mut machine = at("Ready");
    let effects = machine.on(Input::Ended(ticket(&machine), planned("closed while idle")), now());
    assert_eq!((name(&machine), machine.connectivity()), ("Backoff", Connectivity::Connecting), "it ended at once");
    assert_eq!((effects.failure, machine.shared.status().cause()), (None, None));
    let mut machine = at("Ready");
    tokio::time::advance(SETTLED).await;
    machine.on(Input::Ended(ticket(&machine), planned("closed while idle")), now());
    assert_eq!((name(&machine), machine.connectivity()), ("Queued", Connectivity::Connecting), "it stood for a while");
}

#[tokio::test(start_paused = true)]
async fn missed_deadlines_eject_unless_the_others_miss_theirs() {
    let others = |answered, missed| Compared { answered, missed, ready: 1, missing: u32::from(missed > 0) };
    for (before, after, is_ejected) in [
        (others(0, 0), others(0, 0), true),
        (others(100, 7), others(100, 7), false),
        (others(100, 7), others(140, 7), true),
        (others(100, 7), others(101, 9), false),
    ] {
        let mut machine = at("Queued");
        let _reported = listen(&mut machine);
        let connection = reconnect(&mut machine);
        fail(&connection, MISSED, 1);
        machine.on(Input::Suspected { tally: machine.tally.clone(), others: before }, now());
        fail(&connection, MISSED, 2);
        machine.on(Input::Failing { tally: machine.tally.clone(), may_eject: true, others: after }, now());
        assert_eq!(machine.ejection.is_out(), is_ejected, "{before:?}, then {after:?}");
        assert_eq!(machine.tally.has_missed(), !is_ejected, "others are compared with its latest call");
    }
    let mut machine = at("Queued");
    let connection = reconnect(&mut machine);
    fail(&connection, FAILED, 3);
    let (tally, slow) = (machine.tally.clone(), others(0, 9));
    machine.on(Input::Failing { tally, may_eject: true, others: slow }, now());
    assert!(machine.ejection.is_out(), "failures without a missed deadline are not compared");
}

#[tokio::test(start_paused = true)]
async fn a_new_lease_on_a_known_connection_is_a_reason_to_ask_its_server() {
    for state in STATES {
        let mut machine = at(state);
        let same = machine.on(Input::Updated(member(1, 11, MemberState::Live)), now());
        assert!(!same.suspect, "{state}: nothing but its weight changed");
        let is_connected = machine.is_connected();
        let restarted = machine.on(Input::Updated(member(2, 11, MemberState::Live)), now());
        assert_eq!(restarted.suspect, is_connected, "{state}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_instance_did_is_counted_on_over_its_connections() {
    let mut machine = at("Ready");
    let first = connection(&machine);
    (0..5).for_each(|_| first.load().on_answer());
    first.on_missed();
    machine.on(Input::Ended(ticket(&machine), planned("its age")), now());
    to_probation(&mut machine).await;
    let second = reconnect(&mut machine);
    second.load().on_answer();
    second.on_missed();
    let did = machine.compared();
    assert_eq!((did.answered, did.missed, did.ready), (6, 2, 1));
    machine.on(OUTLIER, now());
    assert_eq!(machine.compared().ready, 0, "it takes no calls");
}

#[tokio::test(start_paused = true)]
async fn a_missed_deadline_is_forgotten_with_its_connection() {
    let mut machine = at("Queued");
    let mut reported = listen(&mut machine);
    fail(&reconnect(&mut machine), MISSED, 2);
    feed(&mut machine, &mut reported, true);
    assert_eq!(machine.compared().missing, 1);
    machine.on(Input::Ended(ticket(&machine), planned("closed")), now());
    machine.on(Input::BackoffOver(ticket(&machine)), now());
    let next = reconnect(&mut machine);
    assert_eq!(machine.compared().missing, 0, "of the new one nothing is known");
    fail(&next, FAILED, 2);
    feed(&mut machine, &mut reported, true);
    assert!(!machine.ejection.is_out(), "nor is it the end of a row");
}

#[tokio::test(start_paused = true)]
async fn all_that_is_missed_in_one_short_silence_is_one_failure() {
    let machine = at("Ready");
    let connection = connection(&machine);
    let begin = now();
    tokio::time::advance(Duration::from_millis(100)).await;
    assert!(connection.counts_silence(begin, now(), 0), "the first of them");
    assert!(!connection.counts_silence(begin, now(), 0), "was in flight, too");
    assert!(!connection.counts_silence(begin + Duration::from_millis(99), now(), 0), "so was this one");
    assert!(connection.counts_silence(begin, now(), 17), "the connection was heard");
    assert!(!connection.counts_silence(begin, now(), 34), "which counts once: the process may have paused before");
    let later = now();
    tokio::time::advance(Duration::from_millis(100)).await;
    assert!(connection.counts_silence(later, now(), 17), "sent after the first one was missed");
    assert!(!connection.counts_silence(later, now(), 17), "one silence again");
    tokio::time::advance(Duration::from_millis(900)).await;
    assert!(connection.counts_silence(later, now(), 17), "but for a second that is no pause");
}

#[tokio::test(start_paused = true)]
async fn only_a_silence_that_counts_is_a_failure_and_long_ones_count_twice() {
    let (mut machine, _) = Machine::new(live(), reports());
    let mut reported = listen(&mut machine);
    let connection = reconnect(&mut machine);
    let begin = now();
    tokio::time::advance(Duration::from_millis(100)).await;
    assert!(connection.on_silence(begin, now(), 0), "the first");
    assert!(!connection.on_silence(begin, now(), 0), "in the same silence");
    assert!(!feed(&mut machine, &mut reported, true).iter().any(|effects| effects.failing));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(connection.on_silence(begin, now(), 0), "a long one");
    feed(&mut machine, &mut reported, true);
    assert!(machine.ejection.is_out(), "three of three");
}

#[tokio::test(start_paused = true)]
async fn one_that_was_proven_before_its_ejection_need_not_settle_after_it() {
    for is_proven in [true, false] {
        let mut machine = at("Ready");
        if is_proven {
            connection(&machine).load().on_answer();
        }
        // It is out for less time than proves a connection without an answer.
        machine.reports.outliers = Arc::new(OutlierDetection::new().ejection_time(SETTLED));
        to_probation(&mut machine).await;
        reconnect(&mut machine);
        assert_eq!(machine.settles_at().is_none(), is_proven, "proven: {is_proven}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_each_connection_at_once_shows_why() {
    let mut machine = at("Ready");
    machine.on(Input::Ended(ticket(&machine), planned("it is full")), now());
    assert_eq!(machine.connectivity(), Connectivity::Connecting, "once is no failure");
    machine.on(Input::BackoffOver(ticket(&machine)), now());
    reconnect(&mut machine);
    let effects = machine.on(Input::Ended(ticket(&machine), planned("it is full")), now());
    assert_eq!(machine.connectivity(), Connectivity::TransientFailure, "calls must not wait for it");
    assert_eq!(effects.failure.as_deref(), Some("it is full"));
}
