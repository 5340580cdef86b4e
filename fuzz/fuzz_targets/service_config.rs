//! A service config, to the options of a channel: any text is read without a panic, and an error names what is wrong. What
//! is read strictly is read leniently as well.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tonic_etcd::channel::ServiceConfig;

fuzz_target!(|text: &str| {
    let lenient = ServiceConfig::lenient(text);
    match text.parse::<ServiceConfig>() {
        Ok(_) => assert!(lenient.is_ok(), "nothing in it is wrong"),
        Err(error) => assert!(!error.to_string().is_empty(), "it says what is wrong"),
    }
});
