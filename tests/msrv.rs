//! The `rust-version` of `Cargo.toml` is enough for every package in the dependency tree.
//!
//! This compares what the packages declare. Compiling with that very toolchain is the proof, and
//! `scripts/test.sh` does so where it is installed.

use std::env;
use std::process::Command;

use serde_json::Value;

#[test]
fn no_dependency_asks_for_a_newer_rust_than_we_do() {
    // Other platforms' packages count as well, but cargo has to download those first: without a
    // network the ones that are built here must do.
    let metadata = metadata(&[])
        .or_else(|whole| {
            metadata(&["--filter-platform", &host()])
                .inspect(|_| eprintln!("only this platform's packages are compared: {whole}"))
        })
        .expect("cargo describes the dependency tree");
    let packages = metadata["packages"].as_array().expect("cargo lists the packages");

    let name = |package: &Value| {
        let text = |field: &str| package[field].as_str().unwrap_or_default().to_owned();
        format!("{} {}", text("name"), text("version"))
    };
    let ours = packages
        .iter()
        .find(|package| package["name"] == env!("CARGO_PKG_NAME"))
        .and_then(|package| package["rust_version"].as_str())
        .expect("Cargo.toml states a rust-version");

    let newer: Vec<String> = packages
        .iter()
        .filter_map(|package| Some((package, package["rust_version"].as_str()?)))
        .filter(|(_, theirs)| release(theirs) > release(ours))
        .map(|(package, theirs)| format!("{} needs Rust {theirs}", name(package)))
        .collect();
    assert!(newer.is_empty(), "Cargo.toml promises Rust {ours}, but {}", newer.join(", "));
}

/// What cargo knows of the locked dependency tree with every feature on.
fn metadata(arguments: &[&str]) -> Result<Value, String> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--all-features", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .args(arguments)
        .output()
        .map_err(|error| format!("cargo does not start: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo's answer: {error}"))
}

/// The target triple that rustc builds for by default.
fn host() -> String {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().expect("rustc prints its version");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("rustc names its host")
        .to_owned()
}

/// `1.88` and `1.88.0` are the same release; numbers compare as numbers, so 1.9 comes before 1.10.
fn release(version: &str) -> [u32; 3] {
    let mut numbers = [0; 3];
    for (number, part) in numbers.iter_mut().zip(version.split('.')) {
        *number = part.parse().unwrap_or_else(|_| panic!("`{version}` is not a version of Rust"));
    }
    numbers
}
