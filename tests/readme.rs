//! The pages say what the code does: programs, messages and spans that they show are those of the sources, files to copy
//! from can be read, and every link leads somewhere, in the repository and in the documentation. Rust blocks of the
//! chapters are compiled as doctests of `src/guide.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn the_readme_shows_the_hello_programs_as_they_are() {
    let readme = text("README.md");
    for example in ["examples/hello_server.rs", "examples/hello_client.rs"] {
        let block = format!("```rust\n{}```\n", text(example));
        // Not `assert_eq!`: it would print the whole README.
        assert!(
            readme.contains(&block),
            "README.md does not show {example} as it is: copy the whole file into its block of the quick start"
        );
    }
}

/// A block that is no example program, and too short to be one, is compiled where a chapter has its lines.
#[test]
fn the_other_rust_of_the_readme_is_that_of_a_chapter_or_a_program() {
    let readme = text("README.md");
    let chapters = chapters();
    for block in readme.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        let is_program = ["hello_server", "hello_client"].iter().any(|it| text(&format!("examples/{it}.rs")) == block);
        let is_compiled = chapters.values().any(|file| text(file).contains(&format!("```rust\n{block}")));
        assert!(is_program || is_compiled, "no program and no chapter has this block of README.md:\n{block}");
    }
}

#[test]
fn the_readme_is_read_in_one_go() {
    let readme = text("README.md");
    let lines = readme.lines().count();
    assert!(lines <= 200, "README.md has {lines} lines: what a first program does not need has a page in docs/");
    let first = readme.lines().position(|line| line.starts_with("```rust")).expect("it shows a program");
    assert!(first < 30, "the first program of README.md begins in line {first}");
}

/// Programs with flags, which stand under a heading of their own in docs/examples.md.
const LONG_EXAMPLES: [&str; 4] = ["axum_server", "echo_server", "http_client", "hyper_server"];

#[test]
fn each_example_is_listed_and_those_to_copy_from_are_short() {
    let (readme, page) = (text("README.md"), text("docs/examples.md"));
    let (to_copy_from, with_flags) = page.split_once("## Programs with flags").expect("it has two parts");
    let mut short = 0;
    for entry in fs::read_dir(root().join("examples")).expect("there is a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").display().to_string();
        if path.is_dir() && !path.join("main.rs").exists() {
            continue; // What programs share.
        }
        let listed = format!("`{name}`");
        // The programs of the quick start are shown whole, as files of a user's own.
        assert!(readme.contains(&listed) || readme.contains(&format!("{name}.rs`")), "README.md lacks {name}");
        if path.is_dir() || LONG_EXAMPLES.contains(&name.as_str()) {
            assert!(with_flags.contains(&listed), "docs/examples.md lacks {name} among the programs with flags");
            continue;
        }
        let lines = text(&format!("examples/{name}.rs")).lines().count();
        assert!(lines <= 60, "examples/{name}.rs has {lines} lines: it is to be copied from");
        assert!(page.contains(&listed), "docs/examples.md lacks {name}");
        short += usize::from(to_copy_from.contains(&listed));
    }
    assert!(short > 10, "the examples were not read: {short}");
}

#[test]
fn every_link_of_the_pages_leads_somewhere() {
    let docs = fs::read_dir(root().join("docs")).expect("there is a folder");
    let docs = docs.map(|page| format!("docs/{}", page.expect("a page").file_name().display()));
    // A picture has no links.
    let docs = docs.filter(|page| Path::new(page).extension().is_some_and(|kind| kind == "md"));
    for page in docs.chain(["README.md", "CONTRIBUTING.md", "deploy/README.md"].map(String::from)) {
        let content = text(&page);
        let definitions = definitions(&content);
        for (label, link) in &definitions {
            assert!(content.contains(&format!("[{label}]")), "{page} has a link named {label}, and never uses it");
            check(&page, link);
        }
        for link in inline_links(&content) {
            check(&page, &link);
        }
        for label in used_labels(&content) {
            assert!(definitions.contains_key(&label), "{page} has no line that says where [{label}] leads");
        }
    }
}

fn check(page: &str, link: &str) {
    if link.starts_with("http") {
        return;
    }
    let (path, heading) = link.split_once('#').unwrap_or((link, ""));
    let folder = Path::new(page).parent().expect("a page lies in a folder");
    let target = if path.is_empty() { page.to_owned() } else { folder.join(path).display().to_string() };
    assert!(root().join(&target).exists(), "{page} links to {link}, and there is no {target}");
    let has_heading = || text(&target).lines().any(|line| slug_of(line).as_deref() == Some(heading));
    assert!(heading.is_empty() || has_heading(), "{page} links to {link}, and there is no such heading");
}

/// In the documentation there are no files to link to: a link of a chapter has a name, for which `src/guide.rs` has the
/// module with the same text.
#[test]
fn links_of_chapters_lead_to_the_same_place_in_the_documentation() {
    let chapters = chapters();
    let guide = text("src/guide.rs");
    let modules = definitions(&guide);
    let module_of = |file: &str| chapters.iter().find(|(_, known)| *known == file).map(|(module, _)| module);
    let mut used = BTreeSet::new();
    for file in chapters.values() {
        let content = text(file);
        let inline = inline_links(&content);
        let to_file = inline.iter().find(|link| !link.starts_with("http") && !link.starts_with('#'));
        assert!(to_file.is_none(), "{file} links to {to_file:?}: give that link a name, and src/guide.rs its module");
        for (label, link) in definitions(&content) {
            let (path, heading) = link.split_once('#').unwrap_or((&link, ""));
            let heading = if heading.is_empty() { String::new() } else { format!("#{heading}") };
            let expected = match (path, module_of(&format!("docs/{path}"))) {
                ("../src/kitex.rs", _) => "crate::kitex".to_owned(),
                (_, Some(module)) => format!("crate::guide::{module}{heading}"),
                (_, None) => panic!("{file} links to {link}, which is no chapter"),
            };
            assert_eq!(modules.get(&label), Some(&expected), "the link {label} of {file} in src/guide.rs");
            used.insert(label);
        }
    }
    let unused: Vec<_> = modules.keys().filter(|label| !used.contains(*label)).collect();
    assert!(unused.is_empty(), "no chapter uses these links of src/guide.rs: {unused:?}");
    for module in chapters.keys() {
        assert!(guide.contains(&format!("//! | [`{module}`] |")), "the table of src/guide.rs lacks {module}");
    }
}

#[test]
fn no_rust_of_the_chapters_is_left_uncompiled() {
    for file in chapters().values() {
        for fence in text(file).lines().map(str::trim_start).filter(|line| line.starts_with("```rust")) {
            assert!(matches!(fence, "```rust" | "```rust,no_run"), "{file}: {fence}");
        }
    }
}

/// The targets that are promised, with the constant of each in `src/targets.rs`.
const TARGETS: [(&str, &str); 4] = [
    ("CHANNEL", "tonic_etcd::channel"),
    ("REGISTRATION", "tonic_etcd::registration"),
    ("DISCOVERY", "tonic_etcd::discovery"),
    ("ETCD", "tonic_etcd::etcd"),
];

/// The folders of `src/` that log, each with the targets that it may use.
const ROOMS: [(&str, &[&str]); 5] = [
    ("channel", &["CHANNEL"]),
    ("register", &["REGISTRATION"]),
    ("discover", &["DISCOVERY"]),
    ("etcd", &["ETCD"]),
    // Connections to etcd and to instances.
    ("tls", &["ETCD", "CHANNEL"]),
];

#[test]
fn every_event_and_span_has_the_target_of_its_room() {
    let constants = text("src/targets.rs");
    for (name, target) in TARGETS {
        let line = format!("pub(crate) const {name}: &str = \"{target}\";");
        assert!(constants.contains(&line), "src/targets.rs lacks {line}");
    }
    assert_eq!(constants.matches("const ").count(), TARGETS.len(), "src/targets.rs has other targets");
    let logged = logged();
    for Logged { file, target, text, .. } in &logged {
        let room = file.split('/').nth(1).unwrap_or_default();
        let allowed = ROOMS.iter().find(|(name, _)| *name == room).map(|(_, targets)| *targets);
        let allowed = allowed.unwrap_or_else(|| panic!("{file} logs {text:?}: its room needs a line in ROOMS"));
        assert!(allowed.contains(&target.as_str()), "{file} logs {text:?} with the target {target:?}: not {allowed:?}");
    }
    for (name, _) in TARGETS {
        assert!(logged.iter().any(|it| it.target == name && it.is_span), "no span has the target {name}");
        assert!(logged.iter().any(|it| it.target == name && !it.is_span), "no event has the target {name}");
    }
}

#[test]
fn the_log_messages_of_the_guide_are_those_of_the_code() {
    let page = text("docs/logging.md");
    let (events, _) = page.split_once("\n## Spans\n").expect("spans come last");
    let in_code: BTreeSet<_> = logged().into_iter().filter(|it| !it.is_span).map(Logged::row).collect();
    assert_eq!(rows_of_log(events), in_code, "docs/logging.md on the left, src/ on the right");
}

#[test]
fn the_spans_of_the_guide_are_those_of_the_code() {
    let page = text("docs/logging.md");
    let (_, spans) = page.split_once("\n## Spans\n").expect("spans come last");
    let in_code: BTreeSet<_> = logged().into_iter().filter(|it| it.is_span).map(Logged::row).collect();
    assert_eq!(rows_of_log(spans), in_code, "docs/logging.md on the left, src/ on the right");
}

#[test]
fn the_messages_of_troubleshooting_are_those_of_the_code() {
    let page = text("docs/troubleshooting.md");
    let (ours, _) = page.split_once("## Messages of other crates").expect("it ends with these");
    let sources: String = sources().into_iter().map(|(_, code)| code).collect();
    let mut count = 0;
    for cells in rows(ours).filter(|cells| cells[0].starts_with('`')) {
        let message = cells[0].trim_matches('`');
        for part in message.trim_start_matches(".. ").trim_end_matches(" ..").split(" .. ") {
            assert!(sources.contains(part), "no file of src/ says {part:?}, as docs/troubleshooting.md has it");
            count += 1;
        }
    }
    assert!(count > 50, "the tables were not read: {count}");
}

#[test]
fn the_files_to_copy_from_agree_with_the_pages() {
    let (page, deployment) = (text("docs/deployment.md"), text("deploy/deployment.yaml"));
    let unit = text("deploy/tonic-etcd-server.service");
    let grace = number_after(&deployment, "terminationGracePeriodSeconds: ");
    let stop = number_after(&unit, "TimeoutStopSec=");
    // 3 s, a pause of 1 s, a limit of 25 s, 250 ms: what the page says.
    assert!(page.contains("| in all | 29.25 s | 28.25 s |") && grace >= 30 && stop >= 30, "{grace} {stop}");
    for field in ["fieldPath: status.podIP", "service: registered"] {
        assert!(page.contains(field) && deployment.contains(field), "{field}");
    }
    assert!(page.contains("set_service_status(\"registered\""), "the probe asks for the name that the program sets");
    assert!(!deployment.contains('\t'), "YAML has no tabs");
    for package in ["protobuf-compiler", "libprotobuf-dev"] {
        assert!(text("deploy/Dockerfile").contains(package), "{package}");
    }
}

fn number_after(text: &str, name: &str) -> u32 {
    let rest = text.split_once(name).unwrap_or_else(|| panic!("there is no {name}")).1;
    rest.lines().next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{name} is no number"))
}

/// The chapters of the guide: module, and file.
fn chapters() -> BTreeMap<String, String> {
    let guide = text("src/guide.rs");
    let lines = guide.lines().filter_map(|line| line.trim().strip_suffix("\";")?.split_once(" = \"../"));
    let chapters: BTreeMap<_, _> = lines.map(|(module, file)| (module.to_owned(), file.to_owned())).collect();
    assert!(chapters.len() > 10, "src/guide.rs was not read: {chapters:?}");
    chapters
}

/// `[label]: target` at the begin of a line.
fn definitions(content: &str) -> BTreeMap<String, String> {
    let lines = content.lines().map(|line| line.trim_start().trim_start_matches('"'));
    let named = lines.filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
    named
        .filter(|(label, _)| !label.contains(']'))
        .map(|(label, link)| (label.to_owned(), link.trim().to_owned()))
        .collect()
}

/// `[text](target)`, outside of code.
fn inline_links(content: &str) -> Vec<String> {
    let prose = prose(content);
    prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::to_owned).collect()
}

/// `[text][label]`, outside of code.
fn used_labels(content: &str) -> Vec<String> {
    let prose = prose(content);
    prose.split("][").skip(1).filter_map(|rest| rest.split(']').next()).map(str::to_owned).collect()
}

/// The text without its blocks of code.
fn prose(content: &str) -> String {
    let mut is_code = false;
    let lines = content.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    lines.fold(String::new(), |all, line| all + line + "\n")
}

/// The cells of each row of each table.
fn rows(page: &str) -> impl Iterator<Item = Vec<String>> + use<'_> {
    page.lines().filter_map(|line| {
        let row = line.strip_prefix("| ")?.trim_end().strip_suffix('|')?;
        let cells: Vec<String> = row.split(" | ").map(|cell| cell.trim().to_owned()).collect();
        (cells.len() > 1).then_some(cells)
    })
}

/// An event or a span, as a file of the library has it.
struct Logged {
    file: String,
    level: String,
    /// The name of a constant.
    target: String,
    /// The message of an event, the name of a span.
    text: String,
    is_span: bool,
}

impl Logged {
    fn row(self) -> Row {
        (self.level, self.target, self.text)
    }
}

/// Level, target and text.
type Row = (String, String, String);

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

fn logged() -> Vec<Logged> {
    let mut found = Vec::new();
    for (file, code) in sources().into_iter().filter(|(file, _)| !file.starts_with("src/bin/")) {
        assert!(!code.contains("[instrument"), "{file}: #[instrument] takes its target from the module");
        assert!(!code.contains("tracing::instrument"), "{file}: #[instrument] takes its target from the module");
        for (at, _) in code.match_indices("!(") {
            let (before, call) = (&code[..at], code[at + 2..].trim_start());
            let name = before.rsplit(|char: char| !char.is_alphanumeric() && char != '_').next().unwrap_or_default();
            assert!(!["event", "span"].contains(&name), "{file}: write the macro of a level: {call:.80}");
            let (level, is_span) = name.strip_suffix("_span").map_or((name, false), |level| (level, true));
            if !LEVELS.contains(&level) {
                continue;
            }
            // Without a target, it has that of its module.
            let target = call.strip_prefix("target: ").and_then(|rest| rest.split(',').next()).unwrap_or_default();
            let text = call.split('"').nth(1).unwrap_or_else(|| panic!("{file} logs no text: {call:.80}"));
            let (level, target, text) = (level.to_owned(), target.to_owned(), text.to_owned());
            found.push(Logged { file: file.clone(), level, target, text, is_span });
        }
    }
    assert!(found.len() > 90, "the sources were not read: {}", found.len());
    found
}

/// The rows that begin with a level, a target without its first part, and a text.
fn rows_of_log(part: &str) -> BTreeSet<Row> {
    let rows = rows(part).filter(|cells| LEVELS.contains(&cells[0].as_str()));
    let cell = |cell: &str| cell.trim_matches('`').to_owned();
    rows.map(|cells| (cells[0].clone(), cell(&cells[1]).to_uppercase(), cell(&cells[2]))).collect()
}

/// The files of `src/` without their tests and comments, a line of code a line.
fn sources() -> Vec<(String, String)> {
    let (mut folders, mut files) = (vec![root().join("src")], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder can be read") {
            let path = entry.expect("an entry").path();
            if path.file_stem().is_some_and(|name| ["tests", "testing", "test_log"].iter().any(|it| name == *it)) {
                // What tests say is no message of the crate.
            } else if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let code = fs::read_to_string(&path).expect("a file can be read").replace("\r\n", "\n");
                let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
                let relative = path.strip_prefix(root()).expect("it lies below").components();
                let name = relative.map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/");
                files.push((name, lines.fold(String::new(), |all, line| all + line + "\n")));
            }
        }
    }
    files
}

/// What a heading is called in links.
fn slug_of(line: &str) -> Option<String> {
    let heading = line.strip_prefix('#')?.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|it| it.is_ascii_alphanumeric() || matches!(it, ' ' | '-'));
    Some(kept.map(|it| if it == ' ' { '-' } else { it }).collect())
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn text(file: &str) -> String {
    let text = fs::read_to_string(root().join(file));
    // A checkout may have turned the line ends.
    text.unwrap_or_else(|error| panic!("cannot read {file}: {error}")).replace("\r\n", "\n")
}
