//! What reading and writing one instance costs: a list of 10,000 is read at once.

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use tonic_etcd::format::{Entry, Format, Kitex};
use tonic_etcd::{Address, Instance, ServiceName};

fn kitex(criterion: &mut Criterion) {
    let service: ServiceName = "echo".parse().expect("a good name");
    let address: Address = "10.1.2.3:50051".parse().expect("a good address");
    let instance = Instance::new("echo", address).with_weight(20).with_tag("zone", "a").with_tag("version", "1.2.3");
    let entry = Entry::new(&service, &instance, 7, 1);
    let value = Kitex::new().encode(&entry);
    criterion.bench_function("kitex/encode", |bencher| bencher.iter(|| Kitex::new().encode(black_box(&entry))));
    criterion.bench_function("kitex/decode", |bencher| {
        bencher.iter(|| Kitex::new().decode(black_box("10.1.2.3:50051"), black_box(&value)));
    });
}

criterion_group!(benches, kitex);
criterion_main!(benches);
