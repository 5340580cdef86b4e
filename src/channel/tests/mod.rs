//! The channel as a whole, against peers that do and do not behave.

mod calls;
mod cancelling;
mod client;
mod closing;
mod connecting;
mod deadlines;
mod ejecting;
mod faults;
#[cfg(feature = "health")]
mod health;
mod leaving;
mod peers;
mod replays;
mod review;
mod rig;
mod saturation;
