//! How long etcd may take, and how long it is left alone after a refusal: the times that discovery and registration
//! share.

use std::time::Duration;

/// How long a unary call, and the first answer of a stream, may take: well above a slow disk's fsync, well below what
/// an operator takes for a hang.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(5);

/// How long a grant or a claim may take: shorter, since a server waits for it to be found.
pub(crate) const CLAIM_LIMIT: Duration = Duration::from_secs(3);

/// How long etcd is left alone after it denied permission.
pub(crate) const DENIED_PAUSE: Duration = Duration::from_secs(30);

/// How long etcd is left alone after it answered and refused, for instance because its disk is full.
pub(crate) const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// How long etcd is left alone while its members belong to different clusters: about as often as they are asked.
pub(crate) const SPLIT_PAUSE: Duration = Duration::from_secs(5);
