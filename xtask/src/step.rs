//! One command of a run: announced, timed, and named when it fails.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::process::{Command, ExitStatus};
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

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        println!("\n── {} ──", self.name);
        let begun = Instant::now();
        match self.command.status() {
            Ok(status) if status.success() => {
                println!("── {}: done in {:.1} s", self.name, begun.elapsed().as_secs_f64());
                Ok(())
            }
            Ok(status) => Err(self.failure(Reason::Status(status))),
            Err(error) => Err(self.failure(Reason::NotStarted(error))),
        }
    }

    fn failure(self, reason: Reason) -> Failure {
        let program = std::iter::once(self.command.get_program());
        let words: Vec<_> = program.chain(self.command.get_args()).map(OsStr::to_string_lossy).collect();
        Failure { step: self.name, command: words.join(" "), reason }
    }
}

/// The step that stopped the run.
pub(crate) struct Failure {
    step: String,
    command: String,
    reason: Reason,
}

enum Reason {
    Status(ExitStatus),
    NotStarted(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FAILED: {}\n  {}\n  ", self.step, self.command)?;
        match &self.reason {
            Reason::Status(status) => write!(f, "{status}"),
            Reason::NotStarted(error) => write!(f, "could not be started: {error}"),
        }
    }
}
