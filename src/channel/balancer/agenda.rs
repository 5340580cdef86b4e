//! What is due later, in the order of its time.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::channel::subchannel::Wake;
use crate::instance::Address;

/// Timers of the balancer. None is ever taken back: what became pointless meanwhile changes nothing when it is due.
#[derive(Default)]
pub(super) struct Agenda {
    due: BTreeMap<(Instant, u64), Due>,
    /// Tells timers of one moment apart.
    next: u64,
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// An input of a subchannel.
    Wake(Address, Wake),
    /// The instances are compared.
    Sweep,
    /// Shares have grown.
    Growth,
    /// An instance that came back stands long enough to need no replacement.
    Settled,
    /// There may be news of why the first list of instances does not come.
    List,
    /// The first list of instances is overdue.
    FirstList,
    /// The process is asked whether it was stopped.
    Pulse,
}

impl Agenda {
    pub(super) fn add(&mut self, at: Instant, due: Due) {
        self.next += 1;
        self.due.insert((at, self.next), due);
    }

    /// When something is due next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first_key_value().map(|(&(at, _), _)| at)
    }

    /// Takes the first of what is due by `now`.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Due> {
        let first = self.due.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_due_comes_in_the_order_of_time_and_no_sooner() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        agenda.add(later, Due::Sweep);
        agenda.add(now, Due::Growth);
        agenda.add(now, Due::Settled);
        assert_eq!(agenda.next(), Some(now));
        assert_eq!(agenda.take_due(now), Some(Due::Growth));
        assert_eq!(agenda.take_due(now), Some(Due::Settled), "two of one moment are both kept");
        assert_eq!(agenda.take_due(now), None, "the other one is a second away");
        assert_eq!(agenda.next(), Some(later));
        assert_eq!(agenda.take_due(later), Some(Due::Sweep));
        assert_eq!(agenda.next(), None);
    }
}
