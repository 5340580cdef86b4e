//! One key and its value, as lists and watches hand them on: from etcd's protobuf, with a limit on the value.

use etcd_client::proto::PbKeyValue;

/// One key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kv {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) lease: i64,
    pub(crate) create_revision: i64,
    pub(crate) mod_revision: i64,
    /// How often the key was written since it was created.
    pub(crate) version: i64,
}

impl From<PbKeyValue> for Kv {
    fn from(mut kv: PbKeyValue) -> Self {
        if kv.value.len() > MAX_VALUE {
            // One byte more shows that it was too large; the rest would only fill the memory.
            kv.value.truncate(MAX_VALUE + 1);
            kv.value.shrink_to_fit();
        }
        let PbKeyValue { key, value, lease, create_revision, mod_revision, version } = kv;
        Self { key, value, lease, create_revision, mod_revision, version }
    }
}

/// The largest value that is read: an instance with 64 tags of 500 bytes fits twice.
pub(crate) const MAX_VALUE: usize = 64 * 1024;

/// The longest last segment of a key, behind its service's name, that is read: twice what the longest address takes.
pub(crate) const MAX_SEGMENT: usize = 512;
