//! Plays what goes wrong between clients and servers, and checks that nobody is charged twice.

mod client;
mod scenes;
mod server;

use anyhow::{Context, bail};
use reqwest::Client;
use serde::Deserialize;

use self::scenes::Stage;
use self::server::{Server, log_of};

pub(crate) async fn run() -> anyhow::Result<()> {
    let data = tempfile::tempdir().context("no temporary folder")?;
    println!("A payments API on an embedded store, and clients whose luck is bad.\n");
    let played = play(&data).await;
    if played.is_err() {
        let log = std::fs::read_to_string(log_of(data.path())).unwrap_or_default();
        eprintln!("\nThe server's log:\n{log}");
    }
    played
}

async fn play(data: &tempfile::TempDir) -> anyhow::Result<()> {
    let server = Server::start(data.path()).await?;
    let client = Client::builder().retry(reqwest::retry::never()).build()?;
    let mut stage = Stage::new(client, server);
    scenes::all(&mut stage).await?;
    let ledger = stage.ledger().await?;
    print_ledger(&ledger);
    let twice = charged_twice(&ledger);
    if !twice.is_empty() {
        bail!("charged twice: {}", twice.join(", "));
    }
    let (entered, moved) =
        (ledger.iter().filter(|line| line.kind == "charge").count(), stage.charged_by_the_network().await?);
    if entered != moved {
        bail!("the ledger has {entered} charges, but the card network moved money {moved} times");
    }
    if stage.failures() > 0 {
        bail!("{} of the expectations above did not hold", stage.failures());
    }
    println!("\n{entered} charges in the ledger, {moved} by the card network, no key twice: nobody was charged twice.");
    Ok(())
}

/// A line of the ledger, as the API shows it.
#[derive(Deserialize)]
struct Line {
    id: i64,
    kind: String,
    user: String,
    amount: i64,
    key: Option<String>,
    attempt: u32,
    times_asked: Option<u32>,
}

fn print_ledger(ledger: &[Line]) {
    println!("The ledger:");
    println!(
        "  {:>3}  {:<8} {:<13} {:>8}  {:<18} {:>7}  {:>13}",
        "#", "kind", "user", "amount", "key", "attempt", "network asked"
    );
    for Line { id, kind, user, amount, key, attempt, times_asked } in ledger {
        let key = key.as_deref().unwrap_or("–");
        let asked = times_asked.map_or_else(|| "–".to_owned(), |times| format!("{times} ×"));
        println!("  {id:>3}  {kind:<8} {user:<13} {amount:>8}  {key:<18} {attempt:>7}  {asked:>13}");
    }
}

/// The keys that have more than one entry of one user and kind.
fn charged_twice(ledger: &[Line]) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    ledger
        .iter()
        .filter(|line| !seen.insert((&line.kind, &line.user, &line.key)))
        .map(|line| format!("{} of {} under {:?}", line.kind, line.user, line.key))
        .collect()
}
