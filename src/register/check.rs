//! Whether an instance can be written so that its readers find it, and find all of it.

use crate::error::ConfigError;
use crate::etcd::{MAX_SEGMENT, MAX_VALUE};
use crate::format::{Entry, Format};
use crate::instance::{Instance, ServiceName};
use crate::targets::REGISTRATION;

/// Refuses what readers would ignore: values that are too large, and keys that are too long or have more or fewer
/// slashes.
pub(super) fn check_value(format: &dyn Format, service: &ServiceName, instance: &Instance) -> Result<(), ConfigError> {
    let entry = Entry::new(service, instance, i64::MAX, u128::MAX).draining(true);
    let segment = format.segment(&entry);
    if segment.is_empty() || segment.contains('/') {
        let value = format!("that ends a key in {segment:?}");
        return Err(ConfigError::Option { option: "format", value, expected: "one segment without a slash" });
    }
    if segment.len() > MAX_SEGMENT {
        let value = format!("that ends a key in {} bytes", segment.len());
        return Err(ConfigError::Option { option: "format", value, expected: "at most 512" });
    }
    let value = format.encode(&entry);
    if value.len() <= MAX_VALUE {
        return Ok(());
    }
    let value = format!("values that make {} bytes in etcd", value.len());
    Err(ConfigError::Option { option: "tag", value, expected: "at most 65536 bytes in all" })
}

/// Refuses what needs a registration of its own.
pub(super) fn check_update(old: &Instance, new: &Instance) -> Result<(), ConfigError> {
    if new.service != old.service {
        let value = format!("{:?}", new.service);
        return Err(ConfigError::Option { option: "service", value, expected: "the registered one" });
    }
    if new.address != old.address {
        let value = new.address.to_string();
        return Err(ConfigError::Option { option: "address", value, expected: "the registered one" });
    }
    new.check_publishable()
}

/// Names in the log what of an instance the format leaves out, as some formats carry no weight or no tags; not again
/// where that is what it left out of the instance `before`.
pub(super) fn warn_of_lost(format: &dyn Format, service: &ServiceName, instance: &Instance, before: Option<&Instance>) {
    let lost = lost(format, service, instance);
    if !lost.is_empty() && before.is_none_or(|before| self::lost(format, service, before) != lost) {
        let (service, address, lost) = (service.as_str(), &instance.address, lost.join(" and "));
        tracing::warn!(
            target: REGISTRATION,
            service,
            %address,
            ?format,
            lost,
            "the format does not carry all of the instance"
        );
    }
}

fn lost(format: &dyn Format, service: &ServiceName, instance: &Instance) -> Vec<&'static str> {
    let entry = Entry::new(service, instance, i64::MAX, u128::MAX);
    let mut lost = Vec::new();
    // A format of the user's may only be written.
    let Ok(decoded) = format.decode(&format.segment(&entry), &format.encode(&entry)) else { return lost };
    if decoded.weight.unwrap_or(Instance::DEFAULT_WEIGHT) != instance.weight {
        lost.push("its weight");
    }
    if instance.tags.iter().any(|(name, value)| decoded.tags.get(name).is_none_or(|written| written != value)) {
        lost.push("tags");
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{EtcdNaming, GoZero, Kitex, Kratos};
    use crate::test_log::Log;

    #[test]
    fn what_a_format_leaves_out_is_logged() {
        let service: ServiceName = "echo".parse().expect("a good name");
        let plain = Instance::parse("echo", "10.0.0.1:80").expect("a good address");
        let rich = plain.clone().with_weight(20).with_tag("zone", "a");
        let odd = plain.clone().with_tag("weight", "7");
        let formats: [&dyn Format; 4] = [&Kitex::new(), &EtcdNaming::new(), &GoZero::new(), &Kratos::new()];
        let lost = |instance: &Instance| {
            formats.map(|format| {
                let (log, _guard) = Log::capture();
                warn_of_lost(format, &service, instance, None);
                warn_of_lost(format, &service, instance, Some(instance));
                log.count("does not carry all of the instance")
            })
        };
        assert_eq!(lost(&plain), [0; 4]);
        assert_eq!(lost(&rich), [0, 0, 1, 0], "go-zero has addresses alone");
        assert_eq!(lost(&odd), [0, 1, 1, 1], "where the weight is a tag, no other can have its name");
    }
}
