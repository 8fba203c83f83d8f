//! Runs the concurrency tests: the runtime's own code under a checker that chooses which task runs next.

use std::env;
use std::fs;
use std::io;
use std::path::Path;

use crate::step::Failure;

/// A separate target folder, because other builds do not use the checker's flags.
const TARGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/concurrency");

/// Runs the concurrency tests whose names contain `name`, or all if it is empty. Returns how many there were.
pub(crate) fn run(name: &str) -> Result<usize, Failure> {
    let features = "--no-default-features --features=macros,memory";
    let arguments = format!("test -p idempotent-runtime --lib {features} -- --nocapture {name}");
    let folder = schedules().unwrap_or_else(|error| panic!("no folder for schedules in {TARGET}: {error}"));
    let mut step = crate::cargo("concurrency tests", &arguments)
        .env("CARGO_TARGET_DIR", TARGET)
        .env("RUSTFLAGS", "--cfg shuttle")
        .env("SCHEDULE_FOLDER", &folder)
        // Silences the warning that the checker treats weak orderings as strong ones. The documentation of the
        // concurrency tests says so too.
        .env("SHUTTLE_SILENCE_WARNINGS", "1");
    if let Ok(schedule) = env::var("REPLAY") {
        // Tests run in the folder of their package, so the path must be absolute.
        let schedule = absolute(&schedule).unwrap_or_else(|error| panic!("{schedule} cannot be replayed: {error}"));
        step = step.env("REPLAY", &schedule);
    }
    Ok(step.run_tests()?.passed)
}

/// The folder in which failing schedules are written, so that each can be replayed.
fn schedules() -> io::Result<String> {
    let folder = format!("{TARGET}/schedules");
    fs::create_dir_all(&folder)?;
    absolute(&folder)
}

fn absolute(path: &str) -> io::Result<String> {
    Ok(Path::new(path).canonicalize()?.to_string_lossy().into_owned())
}
