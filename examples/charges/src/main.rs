//! A small payments API. `cargo run -p charges` serves it; `cargo run -p charges -- demo` shows what it survives.

mod demo;
mod operators;
mod server;
mod store;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use charges::signature::NetworkSecret;
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::store::StoreOption;

#[derive(Parser)]
#[command(name = "charges", about = "A small payments API whose handlers survive retries")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: ServerOptions,
}

#[derive(Subcommand)]
enum Command {
    /// Start a server on a free port and play clients that lose responses, disconnect and retry.
    Demo,
}

/// How the server runs.
#[derive(Args)]
struct ServerOptions {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:3000")]
    addr: SocketAddr,
    /// The store of the idempotency records: `memory`, `sqlite:PATH`, `redis://HOST:PORT` or `postgres://USER@HOST/DATABASE`.
    /// SQLite and PostgreSQL have the ledger too, and charges are exactly once there. Otherwise the ledger is in the folder
    /// `--data` [default: `sqlite:` and the file ledger.db in that folder]
    #[arg(long)]
    store: Option<StoreOption>,
    /// The folder of the files that `--store` does not name, and of the card network's data; created if it does not exist.
    #[arg(long, default_value = "charges-data")]
    data: PathBuf,
    /// How long the pretended card network takes for one authorisation.
    #[arg(long, default_value = "50ms", value_parser = humantime::parse_duration)]
    network_latency: Duration,
    /// The operator who may look up and purge idempotency records at `/ops/idempotency`: `NAME:PASSWORD`. None by default.
    #[arg(long, env = "CHARGES_OPERATOR", hide_env_values = true)]
    operator: Option<operators::Account>,
    /// The secret with which the card network signs its events, of at least 16 characters. The default is public: everyone can
    /// sign with it, so it serves loopback addresses alone.
    #[arg(long, env = "CHARGES_NETWORK_SECRET", hide_env_values = true, default_value = NetworkSecret::PUBLIC)]
    network_secret: NetworkSecret,
    /// How long a shutdown waits for open connections, and then for handlers whose clients have disconnected.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    grace: Duration,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { command, options } = Cli::parse();
    let outcome = match command {
        Some(Command::Demo) => demo::run().await,
        None => {
            log_to_stderr();
            server::run(options).await
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr() {
    // The runtime says at DEBUG whether a request ran or was replayed.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,idempotent_runtime=debug"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    log.with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
}
