//! What the clients saw, held against what was done.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tonic::Code;

use super::clients::{Failure, Reports, WRONG};
use super::journal::Fault;
use super::servers::{Done, GRACE};
use crate::support::figures;

/// What the clients saw.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Failed calls, by what explains them.
    calls: BTreeMap<&'static str, usize>,
    /// Failed streams, by what explains them.
    streams: BTreeMap<&'static str, usize>,
    /// What nothing explains.
    unexplained: Vec<String>,
    ejected_in_health: usize,
}

impl Verdict {
    pub(super) fn of(reports: &Reports, addresses: &[String]) -> Self {
        let (mut verdict, journal) = (Self::default(), &reports.journal);
        let at = |at: &Instant| format!("at {:.3} s", at.saturating_duration_since(journal.begin).as_secs_f64());
        for Failure { begin, end, status } in reports.calls.read() {
            let may = |fault: Fault| fault.may_cost(status.code());
            let fault = address_in(status.message(), addresses)
                .and_then(|address| journal.explanation(address, (begin, end), AFTERWARDS, may));
            match fault.filter(|_| status.code() != WRONG) {
                Some(fault) => *verdict.calls.entry(word(fault)).or_default() += 1,
                None => verdict.unexplained.push(format!("{} a call failed: {status}", at(&begin))),
            }
        }
        for Failure { begin, end, status } in reports.streams.read() {
            let address = address_in(status.message(), addresses).filter(|_| status.code() != WRONG);
            let fault = address.and_then(|address| journal.explanation(address, (begin, end), AFTERWARDS, |_| true));
            // It was open already when its connection announced its end.
            let is_old = end - begin + JITTER >= GRACE && status.code() == Code::Unavailable;
            match fault {
                Some(fault) => *verdict.streams.entry(word(fault)).or_default() += 1,
                None if address.is_some() && is_old => *verdict.streams.entry("planned").or_default() += 1,
                None => {
                    let (from, to) = (at(&begin), at(&end));
                    verdict.unexplained.push(format!("{from} a stream began that failed {to}: {status}"));
                }
            }
        }
        for removal in reports.removals.read() {
            if journal.explanation(&removal.address, (removal.at, removal.at), REMOVAL, |_| true).is_none() {
                verdict.unexplained.push(format!("{} {} was removed", at(&removal.at), removal.address));
            }
        }
        for ejection in reports.ejections.read() {
            let seen = (ejection.at, ejection.at);
            if journal.explanation(&ejection.address, seen, AFTERWARDS, Fault::may_eject).is_none() {
                verdict.ejected_in_health += 1;
                verdict.unexplained.push(format!("{} {} was ejected", at(&ejection.at), ejection.address));
            }
        }
        verdict
    }

    /// # Panics
    ///
    /// If anything is unexplained, or there is too much of anything.
    pub(super) fn hold(&self, reports: &Reports, done: &Done) {
        for line in &self.unexplained {
            reports.journal.note(format!("unexplained: {line}"));
        }
        let promise = "ejections of healthy servers under random faults";
        figures::at_most(promise, self.ejected_in_health, 0, "ejections");
        assert!(self.unexplained.is_empty(), "nothing was done that explains it: {:#?}", self.unexplained);

        let calls = |word| self.calls.get(word).copied().unwrap_or_default();
        // In flight on it, what was sent until that showed, and one each time that it is tried again.
        let promise = "calls that fail for each kill and freeze of one of eight servers, four clients";
        let failed = calls("killed") + calls("frozen");
        figures::at_most(promise, failed.div_ceil(done.killed_or_frozen.max(1)), 40, "calls");
        let promise = "calls that fail for each stranger at the address of one of eight servers, four clients";
        figures::at_most(promise, calls("replaced").div_ceil(done.replaced.max(1)), 40, "calls");
        // A third of its share, if it refused all that it gets.
        let promise = "of 1,000 calls those that one of eight servers sheds";
        figures::at_most(promise, (calls("sheds") * 1_000).div_ceil(done.calls_while_shedding.max(1)), 41, "calls");

        let promise = "a call with a deadline of 1 s ends under random faults";
        figures::within(promise, reports.longest_call(), Duration::from_secs(5));
        let promise = "a stream has an answer or its end under random faults";
        figures::within(promise, reports.longest_wait_of_streams(), Duration::from_secs(30));
        assert!(self.streams.contains_key("planned"), "connections ended as planned under streams");
        assert!(reports.streams_ended() > 0, "streams ended in order");
    }
}

fn address_in<'a>(message: &str, addresses: &'a [String]) -> Option<&'a String> {
    addresses.iter().find(|address| message.contains(*address))
}

fn word(fault: Fault) -> &'static str {
    match fault {
        Fault::Killed => "killed",
        Fault::Frozen => "frozen",
        Fault::Replaced => "replaced",
        Fault::Sheds => "sheds",
        Fault::Leaves => "leaves",
    }
}

/// For how long after a server is well again what clients see of it may be due to its fault: calls that it got before
/// miss their deadlines. An ejection may last longer, but does not begin again.
const AFTERWARDS: Duration = Duration::from_secs(10);

/// For how long after a server was disturbed its removal may be reported: its TTL, and the hold of a suspect.
const REMOVAL: Duration = Duration::from_secs(15 + 60);

/// How much earlier than at its grace a stream may seem to end: servers and clients have clocks of their own.
const JITTER: Duration = Duration::from_millis(500);
