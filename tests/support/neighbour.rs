//! The Go programs of `tests/interop`, built once a run: real neighbours on the same etcd.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The grpc-go program; run it in one of its modes.
///
/// `None` where Go is not installed, or `SKIP_NEIGHBOURS` is set: the test ends there.
///
/// # Panics
///
/// If Go is installed and the program does not build.
pub fn naming() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(|| build("naming")).as_deref()
}

/// Like [`naming`], with the go-zero program.
pub fn gozero() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(|| build("gozero")).as_deref()
}

/// Builds a program, or finds it up to date. It takes minutes where its dependencies were never compiled.
fn build(name: &str) -> Option<PathBuf> {
    if std::env::var_os("SKIP_NEIGHBOURS").is_some() {
        eprintln!("skipped: SKIP_NEIGHBOURS is set");
        return None;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(name);
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop").join(name);
    // No stamp of the repository's state: Go refuses to make it where the repository is another user's.
    let go = Command::new("go").args(["build", "-buildvcs=false", "-o"]).arg(&program).current_dir(source).output();
    match go {
        Ok(built) if built.status.success() => Some(program),
        Ok(built) => panic!("{name} does not build: {}", String::from_utf8_lossy(&built.stderr)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: Go is not installed");
            None
        }
        Err(error) => panic!("go does not start: {error}"),
    }
}
