//! The format of Kratos' etcd registry: `{namespace}/{service}/{uuid}` and a JSON object of five fields.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::Uri;
use serde::Serialize;
use serde::de::MapAccess;

use super::go_json::{self, Fields, RawFields};
use super::{DecodeError, Decoded, Entry, Format, ReweighError, WEIGHT, metadata, weight};
use crate::instance::Address;

/// The format of Kratos' etcd registry: Rust and Kratos services find each other. The prefix is Kratos' namespace.
///
/// ```text
/// /microservices/helloworld/3f1cbb1e-0001-4a6b-9a50-000000000001
/// {"id":"3f1cbb1e-0001-4a6b-9a50-000000000001","name":"helloworld","version":"v1",
///  "metadata":{"weight":"20"},"endpoints":["grpc://10.0.0.1:9000"]}
/// ```
///
/// (In etcd the value is one line.) The key ends in an id of the registration's own. A server that leaves adds
/// `"draining":true` just before its key goes, and a weight that an operator set
/// ([`Registry::set_weight`](crate::Registry::set_weight)) has the former metadata beside it, in `"reweighed":[{}]`, until its
/// server answered; Go readers ignore both.
///
/// - **Endpoints**: one is written, `grpc://`, and the first of that scheme is read. [`secure`](Self::secure) makes
///   both `grpcs://`.
/// - **Tags** are the metadata. The tag `version` is Kratos' version, by which its clients can filter.
/// - **Weight**: the metadata `weight`, in digits. [`Instance::DEFAULT_WEIGHT`](crate::Instance::DEFAULT_WEIGHT) is not
///   stated, so that Kratos counts a server with that weight as it counts its own without one: 100. Where some servers
///   state a weight, let all of them, and none of 10; or read as Kratos does, with
///   [`default_weight(100)`](crate::RegistryBuilder::default_weight). A tag named `weight` is not written.
///
/// Reading follows Go's JSON decoder, as with [`Kitex`](crate::format::Kitex). A value without an endpoint of the
/// scheme, such as that of a service with HTTP alone, is skipped.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kratos {
    secure: bool,
}

impl Kratos {
    /// The format for servers that speak plain gRPC.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the servers speak TLS, `false` by default: they are then written with the scheme `grpcs`, and only
    /// endpoints of that scheme are read, as a Kratos client does that dials with TLS.
    ///
    /// It says where servers are, not how they are called: a channel still needs its
    /// [`tls(..)`](crate::ChannelBuilder::tls), a server its certificate.
    #[must_use]
    pub fn secure(self, secure: bool) -> Self {
        Self { secure }
    }

    fn scheme(self) -> &'static str {
        if self.secure { "grpcs" } else { "grpc" }
    }

    /// The first endpoint that is ours to call.
    fn endpoint(self, endpoints: &[Option<String>]) -> Result<Address, DecodeError> {
        let mut urls = endpoints.iter().flatten().filter_map(|endpoint| endpoint.parse::<Uri>().ok());
        let is_ours = |url: &Uri| url.scheme_str().is_some_and(|scheme| scheme.eq_ignore_ascii_case(self.scheme()));
        let ours =
            urls.find(is_ours).ok_or_else(|| DecodeError::new(format!("it has no {} endpoint", self.scheme())))?;
        match (ours.host(), ours.port_u16()) {
            (Some(host), Some(port)) => Ok(Address::try_from((host, port))?),
            _ => Err(DecodeError::new(format!("its endpoint {ours} has no host and port"))),
        }
    }
}

impl Format for Kratos {
    fn default_prefix(&self) -> &'static str {
        "/microservices"
    }

    fn segment(&self, entry: &Entry<'_>) -> String {
        uuid(entry.id)
    }

    fn encode(&self, entry: &Entry<'_>) -> Vec<u8> {
        let mut metadata = metadata(entry.instance, |weight| Cow::Owned(weight.to_string()));
        let version = entry.instance.tags.get(VERSION).unwrap_or_default();
        if !version.is_empty() {
            metadata.remove(VERSION);
        }
        go_json::write(&Written {
            id: uuid(entry.id),
            name: entry.service.as_str(),
            version,
            metadata: (!metadata.is_empty()).then_some(metadata),
            endpoints: [format!("{}://{}", self.scheme(), entry.instance.address)],
            draining: entry.draining,
        })
    }

    fn decode(&self, _segment: &str, value: &[u8]) -> Result<Decoded, DecodeError> {
        let read: Read = go_json::read(value)?;
        let mut decoded = Decoded::new(self.endpoint(&read.endpoints.unwrap_or_default())?);
        decoded.tags = read.metadata;
        if let Some(stated) = decoded.tags.get(WEIGHT).and_then(|text| text.parse().ok()) {
            decoded.tags.remove(WEIGHT);
            decoded.weight = weight(Some(stated));
        }
        if let Some(version) = read.version.filter(|version| !version.is_empty()) {
            decoded.tags.insert(VERSION.to_owned(), version);
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
        let mut metadata = fields.object("metadata").ok_or_else(ReweighError::no_room)?;
        metadata.set(WEIGHT, go_json::quoted(&weight.to_string()));
        let metadata = metadata.write();
        fields.reweigh("metadata", metadata)
    }

    fn former(&self, value: &[u8]) -> Option<Vec<u8>> {
        go_json::former(value, "metadata")
    }
}

/// The tag that has a field of its own.
const VERSION: &str = "version";

/// A random UUID (version 4) of these bits, all but six of them.
fn uuid(bits: u128) -> String {
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[derive(Serialize)]
struct Written<'a> {
    id: String,
    name: &'a str,
    version: &'a str,
    metadata: Option<BTreeMap<&'a str, Cow<'a, str>>>,
    endpoints: [String; 1],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    draining: bool,
}

#[derive(Default)]
struct Read {
    version: Option<String>,
    metadata: BTreeMap<String, String>,
    endpoints: Option<Vec<Option<String>>>,
    draining: bool,
}

impl Fields for Read {
    const EXPECTED: &'static str = "an object with version, metadata and endpoints";

    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, value: &mut A) -> Result<bool, A::Error> {
        match name {
            "version" => go_json::take(&mut self.version, value),
            "metadata" => go_json::take_strings(&mut self.metadata, value),
            "endpoints" => go_json::take(&mut self.endpoints, value),
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
    fn keys_and_values_are_written_byte_for_byte_as_kratos_writes_them() {
        let plain = at("helloworld", "10.0.0.1:9000");
        assert_eq!(key(&Kratos::new(), &plain), "/microservices/helloworld/3f1cbb1e-0001-4a6b-9a50-000000000001");
        assert_eq!(
            value(&Kratos::new(), &plain.clone().with_weight(20).with_tag("version", "v1"), false),
            r#"{"id":"3f1cbb1e-0001-4a6b-9a50-000000000001","name":"helloworld","version":"v1","metadata":{"weight":"20"},"endpoints":["grpc://10.0.0.1:9000"]}"#
        );
        assert_eq!(
            value(&Kratos::new(), &at("helloworld", "[::1]:9000"), false),
            r#"{"id":"3f1cbb1e-0001-4a6b-9a50-000000000001","name":"helloworld","version":"","metadata":null,"endpoints":["grpc://[::1]:9000"]}"#,
            "an absent map is null"
        );
        assert_eq!(
            value(
                &Kratos::new(),
                &plain.with_weight(20).with_tag("zone", "a&b").with_tag("a", "x").with_tag("weight", "7"),
                false
            ),
            r#"{"id":"3f1cbb1e-0001-4a6b-9a50-000000000001","name":"helloworld","version":"","metadata":{"a":"x","weight":"20","zone":"a\u0026b"},"endpoints":["grpc://10.0.0.1:9000"]}"#
        );
    }

    #[test]
    fn a_secure_registry_writes_and_reads_grpcs_alone() {
        let secure = Kratos::new().secure(true);
        let json = value(&secure, &at("helloworld", "10.0.0.1:9000"), false);
        assert!(json.ends_with(r#""endpoints":["grpcs://10.0.0.1:9000"]}"#), "{json}");
        assert!(secure.decode("x", json.as_bytes()).is_ok());
        assert!(Kratos::new().decode("x", json.as_bytes()).is_err(), "it is not for clients that speak plaintext");
        assert!(secure.decode("x", br#"{"endpoints":["grpc://10.0.0.1:9000"]}"#).is_err(), "never plaintext");
    }

    #[test]
    fn the_draining_mark_is_one_more_field_at_the_end() {
        let json = value(&Kratos::new(), &at("helloworld", "10.0.0.1:9000"), true);
        assert!(json.ends_with(r#""endpoints":["grpc://10.0.0.1:9000"],"draining":true}"#), "{json}");
    }

    #[test]
    fn values_are_read_as_kratos_reads_them() {
        let read = |json: &str| Kratos::new().decode("x", json.as_bytes()).expect(json);
        let full = read(
            r#"{"id":"3f1cbb1e-0001-4a6b-9a50-000000000001","name":"helloworld","version":"v1","metadata":{"weight":"20"},"endpoints":["grpc://10.0.0.1:9000","http://10.0.0.1:8000"]}"#,
        );
        assert_eq!(full.address.to_string(), "10.0.0.1:9000");
        assert_eq!(full.weight, Some(20));
        assert_eq!(full.tags, BTreeMap::from([("version".into(), "v1".into())]));
        assert!(!full.draining);

        let bare = read(r#"{"id":"1","name":"x","version":"","metadata":null,"endpoints":["grpc://a:1"]}"#);
        assert_eq!(bare, Decoded::new("a:1".parse().expect("an address")));
        let address = |endpoints: &str| read(&format!(r#"{{"Endpoints":[{endpoints}]}}"#)).address.to_string();
        assert_eq!(address(r#""http://a:1","grpcs://a:2","grpc://a:3","grpc://a:4""#), "a:3", "the first of ours");
        assert_eq!(address(r#""GRPC://[::1]:1?isSecure=false""#), "[::1]:1", "as old versions wrote it");
        assert_eq!(address(r#"null,"::","grpc://a:1""#), "a:1", "what is no URL is passed over");
        let weight = |text: &str| {
            let read = read(&format!(r#"{{"endpoints":["grpc://a:1"],"metadata":{{"weight":"{text}"}}}}"#));
            (read.weight, read.tags.len())
        };
        assert_eq!([weight("100"), weight("100000")], [(Some(100), 0), (Some(u16::MAX), 0)]);
        assert_eq!([weight("0"), weight("-1"), weight("heavy")], [(None, 0), (None, 0), (None, 1)]);
    }

    #[test]
    fn values_that_cannot_be_read_are_errors() {
        for bad in [
            "",
            "null",
            "{}",
            "[]",
            "10.0.0.1:9000",
            r#"{"endpoints":null}"#,
            r#"{"endpoints":[]}"#,
            r#"{"endpoints":"grpc://a:1"}"#,
            r#"{"endpoints":[1]}"#,
            r#"{"endpoints":["http://a:1"]}"#,
            r#"{"endpoints":["grpc://a"]}"#,
            r#"{"endpoints":["grpc://:1"]}"#,
            r#"{"endpoints":["grpc://a_:x"]}"#,
            r#"{"endpoints":["a:1"]}"#,
            r#"{"endpoints":["grpc://a:1"],"metadata":{"weight":5}}"#,
            r#"{"endpoints":["grpc://a:1"],"version":1}"#,
        ] {
            assert!(Kratos::new().decode("x", bad.as_bytes()).is_err(), "{bad:?} must not be read");
        }
    }

    #[test]
    fn a_weight_that_is_set_later_is_one_of_the_metadata() {
        for (value, expected) in [
            (
                r#"{"id":"1","metadata":null,"endpoints":["grpc://a:1"]}"#,
                r#"{"id":"1","metadata":{"weight":"7"},"endpoints":["grpc://a:1"],"reweighed":[null]}"#,
            ),
            (
                r#"{"id":"1","metadata":{"weight":"20"},"endpoints":["grpc://a:1"]}"#,
                r#"{"id":"1","metadata":{"weight":"7"},"endpoints":["grpc://a:1"],"reweighed":[{"weight":"20"}]}"#,
            ),
        ] {
            let reweighed = Kratos::new().reweigh(value.as_bytes(), 7).expect("there is room for it");
            assert_eq!(String::from_utf8(reweighed).expect("text"), expected);
        }
    }

    #[test]
    fn an_id_is_a_uuid_of_version_4_whatever_the_bits() {
        assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
