//! A connection that calls are picked for, and the feedback that they give about its instance.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::end::{End, EndKind};
use super::ticket::Ticket;
use crate::channel::outlier::{EndedRow, Outcome, OutlierDetection, StatusOrigin, Tally, Verdict};
use crate::channel::policy::load::Load;
use crate::channel::transport::Transport;
use crate::instance::Address;
use crate::metrics::channel::ChannelMetrics;

/// The READY connection of an instance: its transport, the load on it, and the way back to the balancer.
#[derive(Debug)]
pub(crate) struct ReadyConnection<T = Transport> {
    transport: T,
    load: Arc<Load>,
    address: Address,
    ticket: Ticket,
    tally: Arc<Tally>,
    missed: Mutex<Option<Silence>>,
    reports: Reports,
}

/// A silence in which deadlines were missed.
#[derive(Debug, Clone, Copy)]
struct Silence {
    /// The latest one that counted.
    at: Instant,
    /// The bytes that had come on the connection by the first one; `None` once it was heard since.
    heard: Option<usize>,
}

/// Where feedback goes, the same for all subchannels of a channel.
#[derive(Debug, Clone)]
pub(crate) struct Reports {
    pub(crate) outliers: Arc<OutlierDetection>,
    /// To the balancer. Bounded by what is reported: the end of each connection and a proof once each, and each row of
    /// failures at its first missed deadline and at its end.
    pub(crate) events: mpsc::UnboundedSender<FeedbackEvent>,
    pub(crate) metrics: ChannelMetrics,
}

/// News of one instance from its connections and calls. A ticket names the connection; a tally the calls that are
/// counted together.
#[derive(Debug)]
pub(crate) enum FeedbackEvent {
    /// A connection takes no more calls: it ended, or its server said GOAWAY.
    Ended { address: Address, ticket: Ticket, end: End },
    /// A missed deadline is the first of a row.
    Suspected { address: Address, tally: Arc<Tally> },
    /// Calls failed in a row, or one on probation failed.
    Failing { address: Address, tally: Arc<Tally> },
    /// The first response on probation has begun.
    Proved { address: Address, tally: Arc<Tally> },
    /// The server ended a connection because it was pinged too often.
    TooManyPings { address: Address },
    /// The server behind a connection reported its health: serving, or why not.
    #[cfg(feature = "health")]
    Health { address: Address, ticket: Ticket, verdict: HealthVerdict },
}

/// Whether a server serves, or why that is not sure.
#[cfg(feature = "health")]
pub(crate) type HealthVerdict = Result<(), Arc<str>>;

impl<T> ReadyConnection<T> {
    pub(super) fn new(
        transport: T,
        load: Arc<Load>,
        (address, ticket): (Address, Ticket),
        tally: Arc<Tally>,
        reports: Reports,
    ) -> Self {
        Self { transport, load, address, ticket, tally, missed: Mutex::default(), reports }
    }

    pub(crate) fn transport(&self) -> &T {
        &self.transport
    }

    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The head of a gRPC response came, with a status that is no failure or without one: the instance takes calls.
    pub(crate) fn on_head(&self) -> EndedRow {
        let (verdict, ended) = self.tally.on_head();
        self.on_verdict(verdict);
        ended
    }

    /// A call ended, other than by being given up or with its connection. Returns whether that counts as a failure of
    /// the instance, which goes on with the `ended` row if the call's own head had ended one.
    pub(crate) fn on_outcome(&self, outcome: Outcome, ended: EndedRow) -> bool {
        let outliers = &self.reports.outliers;
        let failed = outliers.is_failure(outcome);
        if failed {
            self.tally.resume(ended, outliers);
        }
        self.on_verdict(self.tally.record(failed, outcome, outliers));
        failed
    }

    /// A deadline passed, whatever that proves.
    pub(crate) fn on_missed(&self) {
        self.tally.on_missed();
    }

    /// A call that was sent `at` missed its deadline in silence, and so many bytes had come on the connection by then.
    /// Returns whether that is a failure of the instance.
    ///
    /// All that are in flight in one short silence are one failure: the process may have paused. They are two where the
    /// connection was heard meanwhile, and not more, however many they are and whatever the other instances answer: a
    /// process that answers a ping may have paused a moment ago, and handlers may stall for a while behind answered
    /// pings. A hang differs from that only in what is sent after it, which counts again. A long silence is no pause:
    /// each counts, and as two in a row.
    pub(crate) fn on_silence(&self, at: Instant, now: Instant, heard: usize) -> bool {
        let (is_long, outliers) = (now - at >= LONG_SILENCE, &self.reports.outliers);
        let outcome = Outcome::new(tonic::Code::DeadlineExceeded, StatusOrigin::Missed);
        if !self.counts_silence(at, now, heard) || !outliers.is_failure(outcome) {
            return false;
        }
        let verdict =
            if is_long { self.tally.on_long_silence(outliers) } else { self.tally.record(true, outcome, outliers) };
        self.on_verdict(verdict);
        true
    }

    pub(super) fn counts_silence(&self, at: Instant, now: Instant, heard: usize) -> bool {
        let mut latest = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *latest {
            Some(silence) if at < silence.at && now - at < LONG_SILENCE => {
                let is_heard = silence.heard.take_if(|before| heard.wrapping_sub(*before).cast_signed() > 0).is_some();
                if !is_heard {
                    return false;
                }
                silence.at = now;
            }
            _ => *latest = Some(Silence { at: now, heard: Some(heard) }),
        }
        true
    }

    /// The connection takes no more calls, which nothing else will report.
    pub(crate) fn on_exhausted(&self, cause: Arc<str>) {
        self.load.quota().close();
        let end = End { kind: EndKind::Planned, cause };
        self.report(FeedbackEvent::Ended { address: self.address.clone(), ticket: self.ticket, end });
    }

    fn on_verdict(&self, verdict: Option<Verdict>) {
        let (address, tally) = (|| self.address.clone(), || self.tally.clone());
        match verdict {
            None => {}
            Some(Verdict::Suspected) => self.report(FeedbackEvent::Suspected { address: address(), tally: tally() }),
            Some(Verdict::Failing) => self.report(FeedbackEvent::Failing { address: address(), tally: tally() }),
            Some(Verdict::Proved) => self.report(FeedbackEvent::Proved { address: address(), tally: tally() }),
        }
    }

    fn report(&self, event: FeedbackEvent) {
        // Without a balancer the channel is gone, and so is everything that the event could change.
        let _ = self.reports.events.send(event);
    }
}

/// A silence that is no pause: garbage collectors, retransmissions and restarts of a leader are over sooner.
const LONG_SILENCE: Duration = Duration::from_secs(1);
