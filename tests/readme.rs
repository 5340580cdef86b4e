//! The quick start in `README.md` is the text of the two example programs, which the compiler reads; it stays short, and
//! every link of the pages leads somewhere.

use std::fs;
use std::path::Path;

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

#[test]
fn the_readme_is_read_in_one_go() {
    let lines = text("README.md").lines().count();
    assert!(lines <= 200, "README.md has {lines} lines: what a first program does not need has a page in docs/");
}

#[test]
fn every_link_of_the_pages_leads_somewhere() {
    let docs = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).expect("there is a folder");
    let docs = docs.map(|page| format!("docs/{}", page.expect("a page").file_name().display()));
    for page in docs.chain(["README.md", "CONTRIBUTING.md"].map(String::from)) {
        for link in text(&page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let folder = Path::new(&page).parent().expect("a page lies in a folder");
            let target = if path.is_empty() { page.clone() } else { folder.join(path).display().to_string() };
            let there = Path::new(env!("CARGO_MANIFEST_DIR")).join(&target);
            assert!(there.exists(), "{page} links to {link}, and there is no {target}");
            let has_heading = || text(&target).lines().any(|line| slug_of(line).as_deref() == Some(heading));
            assert!(heading.is_empty() || has_heading(), "{page} links to {link}, and there is no such heading");
        }
    }
}

/// What a heading is called in links.
fn slug_of(line: &str) -> Option<String> {
    let heading = line.strip_prefix('#')?.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|it| it.is_ascii_alphanumeric() || matches!(it, ' ' | '-'));
    Some(kept.map(|it| if it == ' ' { '-' } else { it }).collect())
}

fn text(file: &str) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file));
    // A checkout may have turned the line ends.
    text.unwrap_or_else(|error| panic!("cannot read {file}: {error}")).replace("\r\n", "\n")
}
