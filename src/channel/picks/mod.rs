//! Where calls and the balancer meet: the published ready set, a pick for each call at once or in turn, and the calls
//! that wait.
//!
//! # Layout
//!
//! | file | |
//! | --- | --- |
//! | `pick_queue` | the published state and a pick for each call from it |
//! | `ready_set` | candidates, the connections by the same index, and the picker |
//! | `wait_queue` | the calls that wait, in order |
//! | `handle` | what clones and calls hold; its end ends the balancer |
//! | `tester` | a policy over a ready set without connections |

mod handle;
mod instance_list;
mod pick_queue;
pub(crate) mod ready_set;
pub(crate) mod tester;
mod wait_queue;

pub(crate) use self::handle::Handle;
pub(crate) use self::pick_queue::{LbState, Pick, PickQueue};

#[cfg(test)]
mod tests;
