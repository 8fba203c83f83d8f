//! Outages of the store under load, one after another: how soon each process serves again, and what was executed twice.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use fastrand::Rng;
use idempotent_tests::Mode;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::Instant;

use super::clients::Clients;
use super::{Plan, Stage, StoreKind, TestedStore};
use crate::checker::{Violation, check};
use crate::history::{FaultKind, Guarantee, History, Request};
use crate::now;

/// What happens to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Outage {
    /// The store is killed and started again. For SQLite, a process that uses it is killed.
    Kill,
    /// The store is stopped. For SQLite, another program holds its lock.
    Pause,
    /// The replica becomes the master, and the former master keeps its connections.
    Demote,
    /// The network drops all packets of open connections, and closes none of them.
    BlackHole,
    /// The store is shut down in order and started again.
    Restart,
}

impl Outage {
    /// The outages that are possible with this store.
    pub fn all(store: StoreKind) -> &'static [Self] {
        match store {
            StoreKind::Redis => Self::value_variants(),
            StoreKind::Postgres => &[Self::Kill, Self::Pause, Self::BlackHole, Self::Restart],
            StoreKind::Sqlite => &[Self::Kill, Self::Pause],
            StoreKind::Memory => &[],
        }
    }
}

/// How soon each process must serve again.
const RECOVERY: Duration = Duration::from_secs(5);

/// The results of all outages.
pub struct Outages {
    /// The broken rules.
    pub violations: Vec<Violation>,
    recoveries: BTreeMap<Outage, Vec<Duration>>,
    history: History,
}

/// Makes the store fail `rounds` times, with each of these outages in turn.
///
/// # Errors
///
/// When the store, the ledger or a server cannot be started, or a server does not serve again.
pub async fn play_outages(
    seed: u64,
    store: StoreKind,
    outages: &[Outage],
    rounds: usize,
    program: PathBuf,
) -> anyhow::Result<Outages> {
    let endless = Duration::from_hours(24);
    let plan = Plan { keys_at_once: 8, ..Plan::calm(seed, endless, store, 2) };
    let folder = TempDir::with_prefix("chaos")?;
    let store = TestedStore::start_for_outages(store, folder.path()).await;
    let stage = Stage::set_with(&plan, program, store, folder).await?;
    let clients = Clients::new(plan.clone(), Arc::clone(&stage.fleet), stage.book.clone());
    let mut recoveries = BTreeMap::<Outage, Vec<Duration>>::new();
    let failing = async {
        let mut random = plan.random(1);
        for (round, &outage) in outages.iter().cycle().take(rounds).enumerate() {
            let recovery = stage.fail(outage, &mut random).await.with_context(|| format!("round {round}, {outage:?}"));
            let recovery = recovery?;
            eprintln!("round {round}: {outage:?}, {:.2} s", recovery.as_secs_f64());
            recoveries.entry(outage).or_default().push(recovery);
        }
        anyhow::Ok(())
    };
    let failing = async {
        let failed = failing.await;
        clients.end();
        failed
    };
    let ((), failed) = tokio::join!(clients.play(), failing);
    failed?;
    clients.ask_every_key_again().await;
    let history = stage.history().await?;
    stage.fleet.stop().await;
    Ok(Outages { violations: check(&history), recoveries, history })
}

impl Stage {
    /// Causes the outage. Returns how long it takes, after the store is available again, until each process has
    /// executed a new request.
    async fn fail(&self, outage: Outage, random: &mut Rng) -> anyhow::Result<Duration> {
        tokio::time::sleep(Duration::from_millis(random.u64(200..800))).await;
        // Shorter than a lease allows, so any second execution is a fault of the engine.
        let moment = Duration::from_millis(random.u64(100..1_200));
        let from = now();
        let kind = match outage {
            Outage::Kill if !self.store.is_served() => {
                self.fleet.signal(random.usize(..self.fleet.len()), Signal::KILL);
                None
            }
            Outage::Kill => {
                self.store.restart().await;
                Some(FaultKind::StoreRestarted)
            }
            Outage::Restart => {
                self.store.restart_in_order().await;
                Some(FaultKind::StoreRestarted)
            }
            Outage::Pause => {
                self.store.be_away(moment).await;
                Some(FaultKind::StorePaused)
            }
            Outage::Demote => {
                self.store.demote().await;
                Some(FaultKind::StoreDemoted)
            }
            Outage::BlackHole => {
                if random.bool() {
                    // New connections must wait too.
                    self.store.set_line(Mode::Stops);
                    tokio::time::sleep(moment).await;
                }
                self.store.strand();
                self.store.set_line(Mode::Passes);
                Some(FaultKind::LineBroken)
            }
        };
        let restored = now();
        let recovery = self.until_served_again(restored).await;
        if let Some(kind) = kind {
            // For requests in flight, the outage lasts until their process is connected again.
            self.book.fault(kind, None, (from, now()));
        }
        recovery.context("a process does not serve again")
    }

    /// Waits until every process serves again; `None` after one minute.
    async fn until_served_again(&self, restored: u64) -> Option<Duration> {
        const TOO_LONG: Duration = Duration::from_mins(1);

        let begun = Instant::now();
        let mut served = BTreeMap::<String, u64>::new();
        let mut seen = 0;
        self.book.write(|history| seen = history.requests.len());
        while begun.elapsed() < TOO_LONG {
            self.book.write(|history| {
                for request in &history.requests[seen..] {
                    if request.time.1 >= restored && is_first_success(request) {
                        let process = request.server.split('.').next().unwrap_or_default();
                        served.entry(process.to_owned()).or_insert(request.time.1);
                    }
                }
                seen = history.requests.len();
            });
            if served.len() == self.fleet.len() {
                let last = served.values().max().copied().unwrap_or_default();
                return Some(Duration::from_micros(last.saturating_sub(restored)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }
}

fn is_first_success(request: &Request) -> bool {
    request.answer.as_ref().is_some_and(|answer| answer.status == 201 && !answer.is_replay)
}

impl Outages {
    /// Whether each process always served again in time.
    pub fn are_short(&self) -> bool {
        self.recoveries.values().flatten().all(|&recovery| recovery <= RECOVERY)
    }

    /// Every violation with the history of its key.
    pub fn report(&self) -> String {
        let broken = self.violations.iter();
        let told: Vec<String> =
            broken.map(|violation| format!("{violation}\n{}", self.history.of_key(&violation.key))).collect();
        told.concat()
    }

    /// How many keys had so many executions and effects. Executions that gave their key back are not counted.
    fn keys_by_executions(&self) -> BTreeMap<(Guarantee, usize, usize), usize> {
        let history = &self.history;
        let mut executions = BTreeMap::<&str, usize>::new();
        for execution in history.executions.iter().filter(|execution| !execution.gave_up) {
            *executions.entry(&execution.key).or_default() += 1;
        }
        let mut effects = BTreeMap::<&str, usize>::new();
        for (key, _) in &history.effects {
            *effects.entry(key).or_default() += 1;
        }
        let mut keys = BTreeMap::new();
        for (key, guarantee) in &history.keys {
            let count = |of: &BTreeMap<&str, usize>| of.get(key.as_str()).copied().unwrap_or_default();
            *keys.entry((*guarantee, count(&executions), count(&effects))).or_default() += 1;
        }
        keys
    }
}

/// A table of the recovery times, and the numbers of executions.
impl fmt::Display for Outages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "outage     rounds  seconds until each process served again: median, longest")?;
        for (outage, recoveries) in &self.recoveries {
            let mut sorted: Vec<f64> = recoveries.iter().map(Duration::as_secs_f64).collect();
            sorted.sort_by(f64::total_cmp);
            let (median, longest) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
            writeln!(f, "{:<10} {:>6}  {median:.2}, {longest:.2}", format!("{outage:?}"), sorted.len())?;
        }
        writeln!(f, "guarantee     keys  executions  effects")?;
        for ((guarantee, executions, effects), keys) in self.keys_by_executions() {
            writeln!(f, "{:<12} {keys:>5}  {executions:>10}  {effects:>7}", format!("{guarantee:?}"))?;
        }
        write!(f, "{} requests, {} rules broken", self.history.requests.len(), self.violations.len())
    }
}
