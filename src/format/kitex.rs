//! The format of Kitex's etcd extension: `{prefix}/{service}/{address}` and a JSON object of four fields.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{DecodeError, Decoded, Entry, Format, weight};
use crate::instance::Address;

/// The format of Kitex's etcd extension, the default: Rust and Kitex services find each other.
///
/// ```text
/// kitex/registry-etcd/echo/127.0.0.1:8888
/// {"network":"tcp","address":"127.0.0.1:8888","weight":10,"tags":{"zone":"a"}}
/// ```
///
/// A server that leaves adds `"draining":true` just before its key goes, which Go readers ignore. Reading follows Go's
/// JSON decoder: field names match without regard to case, unknown fields are ignored, `null` is the same as absent, a
/// wrong type spoils the value. The address comes from the value; a weight that is absent or below 1 is the registry's
/// default weight. Unix sockets (`"network":"unix"`) are skipped.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kitex;

impl Format for Kitex {
    fn default_prefix(&self) -> &'static str {
        "kitex/registry-etcd"
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
            tags: (!tags.is_empty()).then_some(tags),
            draining: entry.draining,
        };
        // Strings and numbers in a struct: there is nothing that could fail to serialize.
        let json = serde_json::to_string(&value).unwrap_or_default();
        escape_as_go(&json).into_bytes()
    }

    fn decode(&self, _segment: &str, value: &[u8]) -> Result<Decoded, DecodeError> {
        let read: Read = serde_json::from_slice(value).map_err(|error| DecodeError::new(error.to_string()))?;
        if read.network.as_deref().is_some_and(|network| network.starts_with("unix")) {
            return Err(DecodeError::new("a Unix socket cannot be reached from elsewhere"));
        }
        let address: Address = match read.address.as_deref() {
            None | Some("") => return Err(DecodeError::new("it has no address")),
            Some(address) => address.parse()?,
        };
        let mut decoded = Decoded::new(address);
        decoded.weight = weight(read.weight);
        decoded.tags = read.tags;
        decoded.draining = read.draining;
        Ok(decoded)
    }

    fn carries_draining(&self) -> bool {
        true
    }
}

#[derive(Serialize)]
struct Written<'a> {
    network: &'static str,
    address: String,
    weight: u16,
    tags: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    draining: bool,
}

/// Go's encoder escapes what HTML would misread, and so must who wants to write the same bytes. In JSON these characters
/// stand in strings only.
fn escape_as_go(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[derive(Default)]
struct Read {
    network: Option<String>,
    address: Option<String>,
    weight: Option<i64>,
    tags: BTreeMap<String, String>,
    draining: bool,
}

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with network, address, weight and tags")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
        let mut read = Read::default();
        while let Some(mut field) = map.next_key::<String>()? {
            field.make_ascii_lowercase();
            match field.as_str() {
                "network" => read.network = map.next_value::<Option<String>>()?.or(read.network),
                "address" => read.address = map.next_value::<Option<String>>()?.or(read.address),
                "weight" => read.weight = map.next_value::<Option<i64>>()?.or(read.weight),
                "draining" => read.draining = map.next_value::<Option<bool>>()?.unwrap_or(read.draining),
                "tags" => {
                    let tags: Option<BTreeMap<String, Option<String>>> = map.next_value()?;
                    read.tags =
                        tags.into_iter().flatten().map(|(name, value)| (name, value.unwrap_or_default())).collect();
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::instance::{Instance, ServiceName};

    fn write(instance: &Instance, draining: bool) -> String {
        let service: ServiceName = instance.service.parse().expect("a service name");
        let entry = Entry::new(&service, instance, 7, 1).draining(draining);
        assert_eq!(Kitex.segment(&entry), instance.address.to_string());
        String::from_utf8(Kitex.encode(&entry)).expect("JSON is UTF-8")
    }

    fn instance(address: &str) -> Instance {
        Instance::new("registry-etcd-test", address.parse::<Address>().expect("an address"))
    }

    #[test]
    fn values_are_written_byte_for_byte_as_kitex_writes_them() {
        assert_eq!(
            write(&instance("127.0.0.1:8888").weight(66).tag("hello", "world"), false),
            r#"{"network":"tcp","address":"127.0.0.1:8888","weight":66,"tags":{"hello":"world"}}"#
        );
        assert_eq!(
            write(&instance("127.0.0.1:8888"), false),
            r#"{"network":"tcp","address":"127.0.0.1:8888","weight":10,"tags":null}"#
        );
        assert_eq!(
            write(&instance("[::1]:8888").tag("html", "<&>"), false),
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
    fn values_are_read_as_gos_decoder_reads_them() {
        let read = |json: &str| Kitex.decode("x", json.as_bytes()).expect(json);
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
            assert!(Kitex.decode("x", bad.as_bytes()).is_err(), "{bad:?} must not be read");
        }
        assert!(Kitex.decode("x", b"\xff\xfe").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            host in "[a-z]{1,9}", port in 1u16.., weight in 1u16..,
            tags in proptest::collection::btree_map(".{0,9}", ".{0,9}", 0..9), draining: bool,
        ) {
            let mut instance = instance(&format!("{host}:{port}")).weight(weight);
            instance.tags = tags;
            let decoded = Kitex.decode("x", write(&instance, draining).as_bytes()).expect("our own value");
            prop_assert_eq!(decoded.address, instance.address);
            prop_assert_eq!(decoded.weight, Some(weight));
            prop_assert_eq!(decoded.tags, instance.tags);
            prop_assert_eq!(decoded.draining, draining);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let _ = Kitex.decode("x", &bytes);
        }
    }
}
