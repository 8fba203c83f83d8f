//! `cargo run -p stripe-dialect` serves the API of this crate's library on 127.0.0.1:4242.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use idempotent_runtime::store::SqliteStore;
use stripe_dialect::{Accounts, App, Books, TestCards, registry, router};
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(name = "stripe-dialect", about = "A payments API that Stripe's own SDKs take for Stripe's")]
struct Options {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:4242")]
    addr: SocketAddr,
    /// The file of the payment intents and of the idempotency records; created if it is not there.
    #[arg(long, default_value = "stripe-dialect.db")]
    database: PathBuf,
    /// The secret key of an account; repeat it for more accounts.
    #[arg(long = "secret-key", default_value = "sk_test_tea")]
    secret_keys: Vec<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Options { addr, database, secret_keys } = Options::parse();
    log_to_stderr();
    let accounts = Accounts::new(&secret_keys)?;
    let registry = registry(SqliteStore::open(&database).await?);
    let app = App { accounts, books: Books::open(&database).await?, network: Arc::new(TestCards) };

    let listener = TcpListener::bind(addr)
        .await
        .with_context(|| format!("cannot listen on {addr}; choose another address with --addr"))?;
    let address = listener.local_addr()?;
    println!("listening on http://{address}; secret keys: {}", secret_keys.join(", "));
    println!(
        "
Try, twice:
  curl -i http://{address}/v1/payment_intents -H 'Authorization: Bearer {}' -H 'Idempotency-Key: first' \\
       -d amount=1999 -d currency=eur -d payment_method=pm_card_visa -d confirm=true -d 'metadata[order]=6735'",
        secret_keys[0]
    );
    let interrupted = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    axum::serve(listener, router(app, &registry)).with_graceful_shutdown(interrupted).await?;
    let left = registry.drain(Duration::from_secs(10)).await;
    anyhow::ensure!(left == 0, "{left} payments were still running; their retries run them again");
    Ok(())
}

fn log_to_stderr() {
    // The runtime says at DEBUG whether a request ran or was replayed.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,idempotent_runtime=debug"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    log.with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
}
