//! The channel as a whole, against peers that do and do not behave.

mod bodies;
mod calls;
mod cancelling;
mod causes;
mod client;
mod closing;
mod connecting;
mod deadlines;
mod dialling;
mod ejecting;
mod evidence;
mod faults;
#[cfg(feature = "health")]
mod health;
mod leaving;
mod message_limits;
mod mistakes;
mod options;
mod panicking;
mod peers;
mod replays;
mod retrying;
mod rig;
mod runtimes;
mod saturation;
mod service_configs;
mod shares;
mod shedding;
mod spreading;
mod stalled;
