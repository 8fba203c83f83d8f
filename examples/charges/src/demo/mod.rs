//! Plays failures between clients and servers, and checks that no customer is charged twice.

mod client;
mod scenes;
mod server;

use std::collections::BTreeMap;

use anstream::println;
use anstyle::{AnsiColor, Style};
use anyhow::{Context, bail};
use reqwest::Client;
use serde::Deserialize;

use self::client::NetworkCharge;
use self::scenes::Stage;
use self::server::{Server, log_of};

/// The style of titles on a terminal.
const TITLE: Style = Style::new().bold();
const ASIDE: Style = AnsiColor::BrightBlack.on_default();
const HOLDS: Style = AnsiColor::Green.on_default();
const BROKEN: Style = AnsiColor::Red.on_default();

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
    let (ledger, books) = (stage.ledger().await?, stage.books().await?);
    print_ledger(&ledger, &books);
    let twice = charged_twice(&ledger);
    if !twice.is_empty() {
        bail!("charged twice: {}", twice.join(", "));
    }
    let entered = ledger.iter().filter(|line| line.kind == "charge").count();
    let moved = books.iter().filter(|charge| charge.approved && charge.amount > 0).count();
    if entered != moved {
        bail!("the ledger has {entered} charges, but the card network moved money {moved} times");
    }
    if stage.failures() > 0 {
        bail!("{} of the expectations above did not hold", stage.failures());
    }
    println!(
        "\n{entered} charges in the ledger, {moved} by the card network, no key twice: {HOLDS}no customer was charged twice{HOLDS:#}."
    );
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
    settled: bool,
    reference: String,
}

fn print_ledger(ledger: &[Line], books: &[NetworkCharge]) {
    println!("{TITLE}The ledger:{TITLE:#}");
    println!(
        "{ASIDE}  {:>3}  {:<8} {:<13} {:>8}  {:<18} {:>7}  {:<9}  {:>13}{ASIDE:#}",
        "#", "kind", "user", "amount", "key", "attempt", "state", "network asked"
    );
    for Line { id, kind, user, amount, key, attempt, settled, reference } in ledger {
        let key = key.as_deref().unwrap_or("–");
        let state = if *settled { "settled" } else { "unsettled" };
        let asked = books.iter().find(|charge| charge.reference == *reference);
        let asked = asked.map_or_else(|| "–".to_owned(), |charge| format!("{} ×", charge.times_asked));
        println!("  {id:>3}  {kind:<8} {user:<13} {amount:>8}  {key:<18} {attempt:>7}  {state:<9}  {asked:>13}");
    }
}

/// The keys under which one user has several entries of one kind.
fn charged_twice(ledger: &[Line]) -> Vec<String> {
    let mut times = BTreeMap::new();
    for Line { kind, user, key, .. } in ledger {
        *times.entry((kind, user, key.as_deref().unwrap_or("–"))).or_insert(0) += 1;
    }
    times.retain(|_, times| *times > 1);
    times.iter().map(|((kind, user, key), times)| format!("{kind} of {user} under {key}, {times} times")).collect()
}
