//! A small payments API. `cargo run -p charges` serves it; `cargo run -p charges -- demo` shows what it survives.

mod api;
mod demo;
mod error;
mod ledger;
mod network;
mod server;
mod user;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

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
    /// Start a server on a free port and play clients that lose responses, hang up and retry.
    Demo,
}

/// How the server runs.
#[derive(Args)]
struct ServerOptions {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:3000")]
    addr: SocketAddr,
    /// The folder of the ledger and of the idempotency store; created if it is not there.
    #[arg(long, default_value = "charges-data")]
    data: PathBuf,
    /// How long the pretended card network takes for one authorisation.
    #[arg(long, default_value = "50ms", value_parser = humantime::parse_duration)]
    network_latency: Duration,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { command, options } = Cli::parse();
    let outcome = match command {
        Some(Command::Demo) => demo::run().await,
        None => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
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
