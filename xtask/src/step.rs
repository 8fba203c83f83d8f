//! One command of a run. It is announced and timed, and named if it fails.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read};
use std::iter;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// A command with a name for people.
pub(crate) struct Step {
    name: String,
    command: Command,
}

impl Step {
    pub(crate) fn new(
        name: &str,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Self {
        let mut command = Command::new(program);
        command.args(arguments);
        Self { name: name.to_owned(), command }
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn with(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub(crate) fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Runs the command to its end.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let (status, ()) = self.watch(|command| Ok((command.status()?, ())))?;
        if status.success() { Ok(()) } else { Err(self.failure(&status)) }
    }

    /// Runs tests, none of which may fail.
    pub(crate) fn run_tests(self) -> Result<Tests, Failure> {
        let name = self.name.clone();
        let tests = self.run_tests_that_may_fail()?;
        if tests.failed.is_empty() { Ok(tests) } else { Err(Failure::of_tests(&name, "failed tests", &tests.failed)) }
    }

    /// Runs tests. Fails only if something else than a test fails: the compiler, or a test program that ends before its
    /// tests do.
    pub(crate) fn run_tests_that_may_fail(mut self) -> Result<Tests, Failure> {
        let (status, tests) = self.watch(|command| {
            let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            let mut tests = Tests::default();
            let programs = announced_programs(process.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?);
            for line in BufReader::new(process.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?).split(b'\n') {
                let line = line?;
                let line = String::from_utf8_lossy(&line);
                println!("{line}");
                tests.read(&line);
            }
            let status = process.wait()?;
            // A server that outlives its test may keep this pipe open.
            tests.programs.extend(iter::from_fn(|| programs.recv_timeout(PATIENCE).ok()));
            Ok((status, tests))
        })?;
        if status.success() || tests.explain_a_failure() { Ok(tests) } else { Err(self.failure(&status)) }
    }

    fn watch<T>(
        &mut self,
        run: impl FnOnce(&mut Command) -> io::Result<(ExitStatus, T)>,
    ) -> Result<(ExitStatus, T), Failure> {
        println!("\n── {} ──", self.name);
        let begun = Instant::now();
        match run(&mut self.command) {
            Ok(ended) => {
                let outcome = if ended.0.success() { "done" } else { "failed" };
                println!("── {}: {outcome} in {:.1} s", self.name, begun.elapsed().as_secs_f64());
                Ok(ended)
            }
            Err(error) => Err(self.failure(&format_args!("could not be run: {error}"))),
        }
    }

    /// Runs the command and returns its output.
    pub(crate) fn answer(mut self) -> Result<Vec<u8>, Failure> {
        match self.command.stderr(Stdio::inherit()).output() {
            Ok(output) if output.status.success() => Ok(output.stdout),
            Ok(output) => Err(self.failure(&output.status)),
            Err(error) => Err(self.failure(&format_args!("could not be started: {error}"))),
        }
    }

    fn failure(&self, reason: &dyn fmt::Display) -> Failure {
        let program = iter::once(self.command.get_program());
        let words: Vec<_> = program.chain(self.command.get_args()).map(OsStr::to_string_lossy).collect();
        Failure { step: self.name.clone(), detail: format!("{}\n  {reason}", words.join(" ")) }
    }
}

/// How long after the end of cargo its last lines may come.
const PATIENCE: Duration = Duration::from_secs(1);

/// Prints what cargo reports, and sends the names of the test programs that it runs, in their order.
fn announced_programs(reports: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(reports).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            eprintln!("{line}");
            if let Some(name) = program(&line) {
                let _ = sender.send(name.to_owned());
            }
        }
    });
    receiver
}

/// The name of a program in a line such as `Running tests/ui.rs (target/debug/deps/ui-7e402addd9052fb6)`.
fn program(line: &str) -> Option<&str> {
    let (_, file) = line.trim_start().strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once('/')?;
    file.rsplit_once('-').map(|(name, _)| name)
}

/// The results of the test programs of one command.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tests {
    pub(crate) passed: usize,
    /// The names of the tests that failed.
    pub(crate) failed: Vec<String>,
    /// The test programs, and how long each of them ran. Cargo runs the examples in the documentation last, and reports
    /// several results for one name: those times have no name.
    programs: Vec<String>,
    seconds: Vec<f64>,
    /// How many test programs have begun; compared with how many have printed their last line.
    begun: usize,
    ended: usize,
}

impl Tests {
    fn read(&mut self, line: &str) {
        if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.begun += 1;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.ended += 1;
            // A result such as `ok. 7 passed; 0 failed; …`.
            let passed = result.split_once(". ").and_then(|(_, counts)| counts.split_once(" passed"));
            self.passed += passed.and_then(|(count, _)| count.parse().ok()).unwrap_or(0);
            let seconds = result.split_once("finished in ").and_then(|(_, time)| time.trim_end().strip_suffix('s'));
            self.seconds.push(seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0));
        } else if let Some(name) = line.strip_prefix("test ").and_then(|test| test.strip_suffix(" ... FAILED")) {
            self.failed.push(name.to_owned());
        }
    }

    /// Returns the slowest programs first, at most `number` of them, with their seconds.
    pub(crate) fn slowest(&self, number: usize) -> Vec<(&str, f64)> {
        let mut programs: Vec<_> =
            iter::zip(self.programs.iter().map(String::as_str), self.seconds.iter().copied()).collect();
        programs.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        programs.truncate(number);
        programs
    }

    /// Whether failed tests are the only reason why the command failed.
    fn explain_a_failure(&self) -> bool {
        !self.failed.is_empty() && self.begun == self.ended
    }
}

/// A failed step, which stops the run.
pub(crate) struct Failure {
    step: String,
    detail: String,
}

impl Failure {
    /// A failed check of this program, with how to fix it.
    pub(crate) fn of(step: &str, detail: impl fmt::Display) -> Self {
        Self { step: step.to_owned(), detail: detail.to_string() }
    }

    /// The same for tests, with a text that says what is wrong with them.
    pub(crate) fn of_tests(step: &str, wrong: &str, tests: &[String]) -> Self {
        Self::of(step, format!("{wrong}:\n  {}", tests.join("\n  ")))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FAILED: {}\n  {}", self.step, self.detail)
    }
}

#[cfg(test)]
mod tests {
    use super::Step;

    fn printing(text: &str, status: u8) -> Step {
        Step::new("programs", "sh", ["-c", r#"printf %s "$0"; exit "$1""#, text, &status.to_string()])
    }

    const PASSED: &str = "running 3 tests\n\
        test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
        running 1400 tests\n\
        test result: ok. 1400 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 1.00s";
    const FAILED: &str = "running 2 tests\n\
        test tea ... FAILED\n\
        test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";

    #[test]
    fn tests_of_all_programs_are_counted() {
        assert!(printing(PASSED, 0).run_tests().is_ok_and(|tests| tests.passed == 1403));
    }

    #[test]
    fn slowest_programs_are_named() {
        let cargo = r#"echo '     Running unittests src/lib.rs (target/debug/deps/a_library-66a42d48d291bf71)' >&2
            echo '     Running tests/cli/main.rs (target/debug/deps/cli-e24e53254c3510ab)' >&2
            echo '     Running tests/ui.rs (target/debug/deps/ui-7e402addd9052fb6)' >&2
            for seconds in 0.05 7.25 382.47 400.00; do
                echo "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in ${seconds}s"
            done"#;
        let tests = Step::new("programs", "sh", ["-c", cargo]).run_tests();
        assert!(tests.is_ok_and(|tests| tests.slowest(2) == [("ui", 382.47), ("cli", 7.25)]));
    }

    #[test]
    fn failed_tests_are_named() {
        let tests = printing(FAILED, 101).run_tests_that_may_fail();
        assert!(tests.is_ok_and(|tests| tests.failed == ["tea"] && tests.passed == 1));
        let failure = printing(FAILED, 101).run_tests().expect_err("a test failed");
        assert!(failure.to_string().ends_with("failed tests:\n  tea"), "{failure}");
    }

    #[test]
    fn failures_of_anything_but_a_test_are_errors() {
        let compiler = "error: could not compile";
        let program_that_ends = format!("{FAILED}running 1 test\ntest coffee ... ");
        for text in [compiler, PASSED, &program_that_ends] {
            assert!(printing(text, 101).run_tests_that_may_fail().is_err(), "{text}");
        }
    }
}
