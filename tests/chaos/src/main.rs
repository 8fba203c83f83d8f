//! `chaos run` plays one run after the other; `chaos serve` is a server of such a run.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use chaos::run::{Plan, StoreKind, play};
use chaos::server::{self, Guard};
use clap::{Parser, Subcommand, ValueEnum};

/// Breaks everything around guarded handlers, and judges them by their effects and answers.
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
        /// Takes this guard out of the engine, to see that its want is noticed.
        #[arg(long)]
        without: Option<Guard>,
    },
    /// Serves until it is killed.
    #[command(hide = true)]
    Serve(server::Options),
}

/// Short enough that every store has its turn in a run of minutes.
const ROUND: Duration = Duration::from_secs(20);

#[tokio::main]
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
        Command::Run { seed, minutes, store, without } => {
            run(seed.unwrap_or_else(|| chaos::now() % 1_000_000), minutes, store, without).await
        }
    }
}

async fn run(seed: u64, minutes: u64, store: Option<StoreKind>, without: Option<Guard>) -> anyhow::Result<ExitCode> {
    let (begun, time) = (Instant::now(), Duration::from_secs(minutes * 60));
    let stores = store.map_or_else(|| StoreKind::value_variants().to_vec(), |store| vec![store]);
    println!("seed {seed}");
    for round in 0.. {
        let left = time.saturating_sub(begun.elapsed());
        if left.is_zero() {
            break;
        }
        let kind = stores[round % stores.len()];
        let (seed, time) = (seed.wrapping_add(round as u64), ROUND.min(left));
        let plan = match without {
            Some(guard) => Plan::against(guard, seed, time, kind),
            None => Plan::everything(seed, time, kind),
        };
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
