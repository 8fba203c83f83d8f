//! Every test of the workspace with all features, the ui-tests and the examples of the documentation.

use std::num::NonZero;
use std::{env, thread};

use crate::step::{Failure, Step};

const NAME: &str = "all tests, all features, ui-tests and documentation examples";

/// What a machine that stalls can make fail in one run. More than these are not its doing.
const MAY_STALL: usize = 5;

/// How often each of them must then pass.
const ALONE: usize = 3;

/// Runs them; the answer is how many passed.
///
/// Many of these tests hold a lease of some hundred milliseconds, which lapses where the machine does not let the process
/// run for so long. So the few that fail among all others are run again with the machine to themselves, one after
/// another, and pass if they do so each time. Their names are printed: such a test asks too much of time.
pub(crate) fn run() -> Result<usize, Failure> {
    // Most tests wait for a lease or a server, and leave the processors to others.
    let threads = thread::available_parallelism().map_or(1, NonZero::get) * 2;
    let all = match env::var_os("RUST_TEST_THREADS") {
        Some(_) => workspace(NAME),
        None => workspace(NAME).env("RUST_TEST_THREADS", threads.to_string()),
    };
    let tests = all.run_tests_that_may_fail()?;
    let failed = tests.failed;
    if failed.len() > MAY_STALL {
        return Err(Failure::of_tests(NAME, "failed tests", &failed));
    }
    if !failed.is_empty() {
        for _ in 0..ALONE {
            let passed = workspace("the tests that failed, alone")
                .with(["--", "--exact", "--test-threads=1"])
                .with(&failed)
                .run_tests()?;
            if passed < failed.len() {
                return Err(Failure::of_tests(NAME, "not found alone", &failed));
            }
        }
        println!("\nFailed among others and passed {ALONE} times alone:\n  {}", failed.join("\n  "));
    }
    Ok(tests.passed + failed.len())
}

fn workspace(name: &str) -> Step {
    crate::cargo(name, "test --workspace --all-features --no-fail-fast")
}
