//! The tables of docs/metrics.md say what the constants of `src/metrics/` do: name, type, unit and labels of each, and
//! none that is missing on either side.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn every_constant_is_a_row_of_the_guide_and_every_row_a_constant() {
    let (constants, rows) = (constants(), rows());
    for (name, constant) in &constants {
        let row = rows.get(name).unwrap_or_else(|| panic!("docs/metrics.md lacks {name}"));
        assert_eq!(row, constant, "the row of {name} in docs/metrics.md, and its constant");
    }
    for name in rows.keys() {
        assert!(constants.contains_key(name), "docs/metrics.md has {name}, and src/metrics/ has not");
    }
}

#[test]
fn names_are_our_own_or_grpcs_and_leave_units_to_exporters() {
    for (name, constant) in constants() {
        assert!(PREFIXES.iter().any(|prefix| name.starts_with(prefix)), "{name}");
        assert!(name.chars().all(|char| char.is_ascii_lowercase() || matches!(char, '.' | '_')), "{name}");
        for word in name.split(['.', '_']) {
            assert!(!["total", "count", "sum", "bucket", "seconds", "bytes", "info"].contains(&word), "{name}: {word}");
        }
        for label in &constant.labels {
            assert!(!["address", "instance", "key", "job", "le", "quantile"].contains(&&**label), "{name}: {label}");
        }
    }
}

#[test]
fn the_values_of_every_label_are_explained() {
    let page = page();
    let explained: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("- `")?.split_once('`').map(|(label, _)| label)).collect();
    for (name, constant) in constants() {
        for label in constant.labels.iter().filter(|label| **label != "service") {
            assert!(explained.contains(&**label), "docs/metrics.md does not say which values {label} of {name} has");
        }
    }
}

#[test]
fn the_queries_are_of_metrics_that_there_are() {
    let exported: BTreeSet<String> = constants().iter().flat_map(|(name, constant)| constant.exported(name)).collect();
    let page = page();
    let mut count = 0;
    let labels: BTreeSet<String> =
        constants().values().flat_map(|constant| &constant.labels).map(|label| label.replace('.', "_")).collect();
    let words = page.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    for name in words.filter(|word| word.starts_with("tonic_etcd_") || word.starts_with("grpc_")) {
        let is_known = exported.contains(name) || labels.contains(name);
        assert!(is_known, "docs/metrics.md has a query of {name}, which no exporter shows");
        count += 1;
    }
    assert!(count > 5, "the queries were not read: {count}");
}

/// What a constant and a row say.
#[derive(Debug, PartialEq, Eq)]
struct Metric {
    kind: String,
    unit: String,
    labels: Vec<String>,
}

impl Metric {
    /// The names that Prometheus shows, with the naming that the page recommends.
    fn exported(&self, name: &str) -> Vec<String> {
        let base = name.replace('.', "_");
        let base = if self.unit == "count" { base } else { format!("{base}_{}", self.unit) };
        match &*self.kind {
            "counter" => vec![format!("{base}_total")],
            "histogram" => {
                ["bucket", "sum", "count"].map(|part| format!("{base}_{part}")).into_iter().chain([base]).collect()
            }
            _ => vec![base],
        }
    }
}

/// The constants of the sources, read as text.
fn constants() -> BTreeMap<String, Metric> {
    let mut found = BTreeMap::new();
    let mut paths: Vec<PathBuf> = vec![root().join("src/metrics")];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(fs::read_dir(path).expect("there is a folder").map(|entry| entry.expect("an entry").path()));
            continue;
        }
        // Without tests, whose metrics are made up; and however long a line is.
        let source = text(&path);
        let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let source = source.split_whitespace().collect::<Vec<_>>().join(" ");
        for item in source.split(": Metric<").skip(1) {
            let item = item.split(");").next().expect("there is a first part");
            let Some((kind, rest)) = item.split_once("> = Metric::new(") else { continue };
            let quoted: Vec<&str> = rest.split('"').skip(1).step_by(2).collect();
            let (name, labels) = (quoted[0].to_owned(), &quoted[1..quoted.len() - 1]);
            let unit = rest.split("Unit::").nth(1).and_then(|rest| rest.split(',').next()).expect("it has a unit");
            let metric = Metric {
                kind: kind.to_lowercase(),
                unit: unit.to_lowercase(),
                labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            };
            assert!(found.insert(name.clone(), metric).is_none(), "{} names {name} again", path.display());
        }
    }
    assert!(found.len() > 10, "the sources were not read: {found:?}");
    found
}

/// The rows of the tables.
fn rows() -> BTreeMap<String, Metric> {
    let mut found = BTreeMap::new();
    let page = page();
    let is_row = |line: &&str| PREFIXES.iter().any(|prefix| line.starts_with(&format!("| `{prefix}")));
    for line in page.lines().filter(is_row) {
        let cells: Vec<&str> = line.trim_matches('|').split(" |").map(|cell| cell.trim().trim_matches('`')).collect();
        let [name, kind, unit, labels, meaning] = cells[..] else { panic!("a row has five cells: {line}") };
        assert!(!meaning.is_empty(), "{line}");
        let labels = labels.split(", ").map(|label| label.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        let metric = Metric { kind: kind.to_owned(), unit: unit.to_owned(), labels };
        assert!(found.insert(name.to_owned(), metric).is_none(), "{name} has two rows");
    }
    found
}

/// Of this crate, and of gRPC where it has defined the metric.
const PREFIXES: [&str; 2] = ["tonic_etcd.", "grpc."];

fn page() -> String {
    text(&root().join("docs/metrics.md"))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &Path) -> String {
    let text = fs::read_to_string(path);
    // A checkout may have turned the line ends.
    text.unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display())).replace("\r\n", "\n")
}
