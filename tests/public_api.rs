//! What users can name is written down in `tests/public_api.txt`, and no type of a private dependency is part of it.
//!
//! Both are read from rustdoc's JSON, whose layout changes with the compiler. The list is compared where the layout is
//! the one that it was made with, and skipped with a word elsewhere; the dependencies are looked at with every
//! compiler.

// The unstable rustdoc is a shell script.
#![cfg(unix)]

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

/// The crates whose types users meet, and whose next major version is therefore one of this crate's, too;
/// `docs/versions.md` says so. Parts of tower, and serde's traits where they are implemented, are crates of their own.
const PUBLIC: [&str; 12] = [
    "bytes",
    "futures_core",
    "http",
    "http_body",
    "hyper",
    "serde_core",
    "tokio",
    "tonic",
    "tonic_health",
    "tower",
    "tower_layer",
    "tower_service",
];

#[test]
fn no_type_of_a_private_dependency_is_public() {
    let met = API.foreign_crates();
    let leaked: Vec<_> = met.iter().filter(|(name, _)| !PUBLIC.contains(name)).collect();
    assert!(
        leaked.is_empty(),
        "private dependencies became public, here with the first item that names each: {leaked:?}; keep them private, or \
         add them to PUBLIC and to docs/versions.md"
    );
    let unmet: Vec<_> = PUBLIC.iter().filter(|name| !met.contains_key(*name)).collect();
    assert!(
        unmet.is_empty(),
        "PUBLIC and docs/versions.md can do without {unmet:?}: no public item names them any more"
    );
}

#[test]
fn the_versions_page_names_each_public_dependency() {
    let page = fs::read_to_string(root().join("docs/versions.md")).expect("there is a page of versions");
    for name in PUBLIC {
        // They are re-exported by the crates that programs depend on.
        let name = match name {
            "tower_layer" | "tower_service" => "tower".to_owned(),
            "serde_core" => "serde".to_owned(),
            other => other.replace('_', "-"),
        };
        assert!(page.contains(&format!("| `{name}` |")), "docs/versions.md has no row for {name}");
    }
}

#[test]
fn the_public_items_are_those_of_the_list() {
    let list = root().join("tests/public_api.txt");
    let written = fs::read_to_string(&list).unwrap_or_default().replace("\r\n", "\n");
    let head = format!("# rustdoc JSON {}", API.0["format_version"]);
    let update = env::var_os("UPDATE_PUBLIC_API").is_some();
    if !update && written.lines().next() != Some(&head) {
        let made_with = written.lines().next().unwrap_or("no layout");
        assert!(
            env::var_os("NEED_PUBLIC_API").is_none(),
            "this compiler writes {head}, and the list is made with {made_with}"
        );
        eprintln!("SKIPPED: this compiler writes {head}, and the list is made with {made_with}");
        return;
    }
    let mut lines = API.list();
    lines.insert(0, head);
    if update {
        fs::write(&list, lines.join("\n") + "\n").expect("the list can be written");
        return;
    }
    let (was, is): (BTreeSet<_>, BTreeSet<_>) = (written.lines().collect(), lines.iter().map(String::as_str).collect());
    let removed = was.difference(&is).map(|line| format!("\n- {line}"));
    let added = is.difference(&was).map(|line| format!("\n+ {line}"));
    let changes: String = removed.chain(added).collect();
    assert!(
        changes.is_empty(),
        "the public items are not those of tests/public_api.txt:{changes}\nif that is meant, refresh the list with \
         `UPDATE_PUBLIC_API=1 cargo test --test public_api` and commit it with the change"
    );
}

static API: LazyLock<Api> = LazyLock::new(Api::of_this_crate);

/// The public items, as rustdoc describes them.
struct Api(Value);

impl Api {
    /// In the folder where `cargo doc` builds, so that dependencies are built once for both.
    fn of_this_crate() -> Self {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a folder in the target folder");
        let output = Command::new(env!("CARGO"))
            .args(["rustdoc", "--locked", "--lib", "--all-features"])
            .arg("--manifest-path")
            .arg(root().join("Cargo.toml"))
            .arg("--target-dir")
            .arg(target)
            .args(["--", "-Z", "unstable-options", "--output-format", "json", "--cap-lints", "allow"])
            .env("RUSTDOC", root().join("scripts/rustdoc_nightly.sh"))
            .output()
            .expect("cargo starts");
        assert!(output.status.success(), "rustdoc fails: {}", String::from_utf8_lossy(&output.stderr));
        let json = fs::read(target.join("doc/tonic_etcd.json")).expect("rustdoc has written its JSON");
        Self(serde_json::from_slice(&json).expect("it is JSON"))
    }

    fn item(&self, id: &Value) -> Option<&Value> {
        self.0["index"].get(id.to_string())
    }

    /// The crate that defines it.
    fn crate_of(&self, id: &Value) -> Option<&str> {
        let number = &self.0["paths"].get(id.to_string())?["crate_id"];
        if number == 0 { Some("tonic_etcd") } else { self.0["external_crates"][number.to_string()]["name"].as_str() }
    }

    /// What it is called in the list: the items of this crate and of the standard library by their name alone.
    fn name(&self, id: &Value, written: &Value) -> String {
        let path = &self.0["paths"][id.to_string()]["path"];
        let last = path.as_array().and_then(|path| path.last()).unwrap_or(written).as_str().unwrap_or_default();
        match self.crate_of(id) {
            Some("tonic_etcd" | "alloc" | "core" | "std") | None => last.to_owned(),
            Some(other) => format!("{other}::{last}"),
        }
    }

    /// Every item that users can name, with its path.
    fn public(&self) -> Vec<(String, &Value)> {
        let mut found = Vec::new();
        let root = self.item(&self.0["root"]).expect("the crate has a root");
        self.collect(root, "tonic_etcd".to_owned(), &mut BTreeSet::new(), &mut found);
        found
    }

    fn collect<'a>(
        &'a self,
        item: &'a Value,
        path: String,
        seen: &mut BTreeSet<String>,
        found: &mut Vec<(String, &'a Value)>,
    ) {
        // What an import brings in from this crate stands in its place.
        let item = self.item(&item["inner"]["use"]["id"]).unwrap_or(item);
        let (kind, inner) = kind(item);
        if kind == "impl" && !is_written(inner) {
            return;
        }
        if !seen.insert(item["id"].to_string()) {
            // An `impl` is named by its trait and by its type.
            found.extend((kind != "impl").then_some((path, item)));
            return;
        }
        let of = |it: &Value| format!("<{} as {}>", self.kind_of(&it["for"]), self.reference(&it["trait"]));
        let path = if inner["trait"].is_null() { path } else { of(inner) };
        found.push((path.clone(), item));
        for child in self.children(kind, inner) {
            let name = child["name"].as_str().or_else(|| child["inner"]["use"]["name"].as_str());
            let path = name.map_or(path.clone(), |name| format!("{path}::{name}"));
            self.collect(child, path, seen, found);
        }
    }

    /// What is in an item, modules last: at the root stands what is imported from them.
    fn children<'a>(&'a self, kind_of_parent: &str, inner: &'a Value) -> Vec<&'a Value> {
        let ids: &[&Value] = match kind_of_parent {
            "module" | "impl" => &[&inner["items"]],
            "trait" => &[&inner["items"], &inner["implementations"]],
            "enum" => &[&inner["variants"], &inner["impls"]],
            "struct" => &[&inner["kind"]["plain"]["fields"], &inner["kind"]["tuple"], &inner["impls"]],
            "variant" => &[&inner["kind"]["struct"]["fields"], &inner["kind"]["tuple"]],
            _ => &[],
        };
        let ids = ids.iter().filter_map(|ids| ids.as_array()).flatten();
        let mut children: Vec<&Value> = ids.filter_map(|id| self.item(id)).collect();
        children.sort_by_key(|child| kind(child).0 == "module");
        children
    }

    /// The crates beside the standard library whose items the public ones name, each with the path of the first that
    /// does.
    fn foreign_crates(&self) -> BTreeMap<&str, String> {
        let mut met = BTreeMap::new();
        for (path, item) in self.public() {
            let mut ids = Vec::new();
            references(&item["inner"], &mut ids);
            for name in ids.into_iter().filter_map(|id| self.crate_of(id)) {
                if !matches!(name, "tonic_etcd" | "alloc" | "core" | "std") {
                    met.entry(name).or_insert_with(|| path.clone());
                }
            }
        }
        met
    }

    /// One line for each public item.
    fn list(&self) -> Vec<String> {
        let (mut lines, mut first) = (BTreeSet::new(), BTreeMap::new());
        for (path, item) in self.public() {
            match first.get(&item["id"].to_string()) {
                Some(first) if path != *first => lines.extend([format!("{path} is {first}")]),
                _ => lines.extend(self.line(&path, item)),
            }
            first.entry(item["id"].to_string()).or_insert(path);
        }
        lines.into_iter().collect()
    }

    fn line(&self, path: &str, item: &Value) -> Option<String> {
        let (kind, inner) = kind(item);
        let attributes = item["attrs"].as_array().into_iter().flatten();
        let is = |name: &str| attributes.clone().any(|it| it == name || it.get(name).is_some());
        let mut marks = String::new();
        marks.extend(is("non_exhaustive").then_some(" #[non_exhaustive]"));
        marks.extend(is("must_use").then_some(" #[must_use]"));
        let generics = self.generics(&inner["generics"]);
        let bounds = self.bounds_after(": ", &inner["bounds"]);
        let wheres = self.wheres(&inner["generics"]);
        let line = match kind {
            "module" => "mod".to_owned(),
            "use" => format!("use {}", self.name(&inner["id"], &inner["source"])),
            "struct" => {
                let is_open = inner["kind"]["plain"]["has_stripped_fields"] == true;
                format!("struct{generics}{}{wheres}", if is_open { " { .. }" } else { "" })
            }
            "enum" => format!("enum{generics}{wheres}"),
            "variant" => "variant".to_owned(),
            "trait" => format!("trait{generics}{bounds}{wheres}"),
            "struct_field" => format!("field: {}", self.kind_of(inner)),
            "assoc_const" => format!("const: {}", self.kind_of(&inner["type"])),
            "assoc_type" => format!("type{bounds}{}", self.kind_after(" = ", &inner["type"])),
            // The methods of an implementation follow from the trait.
            "function" if path.starts_with('<') => return None,
            "function" => {
                let is_async = if inner["header"]["is_async"] == true { "async " } else { "" };
                let required = if inner["has_body"] == false { " (required)" } else { "" };
                format!("{is_async}fn{generics}{}{wheres}{required}", self.signature(&inner["sig"]))
            }
            "impl" if inner["trait"].is_null() => return None,
            "impl" => format!("impl{generics}{wheres}"),
            other => other.to_owned(),
        };
        Some(format!("{path} {line}{marks}"))
    }

    fn signature(&self, sig: &Value) -> String {
        let inputs = sig["inputs"].as_array().into_iter().flatten();
        let inputs = inputs.map(|input| match (input[0].as_str().unwrap_or_default(), self.kind_of(&input[1])) {
            ("self", kind) if kind.ends_with("Self") => kind.replace("Self", "self"),
            (name, kind) => format!("{name}: {kind}"),
        });
        format!("({}){}", joined(inputs), self.kind_after(" -> ", &sig["output"]))
    }

    /// A path with its arguments.
    fn reference(&self, it: &Value) -> String {
        self.name(&it["id"], &it["path"]) + &self.arguments(&it["args"])
    }

    fn arguments(&self, arguments: &Value) -> String {
        if let Some(call) = arguments.get("parenthesized") {
            let inputs = call["inputs"].as_array().into_iter().flatten().map(|input| self.kind_of(input));
            return format!("({}){}", joined(inputs), self.kind_after(" -> ", &call["output"]));
        }
        let Some(angle) = arguments.get("angle_bracketed") else { return String::new() };
        let plain = angle["args"].as_array().into_iter().flatten().map(|argument| match argument.get("type") {
            Some(kind) => self.kind_of(kind),
            None => argument["lifetime"].as_str().map_or_else(|| argument["const"]["expr"].to_string(), str::to_owned),
        });
        let bound = angle["constraints"].as_array().into_iter().flatten().map(|constraint| {
            let (name, binding) = (constraint["name"].as_str().unwrap_or_default(), &constraint["binding"]);
            let bounds = self.bounds_after(": ", &binding["constraint"]);
            format!("{name}{bounds}{}", self.kind_after(" = ", &binding["equality"]["type"]))
        });
        bracketed(plain.chain(bound))
    }

    fn generics(&self, generics: &Value) -> String {
        let shown = |it: &&Value| it["kind"]["type"]["is_synthetic"] != true;
        let parameters = generics["params"].as_array().into_iter().flatten().filter(shown);
        bracketed(parameters.map(|it| {
            let name = it["name"].as_str().unwrap_or_default();
            let kind = self.kind_after(": ", &it["kind"]["const"]["type"]);
            let default = self.kind_after(" = ", &it["kind"]["type"]["default"]);
            format!("{name}{kind}{}{default}", self.bounds_after(": ", &it["kind"]["type"]["bounds"]))
        }))
    }

    fn wheres(&self, generics: &Value) -> String {
        let predicates = generics["where_predicates"].as_array().into_iter().flatten();
        let predicates = joined(predicates.map(|it| {
            let bound = &it["bound_predicate"];
            self.kind_of(&bound["type"]) + &self.bounds_after(": ", &bound["bounds"])
        }));
        if predicates.is_empty() { predicates } else { format!(" where {predicates}") }
    }

    fn bounds_after(&self, before: &str, bounds: &Value) -> String {
        let bounds = bounds.as_array().into_iter().flatten().map(|bound| match bound.get("trait_bound") {
            Some(bound) => {
                let maybe = if bound["modifier"] == "maybe" { "?" } else { "" };
                format!("{maybe}{}", self.reference(&bound["trait"]))
            }
            None => bound["outlives"].as_str().unwrap_or("use<..>").to_owned(),
        });
        let bounds = bounds.collect::<Vec<_>>().join(" + ");
        if bounds.is_empty() { bounds } else { format!("{before}{bounds}") }
    }

    fn kind_after(&self, before: &str, kind: &Value) -> String {
        if kind.is_null() { String::new() } else { format!("{before}{}", self.kind_of(kind)) }
    }

    /// A type, as it is written. What is not foreseen is shown as it is in the JSON.
    fn kind_of(&self, written: &Value) -> String {
        let all = |list: &Value| joined(list.as_array().into_iter().flatten().map(|it| self.kind_of(it)));
        let Some((kind, it)) = written.as_object().and_then(|it| it.iter().next()) else { return written.to_string() };
        match kind.as_str() {
            "resolved_path" => self.reference(it),
            "generic" | "primitive" => it.as_str().unwrap_or_default().to_owned(),
            "tuple" => format!("({})", all(it)),
            "slice" => format!("[{}]", self.kind_of(it)),
            "array" => format!("[{}; {}]", self.kind_of(&it["type"]), it["len"].as_str().unwrap_or_default()),
            "impl_trait" => self.bounds_after("impl ", it),
            "dyn_trait" => {
                let traits = it["traits"].as_array().into_iter().flatten().map(|it| self.reference(&it["trait"]));
                let lifetime = it["lifetime"].as_str().map(str::to_owned);
                format!("dyn {}", traits.chain(lifetime).collect::<Vec<_>>().join(" + "))
            }
            "borrowed_ref" => {
                let lifetime = it["lifetime"].as_str().map_or(String::new(), |name| format!("{name} "));
                let mutable = if it["is_mutable"] == true { "mut " } else { "" };
                format!("&{lifetime}{mutable}{}", self.kind_of(&it["type"]))
            }
            "qualified_path" => {
                let of = if it["trait"].is_null() { String::new() } else { self.reference(&it["trait"]) };
                let of = if of.is_empty() { of } else { format!(" as {of}") };
                format!("<{}{of}>::{}", self.kind_of(&it["self_type"]), it["name"].as_str().unwrap_or_default())
            }
            "function_pointer" => format!("fn{}", self.signature(&it["sig"])),
            _ => written.to_string(),
        }
    }
}

/// What kind of item it is, and what that kind holds.
fn kind(item: &Value) -> (&str, &Value) {
    let inner = item["inner"].as_object().and_then(|inner| inner.iter().next());
    inner.map_or(("", &Value::Null), |(kind, inner)| (kind, inner))
}

/// Neither by the compiler, such as Send, nor by another crate for all types; those of Unpin are pin-project-lite's.
fn is_written(implementation: &Value) -> bool {
    let of = implementation["trait"]["path"].as_str().and_then(|path| path.rsplit("::").next());
    implementation["is_synthetic"] != true
        && implementation["blanket_impl"].is_null()
        && !matches!(of, Some("StructuralPartialEq" | "Unpin"))
}

/// The items that are named in a part of the JSON: by a type, a bound or an import.
fn references<'a>(part: &'a Value, ids: &mut Vec<&'a Value>) {
    match part {
        Value::Object(fields) => {
            ids.extend(fields.get("id").filter(|_| fields.contains_key("path") || fields.contains_key("source")));
            fields.values().for_each(|field| references(field, ids));
        }
        Value::Array(parts) => parts.iter().for_each(|part| references(part, ids)),
        _ => {}
    }
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

fn bracketed(parts: impl Iterator<Item = String>) -> String {
    let parts = joined(parts);
    if parts.is_empty() { parts } else { format!("<{parts}>") }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
