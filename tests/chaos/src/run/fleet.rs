//! The server processes. Each is started again when it dies.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use idempotent_tests::lock;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::{Book, Plan, TestedStore};
use crate::family::Family;
use crate::history::FaultKind;
use crate::now;
use crate::server::END_RUNTIME;

/// Servers that share a store and a ledger.
pub struct Fleet {
    slots: Vec<Arc<Mutex<Server>>>,
    supervisors: Vec<JoinHandle<()>>,
    /// How many servers have several runtimes. They are the first ones.
    servers_with_runtimes: usize,
}

/// The number of runtimes of a server that has several.
const RUNTIMES: usize = 3;

/// A server that runs, or that has just died.
#[derive(Clone, Debug)]
pub struct Server {
    /// A name that is unique in the run.
    pub name: String,
    /// The address on which it listens.
    pub address: String,
    pid: Option<Pid>,
}

#[derive(Clone)]
struct Launch {
    program: PathBuf,
    arguments: Vec<String>,
    ledger: PathBuf,
    clock_offset: Option<PathBuf>,
}

/// The library of Debian's package `faketime`, which changes what a program reads from its clock.
fn faketime() -> anyhow::Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    libraries.into_iter().find(|library| library.is_file()).context("install it with `apt-get install faketime`")
}

impl Fleet {
    pub(crate) async fn start(
        plan: &Plan,
        program: PathBuf,
        store: &TestedStore,
        ledger: &Path,
        book: Book,
    ) -> anyhow::Result<Self> {
        let mut arguments = vec!["serve".to_owned(), "--store".to_owned(), store.url_of_servers().to_owned()];
        if let Some(guard) = plan.without {
            let guard = clap::ValueEnum::to_possible_value(&guard).context("every guard has a name")?;
            arguments.extend(["--without".to_owned(), guard.get_name().to_owned()]);
        }
        let clock_offset = plan.clock_offset.clone();
        let command = Launch { program, arguments, ledger: ledger.to_owned(), clock_offset };
        // With other families in the run, one such server is enough.
        let servers_with_runtimes = match plan.families.contains(&Family::SeveralRuntimes) {
            true if plan.is_limited => plan.servers,
            true => 1,
            false => 0,
        };
        let (mut slots, mut supervisors) = (Vec::new(), Vec::new());
        for number in 0..plan.servers {
            let mut command = command.clone();
            if number < servers_with_runtimes {
                command.arguments.extend(["--runtimes".to_owned(), RUNTIMES.to_string()]);
            }
            let (child, server) = command.spawn(&format!("s{number}.0")).await?;
            let slot = Arc::new(Mutex::new(server));
            supervisors.push(tokio::spawn(keep(command.clone(), number, child, Arc::clone(&slot), book.clone())));
            slots.push(slot);
        }
        Ok(Self { slots, supervisors, servers_with_runtimes })
    }

    /// The number of servers.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are no servers.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The server with this number, which may just have died.
    pub fn server(&self, number: usize) -> Server {
        lock(&self.slots[number]).clone()
    }

    /// Stops a server with SIGSTOP.
    pub fn stop_server(&self, number: usize) {
        self.signal(number, Signal::STOP);
    }

    /// Kills a server; a new one takes its place.
    pub fn kill_server(&self, number: usize) {
        self.signal(number, Signal::KILL);
    }

    /// Continues a stopped server.
    pub fn continue_server(&self, number: usize) {
        self.signal(number, Signal::CONT);
    }

    /// Sends a signal. Does nothing if the server is already dead.
    pub(crate) fn signal(&self, number: usize, signal: Signal) {
        if let Some(pid) = self.server(number).pid {
            let _ = kill_process(pid, signal);
        }
    }

    /// Whether a server has several runtimes.
    pub(crate) fn has_runtimes(&self) -> bool {
        self.servers_with_runtimes > 0
    }

    /// Ends a runtime of a server that has several, unless the runtime that gets the request is blocked.
    pub(crate) async fn end_a_runtime(&self) {
        let server = self.server(fastrand::usize(..self.servers_with_runtimes));
        let ending = reqwest::Client::new().post(format!("http://{}{END_RUNTIME}", server.address));
        let _ = ending.timeout(Duration::from_secs(1)).send().await;
    }

    pub(crate) async fn stop(&self) {
        for supervisor in &self.supervisors {
            supervisor.abort();
        }
        // Aborting the tasks also kills the child processes.
        for supervisor in &self.supervisors {
            while !supervisor.is_finished() {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Starts a new process whenever the server dies.
async fn keep(command: Launch, number: usize, mut child: Child, slot: Arc<Mutex<Server>>, book: Book) {
    for incarnation in 1.. {
        let _ = child.wait().await;
        let died_at = now();
        let name = {
            let mut server = lock(&slot);
            // Another process may soon have the same id.
            server.pid = None;
            server.name.clone()
        };
        book.fault(FaultKind::Died, Some(&name), (died_at, died_at));
        let (next, server) = loop {
            // Starting fails while the store is away; then try again.
            if let Ok(started) = command.spawn(&format!("s{number}.{incarnation}")).await {
                break started;
            }
        };
        child = next;
        *lock(&slot) = server;
    }
}

impl Launch {
    async fn spawn(&self, name: &str) -> anyhow::Result<(Child, Server)> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args(["--name", name, "--ledger"]).arg(&self.ledger);
        if let Some(file) = &self.clock_offset {
            command.env("LD_PRELOAD", faketime()?).env("FAKETIME_TIMESTAMP_FILE", file).env("FAKETIME_NO_CACHE", "1");
            // Only the wall clock of a machine can be set, so the monotonic clock is not changed.
            command.env("DONT_FAKE_MONOTONIC", "1");
        }
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().context("a server starts")?;
        let output = child.stdout.take().context("a piped output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).await?;
        let address = line.trim().to_owned();
        anyhow::ensure!(!address.is_empty(), "the server did not say where it listens");
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok((child, Server { name: name.to_owned(), address, pid }))
    }
}
