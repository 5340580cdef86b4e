//! Changes of a service to the lines that are printed of them.

use std::collections::{BTreeMap, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tonic_etcd::{Address, Change, Instance};

#[derive(Serialize)]
pub(crate) struct Line {
    pub(crate) event: &'static str,
    pub(crate) address: String,
    pub(crate) weight: u16,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) unix_us: u128,
}

impl Line {
    /// The stream inserts a known address again when its weight or tags changed, and removes it by its address alone.
    pub(crate) fn of(change: Change<Address, Instance>, known: &mut HashMap<Address, Instance>) -> Option<Self> {
        let unix_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let (event, instance) = match change {
            Change::Insert(address, instance) => match known.insert(address, instance.clone()) {
                None => ("insert", instance),
                Some(_) => ("update", instance),
            },
            Change::Remove(address) => ("remove", known.remove(&address)?),
        };
        let tags = instance.tags().iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Some(Self { event, address: instance.address().to_string(), weight: instance.weight(), tags, unix_us })
    }
}
