use super::*;

#[test]
fn the_defaults_and_every_bound_are_accepted() {
    let day = MAX_TIME;
    for detection in [
        OutlierDetection::new(),
        OutlierDetection::default(),
        OutlierDetection::new().consecutive_failures(None),
        OutlierDetection::new().consecutive_failures(1),
        OutlierDetection::new().consecutive_failures(MAX_CONSECUTIVE_FAILURES),
        OutlierDetection::new().ejection_time(Duration::from_nanos(1)),
        OutlierDetection::new().ejection_time(day).max_ejection_time(day),
        OutlierDetection::new().max_ejected_percent(0),
        OutlierDetection::new().max_ejected_percent(100),
        OutlierDetection::new().interval(MAX_INTERVAL),
        OutlierDetection::new().failure_percentage(FailurePercentage::default()).success_rate(SuccessRate::default()),
    ] {
        assert!(detection.check().is_ok(), "{detection:?} is within its bounds");
    }
}

#[test]
fn an_option_out_of_its_range_is_refused_by_its_name_and_value() {
    let new = OutlierDetection::new;
    let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
    for (detection, message) in [
        (
            new().consecutive_failures(1_000_001),
            "bad consecutive_failures 1000001: expected 1 to 1000000; None switches it off",
        ),
        (new().consecutive_failures(0), "bad consecutive_failures 0: expected 1 to 1000000; None switches it off"),
        (new().ejection_time(Duration::ZERO), "bad ejection_time 0ns: expected more than zero and at most a day"),
        (
            new().ejection_time(day + second).max_ejection_time(day + second),
            "bad ejection_time 86401s: expected more than zero and at most a day",
        ),
        (
            new().max_ejection_time(second),
            "bad max_ejection_time 1s: expected at least ejection_time and at most a day",
        ),
        (
            new().max_ejection_time(day + second),
            "bad max_ejection_time 86401s: expected at least ejection_time and at most a day",
        ),
        (new().interval(Duration::ZERO), "bad interval 0ns: expected more than zero and at most an hour"),
        (new().interval(Duration::from_secs(3601)), "bad interval 3601s: expected more than zero and at most an hour"),
        (new().max_ejected_percent(101), "bad max_ejected_percent 101: expected 0 to 100"),
        (
            new().failure_percentage(FailurePercentage::new().threshold(101)),
            "bad failure_percentage.threshold 101: expected 0 to 100",
        ),
        (
            new().failure_percentage(FailurePercentage::new().enforcement_percentage(200)),
            "bad failure_percentage.enforcement_percentage 200: expected 0 to 100",
        ),
        (
            new().success_rate(SuccessRate::new().enforcement_percentage(101)),
            "bad success_rate.enforcement_percentage 101: expected 0 to 100",
        ),
    ] {
        let error = detection.check().expect_err(message);
        assert_eq!(error.to_string(), message, "the error names option, value and range");
    }
}

#[test]
fn unavailable_broken_connections_and_missed_deadlines_are_failures() {
    let detection = OutlierDetection::new();
    let is_failure = |code, origin| detection.is_failure(Outcome::new(code, origin));
    assert!(is_failure(Code::Unavailable, StatusOrigin::Answered), "the server says that it cannot serve");
    assert!(is_failure(Code::Unavailable, StatusOrigin::Broken), "the connection broke");
    assert!(is_failure(Code::Unknown, StatusOrigin::Broken), "it broke, whatever the status is");
    assert!(is_failure(Code::DeadlineExceeded, StatusOrigin::Missed), "the instance was too slow");
    for code in 0..=16 {
        let code = Code::from_i32(code);
        if code != Code::Unavailable {
            assert!(!is_failure(code, StatusOrigin::Answered), "{code:?} is an answer of a server that is alive");
        }
    }
}

#[test]
fn what_counts_as_a_failure_can_be_configured() {
    let detection = OutlierDetection::new()
        .failure_when(|outcome| outcome.code() == Code::Internal && outcome.origin() == StatusOrigin::Answered);
    let is_failure = |code, origin| detection.is_failure(Outcome::new(code, origin));
    assert!(is_failure(Code::Internal, StatusOrigin::Answered), "as configured");
    assert!(!is_failure(Code::Unavailable, StatusOrigin::Answered), "the default does not apply any more");
    assert!(!is_failure(Code::Internal, StatusOrigin::Broken), "the origin is seen as well");
    assert!(format!("{detection:?}").contains("failure_when: given"), "its output shows that it is not the default");
}

#[test]
fn intervals_are_swept_only_if_an_algorithm_wants_them() {
    let second = Duration::from_secs(1);
    let new = || OutlierDetection::new().interval(second);
    assert_eq!(new().sweep_interval(), None, "nothing is counted by default");
    assert_eq!(new().failure_percentage(FailurePercentage::new()).sweep_interval(), Some(second), "one wants it");
    assert_eq!(new().success_rate(SuccessRate::new()).sweep_interval(), Some(second), "the other wants it");
}

#[test]
fn ejections_double_up_to_the_maximum() {
    let detection = OutlierDetection::new();
    let seconds: Vec<u64> = (1..=6).map(|times| detection.time_out(times).as_secs()).collect();
    assert_eq!(seconds, [5, 10, 20, 25, 25, 25], "doubling from 5 s, never above 25 s");
    assert_eq!(detection.time_out(u32::MAX), DEFAULT_MAX_EJECTION_TIME, "no number of times overflows");
}

#[test]
fn in_grpcs_terms_nothing_is_ejected_unless_asked_for_and_every_failed_call_counts() {
    let detection = OutlierDetection::grpc();
    assert!(detection.check().is_ok());
    assert_eq!((detection.consecutive_failures, detection.sweep_interval()), (None, None));
    for code in (0..=16).map(Code::from_i32) {
        let is_failure = detection.is_failure(Outcome::new(code, StatusOrigin::Answered));
        assert_eq!(is_failure, code != Code::Ok, "{code:?}");
    }
    let own = detection.failure_when(|outcome| outcome.code() == Code::Internal);
    assert!(!own.is_failure(Outcome::new(Code::Unavailable, StatusOrigin::Answered)), "one's own idea counts");
}
