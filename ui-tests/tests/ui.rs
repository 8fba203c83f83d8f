//! Compiles every case, runs those of `pass/`, and compares the messages of those of `fail/`.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn programs_that_must_compile_run() {
    trybuild::TestCases::new().pass("pass/*.rs");
}

/// Apart from the others: if nothing has to run, trybuild lets cargo check all cases at once.
#[test]
fn programs_that_must_not_compile_get_their_messages() {
    trybuild::TestCases::new().compile_fail("fail/*/*.rs");
}

/// The compiler quotes the standard library only where the component `rust-src` is installed, and a dependency as the version
/// that was found wrote it.
#[test]
fn no_message_quotes_code_outside_of_the_workspace() {
    let mut expected = Vec::new();
    messages(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fail"), &mut expected);
    assert!(expected.len() > 100, "{} messages", expected.len());
    let outside: Vec<String> = expected.iter().flat_map(|file| quotes_from_outside(file)).collect();
    assert!(
        outside.is_empty(),
        "write these cases so that the compiler need not quote what lies elsewhere: {outside:#?}"
    );
}

fn messages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            messages(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "stderr") {
            found.push(path);
        }
    }
}

fn quotes_from_outside(file: &Path) -> Vec<String> {
    let message = fs::read_to_string(file).expect("the message is text");
    let outside = message.lines().filter(|line| {
        let source = line.trim_start().strip_prefix("--> ").or_else(|| line.trim_start().strip_prefix("::: "));
        let from_elsewhere =
            source.is_some_and(|source| !["fail/", "$WORKSPACE/"].iter().any(|at| source.starts_with(at)));
        from_elsewhere || ["$RUST", "$CARGO", "/rustc/", "library/"].iter().any(|part| line.contains(part))
    });
    outside.map(|line| format!("{}: {line}", file.display())).collect()
}
