//! Runs this program as a separate process, for one measurement.

use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::hot_key::Engine;
use super::processes::Work;

/// The task of a process. It is the process's only argument, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Task {
    /// A store in memory.
    Records {
        /// The number of records.
        size: usize,
        /// How many nanoseconds are allowed for each record before the first record expires.
        pace: u64,
    },
    /// A map of the standard library with this many entries.
    Map(usize),
    /// A router, bare and guarded.
    Clients {
        /// How many requests are in flight at the same time.
        clients: usize,
        /// How long a round takes.
        seconds: f64,
    },
    /// One of several processes that share a store.
    Pairs(Work),
    /// One key compared with many keys.
    HotKey {
        /// The store.
        store: Engine,
        /// How long a round takes.
        seconds: f64,
    },
    /// Many handlers, and many requests that wait.
    Crowd(Engine),
}

/// Starts a process for the task.
pub(super) fn start(task: &Task) -> anyhow::Result<Child> {
    let argument = serde_json::to_string(task)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().with_context(|| format!("no process for {task:?}"))
}

/// Waits for the process, and returns what it printed.
pub(super) fn finish<T: DeserializeOwned>(child: Child) -> anyhow::Result<T> {
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "a process that measures has failed: {}", output.status);
    serde_json::from_slice(&output.stdout).context("a process that measures has not printed its figures")
}

/// Starts a process for the task, and waits for its result.
pub(super) fn outcome<T: DeserializeOwned>(task: &Task) -> anyhow::Result<T> {
    finish(start(task)?)
}
