//! Runs every program of this package. They are built with the other tests: trybuild would build all dependencies again.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn programs_that_must_compile_run() {
    let programs = Path::new(env!("CARGO_BIN_EXE_signatures")).parent().expect("a folder");
    let sources = fs::read_dir(env!("CARGO_MANIFEST_DIR")).expect("the folder is there");
    let sources = sources.map(|entry| entry.expect("an entry").path());
    let sources: Vec<_> = sources.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect();
    assert!(sources.len() > 15, "{sources:?}");
    for source in sources {
        let program = programs.join(source.file_stem().expect("a name"));
        let run = Command::new(&program).output().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        assert!(run.status.success(), "{}: {run:?}", program.display());
    }
}
