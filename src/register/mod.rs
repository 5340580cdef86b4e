//! From an instance to a key in etcd that stays: the registration, its lease, and the server around it.

mod advertise;
mod builder;
mod drain;
#[cfg(feature = "health")]
mod health;
mod holdings;
mod incoming;
mod keepalive;
mod layer;
mod own_key;
mod registrar;
mod registration;
mod registrations;
mod signal;
mod status;
mod task;
mod upkeep;
mod wishes;

pub use self::builder::RegistrationBuilder;
pub use self::incoming::{Incoming, Io};
pub use self::layer::{RegistrationBody, RegistrationFuture, RegistrationLayer, RegistrationService};
pub(crate) use self::registrar::Registrar;
pub use self::registration::Registration;
pub use self::registrations::Registrations;
pub use self::signal::shutdown_signal;
pub use self::status::{RegistrationStatus, StatusChanges};
