//! The `rust-version` of `Cargo.toml` is enough for every package in the dependency tree, and `deny.toml` allows the
//! licence of each.
//!
//! Both compare what the packages declare. For the Rust version, compiling with that very toolchain is the proof, and
//! `scripts/test.sh` does so where it is installed.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::process::Command;

use serde_json::Value;

#[test]
fn no_dependency_asks_for_a_newer_rust_than_we_do() {
    let packages = packages();
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

#[test]
fn each_licence_in_the_tree_is_allowed() {
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml")).expect("there is a deny.toml");
    let list =
        manifest.split_once("\nallow = [").and_then(|(_, rest)| rest.split_once("\n]")).expect("a list of licences").0;
    // The lines between are comments.
    let allowed: BTreeSet<&str> =
        list.lines().filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix("\",")).collect();
    let packages = packages();
    let licences: BTreeSet<(&str, &str)> = packages
        .iter()
        .map(|package| {
            let name = package["name"].as_str().expect("a package has a name");
            (name, package["license"].as_str().unwrap_or("no licence"))
        })
        .collect();
    let is_fine = |licence: &str, allowed: &BTreeSet<&str>| Terms::of(licence).all_of(allowed);
    let refused: Vec<_> = licences.iter().filter(|(_, licence)| !is_fine(licence, &allowed)).collect();
    assert!(refused.is_empty(), "deny.toml does not allow {refused:?}");
    for needless in &allowed {
        let others = allowed.iter().copied().filter(|other| other != needless).collect();
        let is_needed = licences.iter().any(|(_, licence)| !is_fine(licence, &others));
        assert!(is_needed, "deny.toml allows {needless}, which no package needs");
    }
}

#[test]
fn licences_are_read_as_expressions() {
    let mit = BTreeSet::from(["MIT"]);
    for (licence, is_fine) in [
        ("MIT", true),
        ("ISC", false),
        ("MIT/Apache-2.0", true),
        ("ISC OR MIT", true),
        ("ISC AND MIT", false),
        ("ISC AND (ISC OR MIT)", false),
        ("(ISC OR MIT) AND MIT", true),
        ("MIT AND ISC OR MIT", true),
        ("Apache-2.0 WITH LLVM-exception OR MIT", true),
    ] {
        assert_eq!(Terms::of(licence).all_of(&mit), is_fine, "{licence}, where only MIT is allowed");
    }
}

/// The words of a licence expression that are still to be read.
struct Terms<'a>(Vec<&'a str>);

impl<'a> Terms<'a> {
    fn of(licence: &'a str) -> Self {
        // Older packages write `/` for OR. The last word comes first.
        let licence =
            licence.split_inclusive(['(', ')', '/', ' ']).flat_map(|word| match word.strip_suffix(['(', ')', '/']) {
                Some(before) => [before, &word[before.len()..]],
                None => [word, ""],
            });
        Self(licence.map(str::trim).filter(|word| !word.is_empty()).rev().collect())
    }

    /// OR binds less than AND.
    fn all_of(&mut self, allowed: &BTreeSet<&str>) -> bool {
        let mut is_fine = self.each_of(allowed);
        while self.0.pop_if(|word| matches!(*word, "OR" | "/")).is_some() {
            is_fine |= self.each_of(allowed);
        }
        is_fine
    }

    fn each_of(&mut self, allowed: &BTreeSet<&str>) -> bool {
        let mut is_fine = self.one_of(allowed);
        while self.0.pop_if(|word| *word == "AND").is_some() {
            is_fine &= self.one_of(allowed);
        }
        is_fine
    }

    fn one_of(&mut self, allowed: &BTreeSet<&str>) -> bool {
        let word = self.0.pop().expect("an expression ends with a licence");
        if word == "(" {
            let is_fine = self.all_of(allowed);
            assert_eq!(self.0.pop(), Some(")"), "what is opened is closed");
            return is_fine;
        }
        // An exception allows more than its licence, and is not on the list.
        let exception = self.0.pop_if(|word| *word == "WITH").and_then(|_| self.0.pop());
        exception.is_none() && allowed.contains(word)
    }
}

/// The packages of the locked tree, with those of other platforms where cargo has them or can download them.
fn packages() -> Vec<Value> {
    let metadata = metadata(&[])
        .or_else(|whole| {
            metadata(&["--filter-platform", &host()])
                .inspect(|_| eprintln!("only this platform's packages are compared: {whole}"))
        })
        .expect("cargo describes the dependency tree");
    metadata["packages"].as_array().expect("cargo lists the packages").clone()
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
