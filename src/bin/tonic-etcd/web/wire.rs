//! What the page reads: JSON in events of a stream.
//!
//! | event | |
//! | --- | --- |
//! | `begin` | all that follows replaces what the page knew |
//! | `service` | a service with all its instances |
//! | `change` | instances of a service that came, changed or went |
//! | `gone` | a service that is shown no more |
//! | `log` | what happened, oldest first |
//! | `figures` | the figures of the file |
//! | `live` | all that is known was sent; changes follow |
//! | `beat` | the time, and how it stands with etcd |
//! | `bye` | the server ends |

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tonic_etcd::snapshot::Member;
use tonic_etcd::{Address, Tags};

/// One event, as it goes over the wire. JSON has no line ends outside of its texts, and escapes those in them.
pub(crate) fn event(name: &str, data: &impl Serialize) -> Bytes {
    let mut text = format!("event: {name}\ndata: ").into_bytes();
    if serde_json::to_writer(&mut text, data).is_err() {
        // Maps with keys of text and numbers cannot fail.
        return Bytes::from_static(b": an event could not be written\n\n");
    }
    text.extend_from_slice(b"\n\n");
    text.into()
}

/// The first event of a stream.
#[derive(Clone, Serialize)]
pub(crate) struct Begin {
    pub(crate) time: u64,
    pub(crate) version: &'static str,
    pub(crate) registry: String,
    pub(crate) may_drain: bool,
}

#[derive(Serialize)]
pub(crate) struct Service<'a> {
    #[serde(rename = "service")]
    pub(crate) name: &'a str,
    pub(crate) version: u64,
    pub(crate) cut_off: usize,
    pub(crate) instances: Vec<Instance<'a>>,
}

#[derive(Serialize)]
pub(crate) struct Change<'a> {
    #[serde(rename = "service")]
    pub(crate) name: &'a str,
    pub(crate) version: u64,
    pub(crate) cut_off: usize,
    pub(crate) set: Vec<Instance<'a>>,
    pub(crate) gone: Vec<&'a Address>,
}

#[derive(Serialize)]
pub(crate) struct Gone<'a> {
    #[serde(rename = "service")]
    pub(crate) name: &'a str,
    pub(crate) version: u64,
}

#[derive(Serialize)]
pub(crate) struct Instance<'a> {
    pub(crate) address: &'a Address,
    pub(crate) weight: u16,
    pub(crate) state: &'static str,
    /// As etcdctl shows it; 0 for a key that was put without one.
    pub(crate) lease: String,
    /// When it joined; `None` for an instance that was there before this program.
    pub(crate) since: Option<u64>,
    pub(crate) tags: &'a Tags,
}

impl<'a> Instance<'a> {
    pub(crate) fn new(member: &'a Member, since: Option<u64>) -> Self {
        let instance = member.instance();
        Self {
            address: instance.address(),
            weight: instance.weight(),
            state: state(member),
            lease: lease(member),
            since,
            tags: instance.tags(),
        }
    }
}

/// Something that happened, for the timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Entry {
    pub(crate) time: u64,
    pub(crate) what: What,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<String>,
    /// `None` where there are too many to name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<String>,
    pub(crate) count: usize,
}

impl Entry {
    pub(crate) fn of_etcd(what: What, time: u64) -> Self {
        Self { time, what, service: None, address: None, count: 1 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum What {
    /// Instances that were there when the service was first looked at.
    Found,
    Joined,
    /// It said that it leaves, or was deleted by hand.
    Left,
    /// Its lease ended silently.
    Lost,
    Draining,
    Suspect,
    /// It is live again.
    Back,
    /// Under another lease, as a server that was restarted or had lost its lease.
    Again,
    /// Other weight or tags.
    Changed,
    EtcdLost,
    EtcdBack,
}

/// The time, and how it stands with etcd.
#[derive(Serialize)]
pub(crate) struct Beat<'a> {
    pub(crate) time: u64,
    /// When etcd last answered.
    pub(crate) answered: Option<u64>,
    /// Why it does not answer now.
    pub(crate) trouble: Option<&'a str>,
    /// Services that are registered and not shown, since they are too many.
    pub(crate) left_out: usize,
}

#[derive(Serialize)]
pub(crate) struct Figures {
    pub(crate) time: u64,
    #[serde(flatten)]
    pub(crate) report: Report,
    /// Why there are none.
    pub(crate) trouble: Option<String>,
}

/// What a file of figures holds; each part may be missing.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Report {
    title: String,
    /// Shown at the top, each with its course.
    figures: Vec<Figure>,
    /// By address, then by name: a column each.
    instances: BTreeMap<String, BTreeMap<String, Value>>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Figure {
    name: String,
    value: Value,
    #[serde(default)]
    unit: String,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Value {
    Number(f64),
    Text(String),
}

pub(crate) fn state(member: &Member) -> &'static str {
    use tonic_etcd::snapshot::MemberState::{Draining, Suspect};
    match member.state() {
        Draining => "draining",
        Suspect => "suspect",
        _ => "live",
    }
}

pub(crate) fn lease(member: &Member) -> String {
    format!("{:x}", member.lease())
}

/// Milliseconds since 1970: what JavaScript counts in, too.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
