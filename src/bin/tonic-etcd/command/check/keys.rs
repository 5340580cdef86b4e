//! Keys as they stand in etcd to findings, without a look anywhere else: pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tonic_etcd::Address;
use tonic_etcd::inspect::{StoredKey, StoredKeys, Unusable};

use super::finding::{Finding, Scope};
use super::kind::{Kind, Level};

/// The findings of keys. Where etcd itself is local, so are servers as a rule.
pub(super) fn findings(keys: &StoredKeys, is_etcd_local: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if keys.is_cut_off() {
        findings.push(Finding::new(Kind::TooManyKeys, None, vec![format!("more than {} keys", keys.keys().len())]));
    }
    let foreign = keys.keys().iter().filter(|key| key.service().is_none());
    push(&mut findings, Kind::KeyForeign, None, foreign.map(key_name).collect());
    for (service, keys) in by_service(keys) {
        findings.extend(of_service(service, &keys, is_etcd_local));
    }
    push(&mut findings, Kind::AddressShared, None, shared_addresses(keys));
    findings
}

/// How much the keys are.
pub(super) fn scope(keys: &StoredKeys) -> Scope {
    let services = keys.keys().iter().filter_map(StoredKey::service).collect::<BTreeSet<_>>().len();
    Scope { services, keys: keys.keys().len(), addresses: addresses(keys).len() }
}

/// The services that have an address, by address.
pub(super) fn addresses(keys: &StoredKeys) -> BTreeMap<Address, BTreeSet<String>> {
    let mut addresses: BTreeMap<Address, BTreeSet<String>> = BTreeMap::new();
    for instance in keys.keys().iter().filter_map(|key| key.instance().ok()) {
        addresses.entry(instance.address().clone()).or_default().insert(instance.service().to_owned());
    }
    addresses
}

/// A key for people and programs: what is no text in it becomes a question mark.
pub(super) fn key_name(key: &StoredKey) -> String {
    String::from_utf8_lossy(key.key()).into_owned()
}

/// What a key ends with.
fn lease_name(key: &StoredKey) -> String {
    if key.lease() == 0 { "no lease".to_owned() } else { format!("lease {:x}", key.lease()) }
}

fn by_service(keys: &StoredKeys) -> BTreeMap<&str, Vec<&StoredKey>> {
    let mut services: BTreeMap<&str, Vec<&StoredKey>> = BTreeMap::new();
    for key in keys.keys() {
        if let Some(service) = key.service() {
            services.entry(service.as_str()).or_default().push(key);
        }
    }
    services
}

fn of_service(service: &str, keys: &[&StoredKey], is_etcd_local: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (mut unreadable, mut unusable, mut zero) = (Vec::new(), Vec::new(), Vec::new());
    let mut addresses: BTreeMap<&Address, Vec<&StoredKey>> = BTreeMap::new();
    for key in keys {
        match key.instance() {
            Ok(instance) => {
                addresses.entry(instance.address()).or_default().push(key);
                if key.value().is_some_and(states_weight_zero) {
                    zero.push(instance.address().to_string());
                }
            }
            Err(why @ Unusable::Address(_)) => unusable.push(format!("{}: {why}", key_name(key))),
            Err(why) => unreadable.push(format!("{}: {why}", key_name(key))),
        }
    }
    if keys.len() > MOST_INSTANCES {
        let name = format!("{} keys, of which clients read {MOST_INSTANCES} by default", keys.len());
        push(&mut findings, Kind::TooManyKeys, Some(service), vec![name]);
    }
    push(&mut findings, Kind::ValueUnreadable, Some(service), unreadable);
    push(&mut findings, Kind::AddressUnusable, Some(service), unusable);
    if zero.len() == addresses.len() && zero.len() > 1 {
        zero.insert(0, format!("all {} of them", zero.len()));
    }
    push(&mut findings, Kind::WeightZero, Some(service), zero);
    let twice = addresses.iter().filter(|(_, keys)| keys.len() > 1);
    let twice = twice.map(|(address, keys)| {
        let keys: Vec<String> = keys.iter().map(|key| format!("{} ({})", key_name(key), lease_name(key))).collect();
        format!("{address}: {}", keys.join(", "))
    });
    push(&mut findings, Kind::AddressTwice, Some(service), twice.collect());
    let loopback = addresses.keys().filter(|address| is_loopback(address)).map(ToString::to_string).collect();
    let level = if is_etcd_local { Level::Note } else { Level::Warning };
    push_at(&mut findings, level, Kind::AddressLoopback, service, loopback);
    let without_lease = keys.iter().filter(|key| key.lease() == 0).map(|key| key_name(key));
    push(&mut findings, Kind::KeysWithoutLease, Some(service), without_lease.collect());
    findings
}

fn push(findings: &mut Vec<Finding>, kind: Kind, service: Option<&str>, names: Vec<String>) {
    if !names.is_empty() {
        findings.push(Finding::new(kind, service, names));
    }
}

fn push_at(findings: &mut Vec<Finding>, level: Level, kind: Kind, service: &str, names: Vec<String>) {
    if !names.is_empty() {
        findings.push(Finding::new(kind, Some(service), names).with_level(level));
    }
}

fn is_loopback(address: &Address) -> bool {
    match address.ip() {
        Some(ip) => ip.is_loopback(),
        None => address.host().to_string() == "localhost",
    }
}

/// The addresses that several services have.
fn shared_addresses(keys: &StoredKeys) -> Vec<String> {
    let shared = addresses(keys).into_iter().filter(|(_, services)| services.len() > 1);
    shared.map(|(address, services)| format!("{address}: {}", Vec::from_iter(services).join(", "))).collect()
}

/// Whether a value says that its weight is 0, wherever its format has the weight. Readers take that for none.
fn states_weight_zero(value: &[u8]) -> bool {
    let Ok(Value::Object(fields)) = serde_json::from_slice(value) else { return false };
    fields.iter().any(|(name, value)| match value {
        Value::Object(metadata) if name.eq_ignore_ascii_case("metadata") => metadata.get("weight").is_some_and(is_zero),
        value => name.eq_ignore_ascii_case("weight") && is_zero(value),
    })
}

fn is_zero(value: &Value) -> bool {
    value.as_i64() == Some(0) || value.as_str().is_some_and(|text| text.trim() == "0")
}

/// How many keys of a service clients read by default.
const MOST_INSTANCES: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_of_zero_is_seen_wherever_a_format_has_it() {
        for value in [
            r#"{"address":"a:1","weight":0}"#,
            r#"{"Addr":"a:1","Metadata":{"weight":0}}"#,
            r#"{"id":"x","metadata":{"weight":"0"},"endpoints":[]}"#,
        ] {
            assert!(states_weight_zero(value.as_bytes()), "{value}");
        }
        for value in [r#"{"weight":1}"#, r#"{"weight":null}"#, r#"{"tags":{"weight":0}}"#, "a:1", "[0]", "\u{0}"] {
            assert!(!states_weight_zero(value.as_bytes()), "{value}");
        }
    }
}
