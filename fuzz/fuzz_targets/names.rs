//! Names and addresses from flags, variables and values: no text panics, and what was read is written as it was meant.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tonic_etcd::{Address, ServiceName};

fuzz_target!(|text: &str| {
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string().parse::<Address>().expect("it is one"), address);
    }
    if let Ok(service) = text.parse::<ServiceName>() {
        assert_eq!(service.as_str(), text);
        assert!(!text.contains('/'), "a name stays below its prefix");
    }
});
