//! Pings on one connection: whether a silent peer is still there, and how wide a window its data wants.

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::{Ping, PingPong};
use tokio::time::Instant;

use super::alarm::Alarm;
use super::socket::{Socket, Traffic};
use super::uplink::Way;

/// What a connection is pinged for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PingConfig {
    /// How long the peer may be silent before it is asked for a sign of life; `None` leaves that to suspicion.
    pub(crate) interval: Option<Duration>,
    /// How long that may take.
    pub(crate) timeout: Duration,
    /// Whether it is asked also while nothing waits for it.
    pub(crate) while_idle: bool,
    /// What the windows are at first, where they adapt to what the peer sends.
    pub(crate) adaptive_window: Option<u32>,
}

/// The pings of one connection. One is on its way at a time.
pub(crate) struct Pings {
    ping_pong: Option<PingPong>,
    /// When the one on its way was sent.
    sent: Option<Instant>,
    keep_alive: KeepAlive,
    window: Option<Window>,
    /// What streams are still to be widened to.
    widen_to: Option<u32>,
}

/// Why a sign of life of the peer is of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Nothing waits for the peer.
    Idle,
    /// Calls are open, or something of a call was written since the peer was heard.
    Waiting,
    /// There is reason to doubt that the peer is there.
    Suspicion { has_calls: bool },
}

/// The peer gave no sign of life in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Silent;

type Connection = h2::client::Connection<Socket, Bytes>;

impl Pings {
    pub(crate) fn new(connection: &mut Connection, config: PingConfig) -> Self {
        Self {
            ping_pong: connection.ping_pong(),
            sent: None,
            keep_alive: KeepAlive::new(config),
            window: config.adaptive_window.map(Window::new),
            widen_to: None,
        }
    }

    /// Does what is due after this traffic, and has the task woken for what is due next.
    ///
    /// # Errors
    ///
    /// [`Silent`], where the connection is to be given up.
    pub(crate) fn poll(
        &mut self,
        connection: &mut Connection,
        traffic: Traffic,
        interest: Interest,
        way: Way,
        cx: &mut Context<'_>,
    ) -> Result<(), Silent> {
        if let Some(window) = &mut self.window {
            window.read(traffic.data);
        }
        if let Some(round_trip) = self.poll_round_trip(cx)
            && let Some(width) = self.window.as_mut().and_then(|window| window.measured(round_trip))
        {
            self.widen_to = Some(width);
        }
        // Refused while the peer has not confirmed the change before, which it does with the next bytes it sends.
        if let Some(width) = self.widen_to
            && connection.set_initial_window_size(width).is_ok()
        {
            self.widen_to = None;
            // The change is written at the next poll.
            cx.waker().wake_by_ref();
        }
        let asks = self.keep_alive.poll(traffic, interest, way, cx)?;
        if self.sent.is_none()
            && !way.is_blocked()
            && (asks || self.window.as_ref().is_some_and(|window| window.wants_to_measure(self.keep_alive.heard)))
        {
            self.send(asks, cx);
        }
        Ok(())
    }

    /// Whether the peer was asked for a sign of life and has given none yet.
    pub(crate) fn is_asking(&self) -> bool {
        self.keep_alive.is_asking()
    }

    /// How long the ping on its way took, once it was answered.
    fn poll_round_trip(&mut self, cx: &mut Context<'_>) -> Option<Duration> {
        let (sent, ping_pong) = (self.sent?, self.ping_pong.as_mut()?);
        // An error means that the connection is at its end, which shows by itself.
        let Poll::Ready(Ok(_)) = ping_pong.poll_pong(cx) else { return None };
        self.sent = None;
        Some(sent.elapsed())
    }

    fn send(&mut self, asks: bool, cx: &mut Context<'_>) {
        let Some(ping_pong) = &mut self.ping_pong else { return };
        if ping_pong.send_ping(Ping::opaque()).is_err() {
            return;
        }
        let now = Instant::now();
        self.sent = Some(now);
        if asks {
            self.keep_alive.on_sent(now);
        }
        if let Some(window) = &mut self.window {
            window.begin();
        }
        // Registers the task for the answer; there is none yet.
        let _ = ping_pong.poll_pong(cx);
    }
}

/// Asks a silent peer for a sign of life: anything that it sends is one.
struct KeepAlive {
    config: PingConfig,
    /// When something came from the peer the last time.
    heard: Instant,
    phase: Phase,
    /// For what the phase waits.
    timer: Alarm,
    /// When the peer was asked, unless frames of calls came from it since. Pings that measure do not count: those
    /// frames bring them about, one at most each time.
    idle_ping: Option<Instant>,
}

/// What is due next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A look at whether the peer was silent for an interval.
    Listening,
    /// Nothing. It was silent for that long, or there is no interval, and nothing waited for it.
    Dormant,
    /// The end of the connection, unless the peer, which was asked, is heard before.
    Asked,
    /// The end as well, unless the blocked socket takes bytes, and with them the ping, or the peer is heard before.
    Held,
}

impl KeepAlive {
    fn new(config: PingConfig) -> Self {
        let heard = Instant::now();
        let timer = Alarm::new(heard);
        let mut new = Self { config, heard, phase: Phase::Dormant, timer, idle_ping: None };
        new.listen();
        new
    }

    /// Whether to ask the peer now.
    fn poll(&mut self, traffic: Traffic, interest: Interest, way: Way, cx: &mut Context<'_>) -> Result<bool, Silent> {
        if traffic.is_of_calls {
            self.idle_ping = None;
        }
        if traffic.bytes > 0 {
            self.heard = Instant::now();
            // A timer that runs is not moved by everything that is heard: it looks when it runs out.
            if self.phase != Phase::Listening {
                self.listen();
            }
        }
        let mut asks = match (self.phase, interest) {
            (Phase::Held, _) => !way.is_blocked(),
            (Phase::Listening, Interest::Suspicion { has_calls }) => self.may_suspect(has_calls),
            (Phase::Asked | Phase::Listening, _) | (Phase::Dormant, Interest::Idle) => false,
            // The interval has passed, if there is one.
            (Phase::Dormant, Interest::Waiting) => self.config.interval.is_some(),
            (Phase::Dormant, Interest::Suspicion { has_calls }) => {
                self.config.interval.is_some() || self.may_suspect(has_calls)
            }
        };
        // What the socket takes tells no more than that the peer's end is there, and may keep an answer waiting.
        if asks || self.is_asking() && matches!(way, Way::Moved { .. }) {
            self.ask(way);
            asks &= self.phase == Phase::Asked;
        }
        while self.phase != Phase::Dormant && self.timer.poll(cx).is_ready() {
            if self.is_asking() {
                return Err(Silent);
            }
            let due = self.config.interval.map(|interval| self.heard + interval);
            if let Some(due) = due.filter(|due| Instant::now() < *due) {
                self.timer.reset(due);
            } else if interest != Interest::Idle || self.config.while_idle {
                self.ask(way);
                asks = self.phase == Phase::Asked;
            } else {
                self.phase = Phase::Dormant;
            }
        }
        Ok(asks)
    }

    fn on_sent(&mut self, now: Instant) {
        self.idle_ping = Some(now);
    }

    fn listen(&mut self) {
        self.phase = Phase::Dormant;
        if let Some(interval) = self.config.interval {
            self.phase = Phase::Listening;
            self.timer.reset(self.heard + interval);
        }
    }

    /// Has the peer asked, or the ping wait for the socket: nothing is read while h2 cannot write a ping.
    fn ask(&mut self, way: Way) {
        self.phase = if way.is_blocked() && self.phase != Phase::Asked { Phase::Held } else { Phase::Asked };
        self.timer.reset(Instant::now() + self.config.timeout);
    }

    fn is_asking(&self) -> bool {
        matches!(self.phase, Phase::Asked | Phase::Held)
    }

    /// Whether a peer may be asked out of its turn without taking it for abuse.
    fn may_suspect(&self, has_calls: bool) -> bool {
        let shortest = if has_calls { SUSPICION_PAUSE } else { SUSPICION_PAUSE_WITHOUT_CALLS };
        let is_allowed = has_calls || self.config.while_idle;
        let pause = self.config.interval.filter(|_| is_allowed).map_or(shortest, |interval| interval.min(shortest));
        self.idle_ping.is_none_or(|sent| sent.elapsed() >= pause)
    }
}

/// Widens the windows to what arrives within a round trip, as gRPC does: with less, the peer waits for us.
struct Window {
    width: u32,
    /// What came since the ping on its way was sent.
    arrived: usize,
    is_measuring: bool,
    /// Whether data came since the last measurement.
    has_news: bool,
    /// A moving average, in seconds.
    round_trip: Option<f64>,
    /// The most that came, in bytes a second.
    best: f64,
    pause: Duration,
    not_before: Instant,
}

impl Window {
    fn new(width: u32) -> Self {
        Self {
            width,
            arrived: 0,
            is_measuring: false,
            has_news: false,
            round_trip: None,
            best: 0.0,
            pause: FIRST_PAUSE,
            not_before: Instant::now(),
        }
    }

    fn read(&mut self, bytes: usize) {
        self.has_news |= bytes > 0;
        if self.is_measuring {
            self.arrived += bytes;
        }
    }

    /// Whether to send a ping for it. `heard` is when the peer was heard last.
    fn wants_to_measure(&self, heard: Instant) -> bool {
        self.has_news && !self.is_measuring && self.width < WIDEST && heard >= self.not_before
    }

    fn begin(&mut self) {
        (self.arrived, self.is_measuring, self.has_news) = (0, true, false);
    }

    /// The new width, if the windows are to be widened.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn measured(&mut self, round_trip: Duration) -> Option<u32> {
        self.is_measuring = false;
        let sample = round_trip.as_secs_f64().max(1e-6);
        let average = self.round_trip.map_or(sample, |average| average + (sample - average) / 8.0);
        self.round_trip = Some(average);
        // A ping that waited behind data took longer than the peer does.
        let rate = self.arrived as f64 / (average * 1.5);
        let arrived = u32::try_from(self.arrived).unwrap_or(u32::MAX);
        if rate <= self.best || arrived < self.width / 3 * 2 {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            self.not_before = Instant::now() + self.pause;
            return None;
        }
        self.best = rate;
        (self.pause, self.not_before) = (FIRST_PAUSE, Instant::now());
        self.width = arrived.saturating_mul(2).min(WIDEST);
        Some(self.width)
    }
}

/// Between a ping and one of suspicion, on a connection that has brought nothing of a call since: gRPC servers
/// (grpc-go, C++) close a connection at the third ping that comes sooner. A shorter interval says that these servers
/// allow that.
const SUSPICION_PAUSE: Duration = Duration::from_secs(5 * 60);

/// As long as no call is open, these servers allow a ping in two hours.
const SUSPICION_PAUSE_WITHOUT_CALLS: Duration = Duration::from_secs(2 * 60 * 60);

/// What a gigabit fills in 130 ms; gRPC's limit as well.
const WIDEST: u32 = 16 * 1024 * 1024;

/// Between two measurements while the window is wide enough: doubling, since a ping costs both sides something.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use tokio_test::task::spawn;

    use super::*;

    use Interest::{Idle, Waiting};

    /// With calls open.
    const SUSPICION: Interest = Interest::Suspicion { has_calls: true };

    const CONFIG: PingConfig = PingConfig {
        interval: Some(Duration::from_secs(10)),
        timeout: Duration::from_secs(5),
        while_idle: false,
        adaptive_window: None,
    };

    const NOTHING: Traffic = Traffic { bytes: 0, data: 0, is_of_calls: false };
    const A_PONG: Traffic = Traffic { bytes: 17, data: 0, is_of_calls: false };
    const AN_ANSWER: Traffic = Traffic { bytes: 50, data: 9, is_of_calls: true };

    /// Polls the keepalive once, in `seconds`. What it asks for is sent.
    async fn after(
        seconds: u64,
        keep_alive: &mut KeepAlive,
        traffic: Traffic,
        interest: Interest,
    ) -> Result<bool, Silent> {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        let asks = spawn(()).enter(|cx, _| keep_alive.poll(traffic, interest, Way::Clear, cx));
        if asks == Ok(true) {
            keep_alive.on_sent(Instant::now());
        }
        asks
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_is_asked_once_an_interval_of_silence() {
        let mut alive = KeepAlive::new(CONFIG);
        assert_eq!(after(9, &mut alive, NOTHING, Waiting).await, Ok(false), "not before the interval");
        assert_eq!(after(2, &mut alive, NOTHING, Waiting).await, Ok(true), "after it");
        assert_eq!(after(4, &mut alive, A_PONG, Waiting).await, Ok(false), "it answers");
        assert_eq!(after(9, &mut alive, NOTHING, Waiting).await, Ok(false), "and has another interval");
        assert_eq!(after(2, &mut alive, NOTHING, Waiting).await, Ok(true), "after that it is asked again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_heard_puts_the_question_off() {
        let mut alive = KeepAlive::new(CONFIG);
        assert_eq!(after(8, &mut alive, AN_ANSWER, Waiting).await, Ok(false));
        assert_eq!(after(9, &mut alive, NOTHING, Waiting).await, Ok(false), "nine seconds of silence are no ten");
        assert_eq!(after(2, &mut alive, NOTHING, Waiting).await, Ok(true), "eleven are");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_answer_is_given_up_after_the_timeout() {
        let mut alive = KeepAlive::new(CONFIG);
        assert_eq!(after(11, &mut alive, NOTHING, Waiting).await, Ok(true));
        assert_eq!(after(4, &mut alive, NOTHING, Waiting).await, Ok(false), "it has five seconds");
        assert_eq!(after(2, &mut alive, NOTHING, Waiting).await, Err(Silent));
    }

    #[tokio::test(start_paused = true)]
    async fn while_nothing_waits_no_ping_is_sent_unless_configured() {
        let mut alive = KeepAlive::new(CONFIG);
        assert_eq!(after(100, &mut alive, NOTHING, Idle).await, Ok(false), "an idle connection is left alone");
        assert_eq!(after(1, &mut alive, NOTHING, Waiting).await, Ok(true), "a call after that long a silence asks");
        let mut alive = KeepAlive::new(PingConfig { while_idle: true, ..CONFIG });
        assert_eq!(after(11, &mut alive, NOTHING, Idle).await, Ok(true), "and a connection that is to be kept");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_that_is_heard_has_another_interval() {
        let mut alive = KeepAlive::new(CONFIG);
        assert_eq!(after(100, &mut alive, NOTHING, Idle).await, Ok(false));
        assert_eq!(after(1, &mut alive, A_PONG, Idle).await, Ok(false));
        assert_eq!(after(9, &mut alive, NOTHING, Waiting).await, Ok(false), "it was heard nine seconds ago");
        assert_eq!(after(2, &mut alive, NOTHING, Waiting).await, Ok(true), "eleven are too long");
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspicion_asks_at_once_and_ends_a_silent_connection() {
        for interval in [CONFIG.interval, None] {
            let mut alive = KeepAlive::new(PingConfig { interval, ..CONFIG });
            assert_eq!(after(1, &mut alive, NOTHING, SUSPICION).await, Ok(true), "at once, with {interval:?}");
            assert_eq!(after(1, &mut alive, NOTHING, SUSPICION).await, Ok(false), "once a silence");
            assert_eq!(after(5, &mut alive, NOTHING, Idle).await, Err(Silent), "and there is no answer");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn suspicions_ask_once_in_five_minutes_unless_a_call_was_answered() {
        let mut alive = KeepAlive::new(PingConfig { interval: None, ..CONFIG });
        let mut asked = 0;
        for _ in 0..3_600 {
            let asks = after(1, &mut alive, A_PONG, SUSPICION).await.expect("the peer answers");
            asked += u32::from(asks);
        }
        assert_eq!(asked, 12, "in an hour");
        assert_eq!(after(1, &mut alive, AN_ANSWER, SUSPICION).await, Ok(true), "a call was answered meanwhile");
        assert_eq!(after(1, &mut alive, A_PONG, SUSPICION).await, Ok(false), "and none since");
    }

    #[tokio::test(start_paused = true)]
    async fn suspicions_without_calls_ask_once_in_two_hours() {
        for (interval, while_idle, expected) in [(None, false, 2), (Some(600), false, 2), (Some(600), true, 24)] {
            let interval = interval.map(Duration::from_secs);
            let mut alive = KeepAlive::new(PingConfig { interval, while_idle, ..CONFIG });
            let mut asked = 0;
            for _ in 0..4 * 60 {
                let suspicion = Interest::Suspicion { has_calls: false };
                let asks = after(60, &mut alive, A_PONG, suspicion).await.expect("the peer answers");
                asked += u32::from(asks);
            }
            assert_eq!(asked, expected, "in four hours, with {interval:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_ping_waits_for_a_blocked_socket_and_an_answer_as_long_as_it_moves() {
        let mut alive = KeepAlive::new(CONFIG);
        let mut poll = async |seconds, way| {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            spawn(()).enter(|cx, _| alive.poll(NOTHING, Waiting, way, cx))
        };
        let _ = poll(11, Way::Blocked).await;
        for _ in 0..10 {
            assert_eq!(poll(4, Way::Moved { is_blocked: true }).await, Ok(false), "it is held");
        }
        assert_eq!(poll(4, Way::Moved { is_blocked: false }).await, Ok(true), "it goes out");
        for _ in 0..10 {
            assert_eq!(poll(4, Way::Moved { is_blocked: true }).await, Ok(false), "it is on its way");
        }
        assert_eq!(poll(4, Way::Blocked).await, Ok(false));
        assert_eq!(poll(2, Way::Blocked).await, Err(Silent), "the socket took nothing for the timeout");
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_grows_to_what_a_round_trip_brings_and_no_further() {
        let mut window = Window::new(60_000);
        assert!(!window.wants_to_measure(Instant::now()), "nothing came yet");
        window.read(1);
        assert!(window.wants_to_measure(Instant::now()), "something did");
        window.begin();
        assert!(!window.wants_to_measure(Instant::now()), "one measurement at a time");
        window.read(50_000);
        assert_eq!(window.measured(Duration::from_millis(10)), Some(100_000), "it was nearly full: twice what came");
        window.read(1);
        assert!(window.wants_to_measure(Instant::now()), "growing goes on at once");
        window.begin();
        window.read(30_000);
        assert_eq!(window.measured(Duration::from_millis(10)), None, "it was not full");
        window.read(1);
        assert!(!window.wants_to_measure(Instant::now()), "a pause follows");
        tokio::time::advance(FIRST_PAUSE * 2).await;
        assert!(window.wants_to_measure(Instant::now()), "and ends");
        window.begin();
        window.read(usize::MAX / 2);
        assert_eq!(window.measured(Duration::from_millis(10)), Some(WIDEST), "there is an end to it");
        window.read(1);
        assert!(!window.wants_to_measure(Instant::now()), "the widest is wide enough");
    }
}
