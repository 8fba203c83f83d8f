//! `chaos run` plays one run after another; `chaos serve` is a server of such a run.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use chaos::family::Family;
use chaos::run::{Outage, Plan, StoreKind, play, play_outages};
use chaos::server::{self, Guard};
use clap::{Parser, Subcommand, ValueEnum};

/// Breaks everything around guarded handlers, and checks their effects and answers.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Plays rounds over each store in turn, until the time is over or a rule is broken.
    Run {
        /// Decides keys, clients and faults; another one in every run unless it is given.
        #[arg(long)]
        seed: Option<u64>,
        /// For how long.
        #[arg(long, default_value_t = 5)]
        minutes: u64,
        /// Only over this store.
        #[arg(long)]
        store: Option<StoreKind>,
        /// Only the keys and faults of this family.
        #[arg(long, conflicts_with = "without")]
        only: Option<Family>,
        /// Takes this guard out of the engine, to see that its want is noticed.
        #[arg(long)]
        without: Option<Guard>,
    },
    /// Fails each store many times under load, and counts executions and the seconds until it is served again.
    Outages {
        /// Decides keys, clients and moments; another one in every run unless it is given.
        #[arg(long)]
        seed: Option<u64>,
        /// How often each store fails.
        #[arg(long, default_value_t = 200)]
        rounds: usize,
        /// Only this store.
        #[arg(long)]
        store: Option<StoreKind>,
        /// Only this outage.
        #[arg(long)]
        only: Option<Outage>,
    },
    /// Serves until it is killed.
    #[command(hide = true)]
    Serve(server::Options),
}

/// Short enough that every store has its turn in a run of some minutes.
const ROUND: Duration = Duration::from_secs(20);

/// Two threads: if a handler blocks one of them, the other one must do all the work.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Serve(options) => {
            let filter = std::env::var("RUST_LOG").is_ok();
            if filter {
                tracing_subscriber::fmt().with_writer(std::io::stderr).init();
            }
            server::serve(options).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Outages { seed, rounds, store, only } => {
            let stores = store.map_or_else(|| StoreKind::value_variants().to_vec(), |store| vec![store]);
            outages(seed.unwrap_or_else(|| chaos::now() % 1_000_000), rounds, &stores, only).await
        }
        Command::Run { seed, minutes, store, only, without } => {
            let seed = seed.unwrap_or_else(|| chaos::now() % 1_000_000);
            let fits = |store: &StoreKind| match (only, without) {
                (Some(family), _) => family.fits(*store),
                (None, Some(guard)) => guard.fits(*store),
                (None, None) => true,
            };
            let stores: Vec<_> = StoreKind::value_variants().iter().copied().filter(fits).collect();
            let stores = match store {
                Some(store) if stores.contains(&store) => vec![store],
                Some(store) => anyhow::bail!("this cannot be shown over {}; leave --store out", store.name()),
                None => stores,
            };
            let time = Duration::from_secs(minutes * 60);
            run(seed, time, &stores, |seed, time, store| match (only, without) {
                (Some(family), _) => Plan::only(family, seed, time, store),
                (None, Some(guard)) => Plan::against(guard, seed, time, store),
                (None, None) => Plan::everything(seed, time, store),
            })
            .await
        }
    }
}

async fn run(
    seed: u64,
    time: Duration,
    stores: &[StoreKind],
    plan: impl Fn(u64, Duration, StoreKind) -> Plan,
) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    println!("seed {seed}");
    for round in 0.. {
        let left = time.saturating_sub(begun.elapsed());
        if left.is_zero() {
            break;
        }
        let kind = stores[round % stores.len()];
        let plan = plan(seed.wrapping_add(round as u64), ROUND.min(left), kind);
        let outcome = play(&plan, std::env::current_exe()?).await?;
        println!("round {round}, seed {}, {}: {}", plan.seed, kind.name(), outcome.summary());
        if !outcome.violations.is_empty() {
            println!(
                "\n{}\n{} rules were broken; again with: --seed {} --store {}",
                outcome.report(),
                outcome.violations.len(),
                plan.seed,
                kind.name()
            );
            return Ok(ExitCode::FAILURE);
        }
    }
    println!("no rule was broken in {}", humantime::format_duration(Duration::from_secs(begun.elapsed().as_secs())));
    Ok(ExitCode::SUCCESS)
}

async fn outages(seed: u64, rounds: usize, stores: &[StoreKind], only: Option<Outage>) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for &store in stores {
        let possible = Outage::all(store).iter().copied();
        let outages: Vec<Outage> = possible.filter(|&outage| only.is_none_or(|only| outage == only)).collect();
        println!("\n{} with seed {seed}, which fails {rounds} times", store.name());
        let outcome = play_outages(seed, store, &outages, rounds, std::env::current_exe()?).await?;
        println!("{outcome}\n{}", outcome.report());
        if !outcome.violations.is_empty() || !outcome.are_short() {
            println!("FAILED: no rule may be broken, and every process must serve again within 5 seconds");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
