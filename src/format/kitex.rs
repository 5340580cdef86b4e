//! The format of Kitex's etcd extension: `{prefix}/{service}/{address}` and a JSON object of four fields.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::MapAccess;

use super::go_json::{self, Fields, RawFields};
use super::{DecodeError, Decoded, Entry, Format, ReweighError, WEIGHT, address, weight};

/// The format of Kitex's etcd extension, the default: Rust and Kitex services find each other.
///
/// ```text
/// kitex/registry-etcd/echo/127.0.0.1:8888
/// {"network":"tcp","address":"127.0.0.1:8888","weight":10,"tags":{"zone":"a"}}
/// ```
///
/// A server that leaves adds `"draining":true` just before its key goes, and a weight that an operator set
/// ([`Registry::set_weight`](crate::Registry::set_weight)) has the former one beside it, in `"reweighed":[10]`,
/// until its server answered;
/// Go readers ignore both. Reading follows Go's
/// JSON decoder: field names match without regard to case, unknown fields are ignored, `null` is the same as absent, a
/// wrong type spoils the value. The address comes from the value; a weight that is absent or below 1 is the registry's
/// default weight. Unix sockets (`"network":"unix"`) are skipped.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Kitex {}

impl Kitex {
    /// The format.
    #[must_use]
    pub fn new() -> Self {
        Self {}
    }
}

impl Format for Kitex {
    fn default_prefix(&self) -> &'static str {
        "kitex/registry-etcd"
    }

    fn honours_kitex_environment(&self) -> bool {
        true
    }

    fn segment(&self, entry: &Entry<'_>) -> String {
        entry.instance.address.to_string()
    }

    fn encode(&self, entry: &Entry<'_>) -> Vec<u8> {
        let tags = &entry.instance.tags;
        let value = Written {
            network: "tcp",
            address: entry.instance.address.to_string(),
            weight: entry.instance.weight,
            tags: (!tags.is_empty()).then(|| tags.iter().collect()),
            draining: entry.draining,
        };
        go_json::write(&value)
    }

    fn decode(&self, _segment: &str, value: &[u8]) -> Result<Decoded, DecodeError> {
        let read: Read = go_json::read(value)?;
        if read.network.as_deref().is_some_and(|network| network.starts_with("unix")) {
            return Err(DecodeError::new("a Unix socket cannot be reached from elsewhere"));
        }
        let mut decoded = Decoded::new(address(read.address.as_deref())?);
        decoded.weight = weight(read.weight);
        decoded.tags = read.tags;
        decoded.draining = read.draining;
        Ok(decoded)
    }

    fn carries_draining(&self) -> bool {
        true
    }

    fn mark_draining(&self, value: &[u8]) -> Option<Vec<u8>> {
        go_json::mark(value)
    }

    fn reweigh(&self, value: &[u8], weight: u16) -> Result<Vec<u8>, ReweighError> {
        RawFields::of(value).ok_or_else(ReweighError::no_room)?.reweigh(WEIGHT, weight.to_string())
    }

    fn former(&self, value: &[u8]) -> Option<Vec<u8>> {
        go_json::former(value, WEIGHT)
    }
}

#[derive(Serialize)]
struct Written<'a> {
    network: &'static str,
    address: String,
    weight: u16,
    tags: Option<BTreeMap<&'a str, &'a str>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    draining: bool,
}

#[derive(Default)]
struct Read {
    network: Option<String>,
    address: Option<String>,
    weight: Option<i64>,
    tags: BTreeMap<String, String>,
    draining: bool,
}

impl Fields for Read {
    const EXPECTED: &'static str = "an object with network, address, weight and tags";

    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, value: &mut A) -> Result<bool, A::Error> {
        match name {
            "network" => go_json::take(&mut self.network, value),
            "address" => go_json::take(&mut self.address, value),
            "weight" => go_json::take(&mut self.weight, value),
            "tags" => go_json::take_strings(&mut self.tags, value),
            "draining" => go_json::take_mark(&mut self.draining, value),
            _ => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, key, value};
    use super::*;
    use crate::instance::Instance;

    fn write(instance: &Instance, draining: bool) -> String {
        value(&Kitex::new(), instance, draining)
    }

    fn instance(address: &str) -> Instance {
        at("registry-etcd-test", address)
    }

    #[test]
    fn keys_and_values_are_written_byte_for_byte_as_kitex_writes_them() {
        assert_eq!(
            key(&Kitex::new(), &instance("127.0.0.1:8888")),
            "kitex/registry-etcd/registry-etcd-test/127.0.0.1:8888"
        );
        assert_eq!(
            write(&instance("127.0.0.1:8888").with_weight(66).with_tag("hello", "world"), false),
            r#"{"network":"tcp","address":"127.0.0.1:8888","weight":66,"tags":{"hello":"world"}}"#
        );
        assert_eq!(
            write(&instance("127.0.0.1:8888"), false),
            r#"{"network":"tcp","address":"127.0.0.1:8888","weight":10,"tags":null}"#
        );
        assert_eq!(
            write(&instance("[::1]:8888").with_tag("html", "<&>"), false),
            r#"{"network":"tcp","address":"[::1]:8888","weight":10,"tags":{"html":"\u003c\u0026\u003e"}}"#
        );
    }

    #[test]
    fn the_draining_mark_is_one_more_field_at_the_end() {
        assert_eq!(
            write(&instance("127.0.0.1:8888"), true),
            r#"{"network":"tcp","address":"127.0.0.1:8888","weight":10,"tags":null,"draining":true}"#
        );
    }

    #[test]
    fn a_mark_that_is_added_later_leaves_what_another_program_wrote() {
        let other = br#"{ "tags": {"a": "}"}, "more": [1], "address": "a:1" } "#;
        let marked = Kitex::new().mark_draining(other).expect("an object takes it");
        assert_eq!(
            String::from_utf8(marked.clone()).expect("text"),
            r#"{ "tags": {"a": "}"}, "more": [1], "address": "a:1" ,"draining":true}"#
        );
        assert!(Kitex::new().decode("x", &marked).expect("it can be read").draining);
        assert_eq!(Kitex::new().mark_draining(b"{}").as_deref(), Some(&br#"{"draining":true}"#[..]));
        assert_eq!(Kitex::new().mark_draining(b"10.0.0.1:80"), None, "only an object takes it");
    }

    #[test]
    fn a_weight_that_is_set_later_leaves_what_another_program_wrote() {
        let reweigh = |value: &str| {
            let reweighed = Kitex::new().reweigh(value.as_bytes(), 7).ok()?;
            Some(String::from_utf8(reweighed).expect("text"))
        };
        assert_eq!(
            reweigh(r#"{"network":"tcp","address":"a:1","weight":10,"tags":{"html":"\u003c"}}"#).as_deref(),
            Some(r#"{"network":"tcp","address":"a:1","weight":7,"tags":{"html":"\u003c"},"reweighed":[10]}"#)
        );
        assert_eq!(
            reweigh(r#"{ "more": [1, 2], "address": "a:1" }"#).as_deref(),
            Some(r#"{"more":[1, 2],"address":"a:1","weight":7,"reweighed":[]}"#)
        );
        for other in ["10.0.0.1:80", "[]", "null", "", "{"] {
            assert_eq!(reweigh(other), None, "only an object takes it: {other:?}");
        }
    }

    #[test]
    fn values_are_read_as_gos_decoder_reads_them() {
        let read = |json: &str| Kitex::new().decode("x", json.as_bytes()).expect(json);
        let full = read(r#"{"network":"tcp","address":"127.0.0.1:8888","weight":66,"tags":{"hello":"world"}}"#);
        assert_eq!(full.address.to_string(), "127.0.0.1:8888");
        assert_eq!(full.weight, Some(66));
        assert_eq!(full.tags, BTreeMap::from([("hello".into(), "world".into())]));
        assert!(!full.draining);

        assert_eq!(read(r#"{"ADDRESS":"a:1","Weight":5}"#).weight, Some(5), "case does not matter");
        assert_eq!(read(r#"{"address":"a:1","more":[1,{"x":2}]}"#).weight, None, "unknown fields are ignored");
        assert_eq!(read(r#"{"address":"a:1","weight":0}"#).weight, None);
        assert_eq!(read(r#"{"address":"a:1","weight":-3}"#).weight, None);
        assert_eq!(read(r#"{"address":"a:1","weight":null,"tags":null,"network":null}"#).weight, None);
        assert_eq!(read(r#"{"address":"a:1","weight":100000}"#).weight, Some(u16::MAX), "too much is cut off");
        assert_eq!(read(r#"{"address":"a:1","tags":{"x":null}}"#).tags["x"], "");
        assert!(read(r#"{"address":"a:1","draining":true}"#).draining);
    }

    #[test]
    fn values_that_cannot_be_read_are_errors() {
        for bad in [
            "",
            "null",
            "{}",
            "[]",
            "1",
            "\"a:1\"",
            "{",
            r#"{"address":""}"#,
            r#"{"address":null}"#,
            r#"{"address":1}"#,
            r#"{"address":"a:1","weight":"10"}"#,
            r#"{"address":"a:1","weight":10.5}"#,
            r#"{"address":"a:1","weight":99999999999999999999}"#,
            r#"{"address":"a:1","tags":[]}"#,
            r#"{"address":"a:1","tags":{"x":1}}"#,
            r#"{"network":"unix","address":"/tmp/socket"}"#,
            r#"{"address":"no port"}"#,
            r#"{"address":"a:1"} tail"#,
        ] {
            assert!(Kitex::new().decode("x", bad.as_bytes()).is_err(), "{bad:?} must not be read");
        }
        assert!(Kitex::new().decode("x", b"\xff\xfe").is_err());
    }
}
