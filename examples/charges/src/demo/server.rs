//! The demo's server: this program again, as a process that can be killed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use charges::signature::NetworkSecret;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// How long the simulated card network takes in the demo: long enough to kill a server meanwhile.
const LATENCY: &str = "400ms";

/// The variable from which the server reads the secret of the card network's events.
const SECRET: &str = "CHARGES_NETWORK_SECRET";

/// How long a process may take to start or to stop.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running server; killed when it is dropped.
pub(super) struct Server {
    child: Child,
    address: String,
    data: PathBuf,
    /// Kept open: without a reader, the server could not write its next line.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Server {
    pub(super) async fn start(data: &Path) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(log_of(data))?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--addr", "127.0.0.1:0", "--network-latency", LATENCY, "--data"])
            .arg(data)
            .env(SECRET, NetworkSecret::PUBLIC)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("the server cannot be started")?;
        let stdout = child.stdout.take().context("the server has an output")?;
        let mut output = BufReader::new(stdout).lines();
        let first = tokio::time::timeout(PATIENCE, output.next_line()).await.context("the server does not start")??;
        let Some(address) = first.as_deref().and_then(|line| line.strip_prefix("listening on http://")) else {
            bail!("the server did not start:\n{}", std::fs::read_to_string(log_of(data))?);
        };
        Ok(Self { child, address: address.to_owned(), data: data.to_owned(), _output: output })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn process(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Kills the server with SIGKILL, and starts a new one with the same files.
    pub(super) async fn killed_and_restarted(mut self) -> anyhow::Result<Self> {
        self.child.kill().await.context("the server cannot be killed")?;
        Self::start(&self.data).await
    }

    /// Stops the server with SIGTERM, and starts a new one with the same files.
    pub(super) async fn stopped_and_restarted(mut self) -> anyhow::Result<Self> {
        let process = self.process().to_string();
        let sent = Command::new("kill").args(["-TERM", &process]).status().await?;
        ensure!(sent.success(), "process {process} could not be told to stop");
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.context("the server does not stop")??;
        ensure!(status.success(), "the server stopped with {status}");
        Self::start(&self.data).await
    }
}

pub(super) fn log_of(data: &Path) -> PathBuf {
    data.join("server.log")
}
