//! Modules lie on floors: a file imports only from lower floors, and no two files import each other, on however long a
//! way.
//!
//! What counts are the paths of `src/` that begin with `crate`, `super`, `self` or a child module, outside of comments
//! and tests. An import through a `pub use self::..` leads to the file that is re-exported, and such a line counts as
//! an import of its own file only where that file uses the name. Methods do not count: a call of one names no module.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Every room with its floor. A room is a file or a folder; the longest name that fits counts. Files of one room may
/// import each other, files of two rooms only downwards.
const FLOORS: [(&str, u8); 52] = [
    ("lib", 15),
    ("registry", 14),
    ("register", 13),
    ("serialized", 14),
    ("register::serve", 13),
    ("register::builder", 12),
    ("register::set", 12),
    ("register::registration", 11),
    ("discover", 10),
    ("register::advertise", 9),
    ("register::check", 9),
    ("register::health", 9),
    ("register::signal", 9),
    ("register::lease", 9),
    ("register::server", 9),
    ("register::desired", 8),
    ("register::retry", 8),
    ("register::route", 8),
    ("register::status", 7),
    ("channel::builder", 9),
    ("channel", 8),
    ("channel::changes", 7),
    ("channel::call", 7),
    ("channel::balancer", 7),
    ("channel::picks", 6),
    ("channel::subchannel", 5),
    ("channel::service_config", 5),
    ("channel::policy", 4),
    ("channel::outlier", 4),
    ("channel::config", 4),
    ("channel::transport", 4),
    ("channel::deadline", 3),
    ("channel::error", 3),
    ("channel::sync", 3),
    ("etcd", 3),
    ("snapshot", 2),
    ("format", 2),
    ("tls", 2),
    ("instance", 1),
    ("metrics", 1),
    ("pem", 1),
    ("error", 0),
    ("guide", 0),
    ("kitex", 0),
    ("backoff", 0),
    ("log_limit", 0),
    ("codes", 0),
    ("tags", 0),
    ("targets", 0),
    ("time", 0),
    ("trouble", 0),
    ("test_log", 0),
];

#[test]
fn every_file_imports_from_lower_floors_alone_and_there_is_no_ring() {
    let crate_files = Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let offences = crate_files.offences();
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

#[test]
fn the_files_of_the_program_import_each_other_in_no_ring() {
    let program = Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/tonic-etcd"));
    let graph = program.graph();
    assert!(graph["lib"].contains_key("connection") && graph["web::feed"].contains_key("services"), "{graph:?}");
    assert_eq!(program.ring(&graph), None);
}

/// Rooms that know nothing of others below them: each with all that it may import from.
const INDEPENDENT: [(&str, &[&str]); 3] = [
    (
        "channel",
        &[
            "channel",
            "codes",
            "snapshot",
            "instance",
            "tls",
            "error",
            "backoff",
            "log_limit",
            "metrics",
            "targets",
            "time",
        ],
    ),
    ("register::server", &["register::server", "error", "backoff", "log_limit", "metrics", "targets", "time"]),
    (
        "register::lease",
        &[
            "register",
            "etcd",
            "format",
            "instance",
            "error",
            "backoff",
            "log_limit",
            "metrics",
            "targets",
            "time",
            "trouble",
        ],
    ),
];

/// The one room that names h2.
const H2: &str = "channel::transport";

#[test]
fn h2_is_named_in_one_room_alone() {
    let files = Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).files;
    let names_h2 = |file: &File| file.uses.iter().any(|used| used.root == "h2") || file.code.contains("h2::");
    let strangers: Vec<_> = files.iter().filter(|(name, file)| !is_in(name, H2) && names_h2(file)).collect();
    let paths: Vec<_> = strangers.iter().map(|(_, file)| &file.path).collect();
    assert!(paths.is_empty(), "{paths:?} name h2, which is for {H2} alone");
    assert!(files.iter().any(|(name, file)| is_in(name, H2) && names_h2(file)), "that room does");
}

#[test]
fn an_import_from_a_lower_floor_that_a_room_must_not_know_is_found() {
    let files = [
        ("channel::sync", "use crate::error::E;\nuse crate::pem::P;"),
        ("error", "pub struct E;"),
        ("pem", "pub struct P;"),
    ];
    let offence = "channel must not know pem:\n  src/channel/sync.rs:2: use crate::pem::P;";
    assert_eq!(Crate::of(&files).offences(), [offence]);
}

#[test]
fn a_path_that_begins_with_a_child_counts() {
    let files = [("etcd", "mod a;\npub struct S;\nfn f() { a::g() }"), ("etcd::a", "use super::S;\npub fn g(_: S) {}")];
    let lines = "a ring of imports:\n  src/etcd/mod.rs:3: fn f() { a::g() }\n  src/etcd/a.rs:1: use super::S;";
    assert_eq!(Crate::of(&files).offences(), [lines]);
}

#[test]
fn a_new_file_beside_rooms_needs_a_floor() {
    let files = [("channel::new", ""), ("channel::picks::new", "")];
    assert_eq!(Crate::of(&files).offences(), ["src/channel/new.rs has no floor"]);
}

#[test]
fn an_import_from_a_higher_floor_is_found() {
    let files = [("error", "use crate::instance::Host;"), ("instance", "pub struct Host;")];
    assert_eq!(
        Crate::of(&files).offences(),
        ["error (floor 0) imports from instance (floor 1):\n  src/error.rs:1: use crate::instance::Host;"]
    );
}

#[test]
fn a_neighbour_on_the_same_floor_is_found_by_a_path_in_the_code() {
    let files = [("backoff", "\nfn f() { crate::time::now() }"), ("time", "pub fn now() {}")];
    assert_eq!(
        Crate::of(&files).offences(),
        ["backoff (floor 0) imports from time (floor 0):\n  src/backoff.rs:2: fn f() { crate::time::now() }"]
    );
}

#[test]
fn a_ring_is_found_with_its_lines_through_a_re_export() {
    let files = [
        ("etcd", "mod a;\nmod b;\npub use self::a::A;\npub use self::b::B;"),
        ("etcd::a", "use super::B;\npub struct A(B);"),
        ("etcd::b", "// crate::time\nuse super::{A, a::Other};\npub struct B(A);"),
    ];
    assert_eq!(
        Crate::of(&files).offences(),
        ["a ring of imports:\n  src/etcd/a.rs:1: use super::B;\n  src/etcd/b.rs:2: use super::{A, a::Other};"]
    );
}

#[test]
fn a_re_export_counts_where_its_own_file_uses_the_name() {
    let files = [
        ("etcd", "mod a;\npub use self::a::A;\nfn f(_: A) {}\npub struct S;"),
        ("etcd::a", "use super::S;\npub struct A(S);"),
    ];
    let lines = "a ring of imports:\n  src/etcd/mod.rs:2: pub use self::a::A;\n  src/etcd/a.rs:1: use super::S;";
    assert_eq!(Crate::of(&files).offences(), [lines]);
}

#[test]
fn tests_and_comments_count_for_nothing_and_unknown_files_are_named() {
    let files = [
        (
            "error",
            "/* crate::tls::A */ #[cfg(test)]\nmod tests { use crate::tls::A; }\n/// [`crate::tls::A`]\nfn f() {}",
        ),
        ("tls", "pub struct A; const T: &str = \"crate::registry::X\";"),
        ("stray", ""),
    ];
    assert_eq!(Crate::of(&files).offences(), ["src/stray.rs has no floor"]);
}

/// The files of `src/` by the names of their modules.
struct Crate {
    files: BTreeMap<String, File>,
}

struct File {
    /// Relative to the repository.
    path: String,
    lines: Vec<String>,
    /// Without comments, texts and tests, with as many lines.
    code: String,
    uses: Vec<Use>,
    /// The modules that the file declares.
    children: BTreeSet<String>,
}

/// One name that a `use` brings in.
struct Use {
    /// Absolute.
    path: Vec<String>,
    /// The first name as it stands there.
    root: String,
    name: String,
    is_public: bool,
    line: usize,
}

/// An import: the file that it leads to, and where it stands.
type Imports = BTreeMap<String, usize>;

impl Crate {
    fn read(src: &Path) -> Self {
        let (mut files, mut folders) = (BTreeMap::new(), vec![src.to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a folder of sources") {
                let path = entry.expect("an entry").path();
                let relative = path.strip_prefix(src).expect("it is below src").to_owned();
                let bare = relative.with_extension("");
                let name = bare.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>();
                // A program is a crate of its own, which has the public items alone.
                if name.last().is_some_and(|last| last == "tests") || name == ["bin"] {
                    continue;
                }
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let module = match name.join("::") {
                    root if root == "main" => "lib".to_owned(),
                    module => module.trim_end_matches("::mod").to_owned(),
                };
                let text = fs::read_to_string(&path).expect("a source");
                files.insert(module.clone(), File::new(&module, format!("src/{}", relative.display()), &text));
            }
        }
        Self { files }
    }

    /// A crate of these modules and their texts.
    fn of(files: &[(&str, &str)]) -> Self {
        let has_children = |name: &str| files.iter().any(|(other, _)| other.starts_with(&format!("{name}::")));
        let file = |&(name, text): &(&str, &str)| {
            let end = if has_children(name) { "/mod.rs" } else { ".rs" };
            (name.to_owned(), File::new(name, format!("src/{}{end}", name.replace("::", "/")), text))
        };
        Self { files: files.iter().map(file).collect() }
    }

    fn offences(&self) -> Vec<String> {
        let graph = self.graph();
        let mut offences = Vec::new();
        for (&from, imports) in &graph {
            let Some((room, floor)) = room_of(from) else {
                offences.push(format!("{} has no floor", self.files[from].path));
                continue;
            };
            for (to, line) in imports {
                if let Some((independent, _)) = INDEPENDENT.iter().find(|(independent, known)| {
                    is_in(from, independent) && !known.iter().any(|known| is_in(to, known))
                }) {
                    let line = self.line(from, *line);
                    offences.push(format!("{independent} must not know {to}:\n  {line}"));
                }
                if let Some((other, other_floor)) = room_of(to)
                    && other != room
                    && other_floor >= floor
                {
                    let line = self.line(from, *line);
                    offences
                        .push(format!("{room} (floor {floor}) imports from {other} (floor {other_floor}):\n  {line}"));
                }
            }
        }
        offences.extend(self.ring(&graph));
        offences
    }

    fn graph(&self) -> BTreeMap<&str, Imports> {
        self.files.iter().map(|(name, file)| (name.as_str(), self.imports(name, file))).collect()
    }

    fn ring(&self, graph: &BTreeMap<&str, Imports>) -> Option<String> {
        let ring = ring(graph)?;
        let lines = ring.iter().map(|(from, line)| format!("\n  {}", self.line(from, *line)));
        Some(format!("a ring of imports:{}", lines.collect::<String>()))
    }

    fn line(&self, module: &str, line: usize) -> String {
        let File { path, lines, .. } = &self.files[module];
        format!("{path}:{}: {}", line + 1, lines[line].trim())
    }

    /// The other files that a file needs, with the first line that says so.
    fn imports(&self, module: &str, file: &File) -> Imports {
        let mut imports = Imports::new();
        let mut add = |path: &[String], line: usize| {
            if let Some(target) = self.resolve(path).filter(|target| target != module) {
                imports.entry(target).or_insert(line);
            }
        };
        for Use { path, name, is_public, line, .. } in &file.uses {
            if !is_public || file.uses_name(name) {
                add(path, *line);
            }
        }
        for (line, text) in file.code.lines().enumerate() {
            for path in paths_in(text, &file.children) {
                add(&absolute(module, &path, &file.children), line);
            }
        }
        imports
    }

    /// The module that defines what an absolute path names: the longest that is one, or behind its re-exports.
    fn resolve(&self, path: &[String]) -> Option<String> {
        let len = (1..=path.len()).rev().find(|&len| self.files.contains_key(&path[..len].join("::")))?;
        let module = path[..len].join("::");
        let Some(name) = path.get(len) else { return Some(module) };
        let re_export = self.files[&module].uses.iter().find(|used| used.is_public && used.name == *name);
        match re_export {
            Some(Use { path, .. }) if path[..] != [module.clone(), name.clone()] => self.resolve(path),
            _ => Some(module),
        }
    }
}

impl File {
    fn new(module: &str, path: String, text: &str) -> Self {
        let code = without_tests(&without_comments(text));
        let children = children(&code);
        let (code, uses) = split_uses(module, &code, &children);
        Self { path, lines: text.lines().map(str::to_owned).collect(), code, uses, children }
    }

    fn uses_name(&self, name: &str) -> bool {
        let is_declaration = |line: &&str| line.trim_start().starts_with("mod ") || line.contains(" mod ");
        let code = self.code.lines().filter(|line| !is_declaration(line));
        let mut words = code.flat_map(|line| line.split(|char: char| !char.is_alphanumeric() && char != '_'));
        words.any(|word| word == name)
    }
}

/// The room that a module is in. One below a room with rooms of its own needs a line of its own.
fn room_of(module: &str) -> Option<(&'static str, u8)> {
    let fits = FLOORS.into_iter().filter(|(name, _)| is_in(module, name));
    let (room, floor) = fits.max_by_key(|(name, _)| name.len())?;
    let has_rooms = FLOORS.iter().any(|(name, _)| *name != room && is_in(name, room));
    (module == room || !has_rooms).then_some((room, floor))
}

fn is_in(module: &str, room: &str) -> bool {
    module.strip_prefix(room).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// One ring, as its files with the line that leads to the next.
fn ring<'a>(graph: &'a BTreeMap<&'a str, Imports>) -> Option<Vec<(&'a str, usize)>> {
    fn visit<'a>(
        graph: &'a BTreeMap<&'a str, Imports>,
        at: &'a str,
        way: &mut Vec<(&'a str, usize)>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<(&'a str, usize)>> {
        if let Some(begin) = way.iter().position(|(module, _)| *module == at) {
            return Some(way[begin..].to_vec());
        }
        if done.contains(at) {
            return None;
        }
        for (to, line) in graph.get(at).into_iter().flatten() {
            way.push((at, *line));
            if let Some(ring) = visit(graph, to, way, done) {
                return Some(ring);
            }
            way.pop();
        }
        done.insert(at);
        None
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|at| visit(graph, at, &mut Vec::new(), &mut done))
}

/// Blanks comments and texts, and keeps the lines.
fn without_comments(text: &str) -> String {
    let (mut code, mut rest) = (String::new(), text);
    while let Some(char) = rest.chars().next() {
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("r#\"") {
            rest.find("\"#").map_or(rest.len(), |end| end + 2)
        } else if let Some(len) = char_literal(rest) {
            len
        } else if char == '"' {
            end_of_text(rest)
        } else {
            code.push(char);
            rest = &rest[char.len_utf8()..];
            continue;
        };
        code.extend(rest[..len].chars().filter(|char| *char == '\n'));
        rest = &rest[len..];
    }
    code
}

/// The length of a literal such as `'{'`, which a lifetime is not.
fn char_literal(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    if let Some(escaped) = inner.strip_prefix('\\') {
        return escaped.char_indices().skip(1).find(|(_, char)| *char == '\'').map(|(at, _)| at + 3);
    }
    let len = inner.chars().next()?.len_utf8();
    inner[len..].starts_with('\'').then_some(len + 2)
}

fn end_of_text(rest: &str) -> usize {
    let mut is_escaped = false;
    for (at, char) in rest.char_indices().skip(1) {
        match char {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Blanks the items behind `#[cfg(test)]`, and keeps the lines.
fn without_tests(code: &str) -> String {
    let (mut kept, mut rest) = (String::new(), code);
    while let Some(begin) = rest.find("#[cfg(test)]") {
        kept.push_str(&rest[..begin]);
        let (mut depth, mut end) = (0, rest.len());
        for (at, char) in rest[begin..].char_indices() {
            match char {
                '{' | '(' | '[' => depth += 1,
                '}' | ')' | ']' => depth -= 1,
                _ => {}
            }
            if depth == 0 && (char == '}' || char == ';' || char == ',') {
                end = begin + at + 1;
                break;
            }
        }
        kept.extend(rest[begin..end].chars().filter(|char| *char == '\n'));
        rest = &rest[end..];
    }
    kept + rest
}

/// The code without its `use` items, and the names that those bring in.
fn split_uses(module: &str, code: &str, children: &BTreeSet<String>) -> (String, Vec<Use>) {
    let (mut left, mut uses, mut item) = (String::new(), Vec::new(), None);
    for (number, line) in code.lines().enumerate() {
        let begin = without_attributes(line.trim_start());
        let is_public = begin.starts_with("pub");
        let behind_pub = begin.trim_start_matches(|char: char| char != ' ').trim_start();
        if item.is_none() && (begin.starts_with("use ") || is_public && behind_pub.starts_with("use ")) {
            item = Some((number, is_public, String::new()));
        }
        match &mut item {
            Some((_, _, text)) => text.push_str(begin),
            None => left.push_str(line),
        }
        left.push('\n');
        if let Some((first, is_public, text)) = item.take_if(|(_, _, text)| text.trim_end().ends_with(';')) {
            let tree = text.split_once("use ").map_or("", |(_, tree)| tree.trim_end().trim_end_matches(';'));
            for (path, name) in leaves(tree) {
                let root = path.first().cloned().unwrap_or_default();
                uses.push(Use { path: absolute(module, &path, children), root, name, is_public, line: first });
            }
        }
    }
    (left, uses)
}

/// The paths of a `use` tree, each with the name that it brings in.
fn leaves(tree: &str) -> Vec<(Vec<String>, String)> {
    let tree = tree.trim();
    if let Some((prefix, inner)) = tree.split_once('{') {
        let prefix = segments(prefix);
        let inner = inner.trim_end().trim_end_matches('}');
        return parts(inner).into_iter().flat_map(leaves).map(|(path, name)| prefixed(&prefix, path, name)).collect();
    }
    let (path, name) = tree.split_once(" as ").map_or((tree, None), |(path, name)| (path, Some(name)));
    let path = segments(path);
    let name = name.map(str::trim).map(str::to_owned).or_else(|| path.last().cloned());
    name.map(|name| (path, name)).into_iter().collect()
}

fn prefixed(prefix: &[String], path: Vec<String>, name: String) -> (Vec<String>, String) {
    if path == ["self"] {
        return (prefix.to_vec(), prefix.last().cloned().unwrap_or(name));
    }
    (prefix.iter().cloned().chain(path).collect(), name)
}

/// The parts between the commas of this depth.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, char) in text.char_indices() {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts.into_iter().filter(|part| !part.trim().is_empty()).collect()
}

fn segments(path: &str) -> Vec<String> {
    path.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// A line without the attributes at its beginning.
fn without_attributes(line: &str) -> &str {
    match line.strip_prefix("#[").and_then(|rest| rest.split_once("] ")) {
        Some((_, rest)) => without_attributes(rest.trim_start()),
        None => line,
    }
}

/// The modules that are declared in the code, those with a body aside.
fn children(code: &str) -> BTreeSet<String> {
    let declared = |line: &str| {
        let (before, name) = without_attributes(line.trim()).strip_suffix(';')?.split_once("mod ")?;
        (before.is_empty() || before.starts_with("pub")).then(|| name.to_owned())
    };
    code.lines().filter_map(declared).collect()
}

/// Paths in a line of code that begin at the crate, near this module, or in a child of it.
fn paths_in(line: &str, children: &BTreeSet<String>) -> Vec<Vec<String>> {
    let is_path = |char: char| char.is_alphanumeric() || matches!(char, '_' | ':');
    let words = line.split(|char: char| !is_path(char)).map(segments);
    let is_near = |first: &str| matches!(first, "crate" | "super" | "self") || children.contains(first);
    words.filter(|path| path.len() > 1 && is_near(&path[0])).collect()
}

/// A path from the root of the crate; one of another crate is left as it is, behind an empty name.
fn absolute(module: &str, path: &[String], children: &BTreeSet<String>) -> Vec<String> {
    let mut base: Vec<String> = match path.first().map(String::as_str) {
        Some(child) if children.contains(child) && module != "lib" => segments(module),
        Some(child) if children.contains(child) => Vec::new(),
        Some("crate") => Vec::new(),
        Some("self" | "super") if module == "lib" => Vec::new(),
        Some("self" | "super") => segments(module),
        _ => vec![String::new()],
    };
    for segment in path {
        match segment.as_str() {
            "crate" | "self" => {}
            "super" => drop(base.pop()),
            name => base.push(name.to_owned()),
        }
    }
    base
}
