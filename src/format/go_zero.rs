//! The format of go-zero: `{service}/{lease id}` and the bare address.

use super::{DecodeError, Decoded, Entry, Format};

/// The format of go-zero (zrpc): Rust and go-zero services find each other. The service's name is go-zero's `Key`, such
/// as `user.rpc`.
///
/// ```text
/// user.rpc/7587870411654340610
/// 192.168.0.5:8080
/// ```
///
/// There is no prefix by default. The key ends in the id of the lease, so a registration that lost its lease comes back
/// under another key. Two keys with one address are one instance until both are gone.
///
/// There is room for the address alone:
///
/// - Weight and tags are not written, an operator cannot set a weight, and every instance that is read has the registry's default weight.
/// - A leave cannot be announced. Clients of this crate keep a server that leaves for the two seconds, or the minute
///   where most of the service went, of one that went silently. Channels call it for as long as its connection is good,
///   and that ends when the server stops.
///
/// Reading skips what is no `host:port`.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct GoZero {}

impl GoZero {
    /// The format.
    #[must_use]
    pub fn new() -> Self {
        Self {}
    }
}

impl Format for GoZero {
    fn default_prefix(&self) -> &'static str {
        ""
    }

    fn segment(&self, entry: &Entry<'_>) -> String {
        entry.lease.to_string()
    }

    fn encode(&self, entry: &Entry<'_>) -> Vec<u8> {
        entry.instance.address.to_string().into_bytes()
    }

    fn decode(&self, _segment: &str, value: &[u8]) -> Result<Decoded, DecodeError> {
        let text = std::str::from_utf8(value).map_err(|error| DecodeError::new(error.to_string()))?;
        Ok(Decoded::new(text.parse()?))
    }

    fn carries_draining(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, key, value};
    use super::*;

    #[test]
    fn keys_and_values_are_written_byte_for_byte_as_go_zero_writes_them() {
        let instance = at("user.rpc", "192.168.0.5:8080").with_weight(20).with_tag("zone", "a");
        assert_eq!(key(&GoZero::new(), &instance), "user.rpc/7587870411654340610");
        assert_eq!(value(&GoZero::new(), &instance, false), "192.168.0.5:8080");
        assert_eq!(value(&GoZero::new(), &instance, true), "192.168.0.5:8080", "there is no room for a mark");
        assert_eq!(value(&GoZero::new(), &at("user.rpc", "[::1]:8080"), false), "[::1]:8080");
    }

    #[test]
    fn the_value_is_the_address_whatever_the_key() {
        for segment in ["7587870411654340610", "17", "x"] {
            let read = GoZero::new().decode(segment, b"192.168.0.5:8080").expect("an address");
            assert_eq!(read, Decoded::new("192.168.0.5:8080".parse().expect("an address")));
        }
    }

    #[test]
    fn values_that_are_no_address_are_errors() {
        for bad in [&b""[..], b"192.168.0.5", b":8080", b"a:0x1", b" a:1", b"a:1\n", b"{}", b"http://a:1", b"\xff:1"] {
            assert!(GoZero::new().decode("1", bad).is_err(), "{} must not be read", bad.escape_ascii());
        }
    }
}
