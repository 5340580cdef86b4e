//! From an instance to a key in etcd that stays: the registration, its lease, and the server around it.

mod advertise;
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
mod status;
mod task;
mod upkeep;
mod wishes;

pub use self::incoming::{Incoming, Io};
pub use self::layer::{RegistrationBody, RegistrationFuture, RegistrationLayer, RegistrationService};
pub(crate) use self::registrar::Registrar;
pub use self::registration::{Registration, RegistrationBuilder, shutdown_signal};
pub use self::registrations::Registrations;
pub use self::status::{RegistrationStatus, StatusChanges};
