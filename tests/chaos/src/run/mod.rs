//! One run: servers with a store, clients that repeat every request, faults meanwhile, and the check at the end.

mod clients;
mod faults;
mod fleet;
mod outages;
mod planned;
mod stores;

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use idempotent_tests::lock;
use tempfile::TempDir;
use tokio::task::{JoinHandle, spawn_blocking};

use self::clients::Clients;
use self::faults::Faults;
pub use self::fleet::Fleet;
pub use self::outages::{Outage, Outages, play_outages};
pub use self::stores::{StoreKind, TestedStore};
use crate::checker::{Violation, check};
use crate::family::Family;
use crate::history::{Fault, FaultKind, Guarantee, History};
use crate::now;
use crate::server::{Guard, Ledger, prepare};

/// What happens in a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Determines keys, clients and faults. The exact times differ in each run.
    pub seed: u64,
    /// How long requests are sent and faults are caused.
    pub duration: Duration,
    /// The store of the servers' records.
    pub store: StoreKind,
    /// The number of servers.
    pub servers: usize,
    /// How often each fault happens, relative to the others.
    pub faults: FaultWeights,
    /// How long a key may go without an answer.
    pub patience: Duration,
    /// How many keys, in per mille, have a handler that takes longer than its lease.
    pub long_handlers: u32,
    /// The file from which the servers read the offset of their wall clock in seconds, for libfaketime.
    pub clock_offset: Option<PathBuf>,
    /// The families whose keys and faults are used.
    pub families: Vec<Family>,
    /// Whether all keys belong to these families.
    pub is_limited: bool,
    /// How many keys are played at the same time.
    pub keys_at_once: usize,
    /// The guard that is disabled in the servers.
    pub without: Option<Guard>,
}

/// How often each fault happens, relative to the others. If all are 0, there are no faults.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultWeights {
    /// SIGKILL at a random moment.
    pub kill: u32,
    /// Death at a named step.
    pub die_at_step: u32,
    /// SIGSTOP for longer than a lease.
    pub long_stop: u32,
    /// A short SIGSTOP.
    pub short_stop: u32,
    /// A short SIGSTOP of the store.
    pub pause_store: u32,
    /// The proxy to the store delays, stops, loses answers or breaks connections for a moment.
    pub break_line: u32,
    /// The store is killed and started again.
    pub restart_store: u32,
    /// The store is away for longer than a lease.
    pub long_outage: u32,
    /// The store's disk is full for a moment.
    pub fill_disk: u32,
    /// One of a process's runtimes ends.
    pub end_runtime: u32,
    /// The percentage of requests that their client cuts off.
    pub cut_percent: u32,
}

impl Plan {
    /// All faults, on three servers.
    pub fn everything(seed: u64, duration: Duration, store: StoreKind) -> Self {
        let faults = FaultWeights {
            kill: 4,
            die_at_step: 4,
            long_stop: 2,
            short_stop: 2,
            pause_store: 3,
            break_line: 4,
            restart_store: 1,
            long_outage: 1,
            fill_disk: 2,
            end_runtime: 2,
            cut_percent: 25,
        };
        Self { faults, long_handlers: 5, families: Family::all(store), ..Self::calm(seed, duration, store, 3) }
    }

    /// The keys and faults of one family, with three servers.
    pub fn only(family: Family, seed: u64, duration: Duration, store: StoreKind) -> Self {
        let none = FaultWeights::default();
        let (faults, keys_at_once) = match family {
            // Few requests: a missing wake-up would not be noticed on a busy runtime.
            Family::BlockedThreads => (none, 6),
            Family::SeveralRuntimes => (FaultWeights { end_runtime: 1, ..none }, 12),
            Family::FullDisk => (FaultWeights { fill_disk: 1, ..none }, 8),
            Family::ShortTtl => (FaultWeights { long_outage: 1, ..none }, 12),
            // With a slow connection, the handler has the time to drop the future that it waits for.
            Family::EndedTransactions => (FaultWeights { break_line: 1, ..none }, 8),
            Family::MixedScope | Family::RotatedCredentials | Family::ForwardedRequests => (none, 8),
        };
        let calm = Self::calm(seed, duration, store, 3);
        Self { faults, families: vec![family], is_limited: true, keys_at_once, ..calm }
    }

    /// No faults, with this many servers.
    pub fn calm(seed: u64, duration: Duration, store: StoreKind, servers: usize) -> Self {
        let patience = Duration::from_secs(40);
        Self {
            seed,
            duration,
            store,
            servers,
            faults: FaultWeights::default(),
            patience,
            long_handlers: 0,
            clock_offset: None,
            families: Vec::new(),
            is_limited: false,
            keys_at_once: 40,
            without: None,
        }
    }

    /// The faults under which a missing guard is noticed.
    pub fn against(guard: Guard, seed: u64, duration: Duration, store: StoreKind) -> Self {
        if let Some(family) = guard.family() {
            let patience = Duration::from_secs(10);
            return Self { patience, without: Some(guard), ..Self::only(family, seed, duration, store) };
        }
        let none = FaultWeights::default();
        let (faults, long_handlers) = match guard {
            // The stop must happen in the middle of a handler, so handlers are long.
            Guard::Token => (FaultWeights { long_stop: 1, ..none }, 100),
            Guard::RecordFirst | Guard::RejectionAfterCrash | Guard::Transaction => {
                (FaultWeights { kill: 1, die_at_step: 10, ..none }, 0)
            }
            // A release is slow on a slow disk, and must arrive while the handler still runs.
            Guard::Disconnect => (FaultWeights { cut_percent: 50, ..none }, 100),
            _ => (none, 100),
        };
        let calm = Self::calm(seed, duration, store, 3);
        // Without renewals, some keys never get an answer.
        Self { faults, long_handlers, patience: Duration::from_secs(10), without: Some(guard), ..calm }
    }

    /// A generator of random numbers that differs for each `number`.
    fn random(&self, number: u64) -> Rng {
        Rng::with_seed(self.seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
}

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Everything that happened.
    pub history: History,
    /// The broken rules.
    pub violations: Vec<Violation>,
}

/// The history into which all parts of a run write.
#[derive(Clone, Default)]
pub(crate) struct Book(Arc<Mutex<History>>);

impl Book {
    pub(crate) fn write(&self, write: impl FnOnce(&mut History)) {
        write(&mut lock(&self.0));
    }

    pub(crate) fn fault(&self, kind: FaultKind, server: Option<&str>, time: (u64, u64)) {
        let server = server.map(str::to_owned);
        self.write(|history| history.faults.push(Fault { time, server, kind }));
    }

    fn copy(&self) -> History {
        lock(&self.0).clone()
    }
}

/// Servers with a store, and the ledger of what they do.
pub struct Stage {
    /// The servers.
    pub fleet: Arc<Fleet>,
    /// The store that they share.
    pub store: TestedStore,
    ledger: PathBuf,
    book: Book,
    folder: TempDir,
}

impl Stage {
    /// Starts the store and the servers of the plan. The servers run this program.
    ///
    /// # Errors
    ///
    /// When the store, the ledger or a server cannot be started.
    pub async fn set(plan: &Plan, program: PathBuf) -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("chaos")?;
        let store = TestedStore::start(plan.store, folder.path(), plan.families.contains(&Family::FullDisk)).await;
        Self::set_with(plan, program, store, folder).await
    }

    /// The same with this store.
    async fn set_with(plan: &Plan, program: PathBuf, store: TestedStore, folder: TempDir) -> anyhow::Result<Self> {
        let ledger = folder.path().join("ledger.db");
        prepare(store.url(), &ledger).await?;
        let book = Book::default();
        let fleet = Arc::new(Fleet::start(plan, program, &store, &ledger, book.clone()).await?);
        Ok(Self { fleet, store, ledger, book, folder })
    }

    /// Everything that has happened so far, as far as the servers and the store know.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be read.
    pub async fn history(&self) -> anyhow::Result<History> {
        let mut history = self.book.copy();
        Ledger::open(&self.ledger).await?.tell(&mut history, self.store.url()).await?;
        Ok(history)
    }
}

/// Plays the plan with servers that run this program.
///
/// # Errors
///
/// The same as those of [`Stage::set`].
pub async fn play(plan: &Plan, program: PathBuf) -> anyhow::Result<Outcome> {
    let stage = Stage::set(plan, program).await?;
    let watches = [
        tokio::spawn(watch_the_machine(stage.book.clone())),
        tokio::spawn(watch_the_disk(stage.book.clone(), stage.folder.path().join("probe"))),
    ];
    let clients = Clients::new(plan.clone(), Arc::clone(&stage.fleet), stage.book.clone());
    let faults = Faults { plan, fleet: &stage.fleet, store: &stage.store, book: &stage.book };
    // After the duration, the run only waits for outstanding answers.
    tokio::join!(clients.play(), faults.inflict());
    clients.ask_every_key_again().await;
    watches.iter().for_each(JoinHandle::abort);
    let history = stage.history().await?;
    stage.fleet.stop().await;
    let violations = check(&history);
    Ok(Outcome { history, violations })
}

const TICK: Duration = Duration::from_millis(100);

/// Records when the machine ran no process for a while. Leases then expire, which is no fault of the engine.
async fn watch_the_machine(book: Book) {
    loop {
        let before = now();
        tokio::time::sleep(TICK).await;
        note_a_stall(&book, before);
    }
}

/// Records when the disk wrote nothing for a while, because it still had to write data of other programs, such as a
/// compiler. A process that commits at that time holds the lock of an embedded store meanwhile. This is no fault of the
/// engine either.
async fn watch_the_disk(book: Book, probe: PathBuf) {
    loop {
        let (before, probe) = (now(), probe.clone());
        let written = spawn_blocking(move || {
            let mut file = File::create(probe)?;
            file.write_all(b"probe")?;
            file.sync_data()
        });
        written.await.expect("nothing panics here").expect("the folder of the run can be written to");
        note_a_stall(&book, before);
        tokio::time::sleep(TICK).await;
    }
}

fn note_a_stall(book: &Book, before: u64) {
    let after = now();
    if Duration::from_micros(after - before) > 10 * TICK {
        book.fault(FaultKind::MachineStalled, None, (before, after));
    }
}

impl Outcome {
    /// The numbers of the run, on one line.
    pub fn summary(&self) -> String {
        let history = &self.history;
        let answered = history.requests.iter().filter(|request| request.answer.is_some()).count();
        let replays =
            history.requests.iter().filter(|request| request.answer.as_ref().is_some_and(|answer| answer.is_replay));
        let unknown = history.finally.values().filter(|answer| answer.code().as_deref() == Some("outcome_unknown"));
        let count = |kind| history.faults.iter().filter(|fault| fault.kind == kind).count();
        let again = history.executions.iter().filter(|execution| execution.attempt > 1).count();
        format!(
            "{} keys, {} requests and {} of other clients, {answered} answered, {} of them replays; {} executions, {again} of \
             them repeated after a crash, {} effects, {} outcomes unknown; {} deaths, {} stops, {} ends of a runtime; {} \
             pauses, {} restarts, {} full disks and {} broken lines of the store, {} stalls of the machine or its disk",
            history.keys.len(),
            history.requests.len(),
            history.intrusions.len(),
            replays.count(),
            history.executions.len(),
            history.effects.len(),
            unknown.count(),
            count(FaultKind::Died),
            count(FaultKind::Stopped),
            count(FaultKind::RuntimeEnded),
            count(FaultKind::StorePaused),
            count(FaultKind::StoreRestarted),
            count(FaultKind::DiskFull),
            count(FaultKind::LineBroken),
            count(FaultKind::MachineStalled),
        )
    }

    /// Every violation with the history of its key.
    pub fn report(&self) -> String {
        let broken = self.violations.iter();
        let told: Vec<String> =
            broken.map(|violation| format!("{violation}\n{}", self.history.of_key(&violation.key))).collect();
        told.concat()
    }
}

/// The guarantees that a store can give.
pub(crate) fn guarantees(store: StoreKind) -> &'static [Guarantee] {
    match store {
        StoreKind::Memory | StoreKind::Redis => &[Guarantee::AtLeastOnce, Guarantee::AtMostOnce],
        StoreKind::Sqlite | StoreKind::Postgres => {
            &[Guarantee::AtLeastOnce, Guarantee::AtMostOnce, Guarantee::ExactlyOnce]
        }
    }
}
