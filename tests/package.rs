//! The package holds all that its pages and sources name, and its metadata and changelog fit together.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use serde_json::Value;

#[test]
fn every_link_of_a_packaged_page_leads_into_the_package() {
    let files = packaged();
    for page in files.iter().filter(|file| file.extension().is_some_and(|it| it == "md")) {
        let text = text(page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if !link.contains("://") && !path.is_empty() {
                let target = beside(page, path);
                let is_there = files.iter().any(|file| file.starts_with(&target));
                assert!(is_there, "{} links to {link}, which is not in the package", page.display());
            }
        }
    }
}

#[test]
fn the_files_that_the_readme_names_are_in_the_package() {
    let files = packaged();
    let readme = text(Path::new("README.md"));
    let is_path = |char: char| char.is_ascii_alphanumeric() || matches!(char, '/' | '_' | '-' | '.');
    for word in readme.split(|char| !is_path(char)).map(|word| word.trim_end_matches(['.', '/'])) {
        // Scripts need the whole repository, and the README says where they are from.
        if word.contains('/') && !word.starts_with("scripts/") && root().join(word).exists() {
            let is_there = files.iter().any(|file| file.starts_with(word));
            assert!(is_there, "README.md names {word}, which is not in the package");
        }
    }
}

#[test]
fn the_files_that_sources_include_are_in_the_package() {
    let files = packaged();
    let mut included = 0;
    for source in files.iter().filter(|file| file.extension().is_some_and(|it| it == "rs")) {
        let text = text(source);
        let modules = text.split("#[path = \"").skip(1);
        let texts = text.split("include_str!(\"").skip(1);
        for path in modules.chain(texts).filter_map(|rest| rest.split('"').next()) {
            let target = beside(source, path);
            assert!(files.contains(&target), "{} includes {path}, which is not in the package", source.display());
            included += 1;
        }
    }
    assert!(included > 0, "the examples share files");
}

#[test]
fn only_what_users_have_a_use_for_is_in_the_package() {
    let useless = ["tests", "benches", "fuzz", "scripts", ".ci", ".github", "deny.toml", "rustfmt.toml", ".gitignore"];
    for file in packaged() {
        let is_useless = useless.iter().any(|name| file.starts_with(name));
        assert!(!is_useless, "{} is in the package; see `include` in Cargo.toml", file.display());
        let kind = file.extension().and_then(|it| it.to_str());
        let is_known = matches!(
            kind,
            None | Some(
                "lock"
                    | "md"
                    | "orig"
                    | "proto"
                    | "rs"
                    | "toml"
                    | "json"
                    | "yaml"
                    | "service"
                    | "bin"
                    | "html"
                    | "css"
                    | "js"
                    | "svg"
                    | "png"
            )
        );
        assert!(is_known, "{} is in the package: what is it for?", file.display());
    }
}

#[test]
fn the_registry_is_told_all_that_it_asks_for() {
    let package = package();
    for field in ["description", "documentation", "license", "readme", "rust_version"] {
        assert!(package[field].is_string(), "Cargo.toml has no {field}");
    }
    for field in ["categories", "keywords"] {
        let count = package[field].as_array().map_or(0, Vec::len);
        assert!((1..=5).contains(&count), "the registry takes up to five {field}, and Cargo.toml has {count}");
    }
    let docs = &package["metadata"]["docs"]["rs"];
    assert_eq!(docs["all-features"], true, "docs.rs shows what is behind features");
    assert!(text(Path::new("src/lib.rs")).contains("cfg_attr(docsrs, feature(doc_cfg))"), "docs.rs names the features");
}

#[test]
fn headings_of_the_changelog_are_links_once_there_is_a_repository() {
    let package = package();
    let repository = package["repository"].as_str();
    let changelog = text(Path::new("CHANGELOG.md"));
    let headings = changelog.lines().filter_map(|line| line.strip_prefix("## "));
    for heading in headings {
        let name = heading.strip_prefix('[').and_then(|rest| rest.split(']').next());
        match (repository, name) {
            (Some(repository), Some(name)) => {
                let definition = format!("\n[{name}]: {repository}/");
                assert!(changelog.contains(&definition), "[{name}] in CHANGELOG.md is no link into {repository}");
            }
            (Some(_), None) => panic!("Cargo.toml has a repository now: make a link of {heading} in CHANGELOG.md"),
            (None, Some(name)) => {
                panic!("[{name}] in CHANGELOG.md links to a repository that Cargo.toml does not name")
            }
            (None, None) => {}
        }
    }
}

#[test]
fn the_versions_page_states_the_rust_version_of_the_manifest() {
    let version = package()["rust_version"].as_str().expect("a minimum Rust version").to_owned();
    let page = text(Path::new("docs/versions.md"));
    assert!(
        page.contains(&format!("Rust {version} ")),
        "docs/versions.md does not say that the minimum is Rust {version}"
    );
}

/// What `cargo package` packs, as paths from the root.
fn packaged() -> BTreeSet<PathBuf> {
    let list = cargo(&["package", "--list", "--allow-dirty", "--offline"]);
    // Cargo makes these itself; the manifest as it is written is there as `Cargo.toml.orig`.
    let made = ["Cargo.lock", "Cargo.toml", "Cargo.toml.orig", ".cargo_vcs_info.json"];
    list.lines().filter(|line| !made.contains(line)).map(PathBuf::from).collect()
}

/// What cargo reads in the manifest.
fn package() -> Value {
    let metadata = cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let metadata: Value = serde_json::from_str(&metadata).expect("cargo writes JSON");
    metadata["packages"][0].clone()
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().expect("cargo starts");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo writes UTF-8")
}

/// A relative path that a file names, from the root.
fn beside(file: &Path, path: &str) -> PathBuf {
    let mut target = PathBuf::new();
    for part in file.parent().unwrap_or(Path::new("")).join(path).components() {
        match part {
            Component::ParentDir => drop(target.pop()),
            Component::CurDir => {}
            part => target.push(part),
        }
    }
    target
}

fn text(file: &Path) -> String {
    let text = fs::read_to_string(root().join(file));
    // A checkout may have turned the line ends.
    text.unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display())).replace("\r\n", "\n")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
