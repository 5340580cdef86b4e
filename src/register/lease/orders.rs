//! What an operator writes on the key of a registration, and when it is answered.

use std::time::Duration;

use tokio::time::Instant;

use crate::etcd::{Kv, MAX_VALUE};
use crate::format::Format;

/// What an operator wrote on our key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The draining mark.
    Drain,
    /// Another weight.
    Reweigh(Reweigh),
}

/// An operator's weight, and the one that it replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reweigh {
    pub(super) from: u16,
    pub(super) to: u16,
    /// The revision of the key that gives the order. The operator withdraws it by writing the key again.
    pub(super) revision: i64,
}

/// The claimed instance as it was written, by which orders are recognized.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) weight: u16,
    pub(super) value: Vec<u8>,
    /// The value with the draining mark, where the format has one.
    pub(super) drained: Option<Vec<u8>>,
}

impl Published {
    /// The order in a key that holds this value, changed by nothing but that order.
    pub(super) fn order(&self, format: &dyn Format, found: &Kv) -> Option<Order> {
        if self.drained.as_ref() == Some(&found.value) {
            return Some(Order::Drain);
        }
        if found.value.len() > MAX_VALUE {
            return None;
        }
        let former = format.former(&found.value)?;
        if self.drained.as_ref() == Some(&former) {
            // Both orders, before the first was answered.
            return Some(Order::Drain);
        }
        let key = String::from_utf8_lossy(&found.key);
        let segment = key.rsplit('/').next().unwrap_or_default();
        let to = format.decode(segment, &found.value).ok()?.weight.filter(|to| *to > 0)?;
        let order = Reweigh { from: self.weight, to, revision: found.mod_revision };
        (former == self.value).then_some(Order::Reweigh(order))
    }
}

/// When weights are answered: some at once, and after those one a second, since each answer is a write, and
/// what writes the key can ask for one without end.
#[derive(Debug, Default)]
pub(super) struct AnswerPace {
    /// When the answers that were given are paid for.
    paid: Option<Instant>,
}

impl AnswerPace {
    /// When an order that is seen now is answered.
    pub(super) fn answer_at(&mut self, now: Instant) -> Instant {
        let paid = self.paid.map_or(now, |paid| paid.max(now));
        self.paid = Some(paid + ANSWER_INTERVAL);
        now.max(paid.checked_sub((AT_ONCE - 1) * ANSWER_INTERVAL).unwrap_or(now))
    }
}

/// How many orders are answered without a wait: more than operators give in a row.
const AT_ONCE: u32 = 10;

/// The mean time between two answers where orders come without end.
const ANSWER_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_orders_are_answered_at_once_and_one_a_second_after_those() {
        let (mut pace, start) = (AnswerPace::default(), Instant::now() + Duration::from_secs(60));
        let mut answer = |millis| (pace.answer_at(start + Duration::from_millis(millis)) - start).as_millis();
        assert_eq!([0; 10].map(&mut answer), [0; 10]);
        assert_eq!([0, 0, 500].map(&mut answer), [1_000, 2_000, 3_000]);
        assert_eq!(answer(8_000), 8_000, "four seconds after the last answer there is room again");
        assert_eq!([60_000; 11].map(&mut answer)[9..], [60_000, 61_000], "and after a while for as many as at first");
    }
}
