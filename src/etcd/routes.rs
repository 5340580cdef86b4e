//! Which watch of a shared stream a response is for. Pure: what is to be asked and what was answered go in.
//!
//! Watches are created under ids of our own, so that many can be asked for at once. A server that gives ids of its own
//! (`etcd grpc-proxy` does) is asked for one at a time, as everyone is before it is known.

use std::collections::{HashMap, VecDeque};

/// The watches of one stream: those that wait to be created (`P`), and those that are open (`W`).
#[derive(Debug)]
pub(super) struct Routes<P, W> {
    /// In the order in which they are asked for.
    pending: VecDeque<(i64, P)>,
    /// How many of them were asked for, from the front on.
    asked: usize,
    open: HashMap<i64, W>,
    /// Our id to the server's, where the two differ.
    given: HashMap<i64, i64>,
    ids: Ids,
    next: i64,
}

/// Which ids a server uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ids {
    Unknown,
    Ours,
    Given,
}

impl<P, W> Routes<P, W> {
    pub(super) fn new() -> Self {
        let (pending, open, given) = (VecDeque::new(), HashMap::new(), HashMap::new());
        Self { pending, asked: 0, open, given, ids: Ids::Unknown, next: 1 }
    }

    /// One more watch is wanted; returns its id.
    pub(super) fn add(&mut self, pending: P) -> i64 {
        let id = self.next;
        self.next += 1;
        self.pending.push_back((id, pending));
        id
    }

    /// The next watch to ask for, if one may be asked for now; [`on_asked`](Self::on_asked) counts it.
    pub(super) fn next(&self) -> Option<(i64, &P)> {
        let may_ask = self.asked == 0 || self.ids == Ids::Ours;
        let (id, pending) = self.pending.get(self.asked).filter(|_| may_ask)?;
        Some((*id, pending))
    }

    /// The next watch was asked for.
    pub(super) fn on_asked(&mut self) {
        self.asked += 1;
    }

    /// The server created a watch, or refused to, under this id. Returns which watch, with our id; none, where it was
    /// not asked for.
    ///
    /// A refusal comes under an id of no use. Answers come in the order of the questions, so it is for the oldest.
    pub(super) fn on_answer(&mut self, server: i64, is_created: bool) -> Option<(i64, P)> {
        if self.asked == 0 {
            return None;
        }
        let named = self.pending.iter().take(self.asked).position(|(id, _)| *id == server);
        if is_created && self.ids == Ids::Unknown {
            self.ids = if named == Some(0) { Ids::Ours } else { Ids::Given };
        }
        let at = match self.ids {
            Ids::Ours if is_created => named?,
            _ => 0,
        };
        self.asked -= 1;
        let (id, pending) = self.pending.remove(at)?;
        if is_created && self.ids == Ids::Given {
            self.given.insert(id, server);
        }
        Some((id, pending))
    }

    /// The watch with this id of ours is open.
    pub(super) fn open(&mut self, id: i64, watch: W) {
        let server = self.given.get(&id).copied().unwrap_or(id);
        self.open.insert(server, watch);
    }

    /// The open watch that a response under this id of the server is for.
    pub(super) fn get(&mut self, server: i64) -> Option<&mut W> {
        self.open.get_mut(&server)
    }

    /// A watch that the server ended.
    pub(super) fn on_ended(&mut self, server: i64) {
        self.open.remove(&server);
        self.given.retain(|_, given| *given != server);
    }

    /// A watch that is not read any more; returns the id under which the server is to end it, if it is open.
    pub(super) fn remove(&mut self, id: i64) -> Option<i64> {
        // An id of ours may be that of another watch there.
        let server = if self.ids == Ids::Given { self.given.remove(&id)? } else { id };
        self.open.remove(&server).map(|_| server)
    }

    /// Whether a watch that was asked for is not created yet.
    pub(super) fn is_owed(&self) -> bool {
        self.asked > 0
    }

    /// Leaves out the next ones to ask for that are not wanted any more.
    pub(super) fn skip(&mut self, is_void: impl Fn(&P) -> bool) {
        while self.pending.get(self.asked).is_some_and(|(_, pending)| is_void(pending)) {
            self.pending.remove(self.asked);
        }
    }

    /// Whether there is no watch, neither open nor to be created.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.pending.is_empty()
    }

    /// All open watches.
    pub(super) fn opened(&self) -> impl Iterator<Item = &W> {
        self.open.values()
    }

    /// All that are to be created.
    pub(super) fn pending(&self) -> impl Iterator<Item = &P> {
        self.pending.iter().map(|(_, pending)| pending)
    }

    /// Takes out open watches, and returns the server's ids of them.
    pub(super) fn end_those(&mut self, mut is_over: impl FnMut(&mut W) -> bool) -> Vec<i64> {
        let ended: Vec<i64> =
            self.open.iter_mut().filter_map(|(server, watch)| is_over(watch).then_some(*server)).collect();
        for server in &ended {
            self.on_ended(*server);
        }
        ended
    }

    /// Takes out those that are not created yet.
    pub(super) fn take_pending(&mut self) -> impl Iterator<Item = P> {
        self.asked = 0;
        std::mem::take(&mut self.pending).into_iter().map(|(_, pending)| pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Named = Routes<&'static str, &'static str>;

    fn routes(names: &[&'static str]) -> Named {
        let mut routes = Named::new();
        for name in names {
            routes.add(name);
        }
        routes
    }

    /// Asks for all that may be asked for now.
    fn ask(routes: &mut Named) -> Vec<&'static str> {
        let mut asked = Vec::new();
        while let Some((_, name)) = routes.next() {
            asked.push(*name);
            routes.on_asked();
        }
        asked
    }

    #[test]
    fn a_server_that_takes_our_ids_is_asked_for_all_at_once_after_the_first() {
        let mut routes = routes(&["a", "b", "c"]);
        assert_eq!(ask(&mut routes), ["a"], "whose ids count is not known yet");
        assert_eq!(routes.on_answer(1, true), Some((1, "a")));
        assert_eq!(ask(&mut routes), ["b", "c"]);
        assert_eq!(routes.on_answer(3, true), Some((3, "c")), "in whatever order");
        assert_eq!(routes.on_answer(2, true), Some((2, "b")));
        assert_eq!(routes.on_answer(2, true), None, "it was not asked for again");
    }

    #[test]
    fn a_server_that_gives_ids_of_its_own_is_asked_one_by_one() {
        let mut routes = routes(&["a", "b", "c"]);
        for (server, name) in [(0, "a"), (1, "b"), (2, "c")] {
            assert_eq!(ask(&mut routes), [name]);
            let (id, _) = routes.on_answer(server, true).expect("it was asked for");
            routes.open(id, name);
        }
        assert_eq!(routes.get(1).copied(), Some("b"), "responses come under the server's ids");
        assert_eq!(routes.remove(2), Some(1), "and so watches end");
        assert!(routes.get(1).is_none() && routes.get(2).is_some());
        assert_eq!(routes.end_those(|name| *name == "a"), [0]);
        assert_eq!(routes.remove(1), None, "it is over already");
    }

    #[test]
    fn a_watch_that_a_server_with_ids_of_its_own_ended_takes_no_other_with_it() {
        let mut routes = routes(&["a", "b"]);
        for (server, name) in [(0, "a"), (1, "b")] {
            ask(&mut routes);
            let (id, _) = routes.on_answer(server, true).expect("it was asked for");
            routes.open(id, name);
        }
        routes.on_ended(0);
        assert_eq!(routes.remove(1), None, "the server knows another watch by this id");
        assert_eq!(routes.get(1).copied(), Some("b"), "which goes on");
    }

    #[test]
    fn what_nobody_waits_for_is_not_asked_for() {
        let mut routes = routes(&["a", "b", "c"]);
        assert_eq!(ask(&mut routes), ["a"]);
        assert!(routes.is_owed());
        routes.skip(|name| *name != "c");
        assert_eq!(routes.on_answer(1, true), Some((1, "a")), "it was asked for already");
        assert!(!routes.is_owed());
        assert_eq!(ask(&mut routes), ["c"]);
    }

    #[test]
    fn a_refusal_is_for_the_oldest_question() {
        let mut routes = routes(&["a", "b", "c", "d"]);
        ask(&mut routes);
        assert_eq!(routes.on_answer(-1, false), Some((1, "a")), "the only one");
        assert_eq!(ask(&mut routes), ["b"], "a refusal tells nothing of ids");
        assert_eq!(routes.on_answer(2, true), Some((2, "b")));
        ask(&mut routes);
        assert_eq!(routes.on_answer(-1, false), Some((3, "c")));
        assert_eq!(routes.on_answer(4, true), Some((4, "d")));
        assert_eq!(routes.on_answer(-1, false), None, "nothing was asked");
    }

    #[test]
    fn a_stream_is_empty_once_its_last_watch_went() {
        let mut routes = routes(&["a", "b"]);
        ask(&mut routes);
        let (id, _) = routes.on_answer(1, true).expect("it was asked for");
        routes.open(id, "a");
        assert_eq!(routes.remove(id), Some(1));
        assert!(!routes.is_empty(), "one is to be created");
        assert_eq!(routes.take_pending().collect::<Vec<_>>(), ["b"]);
        assert!(routes.is_empty());
    }
}
