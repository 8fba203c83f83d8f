//! Runs every test of the workspace with all features, the ui-tests, and the examples in the documentation.

use std::num::NonZero;
use std::{env, mem, thread};

use crate::step::{Failure, Step, Tests};

const NAME: &str = "all tests, all features, ui-tests and documentation examples";

/// How many tests a stalled machine may make fail in one run. If more fail, the machine is not the cause.
const MAY_STALL: usize = 5;

/// How often each of them must then pass.
const ALONE: usize = 3;

/// Runs the tests. All of them have passed in the end.
///
/// Many of these tests hold a lease of some hundred milliseconds. The lease expires if the machine does not run the
/// process for that long. So if a few tests fail beside the others, they run again, alone and one after another, and
/// must pass each time. Their names are printed, because such a test depends too much on timing.
pub(crate) fn run() -> Result<Tests, Failure> {
    // Most tests wait for a lease or a server, so more tests than processors can run.
    let threads = thread::available_parallelism().map_or(1, NonZero::get) * 2;
    let all = match env::var_os("RUST_TEST_THREADS") {
        Some(_) => workspace(NAME),
        None => workspace(NAME).env("RUST_TEST_THREADS", threads.to_string()),
    };
    let mut tests = all.run_tests_that_may_fail()?;
    let failed = mem::take(&mut tests.failed);
    if failed.len() > MAY_STALL {
        return Err(Failure::of_tests(NAME, "failed tests", &failed));
    }
    if !failed.is_empty() {
        for _ in 0..ALONE {
            let passed = workspace("the tests that failed, alone")
                .with(["--", "--exact", "--test-threads=1"])
                .with(&failed)
                .run_tests()?
                .passed;
            if passed < failed.len() {
                return Err(Failure::of_tests(NAME, "not found alone", &failed));
            }
        }
        println!("\nFailed among others and passed {ALONE} times alone:\n  {}", failed.join("\n  "));
    }
    tests.passed += failed.len();
    Ok(tests)
}

fn workspace(name: &str) -> Step {
    crate::cargo(name, "test --workspace --all-features --no-fail-fast")
}
