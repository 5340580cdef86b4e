//! In which order and for how long instances are dialled, and what their servers say to pings.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tower::util::service_fn;

use super::client::over;
use super::peers::{LIMIT, OnConnect, Peer};
use super::rig::{Rig, SECOND, ends, live, rest};
use crate::channel::{BalancedChannel, ChannelBuilder};
use crate::instance::Instance;

/// A list of mute peers, and a good one at the highest address, which is dialled last.
fn mute_and_good(rig: &Rig, mute: u16) -> (Vec<Peer>, Peer) {
    let peers: Vec<Peer> = (1..=mute).map(|port| rig.network.peer(port)).collect();
    for peer in &peers {
        peer.on_connect(OnConnect::Mute);
    }
    (peers, rig.network.peer(mute + 1))
}

#[tokio::test(start_paused = true)]
async fn a_good_instance_after_500_or_1000_mute_ones_is_ready_within_a_second() {
    for count in [500, 1_000] {
        let rig = Rig::new();
        let (mute, good) = mute_and_good(&rig, count);
        let start = Instant::now();
        rig.set_instances(mute.iter().chain([&good]).map(live));
        rig.wait_ready(&good).await;
        assert!(start.elapsed() <= SECOND, "after {count} mute ones it took {:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_joins_1000_mute_ones_is_ready_at_once() {
    let rig = Rig::new();
    let (mute, good) = mute_and_good(&rig, 1_000);
    rig.set_instances(mute.iter().map(live));
    sleep(25 * SECOND).await;
    let start = Instant::now();
    rig.set_instances(mute.iter().chain([&good]).map(live));
    rig.wait_ready(&good).await;
    assert!(start.elapsed() <= SECOND / 10, "it took {:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_good_connection_that_ends_among_1000_mute_ones_is_replaced_at_once() {
    let rig = Rig::new();
    let (mute, good) = mute_and_good(&rig, 1_000);
    rig.set_instances(mute.iter().chain([&good]).map(live));
    rig.wait_ready(&good).await;
    rig.answer().await.expect("one works");
    sleep(25 * SECOND).await;
    let start = Instant::now();
    good.go_away();
    good.attempted().reaches(2).await;
    assert!(start.elapsed() <= SECOND / 10, "it took {:?}", start.elapsed());
}

/// Attempts that are swallowed: how many began, and how many are under way.
#[derive(Clone, Default)]
struct Swallowed {
    began: Arc<AtomicUsize>,
    under_way: Arc<()>,
}

impl Swallowed {
    fn attempts(&self) -> usize {
        self.began.load(Ordering::Relaxed)
    }

    fn sockets(&self) -> usize {
        Arc::strong_count(&self.under_way) - 1
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_set_of_dead_instances_costs_is_bounded() {
    let swallowed = Swallowed::default();
    let (began, under_way) = (swallowed.began.clone(), Arc::downgrade(&swallowed.under_way));
    let connector = service_fn(move |_: http::Uri| {
        began.fetch_add(1, Ordering::Relaxed);
        let socket = under_way.upgrade();
        async move {
            let connected = std::future::pending::<std::io::Result<TokioIo<DuplexStream>>>().await;
            drop(socket);
            connected
        }
    });
    let dead = (1..=3_000).map(|port| Instance::new("echo", SocketAddr::from(([127, 0, 0, 1], port)))).collect();
    let builder = BalancedChannel::from_instances("echo", stream::iter([dead])).connector(connector);
    let _channel = builder.build().expect("the options are good");
    rest().await;
    assert_eq!((swallowed.sockets(), swallowed.attempts()), (32, 32), "at once");
    let (mut most_sockets, mut most_attempts) = (0, 0);
    for _ in 0..600 {
        let before = swallowed.attempts();
        sleep(SECOND / 10).await;
        most_sockets = most_sockets.max(swallowed.sockets());
        most_attempts = most_attempts.max(swallowed.attempts() - before);
    }
    assert!(most_sockets <= 1_024, "{most_sockets} sockets");
    assert!(most_attempts <= 160, "{most_attempts} attempts in a tenth of a second");
    assert!(swallowed.attempts() > 6_000, "{} attempts: they are tried again", swallowed.attempts());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_has_1_s_at_first_and_20_s_after_failures_unless_given() {
    let [growing, fixed] = [Rig::new(), Rig::with(|builder| builder.connect_timeout(SECOND))];
    for (rig, longest) in [(growing, 20 * SECOND), (fixed, SECOND)] {
        let peer = rig.network.peer(1);
        peer.on_connect(OnConnect::Mute);
        rig.set_instances([live(&peer)]);
        sleep(600 * SECOND).await;
        let gaps = peer.gaps();
        assert!(gaps[0] < SECOND * 5 / 4, "the first attempt has a second: {gaps:?}");
        let (tick, last) = (SECOND / 100, &gaps[10..]);
        assert!(
            last.iter().all(|gap| *gap >= longest && *gap <= longest + 10 * SECOND + tick),
            "{longest:?}: {gaps:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn callers_read_which_step_took_too_long_and_which_option_says_so() {
    let rig = Rig::new();
    let peer = rig.network.peer(1);
    peer.on_connect(OnConnect::Mute);
    rig.set_instances([live(&peer)]);
    let status = ends(rig.call()).await.expect_err("it never answers");
    let expected = "127.0.0.1:1: no HTTP/2 SETTINGS from the server within 1s (connect_timeout)";
    assert!(status.message().contains(expected), "{:?}", status.message());
}

/// The far ends of what a channel connects, one after the other.
type Wires = mpsc::UnboundedReceiver<DuplexStream>;

/// A channel to one instance, whose server is the test.
fn wired(options: impl FnOnce(ChannelBuilder) -> ChannelBuilder) -> (BalancedChannel, Wires) {
    let (hand_out, wires) = mpsc::unbounded_channel();
    let connector = service_fn(move |_: http::Uri| {
        let (near, far) = tokio::io::duplex(1 << 16);
        let sent = hand_out.send(far).map_err(|_| std::io::Error::other("the test is over"));
        std::future::ready(sent.map(|()| TokioIo::new(near)))
    });
    let builder = options(over([([127, 0, 0, 1], 1).into()]).connector(connector));
    (builder.build().expect("the options are good"), wires)
}

async fn next(wires: &mut Wires) -> DuplexStream {
    let mut far = tokio::time::timeout(LIMIT, wires.recv()).await.expect("it is dialled").expect("there is a channel");
    far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("SETTINGS are read");
    far
}

/// Reads until a ping comes.
async fn pinged(far: &mut DuplexStream) {
    let mut preface = [0; 24];
    far.read_exact(&mut preface).await.expect("the connection is open");
    loop {
        let mut head = [0; 9];
        far.read_exact(&mut head).await.expect("the connection is open");
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        far.read_exact(&mut payload).await.expect("the connection is open");
        if head[3] == 6 && head[4] == 0 {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn too_many_pings_doubles_the_interval_for_the_next_connections() {
    let (_channel, mut wires) = wired(|builder| {
        builder.http2_keep_alive_interval(10 * SECOND).keep_alive_timeout(60 * SECOND).keep_alive_while_idle(true)
    });
    for expected in [10, 20, 40] {
        let mut far = next(&mut wires).await;
        let start = Instant::now();
        pinged(&mut far).await;
        assert!(start.elapsed().abs_diff(expected * SECOND) < SECOND / 100, "after {:?}", start.elapsed());
        let goaway = [0, 0, 22, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];
        far.write_all(&[&goaway[..], b"too_many_pings"].concat()).await.expect("the connection is open");
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_stopped_doubts_its_connections() {
    let (channel, mut wires) = wired(|builder| builder.http2_keep_alive_interval(None));
    let _vanished = next(&mut wires).await;
    channel.ready().await.expect("the channel lives");
    sleep(SECOND).await;
    tokio::time::advance(60 * SECOND).await;
    let start = Instant::now();
    let _anew = next(&mut wires).await;
    assert!(start.elapsed() < 6 * SECOND, "the ping had five seconds, and this took {:?}", start.elapsed());
}
