mod ejecting;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;

use super::*;
use crate::channel::outlier::{DetectionMethod, OutlierDetection};
use crate::channel::policy::load::Load;
use crate::instance::Instance;
use crate::metrics::channel::{ChannelMetrics, InstanceState};

type Machine = Subchannel<()>;

/// The states of the tables, in the order of their columns.
const STATES: [&str; 8] = ["Ejected", "Unselected", "Withdrawn", "Queued", "Connecting", "Ready", "Asked", "Backoff"];

/// The instance under this lease, of this weight.
fn member(lease: i64, weight: u16, state: MemberState) -> Member {
    let instance = Instance::new("echo", SocketAddr::from(([127, 0, 0, 1], 1))).with_weight(weight);
    Member::new(Arc::new(instance), lease, state)
}

fn live() -> Member {
    member(1, 10, MemberState::Live)
}

/// There are no other instances.
const ALONE: Compared = Compared { answered: 0, missed: 0, ready: 0, missing: 0 };

const OUTLIER: Input<()> = Input::Outlier(DetectionMethod::FailurePercentage);

const OVER: Input<()> = Input::EjectionOver { others: ALONE };

fn reports() -> Reports {
    let outliers = OutlierDetection::new().consecutive_failures(3);
    Reports {
        outliers: Arc::new(outliers),
        events: mpsc::unbounded_channel().0,
        metrics: ChannelMetrics::new("etcd:///echo"),
    }
}

/// What calls on the connections report that are made from now on.
fn listen(machine: &mut Machine) -> mpsc::UnboundedReceiver<FeedbackEvent> {
    let (events, reported) = mpsc::unbounded_channel();
    machine.reports.events = events;
    reported
}

/// Passes on what calls reported, as the balancer does. Returns the effects of each.
fn feed(machine: &mut Machine, reported: &mut mpsc::UnboundedReceiver<FeedbackEvent>, may_eject: bool) -> Vec<Effects> {
    let mut all = Vec::new();
    while let Ok(event) = reported.try_recv() {
        all.push(match event {
            FeedbackEvent::Suspected { tally, .. } => machine.on(Input::Suspected { tally, others: ALONE }, now()),
            FeedbackEvent::Failing { tally, .. } => {
                machine.on(Input::Failing { tally, may_eject, others: ALONE }, now())
            }
            FeedbackEvent::Proved { tally, .. } => machine.on(Input::Proved(tally), now()),
            FeedbackEvent::Ended { ticket, end, .. } => machine.on(Input::Ended(ticket, end), now()),
            FeedbackEvent::TooManyPings { .. } => continue,
            #[cfg(feature = "health")]
            FeedbackEvent::Health { ticket, verdict, .. } => machine.on(Input::Health(ticket, verdict), now()),
        });
    }
    all
}

fn broken() -> End {
    End { kind: EndKind::Broken, cause: "broken".into() }
}

fn planned(cause: &str) -> End {
    End { kind: EndKind::Planned, cause: cause.into() }
}

fn now() -> Instant {
    Instant::now()
}

/// A connection that allows ten calls, and the other end of its retirement.
fn established(health: Option<oneshot::Sender<Infallible>>) -> (Established<()>, oneshot::Receiver<()>) {
    let (retire, retired) = oneshot::channel();
    (Established { transport: (), load: Arc::new(Load::new(10)), retire, health }, retired)
}

fn connected(machine: &mut Machine) -> Effects {
    let ticket = ticket(machine);
    machine.on(Input::Connected(ticket, established(None).0), now())
}

/// The ticket of the present wish, attempt, connection or back-off, or one that nothing has.
fn ticket(machine: &Machine) -> Ticket {
    match &machine.state {
        State::Queued(ticket) | State::Connecting(ticket) | State::Backoff(ticket) => *ticket,
        State::Ready(ready) => ready.ticket,
        State::Idle(_) => Ticket::next(),
    }
}

fn name(machine: &Machine) -> &'static str {
    match &machine.state {
        State::Idle(Reason::Ejected) => "Ejected",
        State::Idle(Reason::Unselected) => "Unselected",
        State::Idle(Reason::Withdrawn) => "Withdrawn",
        State::Queued(_) => "Queued",
        State::Connecting(_) => "Connecting",
        State::Ready(ready) if ready.is_serving => "Ready",
        State::Ready(_) => "Asked",
        State::Backoff(_) => "Backoff",
    }
}

/// An instance that came to this state by the shortest way.
fn at(state: &str) -> Machine {
    if state == "Unselected" {
        return Machine::unselected(live(), reports());
    }
    let (mut machine, _) = Machine::new(live(), reports());
    if state == "Queued" {
        return machine;
    }
    machine.on(Input::Turn(ticket(&machine)), now());
    let attempt = ticket(&machine);
    match state {
        "Connecting" => {}
        "Ready" | "Withdrawn" => drop(connected(&mut machine)),
        "Asked" => drop(machine.on(Input::Connected(attempt, established(Some(oneshot::channel().0)).0), now())),
        _ => drop(machine.on(Input::ConnectFailed(attempt, "refused".into()), now())),
    }
    if state == "Withdrawn" {
        machine.on(Input::Updated(member(1, 10, MemberState::Draining)), now());
        machine.on(Input::Ended(ticket(&machine), planned("it left")), now());
    }
    if state == "Ejected" {
        machine.on(OUTLIER, now());
    }
    assert_eq!(name(&machine), state, "the way leads there");
    machine
}

/// An input for a machine, made with its ticket or with another one.
type Make = fn(&Machine, Ticket) -> Input<()>;

/// An input, the state that it leads to from each of [`STATES`] (`=` where it changes none), and what it has published
/// there: nothing (`-`), the status (`s`) or the ready set (`r`).
type Row = (&'static str, Make, [&'static str; 8], &'static str);

const TABLE: [Row; 16] = [
    ("the same again", |machine, _| Input::Updated(machine.member.clone()), ["="; 8], "--------"),
    (
        "another weight",
        |_, _| Input::Updated(member(1, 20, MemberState::Live)),
        ["=", "=", "Queued", "=", "=", "=", "=", "="],
        "sssssrss",
    ),
    (
        "another lease",
        |_, _| Input::Updated(member(2, 10, MemberState::Live)),
        ["Queued", "=", "Queued", "=", "=", "=", "=", "Queued"],
        "sssssrss",
    ),
    ("a leave", |_, _| Input::Updated(member(1, 10, MemberState::Draining)), ["="; 8], "ss-ssrss"),
    (
        "a missing key",
        |_, _| Input::Updated(member(1, 10, MemberState::Suspect)),
        ["Withdrawn", "=", "=", "Withdrawn", "Withdrawn", "=", "=", "Withdrawn"],
        "sssssrss",
    ),
    ("selected", |_, _| Input::Selected, ["=", "Queued", "=", "=", "=", "=", "=", "="], "--------"),
    (
        "unselected",
        |_, _| Input::Unselected,
        ["Unselected", "=", "Unselected", "Unselected", "Unselected", "Unselected", "Unselected", "Unselected"],
        "r-rrrrrr",
    ),
    ("its turn", |_, ticket| Input::Turn(ticket), ["=", "=", "=", "Connecting", "=", "=", "=", "="], "--------"),
    (
        "connected",
        |_, ticket| Input::Connected(ticket, established(None).0),
        ["=", "=", "=", "=", "Ready", "=", "=", "="],
        "----r---",
    ),
    (
        "not connected",
        |_, ticket| Input::ConnectFailed(ticket, "refused".into()),
        ["=", "=", "=", "=", "Backoff", "=", "=", "="],
        "----s---",
    ),
    (
        "ended",
        |_, ticket| Input::Ended(ticket, broken()),
        ["=", "=", "=", "=", "=", "Backoff", "Backoff", "="],
        "-----rr-",
    ),
    (
        "ended as planned",
        |_, ticket| Input::Ended(ticket, planned("idle for long")),
        ["=", "=", "=", "=", "=", "Backoff", "Backoff", "="],
        "-----rr-",
    ),
    ("admitted", |_, _| Input::Admitted, ["="; 8], "--------"),
    ("the end of a probation", |_, _| Input::ProbationOver, ["="; 8], "--------"),
    ("its time", |_, ticket| Input::BackoffOver(ticket), ["=", "=", "=", "=", "=", "=", "=", "Queued"], "--------"),
    ("an outlier", |_, _| OUTLIER, ["=", "=", "=", "Ejected", "Ejected", "=", "=", "Ejected"], "-rrrrrrr"),
];

fn published(letter: char) -> Publish {
    match letter {
        's' => Publish::Status,
        'r' => Publish::ReadySet,
        _ => Publish::Nothing,
    }
}

#[tokio::test(start_paused = true)]
async fn every_input_leads_from_every_state_where_the_table_says() {
    for (input, make, expected, publishes) in TABLE {
        for ((state, expected), letter) in STATES.into_iter().zip(expected).zip(publishes.chars()) {
            let mut machine = at(state);
            let (before, was_out) = (ticket(&machine), machine.ejection.is_out());
            let effects = machine.on(make(&machine, before), now());
            let has_moved = expected != "=";
            assert_eq!(name(&machine), if has_moved { expected } else { state }, "{input} at {state}");
            assert_eq!(effects.publish, published(letter), "{input} at {state}: what is published");
            assert_eq!(effects.queue.is_some(), has_moved && expected == "Queued", "{input} at {state}: a turn");
            assert!(effects.queue.is_none_or(|queued| queued.ticket == ticket(&machine)), "the turn's ticket");
            assert_eq!(effects.dial.is_some(), has_moved && expected == "Connecting", "{input} at {state}: an attempt");
            let is_delayed = has_moved && expected == "Backoff";
            let has_failed = is_delayed && input != "ended as planned";
            assert_eq!(effects.failure.is_some(), has_failed, "{input} at {state}: a failure");
            let is_ejected = !was_out && machine.ejection.is_out();
            assert_eq!(effects.wake.is_some(), is_delayed || is_ejected, "{input} at {state}: a timer");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn news_of_an_earlier_ticket_change_nothing() {
    let stale: [Make; 5] = [
        |_, ticket| Input::Turn(ticket),
        |_, ticket| Input::Connected(ticket, established(None).0),
        |_, ticket| Input::ConnectFailed(ticket, "refused".into()),
        |_, ticket| Input::Ended(ticket, broken()),
        |_, ticket| Input::BackoffOver(ticket),
    ];
    for make in stale {
        for state in STATES {
            let mut machine = at(state);
            let effects = machine.on(make(&machine, Ticket::next()), now());
            assert_eq!((name(&machine), effects), (state, Effects::default()));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn reports_of_calls_that_are_not_counted_together_change_nothing() {
    for state in STATES {
        let mut machine = at(state);
        let failing = Input::Failing { tally: Arc::default(), may_eject: true, others: ALONE };
        let effects = [machine.on(failing, now()), machine.on(Input::Proved(Arc::default()), now())];
        assert_eq!((name(&machine), effects), (state, [Effects::default(), Effects::default()]));
    }
}

#[tokio::test(start_paused = true)]
async fn connectivity_follows_from_the_state_and_the_last_failure() {
    use Connectivity::{Connecting, Idle, Ready, TransientFailure};
    let expected = [Idle, Idle, Idle, Connecting, Connecting, Ready, Connecting, TransientFailure];
    for (state, expected) in STATES.into_iter().zip(expected) {
        let machine = at(state);
        let status = machine.shared.status();
        assert_eq!((machine.connectivity(), status.state()), (expected, expected), "{state}");
        assert_eq!(status.cause().is_some(), matches!(state, "Backoff" | "Ejected"), "{state}");
        assert_eq!(status.is_ejected(), state == "Ejected");
        assert_eq!(status.is_draining(), state == "Withdrawn", "it left by an announcement");
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_counted_by_what_keeps_calls_from_it() {
    use InstanceState as Counted;
    let expected = [
        Counted::Ejected,
        Counted::Unused,
        Counted::Draining,
        Counted::Connecting,
        Counted::Connecting,
        Counted::Ready,
        Counted::Connecting,
        Counted::TransientFailure,
    ];
    for (state, expected) in STATES.into_iter().zip(expected) {
        assert_eq!(at(state).counted_as(), expected, "{state}");
    }
    for (state, expected) in [(MemberState::Draining, Counted::Draining), (MemberState::Suspect, Counted::Suspect)] {
        let mut machine = at("Ready");
        machine.on(Input::Updated(member(1, 10, state)), now());
        assert_eq!(machine.counted_as(), expected, "{state:?} with a connection");
        machine.on(OUTLIER, now());
        assert_eq!(machine.counted_as(), Counted::Ejected, "{state:?} and out");
    }
    let mut machine = at("Connecting");
    machine.on(Input::Updated(member(1, 10, MemberState::Suspect)), now());
    assert_eq!(machine.counted_as(), Counted::Idle, "a suspect lives by its connection alone");
}

#[tokio::test(start_paused = true)]
async fn a_failure_shows_until_the_next_connection_stands() {
    let mut machine = at("Backoff");
    machine.on(Input::BackoffOver(ticket(&machine)), now());
    assert_eq!(machine.connectivity(), Connectivity::TransientFailure, "in its turn");
    machine.on(Input::Turn(ticket(&machine)), now());
    assert_eq!(machine.connectivity(), Connectivity::TransientFailure, "while it is dialled");
    connected(&mut machine);
    let status = machine.shared.status();
    assert_eq!((status.state(), status.cause(), status.latency()), (Connectivity::Ready, None, None));
    connection(&machine).load().on_latency(now(), Duration::from_millis(7));
    assert_eq!(machine.shared.status().latency(), Some(Duration::from_millis(7)));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_answered_is_replaced_at_once() {
    let mut machine = at("Ready");
    connection(&machine).load().on_answer();
    let effects = machine.on(Input::Ended(ticket(&machine), planned("going away")), now());
    assert_eq!((name(&machine), machine.connectivity()), ("Queued", Connectivity::Connecting));
    assert!(effects.queue.is_some() && effects.failure.is_none(), "nothing failed");
    let mut machine = at("Ready");
    tokio::time::advance(MAX_BACKOFF).await;
    machine.on(Input::Ended(ticket(&machine), planned("going away")), now());
    assert_eq!(name(&machine), "Queued", "one that stood for long was a good one, too");
}

fn connection(machine: &Machine) -> Arc<ReadyConnection<()>> {
    machine.candidate().expect("it is READY").1
}

/// Connects an instance that waits for its turn.
fn reconnect(machine: &mut Machine) -> Arc<ReadyConnection<()>> {
    machine.on(Input::Turn(ticket(machine)), now());
    connected(machine);
    connection(machine)
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_settles_a_suspect_and_keeps_one_that_is_out_idle() {
    let mut machine = at("Ready");
    machine.on(Input::Updated(member(1, 10, MemberState::Suspect)), now());
    assert!(machine.is_fit(now()), "it lives by its connection");
    machine.on(Input::Ended(ticket(&machine), broken()), now());
    assert_eq!(name(&machine), "Withdrawn");
    let mut machine = at("Ready");
    machine.on(OUTLIER, now());
    let effects = machine.on(Input::Ended(ticket(&machine), broken()), now());
    assert_eq!((name(&machine), effects.queue, effects.failure.as_deref()), ("Ejected", None, Some("broken")));
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_new_until_it_is_ready_and_after_it_could_not_be_reached() {
    let mut machine = at("Ready");
    let first = machine.ready_since();
    assert_eq!(first, Some(now()));
    connection(&machine).load().on_answer();
    tokio::time::advance(Duration::from_secs(1)).await;
    machine.on(Input::Ended(ticket(&machine), planned("going away")), now());
    reconnect(&mut machine);
    assert_eq!(machine.ready_since(), first, "one that only reconnects is not new");
    machine.on(Input::Updated(member(2, 10, MemberState::Live)), now());
    assert_eq!(machine.ready_since(), first, "nor is one whose connection outlived its lease");
    connection(&machine).load().on_answer();
    machine.on(Input::Ended(ticket(&machine), planned("going away")), now());
    machine.on(Input::Turn(ticket(&machine)), now());
    machine.on(Input::ConnectFailed(ticket(&machine), "refused".into()), now());
    assert_eq!(machine.ready_since(), None, "it is another process, most likely");
    machine.on(Input::BackoffOver(ticket(&machine)), now());
    reconnect(&mut machine);
    connection(&machine).load().on_answer();
    machine.on(Input::Ended(ticket(&machine), planned("going away")), now());
    machine.on(Input::Updated(member(3, 10, MemberState::Live)), now());
    assert_eq!(machine.ready_since(), None, "another lease without a connection is another process");
}

#[tokio::test(start_paused = true)]
async fn one_that_leaves_limits_the_streams_of_all_its_connections() {
    let mut machine = at("Connecting");
    let (first, first_retired) = established(None);
    machine.on(Input::Connected(ticket(&machine), first), now());
    machine.on(Input::Ended(ticket(&machine), planned("going away")), now());
    machine.on(Input::BackoffOver(ticket(&machine)), now());
    machine.on(Input::Turn(ticket(&machine)), now());
    let (second, second_retired) = established(None);
    machine.on(Input::Connected(ticket(&machine), second), now());
    let load = connection(&machine).load().clone();
    machine.leave();
    assert_eq!((first_retired.await, second_retired.await), (Ok(()), Ok(())));
    assert!(!load.quota().acquire(), "it takes no more calls");
}

#[tokio::test(start_paused = true)]
async fn one_that_failed_and_came_back_settles_with_an_answer_or_a_second() {
    let mut machine = at("Backoff");
    machine.on(Input::BackoffOver(ticket(&machine)), now());
    assert!(!machine.is_fit(now()), "it failed");
    let connection = reconnect(&mut machine);
    assert!(!machine.is_fit(now()), "it may fail again");
    assert_eq!(machine.settles_at(), Some(now() + SETTLED));
    assert!(machine.is_fit(now() + SETTLED), "it stands for long enough");
    connection.load().on_answer();
    assert!(machine.is_fit(now()), "it answered");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_failed_waits_its_turn_behind_new_ones_until_it_proved_good() {
    let wish = |effects: Effects| effects.queue.map(|wish| (wish.turn, wish.back_off));
    let (mut machine, effects) = Machine::new(live(), reports());
    assert_eq!(wish(effects), Some((Turn::First, FIRST_BACKOFF)), "it is new");
    machine.on(Input::Turn(ticket(&machine)), now());
    machine.on(Input::ConnectFailed(ticket(&machine), "refused".into()), now());
    let effects = machine.on(Input::BackoffOver(ticket(&machine)), now());
    assert_eq!(wish(effects), Some((Turn::Retry, FIRST_BACKOFF * 2)), "it failed");
    reconnect(&mut machine).load().on_answer();
    let effects = machine.on(Input::Ended(ticket(&machine), planned("going away")), now());
    assert_eq!(wish(effects), Some((Turn::First, FIRST_BACKOFF)), "its last connection was a good one");
}

#[cfg(feature = "health")]
#[tokio::test(start_paused = true)]
async fn an_instance_starts_slowly_once_its_server_says_that_it_serves() {
    let mut machine = at("Asked");
    let report = |machine: &mut Machine, verdict| machine.on(Input::Health(ticket(machine), verdict), now());
    tokio::time::advance(Duration::from_secs(900)).await;
    report(&mut machine, Err("it warms up".into()));
    assert_eq!(machine.connectivity(), Connectivity::TransientFailure);
    assert_eq!(machine.ready_since(), None);
    tokio::time::advance(Duration::from_secs(900)).await;
    report(&mut machine, Ok(()));
    let begin = now();
    assert_eq!((machine.ready_since(), machine.connectivity()), (Some(begin), Connectivity::Ready));
    tokio::time::advance(Duration::from_secs(45)).await;
    report(&mut machine, Ok(()));
    assert_eq!(machine.ready_since(), Some(begin), "it does not begin anew");
    machine.on(Input::Health(Ticket::next(), Err("an earlier connection".into())), now());
    assert_eq!(machine.connectivity(), Connectivity::Ready, "earlier connections say nothing");
}

#[cfg(feature = "health")]
#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_serve_fails_also_under_another_lease() {
    let mut machine = at("Asked");
    machine.on(Input::Health(ticket(&machine), Err("it is overloaded".into())), now());
    machine.on(Input::Updated(member(2, 10, MemberState::Live)), now());
    assert_eq!(machine.connectivity(), Connectivity::TransientFailure, "the lease says nothing of health");
    assert!(!machine.is_fit(now()), "it needs a replacement");
}
