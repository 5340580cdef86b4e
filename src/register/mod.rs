//! From an instance to a key in etcd that stays: the registration, its lease, and the server around it.

mod advertise;
mod builder;
mod desired;
#[cfg(feature = "health")]
mod health;
mod lease;
mod registration;
mod retry;
pub mod server;
mod set;
mod signal;
mod status;

pub use self::builder::RegistrationBuilder;
pub(crate) use self::lease::Registrar;
pub use self::registration::Registration;
pub use self::set::Registrations;
pub use self::signal::shutdown_signal;
pub use self::status::{RegistrationStatus, StatusChanges};
