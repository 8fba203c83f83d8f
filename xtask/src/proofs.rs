//! The concurrency proofs: the runtime's own code under a checker that chooses who goes on.

use std::fs;
use std::io;

use crate::step::{Failure, Step};

/// Apart from the other builds, which have none of the checker's flags.
const TARGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/proofs");
const SCHEDULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/proofs/schedules");

/// Runs the proofs whose name contains `name`; an empty one is in all of them.
pub(crate) fn run(name: &str) -> Result<(), Failure> {
    let folder = schedules().unwrap_or_else(|error| panic!("{SCHEDULES} cannot be made: {error}"));
    let features = "--no-default-features --features=macros,memory";
    let arguments = format!("test -p idempotent-runtime --lib {features} --target-dir {TARGET} -- --nocapture {name}");
    crate::cargo("concurrency proofs", &arguments)
        .env("RUSTFLAGS", "--cfg shuttle")
        .env("SCHEDULE_FOLDER", &folder)
        // It says that weak orderings count as strong ones, which the proofs' own documentation does too.
        .env("SHUTTLE_SILENCE_WARNINGS", "1")
        .run()
}

/// Where the failing schedules are written, each to be replayed.
fn schedules() -> io::Result<String> {
    fs::create_dir_all(SCHEDULES)?;
    Ok(fs::canonicalize(SCHEDULES)?.to_string_lossy().into_owned())
}
