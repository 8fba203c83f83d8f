//! The server as a process.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// What the servers of a folder say.
pub(crate) const LOG: &str = "server.log";

/// A running server; killed when it is dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl Process {
    /// Starts one on a free port and returns when it listens.
    pub(crate) fn start(data: &Path, options: &[&str]) -> Self {
        let log = File::options().create(true).append(true).open(data.join(LOG)).expect("a log file");
        let mut child = Command::new(env!("CARGO_BIN_EXE_charges"))
            .args(["--addr", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(options)
            .stdout(Stdio::piped())
            .stderr(log)
            .env_remove("RUST_LOG")
            .spawn()
            .expect("the server starts");
        let mut greeting = BufReader::new(child.stdout.take().expect("a piped output"));
        let mut line = String::new();
        greeting.read_line(&mut line).expect("a greeting");
        let Some(address) = line.trim().strip_prefix("listening on http://").map(str::to_owned) else {
            panic!("the server did not start:\n{}", std::fs::read_to_string(data.join(LOG)).unwrap_or_default());
        };
        // The rest of the greeting is read too: a closed pipe would fail the server's next line.
        std::thread::spawn(move || greeting.read_to_end(&mut Vec::new()));
        Self { child, address }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
