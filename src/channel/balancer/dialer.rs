//! Wishes to connect become attempts, in an order and at a pace that dead addresses cannot hold up.
//!
//! An attempt holds one of [`SLOTS`] until it ends, and for [`HOLD`] at most: then it goes on without one, and the next
//! one begins. So a thousand addresses that swallow everything keep a good one waiting for less than a second, and no
//! more attempts than `SLOTS` a `HOLD` begin where none ends. Retries of addresses that failed wait for all others, and
//! take half of everything at most.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

use crate::channel::subchannel::{Ticket, Turn, Wish};
use crate::channel::transport::{self, Connection, TransportConfig};
use crate::instance::Address;
use crate::targets::CHANNEL;

/// Wishes and attempts of one channel.
pub(super) struct Dialer {
    config: Arc<TransportConfig>,
    /// Addresses that are new, or had a good connection.
    first: VecDeque<(Address, Ticket)>,
    /// Addresses that failed.
    retries: VecDeque<(Address, Ticket)>,
    slots: Slots,
    attempts: JoinSet<Attempt>,
    /// The keepalive intervals of addresses whose servers were pinged too often.
    intervals: HashMap<Address, Duration>,
}

/// The end of one attempt to connect.
pub(super) struct Attempt {
    pub(super) address: Address,
    pub(super) ticket: Ticket,
    pub(super) result: Result<Connection, Arc<str>>,
    turn: Turn,
}

impl Dialer {
    pub(super) fn new(config: Arc<TransportConfig>) -> Self {
        Self {
            config,
            first: VecDeque::new(),
            retries: VecDeque::new(),
            slots: Slots::default(),
            attempts: JoinSet::new(),
            intervals: HashMap::new(),
        }
    }

    /// Puts an instance at the end of its queue.
    pub(super) fn queue(&mut self, address: Address, wish: Wish) {
        match wish.turn {
            Turn::First => self.first.push_back((address, wish.ticket)),
            Turn::Retry => self.retries.push_back((address, wish.ticket)),
        }
    }

    /// The next turn, if there is room for an attempt.
    pub(super) fn next_turn(&mut self, now: Instant) -> Option<(Address, Ticket)> {
        self.slots.release(now);
        if !self.first.is_empty() {
            return if self.slots.has_room(Turn::First) { self.first.pop_front() } else { None };
        }
        if self.slots.has_room(Turn::Retry) { self.retries.pop_front() } else { None }
    }

    /// When the next turn may come although no attempt has ended; `None` where it is not waited for.
    pub(super) fn next_release(&self) -> Option<Instant> {
        let waits = !self.first.is_empty() || !self.retries.is_empty();
        self.slots.next_release().filter(|_| waits)
    }

    /// Begins an attempt.
    pub(super) fn dial(&mut self, address: Address, wish: Wish, now: Instant) {
        let Wish { ticket, turn, back_off } = wish;
        // Where many attempts are under way, none may hold its socket for long.
        let mut terms = self.config.terms(if self.slots.is_crowded(turn) { Duration::ZERO } else { back_off });
        if let Some(interval) = self.intervals.get(&address) {
            terms.keep_alive_interval = Some(*interval);
        }
        self.slots.take(wish, now);
        let config = self.config.clone();
        let span = tracing::debug_span!(target: CHANNEL, parent: None, "connect", %address);
        let attempt = async move {
            // A connector is the user's code and may panic: that is the failure of this attempt alone.
            let connected = AssertUnwindSafe(transport::connect(&config, &address, terms)).catch_unwind().await;
            let result = match connected {
                Ok(connected) => connected.map_err(|error| error.reason().into()),
                Err(_) => Err(format!("{address}: the connector panicked").into()),
            };
            Attempt { address, ticket, result, turn }
        };
        self.attempts.spawn(attempt.instrument(span));
    }

    /// Waits for the end of an attempt; `None` where none is under way.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: an end that was not returned is returned by the next call.
    pub(super) async fn next(&mut self) -> Option<Attempt> {
        // Attempts neither panic nor are they aborted.
        let attempt = self.attempts.join_next().await?.ok();
        attempt.inspect(|attempt| self.slots.on_end(attempt.ticket, attempt.turn))
    }

    /// The end of an attempt that has ended by now.
    pub(super) fn try_next(&mut self) -> Option<Attempt> {
        let attempt = self.attempts.try_join_next()?.ok();
        attempt.inspect(|attempt| self.slots.on_end(attempt.ticket, attempt.turn))
    }

    /// A server was pinged too often: the next connections to its address ask half as often for a sign of life.
    pub(super) fn on_too_many_pings(&mut self, address: &Address) {
        let Some(configured) = self.config.http2_keep_alive_interval else { return };
        let interval = self.intervals.get(address).copied().unwrap_or(configured);
        let doubled = (interval * 2).min(LONGEST_INTERVAL).max(interval);
        if self.intervals.insert(address.clone(), doubled).is_none() {
            tracing::warn!(
                target: CHANNEL,
                %address,
                interval = ?configured,
                "server says too_many_pings: http2_keep_alive_interval is too short for it and doubles there"
            );
        }
    }

    /// An instance left the list.
    pub(super) fn forget(&mut self, address: &Address) {
        self.intervals.remove(address);
    }
}

/// Which attempts are under way, and which of them hold the next one up.
#[derive(Default)]
struct Slots {
    /// Those that hold a slot, in the order in which they began.
    held: VecDeque<Slot>,
    under_way: usize,
    /// The part of them that are retries.
    retries: usize,
}

struct Slot {
    ticket: Ticket,
    turn: Turn,
    until: Instant,
}

impl Slots {
    /// Takes the slots back from attempts that held theirs for long enough.
    fn release(&mut self, now: Instant) {
        while self.held.front().is_some_and(|slot| slot.until <= now) {
            self.held.pop_front();
        }
    }

    /// When the first slot comes back although its attempt has not ended.
    fn next_release(&self) -> Option<Instant> {
        self.held.front().map(|slot| slot.until)
    }

    fn has_room(&self, turn: Turn) -> bool {
        let has_room = self.held.len() < SLOTS && self.under_way < UNDER_WAY;
        has_room
            && match turn {
                Turn::First => true,
                Turn::Retry => {
                    let held = self.held.iter().filter(|slot| slot.turn == Turn::Retry).count();
                    held < SLOTS / 2 && self.retries < UNDER_WAY / 2
                }
            }
    }

    /// Whether attempts of this kind take half of the sockets that they may take.
    fn is_crowded(&self, turn: Turn) -> bool {
        match turn {
            Turn::First => self.under_way >= UNDER_WAY / 2,
            Turn::Retry => self.retries >= UNDER_WAY / 4,
        }
    }

    fn take(&mut self, Wish { ticket, turn, .. }: Wish, now: Instant) {
        self.held.push_back(Slot { ticket, turn, until: now + HOLD });
        self.under_way += 1;
        self.retries += usize::from(turn == Turn::Retry);
    }

    fn on_end(&mut self, ticket: Ticket, turn: Turn) {
        self.held.retain(|slot| slot.ticket != ticket);
        self.under_way -= 1;
        self.retries -= usize::from(turn == Turn::Retry);
    }
}

/// Attempts that hold the next one up: a set of thousands is connected within seconds without flooding a network or a
/// kernel.
const SLOTS: usize = 32;

/// For how long an attempt does so. In a data centre one that is not through by then waits for something that is dead
/// or far, and both may take their time beside the others: 1,280 of them begin in a second at most.
const HOLD: Duration = Duration::from_millis(25);

/// Attempts under way at most, each with a socket. A channel has as many again if all of them are answered.
const UNDER_WAY: usize = 1_024;

/// No server asks for fewer pings: it is what gRPC servers allow while no call is open.
const LONGEST_INTERVAL: Duration = Duration::from_secs(2 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(turn: Turn) -> Wish {
        Wish { ticket: Ticket::next(), turn, back_off: Duration::ZERO }
    }

    fn address(port: u16) -> Address {
        std::net::SocketAddr::from(([127, 0, 0, 1], port)).into()
    }

    #[test]
    fn retries_take_half_of_the_slots_and_of_the_sockets() {
        let (mut slots, mut now) = (Slots::default(), Instant::now());
        while slots.has_room(Turn::Retry) {
            slots.take(wish(Turn::Retry), now);
        }
        assert_eq!((slots.held.len(), slots.has_room(Turn::First)), (16, true), "half of the slots");
        for _ in 0..100 {
            now += HOLD;
            slots.release(now);
            while slots.has_room(Turn::Retry) {
                slots.take(wish(Turn::Retry), now);
            }
        }
        assert_eq!((slots.under_way, slots.has_room(Turn::First)), (512, true), "half of the sockets");
        for _ in 0..100 {
            now += HOLD;
            slots.release(now);
            while slots.has_room(Turn::First) {
                slots.take(wish(Turn::First), now);
            }
        }
        assert_eq!((slots.under_way, slots.has_room(Turn::Retry)), (1_024, false), "and there is an end");
    }

    #[test]
    fn the_end_of_an_attempt_gives_its_slot_back() {
        let (mut slots, now) = (Slots::default(), Instant::now());
        let wishes: Vec<Wish> = (0..32).map(|_| wish(Turn::First)).collect();
        for wish in &wishes {
            slots.take(*wish, now);
        }
        assert!(!slots.has_room(Turn::First));
        slots.on_end(wishes[7].ticket, Turn::First);
        assert!(slots.has_room(Turn::First));
        slots.release(now + HOLD);
        assert_eq!((slots.held.len(), slots.under_way), (0, 31), "the others go on");
    }

    #[test]
    fn addresses_that_failed_wait_for_the_others() {
        let (mut dialer, now) = (Dialer::new(Arc::default()), Instant::now());
        dialer.queue(address(1), wish(Turn::Retry));
        dialer.queue(address(2), wish(Turn::First));
        let mut turns = std::iter::from_fn(|| Some(dialer.next_turn(now)?.0.port()));
        assert_eq!((turns.next(), turns.next(), turns.next()), (Some(2), Some(1), None));
    }

    #[test]
    fn an_interval_doubles_up_to_two_hours_until_its_address_leaves() {
        let mut dialer = Dialer::new(Arc::default());
        let mut intervals = Vec::new();
        for _ in 0..6 {
            dialer.on_too_many_pings(&address(1));
            intervals.push(dialer.intervals[&address(1)].as_secs());
        }
        assert_eq!(intervals, [620, 1_240, 2_480, 4_960, 7_200, 7_200]);
        dialer.forget(&address(1));
        assert!(dialer.intervals.is_empty());
    }
}
