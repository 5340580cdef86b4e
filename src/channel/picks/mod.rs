//! Where calls and the balancer meet: the published ready set, and a place in it for each call.

pub(crate) mod pick_queue;
pub(crate) mod ready_set;
pub(crate) mod tester;
pub(crate) mod wait_queue;
