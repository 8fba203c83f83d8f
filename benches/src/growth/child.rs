//! This program as a process of its own, for one measurement.

use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::hot_key::Engine;
use super::processes::Work;

/// What a process is started for; it is its only argument, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Task {
    /// A store in memory.
    Records {
        /// Of so many records.
        size: usize,
        /// How many nanoseconds one is granted until the first of them expires.
        pace: u64,
    },
    /// A map of the standard library of so many.
    Map(usize),
    /// A router, bare and guarded.
    Clients {
        /// How many requests are on their way at once.
        clients: usize,
        /// How long a round takes.
        seconds: f64,
    },
    /// One process of several that share a store.
    Pairs(Work),
    /// One key against many.
    HotKey {
        /// Which store.
        store: Engine,
        /// How long a round takes.
        seconds: f64,
    },
}

/// Starts the process for it.
pub(super) fn start(task: &Task) -> anyhow::Result<Child> {
    let argument = serde_json::to_string(task)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().with_context(|| format!("no process for {task:?}"))
}

/// What came out of it.
pub(super) fn finish<T: DeserializeOwned>(child: Child) -> anyhow::Result<T> {
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "a process that measures has failed: {}", output.status);
    serde_json::from_slice(&output.stdout).context("a process that measures has not printed its figures")
}

/// Starts it and waits for its end.
pub(super) fn outcome<T: DeserializeOwned>(task: &Task) -> anyhow::Result<T> {
    finish(start(task)?)
}
