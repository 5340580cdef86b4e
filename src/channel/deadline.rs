//! How long a call may take: from its `grpc-timeout` header or the channel's default, counted from the moment of the
//! call.

use std::future::poll_fn;
use std::ops::DerefMut;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::runtime::Handle as Runtime;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};

/// The header that carries a call's timeout.
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The longest timeout that is kept: thirty years stand for ever, and do not overflow a clock.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 86_400);

/// The end of a call's time, if it has one, and the timer for it, armed by the first wait.
///
/// Most bodies are there by the time they are looked at, so most of them never arm a timer.
#[derive(Debug, Default)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    timer: Option<Timer>,
}

/// A timer on the channel's runtime, for calls from anywhere: callers need no runtime, nor one with a clock.
#[derive(Debug)]
pub(crate) enum Timer {
    /// Polled in the channel's runtime alone.
    Here(Pin<Box<Sleep>>),
    /// Polled elsewhere: a task there sleeps. A timer that is polled after the end of its runtime panics.
    There(JoinHandle<()>),
    RanOut,
    /// Will never run out.
    Gone,
}

/// The channel's runtime ended, and its timers with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RuntimeGone;

impl Timer {
    pub(crate) fn new(at: Instant, runtime: &Runtime) -> Self {
        if is_current(runtime) {
            return Self::Here(Box::pin(tokio::time::sleep_until(at)));
        }
        Self::there(at, runtime)
    }

    fn there(at: Instant, runtime: &Runtime) -> Self {
        Self::There(runtime.spawn(async move { tokio::time::sleep_until(at).await }))
    }

    /// Whether it has run out. Registers the task to be woken then.
    ///
    /// A call may have moved to another runtime, or out of all of them, since it was polled the last time.
    pub(crate) fn poll(&mut self, runtime: &Runtime, cx: &mut Context<'_>) -> Poll<Result<(), RuntimeGone>> {
        if let Self::Here(sleep) = self
            && !is_current(runtime)
        {
            *self = Self::there(sleep.deadline(), runtime);
        }
        match self {
            Self::Here(sleep) => sleep.as_mut().poll(cx).map(Ok),
            Self::There(sleep) => {
                let slept = ready!(Pin::new(sleep).poll(cx));
                *self = if slept.is_ok() { Self::RanOut } else { Self::Gone };
                Poll::Ready(slept.map_err(|_| RuntimeGone))
            }
            Self::RanOut => Poll::Ready(Ok(())),
            Self::Gone => Poll::Ready(Err(RuntimeGone)),
        }
    }
}

fn is_current(runtime: &Runtime) -> bool {
    Runtime::try_current().is_ok_and(|here| here.id() == runtime.id())
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Self::There(sleep) = self {
            sleep.abort();
        }
    }
}

impl Deadline {
    /// The shorter one of the call's own timeout and the channel's default, from `now` on.
    pub(crate) fn new(own: Option<Duration>, default: Option<Duration>, now: Instant) -> Self {
        let timeout = match (own, default) {
            (Some(own), Some(default)) => Some(own.min(default)),
            (own, default) => own.or(default),
        };
        Self { at: timeout.map(|timeout| now + timeout.min(FOR_EVER)), timer: None }
    }

    /// The moment, if there is one.
    pub(crate) fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Whether the time is over.
    pub(crate) fn is_over(&self) -> bool {
        self.at.is_some_and(|at| Instant::now() >= at)
    }

    /// Whether the time is over, by a timer on the channel's runtime. Registers the task to be woken then.
    ///
    /// Without that runtime it is never over: connections and picks end with it, and say why.
    pub(crate) fn poll_missed(&mut self, runtime: &Runtime, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Timer::new(at, runtime));
        match ready!(timer.poll(runtime, cx)) {
            Ok(()) => Poll::Ready(()),
            Err(RuntimeGone) => Poll::Pending,
        }
    }
}

/// The output of `future`; `None` where the deadline comes first.
pub(crate) async fn within<F: Future>(
    deadline: &mut Deadline,
    runtime: &Runtime,
    mut future: Pin<impl DerefMut<Target = F>>,
) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => deadline.poll_missed(runtime, cx).map(|()| None),
    })
    .await
}

/// Reads a `grpc-timeout` header. One that is not well formed is no deadline; the server will say what it thinks of it.
pub(crate) fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let (&unit, digits) = headers.get(GRPC_TIMEOUT)?.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0_u64, |value, digit| value * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(value * 3600)),
        b'M' => Some(Duration::from_secs(value * 60)),
        b'S' => Some(Duration::from_secs(value)),
        b'm' => Some(Duration::from_millis(value)),
        b'u' => Some(Duration::from_micros(value)),
        b'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// A timeout as the header wants it: at most eight digits, in the finest unit that holds it, rounded up.
pub(crate) fn timeout_header(timeout: Duration) -> HeaderValue {
    const LARGEST: u128 = 99_999_999;
    let nanos = timeout.as_nanos();
    let units = [('n', 1), ('u', 1_000), ('m', 1_000_000), ('S', 1_000_000_000), ('M', 60_000_000_000)];
    let fits = units.into_iter().find(|(_, size)| nanos.div_ceil(*size) <= LARGEST);
    let (unit, size) = fits.unwrap_or(('H', 3_600_000_000_000));
    let text = format!("{}{unit}", nanos.div_ceil(size).min(LARGEST));
    HeaderValue::try_from(text).expect("digits and a letter are a header's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(GRPC_TIMEOUT, HeaderValue::from_str(value).expect("a header's value"));
        timeout_of(&headers)
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(read("7000000u"), Some(Duration::from_secs(7)));
        assert_eq!(read("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(read("2M"), Some(Duration::from_secs(120)));
        assert_eq!(read("3S"), Some(Duration::from_secs(3)));
        assert_eq!(read("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(read("5n"), Some(Duration::from_nanos(5)));
        for bad in ["", "S", "1", "-1S", "1.5S", "123456789S", "1s", "1 S"] {
            assert_eq!(read(bad), None, "{bad:?} is no timeout");
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_never_shorter() {
        for timeout in [
            Duration::ZERO,
            Duration::from_nanos(1),
            Duration::from_nanos(123_456_789),
            Duration::from_millis(1_500),
            Duration::from_secs(86_400),
            Duration::from_secs(10_000_000_000),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(GRPC_TIMEOUT, timeout_header(timeout));
            let back = timeout_of(&headers).expect("it was just written");
            assert!(back >= timeout, "{timeout:?} came back as {back:?}");
            assert!(back.as_secs_f64() <= timeout.as_secs_f64() * 1.001 + 1e-9, "{timeout:?} came back as {back:?}");
        }
    }

    #[test]
    fn a_timer_that_moves_out_of_its_runtime_outlives_it() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build();
        let runtime = runtime.expect("a runtime");
        let handle = runtime.handle().clone();
        let mut timer = runtime.block_on(async {
            let mut timer = Timer::new(Instant::now() + Duration::from_secs(3_600), &handle);
            let polled = std::future::poll_fn(|cx| Poll::Ready(timer.poll(&handle, cx))).await;
            assert!(polled.is_pending(), "it has an hour");
            timer
        });
        let mut task = tokio_test::task::spawn(());
        assert!(task.enter(|cx, _| timer.poll(&handle, cx)).is_pending(), "here as well");
        drop(runtime);
        assert!(task.is_woken(), "the end of its runtime is told");
        assert_eq!(task.enter(|cx, _| timer.poll(&handle, cx)), Poll::Ready(Err(RuntimeGone)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_shorter_of_both_timeouts_counts() {
        let now = Instant::now();
        let (long, short) = (Duration::from_secs(2), Duration::from_secs(1));
        assert_eq!(Deadline::new(Some(long), Some(short), now).at(), Some(now + short));
        assert_eq!(Deadline::new(None, Some(long), now).at(), Some(now + long));
        assert_eq!(Deadline::new(None, None, now).at(), None);
        assert!(Deadline::new(Some(Duration::MAX), None, now).at().is_some(), "no overflow");
        let mut deadline = Deadline::new(Some(short), None, now);
        let runtime = Runtime::current();
        std::future::poll_fn(|cx| deadline.poll_missed(&runtime, cx)).await;
        assert_eq!(now.elapsed(), short);
    }
}
