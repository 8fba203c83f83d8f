//! The load: wrk, as a separate process.

use std::fs;
use std::io;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, anyhow, ensure};
use serde::Deserialize;
use tempfile::TempDir;

use super::request::{Sizes, Template, recorded_keys};
use super::server::Server;

const SCRIPT: &str = include_str!("../load.lua");

/// The longest time that an answer may take.
const TIMEOUT: &str = "5s";

/// How many of the requests repeat a key that was already answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retries {
    /// None: every request is executed.
    None,
    /// Every 20th request.
    Few,
    /// Every request.
    All,
}

impl Retries {
    /// All values.
    pub const RATES: [Self; 3] = [Self::None, Self::Few, Self::All];

    /// The name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "0 %",
            Self::Few => "5 %",
            Self::All => "100 %",
        }
    }

    /// One of this many requests is a retry.
    fn every(self) -> usize {
        match self {
            Self::None => 0,
            Self::Few => 20,
            Self::All => 1,
        }
    }

    fn share(self) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Few => 0.05,
            Self::All => 1.0,
        }
    }
}

/// The results of one run.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Requests per second.
    pub rate: f64,
    /// The median latency in milliseconds.
    pub p50: f64,
    /// The 99th percentile of the latency in milliseconds.
    pub p99: f64,
    /// The 99.9th percentile of the latency in milliseconds.
    pub p999: f64,
    /// Processor time of the server for each request, in microseconds.
    pub processor: f64,
}

/// What the script prints. Times are in microseconds.
#[derive(Debug, Deserialize)]
struct Printed {
    requests: u64,
    bytes: u64,
    micros: u64,
    /// Answers with an error status.
    rejected: u64,
    /// Broken connections.
    broken: u64,
    /// Answers that took longer than [`TIMEOUT`].
    late: u64,
    p50: f64,
    p99: f64,
    p999: f64,
}

/// The program and its script.
pub struct Wrk {
    folder: TempDir,
    template: Template,
    /// The version that wrk prints.
    pub version: String,
    runs: AtomicUsize,
}

impl Wrk {
    /// Finds the program, and writes the script for it.
    ///
    /// # Errors
    ///
    /// When wrk is not installed.
    pub fn find(template: Template) -> anyhow::Result<Self> {
        let output = output(Command::new("wrk").arg("--version"))?;
        // wrk prints its version together with its usage, and exits with an error.
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split(" [").next().unwrap_or_default().trim().to_owned();
        ensure!(version.starts_with("wrk "), "`wrk --version` should tell a version, but it prints:\n{text}");
        let folder = TempDir::with_prefix("wrk")?;
        fs::write(folder.path().join("load.lua"), SCRIPT)?;
        Ok(Self { folder, template, version, runs: AtomicUsize::new(1) })
    }

    /// Loads a server for this many seconds.
    ///
    /// # Errors
    ///
    /// When any answer is not the expected one, because a wrong answer must not be measured.
    pub fn load(
        &self,
        server: &Server,
        sizes: Sizes,
        retries: Retries,
        connections: u32,
        seconds: u32,
    ) -> anyhow::Result<Outcome> {
        let mut command = Command::new("wrk");
        command.arg("--threads").arg(connections.min(2).to_string());
        command.arg("--connections").arg(connections.to_string()).arg("--duration").arg(format!("{seconds}s"));
        command.arg("--timeout").arg(TIMEOUT).arg("--script").arg(self.folder.path().join("load.lua"));
        command.arg(format!("http://127.0.0.1:{}", server.port)).arg("--");
        command.args([&self.template.head, &self.template.tail]);
        // No other run has this number, so no other run has these keys.
        command.arg(self.runs.fetch_add(1, Ordering::Relaxed).to_string());
        command.arg(retries.every().to_string()).arg(recorded_keys().join(","));
        let before = server.processor_time()?;
        let output = output(&mut command)?;
        let taken = server.processor_time()? - before;
        let text = String::from_utf8_lossy(&output.stdout);
        let complaint = || format!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), complaint());
        let printed = text.lines().rev().find(|line| line.starts_with('{')).with_context(complaint)?;
        let printed: Printed = serde_json::from_str(printed).with_context(complaint)?;
        printed
            .check(sizes, retries)
            .with_context(|| format!("{} at {} retries", server.contender.name(), retries.name()))?;
        Ok(Outcome {
            rate: printed.requests as f64 / printed.micros as f64 * 1e6,
            p50: printed.p50 / 1e3,
            p99: printed.p99 / 1e3,
            p999: printed.p999 / 1e3,
            processor: taken.as_secs_f64() * 1e6 / printed.requests as f64,
        })
    }
}

impl Printed {
    fn check(&self, sizes: Sizes, retries: Retries) -> anyhow::Result<()> {
        ensure!(self.requests > 0, "the server has answered nothing");
        ensure!(
            self.rejected == 0 && self.broken == 0 && self.late == 0,
            "of {} answers, {} have another status than 201, and {} are later than {TIMEOUT}; {} connections broke",
            self.requests,
            self.rejected,
            self.late,
            self.broken
        );
        // wrk does not distinguish answers, but a replay is longer than a first answer.
        let mean = self.bytes as f64 / self.requests as f64;
        let [first, repeated] = [sizes.first, sizes.repeated].map(|size| size as f64);
        let expected = first + (repeated - first) * retries.share();
        ensure!(
            (mean - expected).abs() < 0.5,
            "an answer should have {expected:.2} bytes in the mean, but has {mean:.2}: others were given than are measured"
        );
        Ok(())
    }
}

fn output(command: &mut Command) -> anyhow::Result<Output> {
    command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!("no `wrk` here: install it with `apt-get install wrk`"),
        _ => anyhow!(error).context("wrk cannot be started"),
    })
}
