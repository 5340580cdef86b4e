//! What every format promises: what is written is read back, and nothing that is read can do harm.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;

use super::{EtcdNaming, Format, GoZero, Kitex, Kratos};
use crate::format::Entry;
use crate::instance::{Address, Instance, ServiceName};

/// The lease and the id of all keys that tests look at.
const LEASE: i64 = 7_587_870_411_654_340_610;
const ID: u128 = 0x3f1c_bb1e_0001_4a6b_9a50_0000_0000_0001;

/// An instance with the default weight and without tags.
pub(super) fn at(service: &str, address: &str) -> Instance {
    Instance::new(service, address.parse::<Address>().expect("an address"))
}

/// The key of an instance under the default prefix.
pub(super) fn key(format: &dyn Format, instance: &Instance) -> String {
    let service: ServiceName = instance.service.parse().expect("a service name");
    let segment = format.segment(&Entry::new(&service, instance, LEASE, ID));
    let prefix = format.default_prefix();
    let slash = if prefix.is_empty() { "" } else { "/" };
    format!("{prefix}{slash}{service}/{segment}")
}

/// The value of an instance.
pub(super) fn value(format: &dyn Format, instance: &Instance, draining: bool) -> String {
    let service: ServiceName = instance.service.parse().expect("a service name");
    let value = format.encode(&Entry::new(&service, instance, LEASE, ID).draining(draining));
    String::from_utf8(value).expect("every format writes text")
}

fn all() -> [Box<dyn Format>; 5] {
    [
        Box::new(Kitex::new()),
        Box::new(EtcdNaming::new().adds_metadata(true)),
        Box::new(GoZero::new()),
        Box::new(Kratos::new()),
        Box::new(Kratos::new().secure(true)),
    ]
}

/// What of the weight and the tags a format keeps.
fn kept(format: &dyn Format, instance: &Instance) -> (Option<u16>, BTreeMap<String, String>) {
    let weight = instance.weight;
    let mut tags: BTreeMap<String, String> =
        instance.tags.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    match format!("{format:?}").as_str() {
        "Kitex" => (Some(weight), tags),
        "GoZero" => (None, BTreeMap::new()),
        _ => {
            tags.remove("weight");
            (Some(weight).filter(|weight| *weight != Instance::DEFAULT_WEIGHT), tags)
        }
    }
}

fn address() -> impl Strategy<Value = Address> {
    let host = prop_oneof![
        "[a-z]{1,9}(\\.[a-z]{1,9}){0,2}",
        any::<std::net::Ipv4Addr>().prop_map(|ip| ip.to_string()),
        any::<std::net::Ipv6Addr>().prop_map(|ip| ip.to_string()),
    ];
    (host, 1u16..).prop_map(|(host, port)| Address::try_from((host.as_str(), port)).expect("a host and a port"))
}

fn instance() -> impl Strategy<Value = Instance> {
    let name = prop_oneof![2 => ".{0,9}", 1 => "weight|version|metadata|draining"];
    let value = prop_oneof![".{0,9}", "[0-9]{0,9}"];
    let weight = prop_oneof![1u16.., Just(Instance::DEFAULT_WEIGHT)];
    (address(), weight, prop::collection::btree_map(name, value, 0..9)).prop_map(|(address, weight, tags)| {
        let mut instance = Instance::new("user.rpc", address).with_weight(weight);
        instance.tags = tags.iter().collect();
        instance
    })
}

/// JSON of any shape, mostly in the fields that the formats look at.
fn json() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        3 => "network|address|weight|tags|draining|Op|Addr|Metadata|version|metadata|endpoints",
        1 => ".{0,9}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        "(grpcs?://)?[a-z0-9.:@/\\[\\]]{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            3 => prop::collection::btree_map(name.clone(), inner, 0..8).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(instance in instance(), lease in 1i64.., id: u128, draining: bool) {
        let service: ServiceName = "user.rpc".parse().expect("a service name");
        for format in all() {
            let entry = Entry::new(&service, &instance, lease, id).draining(draining);
            let segment = format.segment(&entry);
            prop_assert!(!segment.is_empty() && !segment.contains('/'), "{format:?}: {segment:?} is one segment");
            let read = format.decode(&segment, &format.encode(&entry)).expect("our own value");
            prop_assert_eq!(&read.address, &instance.address, "{:?}", format);
            prop_assert_eq!((read.weight, read.tags), kept(&*format, &instance), "{:?}", format);
            prop_assert_eq!(read.draining, draining && format.carries_draining(), "{:?}", format);
        }
    }

    #[test]
    fn the_mark_changes_nothing_else(instance in instance()) {
        for format in all().into_iter().filter(|format| format.carries_draining()) {
            let (plain, marked) = (value(&*format, &instance, false), value(&*format, &instance, true));
            let expected = plain.strip_suffix('}').map(|plain| format!(r#"{plain},"draining":true}}"#));
            prop_assert_eq!(Some(&marked), expected.as_ref(), "{:?}", format);
            let added = format.mark_draining(plain.as_bytes());
            prop_assert_eq!(added, Some(marked.into_bytes()), "an operator's mark is the server's own: {:?}", format);
        }
    }

    #[test]
    fn a_weight_that_an_operator_sets_changes_nothing_else(instance in instance(), weights in (1u16.., 1u16..)) {
        for format in all().into_iter().filter(|format| format.carries_draining()) {
            let plain = value(&*format, &instance, false);
            let before = format.decode("x", plain.as_bytes()).expect("our own value");
            let once = format.reweigh(plain.as_bytes(), weights.0).expect("our own value takes it");
            let mut after = format.decode("x", &once).expect("it can be read");
            prop_assert_eq!(after.weight.take(), Some(weights.0), "{:?}", format);
            prop_assert_eq!((after.address, after.tags), (before.address, before.tags), "{:?}", format);
            let twice = format.reweigh(&once, weights.1).expect("it takes another one");
            let alone = format.reweigh(plain.as_bytes(), weights.1);
            prop_assert_eq!(Ok(&twice), alone.as_ref(), "the second replaces the first: {:?}", format);
            let former = format.former(&twice);
            prop_assert_eq!(former.as_deref(), Some(plain.as_bytes()), "it can be taken back: {:?}", format);
            prop_assert_eq!(format.former(plain.as_bytes()), None, "nothing to take back: {:?}", format);
            let marked = format.mark_draining(&twice).expect("it takes the mark");
            prop_assert!(format.decode("x", &marked).expect("it can be read").draining, "{:?}", format);
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(segment: String, bytes: Vec<u8>) {
        for format in all() {
            let _ = format.decode(&segment, &bytes);
            let _ = (format.reweigh(&bytes, 1), format.former(&bytes));
        }
    }

    #[test]
    fn no_json_makes_a_decoder_panic_or_state_a_weight_of_zero(json in json()) {
        for format in all() {
            if let Ok(read) = format.decode("x", json.to_string().as_bytes()) {
                prop_assert_ne!(read.weight, Some(0), "{:?} read {}", format, json);
            }
            let _ = format.reweigh(json.to_string().as_bytes(), 1);
        }
    }

    #[test]
    fn no_damage_to_a_good_value_makes_a_decoder_panic(
        instance in instance(), draining: bool, at: prop::sample::Index, length in 0..9usize, junk: Vec<u8>,
    ) {
        for format in all() {
            let mut bytes = value(&*format, &instance, draining).into_bytes();
            let start = at.index(bytes.len());
            let end = bytes.len().min(start + length);
            bytes.splice(start..end, junk.iter().copied());
            let _ = format.decode("x", &bytes);
        }
    }
}

#[test]
fn a_value_that_is_nested_without_end_is_an_error() {
    for format in all() {
        for opening in ["[", r#"{"Metadata":"#, r#"{"metadata":"#, r#"{"x":["#, r#"{"draining":["#] {
            let endless = opening.repeat(10_000);
            assert!(format.decode("x", endless.as_bytes()).is_err(), "{format:?} refuses {opening:?}");
            assert!(format.reweigh(endless.as_bytes(), 1).is_err(), "{format:?} refuses {opening:?}");
        }
    }
}
