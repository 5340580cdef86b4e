//! The interleavings of the stream quota and the wait queue, as they are in the crate, on loom's primitives.

// The crate uses more of these files than the tests do.
#[path = "../src/channel/policy/quota.rs"]
#[expect(dead_code, reason = "the crate uses the rest")]
mod quota;
#[path = "../src/channel/picks/wait_queue.rs"]
#[expect(dead_code, reason = "the crate uses the rest")]
mod wait_queue;

/// What the two files name their primitives through.
mod channel {
    pub(crate) mod sync {
        pub(crate) use std::sync::PoisonError;

        pub(crate) use loom::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};
        pub(crate) use loom::sync::{Mutex, MutexGuard};

        pub(crate) fn in_order() {
            loom::sync::atomic::fence(Ordering::SeqCst);
        }
    }
}

use std::sync::atomic::{AtomicUsize, Ordering};

use loom::sync::Arc;
use loom::thread;

use quota::StreamQuota;
use wait_queue::{Turn, WaitQueue};

/// What calls share: the stream quota of one connection, and the queue of calls that wait for it.
struct Channel {
    quota: StreamQuota,
    queue: WaitQueue<std::sync::Arc<AtomicUsize>>,
}

impl Channel {
    fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { quota: StreamQuota::new(limit), queue: WaitQueue::new(8) })
    }

    /// What the channel does for waiting calls.
    fn serve(&self) {
        self.queue.serve(|answers| {
            if !self.quota.acquire() {
                return Turn::Closed;
            }
            answers.fetch_add(1, Ordering::Relaxed);
            Turn::Answered
        });
    }

    /// What a call does that found no quota left.
    fn wait(&self) -> (u64, std::sync::Arc<AtomicUsize>) {
        let answers = std::sync::Arc::<AtomicUsize>::default();
        let number = self.queue.join(answers.clone()).expect("the wait queue has room");
        self.serve();
        (number, answers)
    }

    /// What a call does that has ended.
    fn end(&self) {
        self.quota.release();
        self.serve();
    }
}

/// Runs a test in every order of its threads with at most three preemptions: no error of two or three short threads
/// needs more, and without a bound the longest of them takes hours.
fn explore(run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(run);
}

fn answered(answers: &AtomicUsize) -> usize {
    answers.load(Ordering::Relaxed)
}

#[test]
fn quota_freed_while_a_call_joins_the_wait_queue_goes_to_that_call() {
    explore(|| {
        let channel = Channel::new(1);
        assert!(channel.quota.acquire(), "the first call takes the whole quota");
        let ending = thread::spawn({
            let channel = channel.clone();
            move || channel.end()
        });
        let (_, answers) = channel.wait();
        ending.join().expect("no panic");
        assert_eq!(answered(&answers), 1, "the waiting call has the quota, once");
        assert_eq!(channel.quota.in_flight(), 1, "and no other call");
        assert!(channel.queue.is_empty(), "no call waits");
    });
}

#[test]
fn two_waiting_calls_get_the_quota_of_two_that_end() {
    explore(|| {
        let channel = Channel::new(2);
        assert!(channel.quota.acquire() && channel.quota.acquire(), "two calls take the quota of two");
        let ending: Vec<_> = (0..2)
            .map(|_| {
                let channel = channel.clone();
                thread::spawn(move || channel.end())
            })
            .collect();
        let (_, first) = channel.wait();
        let (_, second) = channel.wait();
        for ending in ending {
            ending.join().expect("no panic");
        }
        assert_eq!((answered(&first), answered(&second)), (1, 1), "each has one");
        assert_eq!(channel.quota.in_flight(), 2, "and no more are taken");
    });
}

#[test]
fn a_limit_raised_while_a_call_joins_the_wait_queue_lets_it_in() {
    explore(|| {
        let channel = Channel::new(1);
        assert!(channel.quota.acquire(), "the first call takes the whole quota");
        let raising = thread::spawn({
            let channel = channel.clone();
            move || {
                channel.quota.set_limit(2);
                channel.serve();
            }
        });
        let (_, answers) = channel.wait();
        raising.join().expect("no panic");
        assert_eq!(answered(&answers), 1, "the waiting call has the new quota");
    });
}

#[test]
fn a_probation_that_ends_while_a_call_joins_the_wait_queue_lets_it_in() {
    explore(|| {
        let channel = Channel::new(2);
        channel.quota.set_one_at_a_time(true);
        assert!(channel.quota.acquire(), "the first call has the one place");
        let lifting = thread::spawn({
            let channel = channel.clone();
            move || {
                channel.quota.set_one_at_a_time(false);
                channel.serve();
            }
        });
        let (_, answers) = channel.wait();
        lifting.join().expect("no panic");
        assert_eq!(answered(&answers), 1, "the waiting call has the second place");
    });
}

#[test]
fn a_limit_and_a_probation_set_at_once_both_hold() {
    explore(|| {
        let channel = Channel::new(1);
        let limiting = thread::spawn({
            let channel = channel.clone();
            move || channel.quota.set_limit(2)
        });
        channel.quota.set_one_at_a_time(true);
        limiting.join().expect("no panic");
        assert!(channel.quota.acquire(), "the first has the one place");
        assert!(!channel.quota.acquire(), "there is one at a time");
        channel.quota.set_one_at_a_time(false);
        assert!(channel.quota.acquire(), "the limit is two");
        assert!(!channel.quota.acquire(), "and no more");
    });
}

#[test]
fn a_stall_that_ends_while_a_call_joins_the_wait_queue_lets_it_in() {
    explore(|| {
        let channel = Channel::new(2);
        channel.quota.set_stalled(true);
        assert!(!channel.quota.acquire(), "a connection that takes no bytes takes no call");
        let moving = thread::spawn({
            let channel = channel.clone();
            move || {
                channel.quota.set_stalled(false);
                channel.serve();
            }
        });
        let (_, answers) = channel.wait();
        moving.join().expect("no panic");
        assert_eq!(answered(&answers), 1, "the waiting call has a place");
    });
}

#[test]
fn a_limit_a_probation_and_a_stall_are_kept_apart() {
    explore(|| {
        let channel = Channel::new(1);
        channel.quota.set_stalled(true);
        channel.quota.set_one_at_a_time(true);
        channel.quota.set_limit(2);
        assert!(channel.quota.is_saturated(), "it takes no bytes");
        channel.quota.set_stalled(false);
        assert!(channel.quota.acquire(), "the first has the one place");
        assert!(!channel.quota.acquire(), "there is one at a time");
        channel.quota.set_one_at_a_time(false);
        assert!(channel.quota.acquire(), "the limit is two");
        assert!(!channel.quota.acquire(), "and no more");
    });
}

#[test]
fn no_probation_and_no_limit_opens_what_was_closed() {
    explore(|| {
        let channel = Channel::new(1);
        let closing = thread::spawn({
            let channel = channel.clone();
            move || channel.quota.close()
        });
        channel.quota.set_one_at_a_time(true);
        channel.quota.set_limit(3);
        channel.quota.set_one_at_a_time(false);
        closing.join().expect("no panic");
        assert!(!channel.quota.acquire(), "closed is for good");
    });
}

#[test]
fn a_call_that_gives_up_leaves_its_quota_to_the_next() {
    explore(|| {
        let channel = Channel::new(1);
        assert!(channel.quota.acquire(), "the first call takes the whole quota");
        let (number, given_up) = channel.wait();
        let (_, next) = channel.wait();
        let ending = thread::spawn({
            let channel = channel.clone();
            move || channel.end()
        });
        channel.queue.leave(number);
        // Where the answer came first, the call has to give its quota back.
        if answered(&given_up) == 1 {
            channel.end();
        }
        ending.join().expect("no panic");
        assert_eq!(answered(&next), 1, "the next call has the quota");
        assert_eq!(channel.quota.in_flight(), 1, "and no other call");
    });
}

#[test]
fn a_new_call_and_a_waiting_call_never_share_the_quota() {
    explore(|| {
        let channel = Channel::new(1);
        let passing = thread::spawn({
            let channel = channel.clone();
            move || {
                let took = channel.queue.is_empty() && channel.quota.acquire();
                if took {
                    assert_eq!(channel.quota.in_flight(), 1, "a quota of one, one call");
                    channel.end();
                }
            }
        });
        let (_, answers) = channel.wait();
        passing.join().expect("no panic");
        assert_eq!(answered(&answers), 1, "the waiting call has the quota in the end");
        assert_eq!(channel.quota.in_flight(), 1, "and no other call");
    });
}

#[test]
fn no_call_is_let_in_after_the_end_or_beyond_the_limit() {
    explore(|| {
        let channel = Channel::new(1);
        let taking = thread::spawn({
            let channel = channel.clone();
            move || channel.quota.acquire()
        });
        let took = channel.quota.acquire();
        let other_took = taking.join().expect("no panic");
        assert!(took != other_took, "one of two has the quota");
        channel.quota.close();
        channel.quota.set_limit(5);
        channel.quota.release();
        assert!(!channel.quota.acquire(), "closed is for good");
    });
}
