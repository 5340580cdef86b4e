//! A service config, to the options of a channel: any text is read without a panic, and an error names what is wrong.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tonic_etcd::channel::ServiceConfig;

fuzz_target!(|text: &str| {
    if let Err(error) = text.parse::<ServiceConfig>() {
        assert!(!error.to_string().is_empty(), "it says what is wrong");
    }
});
