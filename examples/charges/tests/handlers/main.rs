//! Tests the handlers in this process, without a server: this is how an application tests its handlers.

mod direct_calls;
mod events;
mod freed_keys;
mod routes;
mod with_axum_test;

use std::time::Duration;

use charges::api::charges::NewCharge;
use charges::api::{App, Transactions, router};
use charges::ledger::Ledger;
use charges::network::CardNetwork;
use charges::sqlite;
use idempotent_runtime::Registry;
use tempfile::TempDir;

/// The secret of the card network's events.
const SECRET: &str = "shared with the card network";

/// The service's books and the card network's, for one test.
struct Books {
    app: App,
    folder: TempDir,
}

impl Books {
    async fn open() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ledger = Ledger::Sqlite(sqlite::open(&folder.path().join("ledger.db")).await.expect("the ledger opens"));
        ledger.migrate().await.expect("the tables are made");
        let network = CardNetwork::open(&folder.path().join("network.db"), Duration::ZERO).await;
        let network = network.expect("the network opens");
        let network_secret = SECRET.parse().expect("it is long enough");
        Self { app: App { ledger, network, network_secret }, folder }
    }

    fn router(&self, registry: &Registry) -> axum::Router {
        router(self.app.clone(), Transactions::None).layer(registry.layer())
    }

    /// How many lines the ledger has, and how often the card network was asked.
    async fn lines_and_times_asked(&self) -> (usize, i64) {
        let lines = self.app.ledger.entries().await.expect("the ledger is read").len();
        let books = self.app.network.books().await.expect("the network's books are read");
        (lines, books.iter().map(|line| line.times_asked).sum())
    }
}

fn order(amount: i64) -> NewCharge {
    NewCharge { amount, currency: "EUR".to_owned(), card: "4242".to_owned() }
}
