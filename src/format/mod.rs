//! How instances look in etcd: the [`Format`] trait and, one file each, the formats of other systems.

mod etcd_naming;
mod go_json;
mod go_zero;
mod kitex;
mod kratos;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

use crate::error::ConfigError;
use crate::instance::{Address, Instance, ServiceName};

pub use self::etcd_naming::EtcdNaming;
pub use self::go_zero::GoZero;
pub use self::kitex::Kitex;
pub use self::kratos::Kratos;

/// How the instances of a service look in etcd.
///
/// A format decides the last segment of a key and the bytes of its value. The range is not its business: every key of a
/// service is `{prefix}/{service}/{segment}`, so no format can make one service see another's keys.
///
/// Implement it to live beside a system of your own; the formats of this crate use nothing that is not public.
///
/// ```
/// use tonic_etcd::format::{DecodeError, Decoded, Entry, Format};
///
/// /// `{prefix}/{service}/{address}`, with the weight as the value.
/// #[derive(Debug)]
/// struct Plain;
///
/// impl Format for Plain {
///     fn default_prefix(&self) -> &str {
///         "plain"
///     }
///
///     fn segment(&self, entry: &Entry<'_>) -> String {
///         entry.instance.address().to_string()
///     }
///
///     fn encode(&self, entry: &Entry<'_>) -> Vec<u8> {
///         entry.instance.weight().to_string().into_bytes()
///     }
///
///     fn decode(&self, segment: &str, value: &[u8]) -> Result<Decoded, DecodeError> {
///         let mut decoded = Decoded::new(segment.parse()?);
///         let weight = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
///         decoded.weight = Some(weight.ok_or_else(|| DecodeError::new("the value is no weight"))?);
///         Ok(decoded)
///     }
///
///     fn carries_draining(&self) -> bool {
///         false
///     }
/// }
/// ```
pub trait Format: fmt::Debug + Send + Sync + 'static {
    /// The prefix of all keys where the registry sets none; empty for none at all.
    fn default_prefix(&self) -> &str;

    /// The last segment of an instance's key: at most 512 bytes, not empty, and without a `/`; `build()` refuses
    /// others.
    ///
    /// It may change with the lease or with an update of the instance: the new key is put, and then the old one is
    /// deleted.
    fn segment(&self, entry: &Entry<'_>) -> String;

    /// The value of an instance's key.
    fn encode(&self, entry: &Entry<'_>) -> Vec<u8>;

    /// Reads one key's last segment and value.
    ///
    /// Whatever stands in etcd comes here, at most 64 KiB at once: it must not panic.
    ///
    /// # Errors
    ///
    /// What is wrong with the value. Such a key is skipped, counted and logged; a key that was good before keeps its
    /// last good value.
    fn decode(&self, segment: &str, value: &[u8]) -> Result<Decoded, DecodeError>;

    /// Whether a value can carry the draining mark, with which a server announces that it leaves.
    fn carries_draining(&self) -> bool;

    /// Whether registrations honour [Kitex's environment variables](crate::kitex). Defaults to false.
    fn honours_kitex_environment(&self) -> bool {
        false
    }

    /// A value that is in etcd already, with the draining mark added and nothing else changed: what
    /// [`Registry::drain`](crate::Registry::drain) writes. It must be what [`encode`](Self::encode) makes of the same
    /// entry when it is draining.
    ///
    /// `None`, which is the default, where others cannot add the mark.
    fn mark_draining(&self, value: &[u8]) -> Option<Vec<u8>> {
        let _ = value;
        None
    }

    /// A value that is in etcd already, with another weight, a mark that it is an operator's, and nothing else changed:
    /// what [`Registry::set_weight`](crate::Registry::set_weight) writes. The server answers with its own value, of this
    /// weight and without the mark.
    ///
    /// [`decode`](Self::decode) must read this weight from it and may ignore the mark, and a second weight must replace
    /// the first. [`former`](Self::former) must undo both.
    ///
    /// # Errors
    ///
    /// The reason, which is the default, where others cannot set the weight.
    fn reweigh(&self, value: &[u8], weight: u16) -> Result<Vec<u8>, ReweighError> {
        let _ = (value, weight);
        Err(ReweighError::no_room())
    }

    /// A value that [`reweigh`](Self::reweigh) made, as it was before: what the server wrote, byte for byte. A draining
    /// mark that was added since stays.
    ///
    /// `None`, which is the default, where the value has no mark of an operator's weight.
    fn former(&self, value: &[u8]) -> Option<Vec<u8>> {
        let _ = value;
        None
    }
}

/// What a key and its value are made from.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Entry<'a> {
    /// The service's name.
    pub service: &'a ServiceName,
    /// The instance to be written.
    pub instance: &'a Instance,
    /// The id of the lease under which it is written.
    pub lease: i64,
    /// A random number that is the registration's own for as long as it lives.
    pub id: u128,
    /// Whether the instance announces that it leaves.
    pub draining: bool,
}

impl<'a> Entry<'a> {
    /// An entry that is not draining.
    #[must_use]
    pub fn new(service: &'a ServiceName, instance: &'a Instance, lease: i64, id: u128) -> Self {
        Self { service, instance, lease, id, draining: false }
    }

    /// This entry with or without the draining mark.
    #[must_use]
    pub fn draining(mut self, draining: bool) -> Self {
        self.draining = draining;
        self
    }
}

/// What a key and its value say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decoded {
    /// The address that the instance listens at.
    pub address: Address,
    /// Its weight; `None` where the value states none, for which the registry's default weight stands in. Zero counts
    /// as none.
    pub weight: Option<u16>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Whether it announced that it leaves.
    pub draining: bool,
}

impl Decoded {
    /// An instance at `address` that states neither weight nor tags.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self { address, weight: None, tags: BTreeMap::new(), draining: false }
    }
}

/// Why a value cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct DecodeError {
    reason: String,
}

impl DecodeError {
    /// An error with the reason in words.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

impl From<ConfigError> for DecodeError {
    fn from(error: ConfigError) -> Self {
        Self::new(error.to_string())
    }
}

/// Why an operator cannot set the weight in a value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct ReweighError {
    reason: String,
}

impl ReweighError {
    /// An error with the reason in words.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }

    fn no_room() -> Self {
        Self::new("it has no place for one")
    }
}

/// A weight as some JSON number states it: absent, zero and less are no statement, too much is cut to the maximum.
fn weight(stated: Option<i64>) -> Option<u16> {
    match stated {
        Some(weight) if weight > 0 => Some(u16::try_from(weight).unwrap_or(u16::MAX)),
        _ => None,
    }
}

/// The address that a value states as text.
fn address(stated: Option<&str>) -> Result<Address, DecodeError> {
    match stated {
        None | Some("") => Err(DecodeError::new("it has no address")),
        Some(address) => Ok(address.parse()?),
    }
}

/// The weight among the tags, for formats that have no other place for it. The default weight is not stated, and a tag
/// of that name is left out: it would look like one.
fn metadata<'a, T: From<&'a str>>(instance: &'a Instance, weight: impl Fn(u16) -> T) -> BTreeMap<&'a str, T> {
    let tags = instance.tags.iter().map(|(name, value)| (name, T::from(value)));
    let mut metadata: BTreeMap<&str, T> = tags.collect();
    metadata.remove(WEIGHT);
    if instance.weight != Instance::DEFAULT_WEIGHT {
        metadata.insert(WEIGHT, weight(instance.weight));
    }
    metadata
}

/// The name of the weight among the tags.
const WEIGHT: &str = "weight";
