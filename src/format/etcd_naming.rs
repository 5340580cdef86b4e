//! The format of etcd's own naming package, which grpc-go's `etcd:///` resolver reads: `{service}/{address}` and a JSON
//! object of three fields.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::MapAccess;
use serde_json::Value;

use super::go_json::{self, Fields, RawFields};
use super::{DecodeError, Decoded, Entry, Format, ReweighError, WEIGHT, address, metadata, weight};

/// The format of etcd's naming package, `go.etcd.io/etcd/client/v3/naming`: Rust services and those of grpc-go find
/// each other, the latter with the target `etcd:///echo`, or `etcd:///{prefix}/echo` where the registry has a prefix.
///
/// ```text
/// echo/127.0.0.1:2000
/// {"Op":0,"Addr":"127.0.0.1:2000","Metadata":{"weight":20,"zone":"a"}}
/// ```
///
/// There is no prefix by default. A server that leaves adds `"draining":true` just before its key goes, and a
/// weight that an operator set ([`Registry::set_weight`](crate::Registry::set_weight)) has the former `Metadata` beside it, in
/// `"reweighed":[null]`, until its server answered; Go readers ignore both.
///
/// Weight and tags are in `Metadata`, and that is `null` unless there are tags or a weight other than
/// [`Instance::DEFAULT_WEIGHT`](crate::Instance::DEFAULT_WEIGHT). **Set neither where old grpc-go clients read along:**
/// with an old version of etcd's package they panic on an object there ("comparing uncomparable type map"). An
/// operator's weight is therefore refused where it is `null`, unless [`adds_metadata`](Self::adds_metadata) asks for it.
/// A tag named `weight` cannot be told from the weight, and is not written.
///
/// **Under a prefix a grpc-go client has to name an authority**, with `grpc.WithAuthority("echo")`. Left to itself it
/// sends the whole target, `{prefix}%2Fecho`, which is none to hyper: the server resets each call with
/// `PROTOCOL_ERROR`.
///
/// Reading takes the address from the value and ignores `Op`. `Metadata` can be anything: an object is taken for tags,
/// with the weight in the field `weight`, as a number or in digits; text becomes a tag as it is, any other JSON as its
/// text. Metadata that is no object becomes one tag named `metadata`.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct EtcdNaming {
    adds_metadata: bool,
}

impl EtcdNaming {
    /// The format.
    #[must_use]
    pub fn new() -> Self {
        Self { adds_metadata: false }
    }

    /// Whether [`Registry::set_weight`](crate::Registry::set_weight) may turn a `Metadata` of `null` into an object.
    /// Defaults to false: where old grpc-go clients read along, each of them panics. It is the registry of the operator
    /// that counts, not that of the server.
    #[must_use]
    pub fn adds_metadata(mut self, adds: bool) -> Self {
        self.adds_metadata = adds;
        self
    }
}

impl Format for EtcdNaming {
    fn default_prefix(&self) -> &'static str {
        ""
    }

    fn segment(&self, entry: &Entry<'_>) -> String {
        entry.instance.address.to_string()
    }

    fn encode(&self, entry: &Entry<'_>) -> Vec<u8> {
        let metadata = metadata(entry.instance, Datum::Weight);
        go_json::write(&Written {
            op: 0,
            addr: entry.instance.address.to_string(),
            metadata: (!metadata.is_empty()).then_some(metadata),
            draining: entry.draining,
        })
    }

    fn decode(&self, _segment: &str, value: &[u8]) -> Result<Decoded, DecodeError> {
        let read: Read = go_json::read(value)?;
        let mut decoded = Decoded::new(address(read.addr.as_deref())?);
        match read.metadata {
            None => {}
            Some(Value::Object(metadata)) => {
                for (name, value) in metadata {
                    match number(&value).filter(|_| name == WEIGHT) {
                        Some(stated) => decoded.weight = weight(Some(stated)),
                        None => drop(decoded.tags.insert(name, text(value))),
                    }
                }
            }
            Some(other) => drop(decoded.tags.insert("metadata".to_owned(), text(other))),
        }
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
        let fields = RawFields::of(value).ok_or_else(ReweighError::no_room)?;
        if !self.adds_metadata && matches!(fields.get("Metadata"), None | Some("null")) {
            return Err(ReweighError::new(
                "its Metadata is null, and old grpc-go clients panic on an object there: adds_metadata(true) puts one",
            ));
        }
        let mut metadata = fields.object("Metadata").ok_or_else(ReweighError::no_room)?;
        metadata.set(WEIGHT, weight.to_string());
        let metadata = metadata.write();
        fields.reweigh("Metadata", metadata)
    }

    fn former(&self, value: &[u8]) -> Option<Vec<u8>> {
        go_json::former(value, "Metadata")
    }
}

fn number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(rename = "Op")]
    op: u8,
    #[serde(rename = "Addr")]
    addr: String,
    #[serde(rename = "Metadata")]
    metadata: Option<BTreeMap<&'a str, Datum<'a>>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    draining: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Datum<'a> {
    Weight(u16),
    Tag(&'a str),
}

impl<'a> From<&'a str> for Datum<'a> {
    fn from(tag: &'a str) -> Self {
        Self::Tag(tag)
    }
}

#[derive(Default)]
struct Read {
    addr: Option<String>,
    metadata: Option<Value>,
    draining: bool,
}

impl Fields for Read {
    const EXPECTED: &'static str = "an object with Addr and Metadata";

    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, value: &mut A) -> Result<bool, A::Error> {
        match name {
            "addr" => go_json::take(&mut self.addr, value),
            "metadata" => go_json::take(&mut self.metadata, value),
            "draining" => go_json::take_mark(&mut self.draining, value),
            _ => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, key, value};
    use super::*;

    #[test]
    fn keys_and_values_are_written_byte_for_byte_as_go_writes_them() {
        let plain = at("foo", "127.0.0.1:2000");
        assert_eq!(key(&EtcdNaming::new(), &plain), "foo/127.0.0.1:2000");
        assert_eq!(value(&EtcdNaming::new(), &plain, false), r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":null}"#);
        let full = plain.clone().with_weight(20).with_tag("zone", "a");
        assert_eq!(
            value(&EtcdNaming::new(), &full, false),
            r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":{"weight":20,"zone":"a"}}"#
        );
        assert_eq!(
            value(&EtcdNaming::new(), &full.with_tag("Z", "<>"), false),
            r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":{"Z":"\u003c\u003e","weight":20,"zone":"a"}}"#,
            "ordered by name, escaped for HTML"
        );
        assert_eq!(
            value(&EtcdNaming::new(), &plain.clone().with_tag("zone", "a"), false),
            r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":{"zone":"a"}}"#,
            "the default weight is not stated"
        );
        assert_eq!(
            value(&EtcdNaming::new(), &plain.with_tag("weight", "7"), false),
            r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":null}"#,
            "a tag must not look like a weight"
        );
    }

    #[test]
    fn the_draining_mark_is_one_more_field_at_the_end() {
        assert_eq!(
            value(&EtcdNaming::new(), &at("foo", "127.0.0.1:2000"), true),
            r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":null,"draining":true}"#
        );
    }

    #[test]
    fn values_are_read_as_gos_decoder_reads_them() {
        let read = |json: &str| EtcdNaming::new().decode("x", json.as_bytes()).expect(json);
        let plain = read(r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":null}"#);
        assert_eq!(plain, Decoded::new("127.0.0.1:2000".parse().expect("an address")));
        let full = read(r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":{"weight":20,"zone":"a"}}"#);
        assert_eq!(full.weight, Some(20));
        assert_eq!(full.tags, BTreeMap::from([("zone".into(), "a".into())]));

        assert_eq!(read(r#"{"addr":"a:1"}"#).address.to_string(), "a:1", "case does not matter");
        assert_eq!(read(r#"{"Op":1,"Addr":"a:1"}"#), read(r#"{"Op":{},"Addr":"a:1"}"#), "Op is ignored");
        assert_eq!(read(r#"{"Addr":"a:1","Metadata":{"weight":"20"}}"#).weight, Some(20), "digits are a number");
        assert_eq!(
            read(r#"{"Addr":"a:1","Metadata":{"weight":100000}}"#).weight,
            Some(u16::MAX),
            "too much is cut off"
        );
        for none in ["0", "-3", "null"] {
            assert_eq!(read(&format!(r#"{{"Addr":"a:1","Metadata":{{"weight":{none}}}}}"#)).weight, None, "{none}");
        }
        assert!(read(r#"{"Addr":"a:1","draining":true}"#).draining);
        assert!(!read(r#"{"Addr":"a:1","draining":"yes"}"#).draining, "only true is the mark");
    }

    #[test]
    fn metadata_of_any_kind_becomes_tags() {
        let tags = |metadata: &str| {
            let json = format!(r#"{{"Addr":"a:1","Metadata":{metadata}}}"#);
            let tags = EtcdNaming::new().decode("x", json.as_bytes()).expect(&json).tags;
            tags.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(tags("null"), [] as [&str; 0]);
        assert_eq!(tags(r#""a \"text\"""#), [r#"metadata=a "text""#]);
        assert_eq!(tags("5"), ["metadata=5"]);
        assert_eq!(tags("[1, {}]"), ["metadata=[1,{}]"]);
        assert_eq!(
            tags(r#"{"a":true,"b":{"c":1},"d":null,"weight":"heavy"}"#),
            ["a=true", r#"b={"c":1}"#, "d=", "weight=heavy"]
        );
    }

    #[test]
    fn a_weight_that_is_set_later_is_one_of_the_metadata() {
        for (value, expected) in [
            (
                r#"{"Op":0,"Addr":"a:1","Metadata":null}"#,
                r#"{"Op":0,"Addr":"a:1","Metadata":{"weight":7},"reweighed":[null]}"#,
            ),
            (
                r#"{"Op":0,"Addr":"a:1","Metadata":{"weight":20,"zone":"a"}}"#,
                r#"{"Op":0,"Addr":"a:1","Metadata":{"weight":7,"zone":"a"},"reweighed":[{"weight":20,"zone":"a"}]}"#,
            ),
        ] {
            let format = EtcdNaming::new().adds_metadata(true);
            let reweighed = format.reweigh(value.as_bytes(), 7).expect("there is room for it");
            assert_eq!(format.former(&reweighed).as_deref(), Some(value.as_bytes()), "it can be taken back");
            assert_eq!(String::from_utf8(reweighed).expect("text"), expected);
        }
        let text = br#"{"Addr":"a:1","Metadata":"a text"}"#;
        assert!(EtcdNaming::new().reweigh(text, 7).is_err(), "a text has no room for it");
        let null = br#"{"Op":0,"Addr":"a:1","Metadata":null}"#;
        let refused = EtcdNaming::new().reweigh(null, 7).expect_err("old clients would panic").to_string();
        assert!(refused.contains("grpc-go") && refused.contains("adds_metadata"), "{refused}");
    }

    #[test]
    fn values_that_cannot_be_read_are_errors() {
        for bad in [
            "",
            "null",
            "{}",
            "[]",
            "127.0.0.1:2000",
            "{",
            r#"{"Addr":""}"#,
            r#"{"Addr":null}"#,
            r#"{"Addr":1}"#,
            r#"{"Addr":"no port"}"#,
            r#"{"Addr":"a:1"} tail"#,
        ] {
            assert!(EtcdNaming::new().decode("x", bad.as_bytes()).is_err(), "{bad:?} must not be read");
        }
    }
}
