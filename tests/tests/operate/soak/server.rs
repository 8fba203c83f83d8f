//! The server process under load.

use std::net::SocketAddr;
use std::process::Stdio;

use idempotent_tests::eventually;
use idempotent_tests::soak::Reading;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// The process ends with the test, even if the test fails, because its input closes.
pub(crate) struct SoakServer {
    address: SocketAddr,
    orders: ChildStdin,
    readings: Lines<BufReader<ChildStdout>>,
    _process: Child,
    _folder: TempDir,
}

impl SoakServer {
    pub(crate) async fn start() -> Self {
        let folder = TempDir::new().expect("a folder can be made");
        let mut process = Command::new(env!("CARGO_BIN_EXE_soak-server"))
            .arg(folder.path().join("idempotency.db"))
            // The number of heaps must not depend on the number of processors, or the readings would differ.
            .env("MALLOC_ARENA_MAX", "2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the server can be started");
        raise_descriptor_limit(process.id().expect("it has just been started"), 4_096);
        let orders = process.stdin.take().expect("its input is piped");
        let mut readings = BufReader::new(process.stdout.take().expect("its output is piped")).lines();
        let address = readings.next_line().await.expect("it prints text").expect("it prints its address");
        let address = address.parse().expect("the first line is the address");
        Self { address, orders, readings, _process: process, _folder: folder }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A reading of its current state.
    pub(crate) async fn reading(&mut self) -> Reading {
        self.orders.write_all(b"\n").await.expect("the server reads");
        let line = self.readings.next_line().await.expect("it prints text").expect("the server runs");
        serde_json::from_str(&line).expect("a reading is JSON")
    }

    /// The first reading with nothing left of any request and with no more tasks than before the first client. The
    /// connections of a thousand clients that have disconnected end one by one.
    pub(crate) async fn at_rest(&mut self, idle: &Reading) -> Reading {
        eventually(async || self.reading().await, |reading| reading.is_at_rest() && reading.tasks <= idle.tasks).await
    }
}

/// Allows the process to open `needed` descriptors, if it may not yet.
pub(crate) fn raise_descriptor_limit(process: u32, needed: u64) {
    let limits =
        std::fs::read_to_string(format!("/proc/{process}/limits")).expect("Linux shows the limits of a process");
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    if soft.is_some_and(|soft| soft == "unlimited" || soft.parse::<u64>().is_ok_and(|soft| soft >= needed)) {
        return;
    }
    let raised = std::process::Command::new("prlimit")
        .arg(format!("--nofile={needed}:"))
        .args(["--pid", &process.to_string()])
        .output()
        .expect("prlimit of util-linux is installed");
    assert!(
        raised.status.success(),
        "a thousand connections need {needed} open files in a process, and `ulimit -Hn` allows fewer: {}",
        String::from_utf8_lossy(&raised.stderr)
    );
}
