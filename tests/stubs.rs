//! The checked-in stubs under `examples/proto/`, and the descriptors beside them, are what the generators make of the
//! files in `proto/`.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The file name stands for both the `.proto` file and the stub: each package has the name of its file.
const PACKAGES: [&str; 3] = ["echo", "goodbye", "hello"];

#[test]
fn the_stubs_are_what_the_generator_writes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos = root.join("proto");
    let generated = tempfile::tempdir().expect("a temporary folder for the generated stubs");

    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .out_dir(generated.path())
        .compile_protos(&PACKAGES.map(|package| protos.join(package).with_extension("proto")), &[protos])
        .expect("protoc reads proto/*.proto");

    for package in PACKAGES {
        let name = format!("{package}.rs");
        let stub = root.join("examples/proto").join(&name);
        let wanted =
            fs::read_to_string(generated.path().join(&name)).expect("the generator names its file after the package");

        if env::var_os("UPDATE_STUBS").is_some() {
            fs::write(&stub, wanted).expect("the stub can be written");
            continue;
        }
        // A checkout may have turned the line ends; the generator writes plain ones.
        let found = fs::read_to_string(&stub).unwrap_or_default().replace("\r\n", "\n");
        // Not `assert_eq!`: it would print both files, some hundred lines each.
        assert!(
            found == wanted,
            "examples/proto/{name} is not what the generator makes of proto/{package}.proto; \
             refresh the stubs with `UPDATE_STUBS=1 cargo test --test stubs` and commit them with the change"
        );
    }
}

/// Without comments and places in the files, which other versions of protoc write otherwise.
#[test]
fn the_descriptors_are_what_protoc_writes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let generated = tempfile::NamedTempFile::new().expect("a temporary file for the descriptors");
    let protoc = env::var_os("PROTOC").unwrap_or_else(|| "protoc".into());
    let mut command = Command::new(protoc);
    command.arg("--descriptor_set_out").arg(generated.path()).arg("-I").arg(root.join("proto"));
    let output = command.args(["hello.proto", "goodbye.proto"]).output().expect("protoc is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let wanted = fs::read(generated.path()).expect("protoc writes the file");
    let descriptors = root.join("examples/proto/descriptors.bin");
    if env::var_os("UPDATE_STUBS").is_some() {
        fs::write(&descriptors, wanted).expect("the descriptors can be written");
        return;
    }
    let is_same = fs::read(&descriptors).is_ok_and(|found| found == wanted);
    assert!(is_same, "refresh examples/proto/descriptors.bin with `UPDATE_STUBS=1 cargo test --test stubs`");
}
