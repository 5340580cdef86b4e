//! The commands, a file each.

pub(crate) mod check;
pub(crate) mod drain;
pub(crate) mod ls;
pub(crate) mod top;
pub(crate) mod watch;
pub(crate) mod web;
pub(crate) mod weight;
