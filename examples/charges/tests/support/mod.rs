//! Runs the server as a process.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The file in the data folder to which servers write their logs.
pub(crate) const LOG: &str = "server.log";

/// A running server; killed when it is dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) address: String,
    /// What the server prints, up to the last command to try.
    #[allow(dead_code, reason = "not each of the programs reads it")]
    pub(crate) greeting: String,
}

impl Process {
    /// Starts a server on a free port, and returns when it listens.
    pub(crate) fn start(data: &Path, options: &[&str]) -> Self {
        let log = File::options().create(true).append(true).open(data.join(LOG)).expect("a log file");
        let mut child = Command::new(env!("CARGO_BIN_EXE_charges"))
            .args(["--addr", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(options)
            .stdout(Stdio::piped())
            .stderr(log)
            .env_remove("RUST_LOG")
            .env_remove("CHARGES_NETWORK_SECRET")
            .spawn()
            .expect("the server starts");
        let mut output = BufReader::new(child.stdout.take().expect("a piped output"));
        let mut greeting = String::new();
        while !greeting.contains("/ledger\n") && output.read_line(&mut greeting).expect("a greeting") > 0 {}
        let address = greeting.lines().next().and_then(|line| line.strip_prefix("listening on http://"));
        let Some(address) = address.map(str::to_owned) else {
            panic!("the server did not start:\n{}", std::fs::read_to_string(data.join(LOG)).unwrap_or_default());
        };
        // Keep reading the output: if the pipe were closed, the server could not write its next line.
        std::thread::spawn(move || output.read_to_end(&mut Vec::new()));
        Self { child, address, greeting }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
