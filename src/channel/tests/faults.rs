//! What part of a service fails with, and how many calls notice.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream;
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use super::peers::proto::EchoRequest;
use super::peers::proto::echo_client::EchoClient;
use super::peers::{Echo, Mute, OnConnect, Peer, Refusing, Reply};
use super::rig::{Call, Rig, SECOND, ends, rest};
use crate::channel::{BalancedChannel, Connectivity};
use crate::instance::Instance;
use crate::policy::WeightedRoundRobin;

/// Nine servers and one more address.
fn ten(echoes: &[Echo], last: std::net::SocketAddr) -> EchoClient<BalancedChannel> {
    let addresses = echoes.iter().map(Echo::address).chain([last]);
    let instances = addresses.map(|address| Instance::new("echo", address)).collect();
    EchoClient::new(
        BalancedChannel::from_instances("echo", stream::iter([instances])).build().expect("the options are good"),
    )
}

/// How many of a thousand calls fail, 20 at once, the first of them while the channel connects.
async fn failed_of_a_thousand(client: &EchoClient<BalancedChannel>) -> usize {
    let caller = |mut client: EchoClient<BalancedChannel>| async move {
        let mut failed = 0;
        for _ in 0..50 {
            failed += usize::from(client.unary_echo(EchoRequest { message: "x".into() }).await.is_err());
        }
        failed
    };
    join_all((0..20).map(|_| caller(client.clone()))).await.into_iter().sum()
}

#[tokio::test]
async fn no_call_fails_while_one_of_ten_refuses() {
    let (echoes, refusing) = ([(); 9].map(|()| Echo::start()), Refusing::start());
    let client = ten(&echoes, refusing.address());
    assert_eq!(failed_of_a_thousand(&client).await, 0, "no call is sent to it");
    assert!(echoes.iter().all(|echo| echo.calls().get() > 0), "the others share the calls");
}

#[tokio::test]
async fn no_call_fails_while_one_of_ten_is_mute() {
    let (echoes, mute) = ([(); 9].map(|()| Echo::start()), Mute::start());
    let client = ten(&echoes, mute.address());
    assert_eq!(failed_of_a_thousand(&client).await, 0, "no call is sent to it");
    mute.connections().reaches(1).await;
    assert!(echoes.iter().all(|echo| echo.calls().get() > 0), "the others share the calls");
}

#[tokio::test]
async fn calls_that_a_killed_server_had_fail_and_no_other() {
    let mut echoes: Vec<_> = (0..10).map(|_| Echo::start()).collect();
    let list = echoes.iter().map(|echo| Instance::new("echo", echo.address())).collect();
    let channel = BalancedChannel::from_instances("echo", stream::iter([list])).build().expect("the options are good");
    let all_ready = async {
        let mut changes = channel.instance_changes();
        while let Some(all) = changes.next().await {
            if all.len() == 10 && all.iter().all(|status| status.state() == Connectivity::Ready) {
                return;
            }
        }
    };
    tokio::time::timeout(super::peers::LIMIT, all_ready).await.expect("all are READY");
    for echo in &echoes {
        echo.hold(true);
    }
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let mut client = EchoClient::new(channel.clone());
            tokio::spawn(async move { client.unary_echo(EchoRequest { message: "x".into() }).await.is_err() })
        })
        .collect();
    while echoes.iter().map(|echo| echo.calls().get()).sum::<usize>() < 40 {
        tokio::task::yield_now().await;
    }
    let held: usize = echoes[..5].iter().map(|echo| echo.calls().get()).sum();
    for echo in &mut echoes[..5] {
        echo.kill().await;
    }
    for echo in &echoes[5..] {
        echo.hold(false);
    }
    let mut failed = 0;
    for call in calls {
        failed += usize::from(call.await.expect("the call does not panic"));
    }
    assert_eq!(failed, held, "those that the killed servers had are lost, and no other");
    assert_eq!(failed_of_a_thousand(&EchoClient::new(channel)).await, 0, "later calls do not meet them");
}

/// A call every two milliseconds for so long, each with half a second of time.
async fn load(rig: &Rig, time: Duration, mut at: impl FnMut(Duration)) -> Vec<Call> {
    let begin = Instant::now();
    let mut calls = Vec::new();
    while begin.elapsed() < time {
        calls.push(rig.call_within(SECOND / 2));
        sleep_until(begin + u32::try_from(calls.len()).expect("few calls") * Duration::from_millis(2)).await;
        at(begin.elapsed());
    }
    calls
}

/// Ten peers that take so long for a call.
async fn ten_peers(rig: &Rig, delay: Duration) -> [Peer; 10] {
    let peers = rig.network.peers::<10>(1);
    for peer in &peers {
        peer.delay(delay);
    }
    rig.serve(&peers.each_ref()).await;
    peers
}

async fn failed(calls: Vec<Call>, code: Code) -> usize {
    let mut failed = 0;
    for call in calls {
        if let Err(status) = ends(call).await {
            assert_eq!(status.code(), code, "{status:?}");
            failed += 1;
        }
    }
    failed
}

/// What one of ten costs that stops to answer after a second: how many calls fail, the most that were in flight on it,
/// and how many of those that began later than its silence shows.
struct Toll {
    failed: usize,
    in_flight: usize,
    late: usize,
}

impl Toll {
    async fn of(rig: &Rig, delay: Duration, stop: impl Fn(&Peer)) -> (Self, Peer) {
        let [stopped, ..] = ten_peers(rig, delay).await;
        let (mut in_flight, mut known_from, mut number) = (0, None, 0);
        let mut calls = load(rig, 15 * SECOND, |passed| {
            number += 1;
            if passed > SECOND && known_from.is_none() {
                // A call each two milliseconds, and half a second until the first of them is overdue.
                known_from = Some(number + 260);
                stop(&stopped);
            }
            if known_from.is_none_or(|from| number < from) {
                in_flight = in_flight.max(rig.status(&stopped).in_flight() as usize);
            }
        })
        .await;
        let late = calls.split_off(known_from.expect("it stopped"));
        let late = failed(late, Code::DeadlineExceeded).await;
        (Self { failed: failed(calls, Code::DeadlineExceeded).await + late, in_flight, late }, stopped)
    }
}

#[tokio::test(start_paused = true)]
async fn when_one_of_ten_freezes_the_calls_in_flight_on_it_fail_and_none_later() {
    let rig = Rig::new();
    let (toll, frozen) = Toll::of(&rig, Duration::from_millis(50), |peer| peer.freeze(true)).await;
    let Toll { failed, in_flight, late } = toll;
    assert!((1..=in_flight).contains(&failed), "of 7,500 calls {failed} failed, and {in_flight} were in flight on it");
    assert_eq!(late, 0, "a ping is on its way to it, which costs no call");
    frozen.freeze(false);
    let answered = frozen.calls().get();
    for _ in 0..2_000 {
        _ = rig.answer().await;
        rest().await;
    }
    assert!(frozen.calls().get() > answered + 50, "it is back as soon as it answers");
}

#[tokio::test(start_paused = true)]
async fn when_one_of_ten_hangs_calls_that_were_in_flight_on_it_eject_it() {
    let rig = Rig::new();
    // It answers pings all the time; only its handlers hang, and new connections get no SETTINGS.
    let stop = |peer: &Peer| {
        peer.reply(Reply::Hold);
        peer.on_connect(OnConnect::Mute);
    };
    let (toll, hung) = Toll::of(&rig, Duration::from_millis(50), stop).await;
    let Toll { failed, in_flight, late } = toll;
    assert!(failed >= 3, "three have to fail before it is known: {failed}");
    // Two of those that were in flight count, or one where the others were sent before its last answer. The rest of
    // three are calls that try it again, a second apart.
    assert!(
        late <= 2 && failed <= in_flight + 2,
        "{failed} failed, {late} of them late, and {in_flight} were in flight"
    );
    assert!(hung.attempted().get() > 2, "it was probed meanwhile, twice over, without a call");
}

/// Why calls in flight alone do not eject an instance whose connection is heard: whether it hangs or stalled for a
/// while shows only in a call that comes later.
#[tokio::test(start_paused = true)]
async fn an_instance_that_stalls_until_all_its_calls_are_overdue_is_not_ejected() {
    for deadline in [150, 500, 900].map(Duration::from_millis) {
        let rig = Rig::new();
        let [stalled, ..] = ten_peers(&rig, Duration::from_millis(50)).await;
        let (begin, mut calls) = (Instant::now(), Vec::new());
        let until = SECOND + deadline + Duration::from_millis(200);
        let mut is_stalled = false;
        while begin.elapsed() < 5 * SECOND {
            calls.push(rig.call_within(deadline));
            rest().await;
            rest().await;
            if is_stalled != (SECOND..until).contains(&begin.elapsed()) {
                is_stalled = !is_stalled;
                stalled.reply(if is_stalled { Reply::Hold } else { Reply::Answer });
                stalled.release();
            }
            assert!(!rig.status(&stalled).is_ejected(), "{deadline:?}: after {:?}", begin.elapsed());
        }
        let failed = failed(calls, Code::DeadlineExceeded).await;
        assert!(failed >= 3, "{deadline:?}: enough failed in a row, {failed}, and the others were answered");
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_pauses_is_not_ejected() {
    for rig in [Rig::new(), Rig::with(|builder| builder.policy(WeightedRoundRobin::new()))] {
        let peers = rig.network.peers::<3>(1);
        rig.serve(&peers.each_ref()).await;
        for peer in &peers {
            peer.delay(Duration::from_millis(50));
        }
        let mut calls = Vec::new();
        for number in 0..3_000_u32 {
            calls.push(rig.call_within(Duration::from_millis(150)));
            rest().await;
            // Each second for 200 ms: the ping is answered before the calls are, which miss their deadlines.
            peers[0].freeze(number % 1_000 > 800);
            assert!(!rig.status(&peers[0]).is_ejected(), "it is healthy, and paused at {number}");
        }
        assert!(failed(calls, Code::DeadlineExceeded).await > 3, "more than three calls missed their deadlines");
    }
}

#[tokio::test(start_paused = true)]
async fn when_half_are_killed_only_calls_in_flight_on_them_fail_and_none_later() {
    let rig = Rig::new();
    let peers = ten_peers(&rig, Duration::from_millis(10)).await;
    let mut in_flight = None;
    let calls = load(&rig, 5 * SECOND, |passed| {
        if passed > SECOND && in_flight.is_none() {
            in_flight = Some(peers[..5].iter().map(|peer| rig.status(peer).in_flight() as usize).sum());
            peers[..5].iter().for_each(Peer::kill);
        }
    })
    .await;
    let (failed, in_flight) = (failed(calls, Code::Unavailable).await, in_flight.expect("they were killed"));
    assert!(failed <= in_flight, "{failed} failed, and {in_flight} were in flight on them");
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_answers_are_errors_is_not_taken_for_silent() {
    for code in [None, Some(Code::NotFound)] {
        let rig = Rig::new();
        let peers = rig.network.peers::<2>(1);
        rig.serve(&[&peers[0], &peers[1]]).await;
        for peer in &peers {
            peer.delay(Duration::from_millis(50));
        }
        if let Some(code) = code {
            peers[0].reply(Reply::Fail(code));
        }
        let mut calls = Vec::new();
        for _ in 0..2_000 {
            calls.push(rig.call());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for call in calls {
            let _ = ends(call).await;
        }
        let shares = [&peers[0], &peers[1]].map(|peer| peer.calls().get());
        assert!(shares[0] > 600, "{code:?} is an answer, and as fast: {shares:?}");
    }
}
