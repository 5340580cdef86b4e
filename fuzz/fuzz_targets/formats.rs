//! What stands in etcd, to an instance: each format reads any key and value without a panic, what it reads it can
//! write, and what it wrote it reads back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tonic_etcd::format::{Entry, EtcdNaming, Format, GoZero, Kitex, Kratos};
use tonic_etcd::{Instance, ServiceName, Tags};

fuzz_target!(|input: (&str, &[u8])| {
    let (segment, value) = input;
    read(&Kitex::new(), segment, value);
    read(&EtcdNaming::new(), segment, value);
    read(&GoZero::new(), segment, value);
    read(&Kratos::new(), segment, value);
    read(&Kratos::new().secure(true), segment, value);
});

fn read(format: &impl Format, segment: &str, value: &[u8]) {
    _ = format.mark_draining(value);
    let Ok(read) = format.decode(segment, value) else { return };
    let tags: Tags = read.tags.iter().collect();
    let instance =
        Instance::new("echo", read.address.clone()).with_weight(read.weight.unwrap_or(1).max(1)).with_tags(tags);
    let service: ServiceName = "echo".parse().expect("a name");
    let entry = Entry::new(&service, &instance, 7, 7).draining(read.draining && format.carries_draining());
    let written = format.encode(&entry);
    let again = format.decode(&format.segment(&entry), &written).expect("what a format wrote it reads");
    assert_eq!(again.address, read.address, "{format:?} made another address of it");
}
