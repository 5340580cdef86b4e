//! Pings on one connection: whether a silent peer is still there, and how wide a window its data wants.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep_until};

use super::socket::{Socket, Traffic};

/// What a connection is pinged for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PingConfig {
    /// How long the peer may be silent before it is asked for a sign of life; `None` for ever.
    pub(crate) interval: Option<Duration>,
    /// How long that may take.
    pub(crate) timeout: Duration,
    /// Whether it is asked also while no call is open.
    pub(crate) while_idle: bool,
    /// What the windows are at first, where they adapt to what the peer sends.
    pub(crate) adaptive_window: Option<u32>,
}

/// The pings of one connection. One is on its way at a time.
pub(crate) struct Pings {
    ping_pong: Option<PingPong>,
    /// When the one on its way was sent.
    sent: Option<Instant>,
    keep_alive: Option<KeepAlive>,
    window: Option<Window>,
    /// What streams are still to be widened to.
    widen_to: Option<u32>,
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
            keep_alive: config.interval.map(|interval| KeepAlive::new(interval, config)),
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
        has_calls: bool,
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
        let asks = match &mut self.keep_alive {
            Some(keep_alive) => keep_alive.poll(traffic.bytes > 0, has_calls, cx)?,
            None => false,
        };
        if self.sent.is_none() && (asks || self.window.as_ref().is_some_and(Window::wants_to_measure)) {
            self.send(cx);
        }
        Ok(())
    }

    /// How long the ping on its way took, once it was answered.
    fn poll_round_trip(&mut self, cx: &mut Context<'_>) -> Option<Duration> {
        let (sent, ping_pong) = (self.sent?, self.ping_pong.as_mut()?);
        // An error means that the connection is at its end, which shows by itself.
        let Poll::Ready(Ok(_)) = ping_pong.poll_pong(cx) else { return None };
        self.sent = None;
        Some(sent.elapsed())
    }

    fn send(&mut self, cx: &mut Context<'_>) {
        let Some(ping_pong) = &mut self.ping_pong else { return };
        if ping_pong.send_ping(Ping::opaque()).is_err() {
            return;
        }
        self.sent = Some(Instant::now());
        if let Some(window) = &mut self.window {
            window.begin();
        }
        // Registers the task for the answer; there is none yet.
        let _ = ping_pong.poll_pong(cx);
    }
}

/// Asks a silent peer for a sign of life: anything that it sends is one.
struct KeepAlive {
    interval: Duration,
    timeout: Duration,
    while_idle: bool,
    /// When something came from the peer the last time.
    heard: Instant,
    /// Whether the peer was asked and has sent nothing since.
    is_asked: bool,
    timer: Pin<Box<Sleep>>,
}

impl KeepAlive {
    fn new(interval: Duration, config: PingConfig) -> Self {
        let heard = Instant::now();
        Self {
            interval,
            timeout: config.timeout,
            while_idle: config.while_idle,
            heard,
            is_asked: false,
            timer: Box::pin(sleep_until(heard + interval)),
        }
    }

    /// Whether to ask the peer now.
    fn poll(&mut self, heard: bool, has_calls: bool, cx: &mut Context<'_>) -> Result<bool, Silent> {
        if heard {
            self.heard = Instant::now();
            if std::mem::take(&mut self.is_asked) {
                self.timer.as_mut().reset(self.heard + self.interval);
            }
        }
        let mut asks = false;
        // The timer is not moved by everything that is heard: it looks when it runs out.
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let next = if self.is_asked {
                return Err(Silent);
            } else if now < self.heard + self.interval {
                self.heard + self.interval
            } else if has_calls || self.while_idle {
                self.is_asked = true;
                asks = true;
                now + self.timeout
            } else {
                now + self.interval
            };
            self.timer.as_mut().reset(next);
        }
        Ok(asks)
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

    fn wants_to_measure(&self) -> bool {
        self.has_news && !self.is_measuring && self.width < WIDEST && Instant::now() >= self.not_before
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

/// What a gigabit fills in 130 ms; gRPC's limit as well.
const WIDEST: u32 = 16 * 1024 * 1024;

/// Between two measurements while the window is wide enough: doubling, since a ping costs both sides something.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use tokio_test::task::spawn;

    use super::*;

    const CONFIG: PingConfig =
        PingConfig { interval: None, timeout: Duration::from_secs(5), while_idle: false, adaptive_window: None };

    fn keep_alive(while_idle: bool) -> KeepAlive {
        KeepAlive::new(Duration::from_secs(10), PingConfig { while_idle, ..CONFIG })
    }

    /// Polls the keepalive once, in `seconds`.
    async fn after(seconds: u64, keep_alive: &mut KeepAlive, heard: bool, has_calls: bool) -> Result<bool, Silent> {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        spawn(()).enter(|cx, _| keep_alive.poll(heard, has_calls, cx))
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_is_asked_once_an_interval_of_silence() {
        let mut alive = keep_alive(false);
        assert_eq!(after(9, &mut alive, false, true).await, Ok(false), "not before the interval");
        assert_eq!(after(2, &mut alive, false, true).await, Ok(true), "after it");
        assert_eq!(after(4, &mut alive, true, true).await, Ok(false), "it answers");
        assert_eq!(after(9, &mut alive, false, true).await, Ok(false), "and has another interval");
        assert_eq!(after(2, &mut alive, false, true).await, Ok(true), "after that it is asked again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_heard_puts_the_question_off() {
        let mut alive = keep_alive(false);
        assert_eq!(after(8, &mut alive, true, true).await, Ok(false));
        assert_eq!(after(9, &mut alive, false, true).await, Ok(false), "nine seconds of silence are no ten");
        assert_eq!(after(2, &mut alive, false, true).await, Ok(true), "eleven are");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_answer_is_given_up_after_the_timeout() {
        let mut alive = keep_alive(false);
        assert_eq!(after(11, &mut alive, false, true).await, Ok(true));
        assert_eq!(after(4, &mut alive, false, true).await, Ok(false), "it has five seconds");
        assert_eq!(after(2, &mut alive, false, true).await, Err(Silent));
    }

    #[tokio::test(start_paused = true)]
    async fn without_calls_no_ping_is_sent_unless_configured() {
        let mut alive = keep_alive(false);
        assert_eq!(after(100, &mut alive, false, false).await, Ok(false), "an idle connection is left alone");
        assert_eq!(after(11, &mut alive, false, true).await, Ok(true), "one with a call is not");
        let mut alive = keep_alive(true);
        assert_eq!(after(11, &mut alive, false, false).await, Ok(true), "nor one that is to be kept");
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_grows_to_what_a_round_trip_brings_and_no_further() {
        let mut window = Window::new(60_000);
        assert!(!window.wants_to_measure(), "nothing came yet");
        window.read(1);
        assert!(window.wants_to_measure(), "something did");
        window.begin();
        assert!(!window.wants_to_measure(), "one measurement at a time");
        window.read(50_000);
        assert_eq!(window.measured(Duration::from_millis(10)), Some(100_000), "it was nearly full: twice what came");
        window.read(1);
        assert!(window.wants_to_measure(), "growing goes on at once");
        window.begin();
        window.read(30_000);
        assert_eq!(window.measured(Duration::from_millis(10)), None, "it was not full");
        window.read(1);
        assert!(!window.wants_to_measure(), "a pause follows");
        tokio::time::advance(FIRST_PAUSE * 2).await;
        assert!(window.wants_to_measure(), "and ends");
        window.begin();
        window.read(usize::MAX / 2);
        assert_eq!(window.measured(Duration::from_millis(10)), Some(WIDEST), "there is an end to it");
        window.read(1);
        assert!(!window.wants_to_measure(), "the widest is wide enough");
    }
}
