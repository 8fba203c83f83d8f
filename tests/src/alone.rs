//! Runs a test in its own process, for state that a process has only once: the installed registry, the subscriber of
//! `tracing`.

use std::any;
use std::env;
use std::process::Command;

const VARIABLE: &str = "IDEMPOTENT_TEST_ALONE";

/// Runs `test` in a new process. The test calls this first and passes itself. The result is `true` in the new process,
/// and `false` in the process that started it, after the new process has ended.
///
/// # Panics
///
/// When the test fails in the new process.
#[must_use]
pub fn alone(test: impl Fn()) -> bool {
    let name = name_of(&test);
    if env::var_os(VARIABLE).is_some_and(|running| running == name) {
        return true;
    }
    let mut process = Command::new(env::current_exe().expect("this program's path"));
    let output = process.args([name, "--exact", "--nocapture"]).env(VARIABLE, name).output().expect("it starts");
    let (told, warned) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("1 passed"), "alone, it fails:\n{told}{warned}");
    false
}

/// The name by which the test program knows the test.
pub(crate) fn name_of<T: Fn()>(_: &T) -> &'static str {
    let path = any::type_name::<T>();
    path.split_once("::").map_or(path, |(_, name)| name)
}
