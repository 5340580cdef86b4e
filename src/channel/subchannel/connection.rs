//! A connection that calls are picked for, and the feedback that they give about its instance.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::shared::Shared;
use super::ticket::Ticket;
use crate::channel::outlier::{Outcome, OutlierDetection, Tally, Verdict};
use crate::channel::policy::load::Load;
use crate::channel::transport::Transport;
use crate::instance::Address;

/// The READY connection of an instance: its transport, the load on it, and the way back to the balancer.
#[derive(Debug)]
pub(crate) struct ReadyConnection<T = Transport> {
    transport: T,
    load: Arc<Load>,
    address: Address,
    ticket: Ticket,
    tally: Arc<Tally>,
    shared: Arc<Shared>,
    reports: Reports,
}

/// Where feedback goes, the same for all subchannels of a channel.
#[derive(Debug, Clone)]
pub(crate) struct Reports {
    pub(crate) outliers: Arc<OutlierDetection>,
    /// To the balancer. Bounded by what is reported: the end of each connection, a row of failures and a proof once
    /// each.
    pub(crate) events: mpsc::UnboundedSender<FeedbackEvent>,
}

/// News of one instance from its connections and calls. A ticket names the connection; a tally the calls that are
/// counted together.
#[derive(Debug)]
pub(crate) enum FeedbackEvent {
    /// A connection takes no more calls: it ended, or its server said GOAWAY.
    Ended { address: Address, ticket: Ticket, cause: Arc<str> },
    /// Calls failed in a row, or the first call on probation failed.
    Failing { address: Address, tally: Arc<Tally> },
    /// The first call on probation was answered.
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
        (tally, shared): (Arc<Tally>, Arc<Shared>),
        reports: Reports,
    ) -> Self {
        Self { transport, load, address, ticket, tally, shared, reports }
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

    /// Whether the instance has answered no call since the load had counted `answers`: neither on this connection, nor
    /// on the one that took its place.
    pub(crate) fn is_silent_since(&self, answers: u32) -> bool {
        let successor = self.shared.load().filter(|present| !Arc::ptr_eq(present, &self.load));
        self.load.answers() == answers && successor.is_none_or(|load| load.answers() == 0)
    }

    /// A call ended, other than by being given up. Returns whether that counts as a failure of the instance.
    pub(crate) fn on_outcome(&self, outcome: Outcome) -> bool {
        let Reports { outliers, .. } = &self.reports;
        let failed = outliers.is_failure(outcome);
        let (address, tally) = (|| self.address.clone(), || self.tally.clone());
        match self.tally.record(failed, outcome, outliers) {
            None => {}
            Some(Verdict::Failing) => self.report(FeedbackEvent::Failing { address: address(), tally: tally() }),
            Some(Verdict::Proved) => self.report(FeedbackEvent::Proved { address: address(), tally: tally() }),
        }
        failed
    }

    /// The connection takes no more calls, which nothing else will report.
    pub(crate) fn on_exhausted(&self, cause: Arc<str>) {
        self.load.quota().close();
        self.report(FeedbackEvent::Ended { address: self.address.clone(), ticket: self.ticket, cause });
    }

    fn report(&self, event: FeedbackEvent) {
        // Without a balancer the channel is gone, and so is everything that the event could change.
        let _ = self.reports.events.send(event);
    }
}
