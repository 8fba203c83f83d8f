//! One command of a run: announced, timed, and named when it fails.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

/// A command under a name that people read.
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

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub(crate) fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Result<(), Failure> {
        self.watch(|command| command.status().map(|status| (status, ())))
    }

    /// Runs it to its end; the answer is how many tests passed.
    pub(crate) fn run_tests(self) -> Result<usize, Failure> {
        self.watch(|command| {
            let mut process = command.stdout(Stdio::piped()).spawn()?;
            let mut passed = 0;
            for line in BufReader::new(process.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?).split(b'\n') {
                let line = line?;
                let line = String::from_utf8_lossy(&line);
                println!("{line}");
                passed += passed_tests(&line);
            }
            Ok((process.wait()?, passed))
        })
    }

    fn watch<T>(mut self, run: impl FnOnce(&mut Command) -> io::Result<(ExitStatus, T)>) -> Result<T, Failure> {
        println!("\n── {} ──", self.name);
        let begun = Instant::now();
        match run(&mut self.command) {
            Ok((status, outcome)) if status.success() => {
                println!("── {}: done in {:.1} s", self.name, begun.elapsed().as_secs_f64());
                Ok(outcome)
            }
            Ok((status, _)) => Err(self.failure(&status)),
            Err(error) => Err(self.failure(&format_args!("could not be run: {error}"))),
        }
    }

    /// What it prints, if only its answer is needed.
    pub(crate) fn answer(mut self) -> Result<Vec<u8>, Failure> {
        match self.command.stderr(Stdio::inherit()).output() {
            Ok(output) if output.status.success() => Ok(output.stdout),
            Ok(output) => Err(self.failure(&output.status)),
            Err(error) => Err(self.failure(&format_args!("could not be started: {error}"))),
        }
    }

    fn failure(self, reason: &dyn fmt::Display) -> Failure {
        let program = std::iter::once(self.command.get_program());
        let words: Vec<_> = program.chain(self.command.get_args()).map(OsStr::to_string_lossy).collect();
        Failure { step: self.name, detail: format!("{}\n  {reason}", words.join(" ")) }
    }
}

/// Of the line with which each test program ends, such as `test result: ok. 7 passed; 0 failed; …`.
fn passed_tests(line: &str) -> usize {
    let passed = line.strip_prefix("test result: ok. ").and_then(|rest| rest.split_once(" passed"));
    passed.and_then(|(count, _)| count.parse().ok()).unwrap_or(0)
}

/// The step that stopped the run.
pub(crate) struct Failure {
    step: String,
    detail: String,
}

impl Failure {
    /// A check of our own that failed, and what would be right.
    pub(crate) fn of(step: &str, detail: impl fmt::Display) -> Self {
        Self { step: step.to_owned(), detail: detail.to_string() }
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

    #[test]
    fn tests_of_all_programs_are_counted() {
        let programs = "running 3 tests\n\
            test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            test result: ok. 1400 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 1.00s";
        let passed = Step::new("two programs", "printf", ["%s", programs]).run_tests();
        assert!(matches!(passed, Ok(1403)));
    }
}
