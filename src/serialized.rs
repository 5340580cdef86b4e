//! What tools print and configs hold, in serde's data model: the feature `serde`.
//!
//! | type | as JSON |
//! | --- | --- |
//! | `ServiceName`, `Address` | text: `"echo"`, `"10.0.0.1:50051"` |
//! | `Tags` | an object: `{"zone":"a"}` |
//! | `Instance` | `{"service":..,"address":..,"weight":..,"tags":..}`; weight and tags may be left out where it is read, and an unknown field is an error, since configs have typing errors |
//! | `Member` | the fields of its instance, `lease` in hexadecimal as etcdctl shows it, and `state` |
//! | `Snapshot` | `{"revision":..,"cut_off":..,"instances":[..]}` |
//! | `Connectivity`, `MemberState` | their text: `"TRANSIENT_FAILURE"`, `"suspect"` |
//! | `InstanceStatus` | the fields of its instance, and one for each method; `latency` in seconds |
//! | `RegistrationStatus` | `{"status":"registered","key":..,"lease":..}`, and so on |
//!
//! Names of fields and texts of states are part of the public API; more fields may come.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::channel::{Connectivity, InstanceStatus};
use crate::etcd::hex;
use crate::instance::{Address, Instance, ServiceName};
use crate::register::RegistrationStatus;
use crate::snapshot::{Member, MemberState, Snapshot};
use crate::tags::Tags;

impl Serialize for ServiceName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ServiceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Tags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::<String, String>::deserialize(deserializer).map(|tags| tags.into_iter().collect())
    }
}

impl Serialize for Instance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Instance", INSTANCE_FIELDS)?;
        instance_fields(&mut fields, self)?;
        fields.end()
    }
}

impl<'de> Deserialize<'de> for Instance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Read {
            service: ServiceName,
            address: Address,
            #[serde(default = "default_weight")]
            weight: u16,
            #[serde(default)]
            tags: Tags,
        }
        let Read { service, address, weight, tags } = Read::deserialize(deserializer)?;
        Ok(Self::new(service, address).with_weight(weight).with_tags(tags))
    }
}

impl Serialize for MemberState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Member {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Member", INSTANCE_FIELDS + 2)?;
        instance_fields(&mut fields, self.instance())?;
        fields.serialize_field("lease", &hex(self.lease()))?;
        fields.serialize_field("state", &self.state())?;
        fields.end()
    }
}

impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Instances<'a>(&'a Snapshot);
        impl Serialize for Instances<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(self.0)
            }
        }
        let mut fields = serializer.serialize_struct("Snapshot", 3)?;
        fields.serialize_field("revision", &self.revision())?;
        fields.serialize_field("cut_off", &self.cut_off())?;
        fields.serialize_field("instances", &Instances(self))?;
        fields.end()
    }
}

impl Serialize for Connectivity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for InstanceStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("InstanceStatus", INSTANCE_FIELDS + 6)?;
        instance_fields(&mut fields, self.instance())?;
        fields.serialize_field("state", &self.state())?;
        fields.serialize_field("in_flight", &self.in_flight())?;
        fields.serialize_field("latency", &self.latency().map(|latency| latency.as_secs_f64()))?;
        fields.serialize_field("is_ejected", &self.is_ejected())?;
        fields.serialize_field("is_draining", &self.is_draining())?;
        fields.serialize_field("cause", &self.cause())?;
        fields.end()
    }
}

impl Serialize for RegistrationStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (name, fields) = match self {
            Self::Unregistered => ("unregistered", 0),
            Self::Registering => ("registering", 0),
            Self::Registered { .. } => ("registered", 2),
            Self::Lost { .. } => ("lost", 1),
            Self::Conflict { .. } => ("conflict", 2),
            Self::Paused => ("paused", 0),
            Self::NotServing => ("not_serving", 0),
            Self::Draining => ("draining", 0),
            Self::Gone => ("gone", 0),
            Self::Drained => ("drained", 0),
            Self::GaveUp { .. } => ("gave_up", 2),
        };
        let mut fields = serializer.serialize_struct("RegistrationStatus", 1 + fields)?;
        fields.serialize_field("status", name)?;
        match self {
            Self::Registered { key, lease } | Self::Conflict { key, lease } => {
                fields.serialize_field("key", key)?;
                fields.serialize_field("lease", &hex(*lease))?;
            }
            Self::Lost { reason } => fields.serialize_field("reason", reason)?,
            Self::GaveUp { attempts, reason } => {
                fields.serialize_field("attempts", attempts)?;
                fields.serialize_field("reason", reason)?;
            }
            _ => {}
        }
        fields.end()
    }
}

fn default_weight() -> u16 {
    Instance::DEFAULT_WEIGHT
}

/// The fields of an instance, in whatever has one.
fn instance_fields<S: SerializeStruct>(fields: &mut S, instance: &Instance) -> Result<(), S::Error> {
    fields.serialize_field("service", instance.service())?;
    fields.serialize_field("address", instance.address())?;
    fields.serialize_field("weight", &instance.weight())?;
    fields.serialize_field("tags", instance.tags())
}

const INSTANCE_FIELDS: usize = 4;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn instance() -> Instance {
        Instance::parse("echo", "10.0.0.1:80").expect("a good instance").with_weight(20).with_tag("zone", "a")
    }

    fn shown(value: impl Serialize) -> Value {
        serde_json::to_value(value).expect("it can be written")
    }

    #[test]
    fn an_instance_is_read_as_it_is_written_and_checked_where_it_is_read() {
        let written = json!({"service": "echo", "address": "10.0.0.1:80", "weight": 20, "tags": {"zone": "a"}});
        assert_eq!(shown(instance()), written);
        let read = |value: Value| serde_json::from_value::<Instance>(value).map_err(|error| error.to_string());
        assert_eq!(read(written), Ok(instance()));
        let least = Instance::parse("echo", "[::1]:80").expect("a good instance");
        assert_eq!(read(json!({"service": "echo", "address": "[::1]:80"})), Ok(least));
        for (bad, says) in [
            (json!({"service": "ec/ho", "address": "a:1"}), "bad service name \"ec/ho\""),
            (json!({"service": "echo", "address": "http://a:1"}), "give host:port alone"),
            (json!({"service": "echo", "address": "a:1", "wight": 2}), "unknown field `wight`"),
            (json!({"service": "echo"}), "missing field `address`"),
        ] {
            let error = read(bad).expect_err("it is bad");
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_snapshot_shows_leases_as_etcdctl_does_and_states_in_words() {
        let member = Member::new(Arc::new(instance()), 0x70_cc_0f_fe_ee, MemberState::Suspect);
        let of_it = json!({"service": "echo", "address": "10.0.0.1:80", "weight": 20, "tags": {"zone": "a"},
            "lease": "70cc0ffeee", "state": "suspect"});
        assert_eq!(shown(&member), of_it);
        let snapshot = Snapshot::new(7, vec![member]);
        assert_eq!(shown(&snapshot), json!({"revision": 7, "cut_off": 0, "instances": [of_it]}));
    }

    #[test]
    fn each_status_has_a_name_and_what_it_knows() {
        let (key, reason) = ("a/b".to_owned(), "no".to_owned());
        for (status, value) in [
            (RegistrationStatus::Unregistered, json!({"status": "unregistered"})),
            (RegistrationStatus::Registering, json!({"status": "registering"})),
            (
                RegistrationStatus::Registered { key: key.clone(), lease: 255 },
                json!({"status": "registered", "key": "a/b", "lease": "ff"}),
            ),
            (RegistrationStatus::Lost { reason: reason.clone() }, json!({"status": "lost", "reason": "no"})),
            (
                RegistrationStatus::Conflict { key, lease: 255 },
                json!({"status": "conflict", "key": "a/b", "lease": "ff"}),
            ),
            (RegistrationStatus::Paused, json!({"status": "paused"})),
            (RegistrationStatus::NotServing, json!({"status": "not_serving"})),
            (RegistrationStatus::Draining, json!({"status": "draining"})),
            (RegistrationStatus::Gone, json!({"status": "gone"})),
            (RegistrationStatus::Drained, json!({"status": "drained"})),
            (
                RegistrationStatus::GaveUp { attempts: 3, reason },
                json!({"status": "gave_up", "attempts": 3, "reason": "no"}),
            ),
        ] {
            assert_eq!(shown(status), value);
        }
    }

    #[test]
    fn the_status_of_an_instance_has_a_field_for_each_of_its_methods() {
        let member = Member::new(Arc::new(instance()), 7, MemberState::Draining);
        let value = shown(InstanceStatus::unused(&member));
        let rest = json!({"state": "IDLE", "in_flight": 0, "latency": null, "is_ejected": false, "is_draining": true,
            "cause": null});
        for (name, field) in rest.as_object().expect("an object") {
            assert_eq!(&value[name], field, "{name}");
        }
        assert_eq!(value["address"], "10.0.0.1:80");
    }
}
