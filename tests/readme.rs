//! The quick start in `README.md` is the text of the two example programs, which the compiler reads.

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

fn text(file: &str) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file));
    // A checkout may have turned the line ends.
    text.unwrap_or_else(|error| panic!("cannot read {file}: {error}")).replace("\r\n", "\n")
}
