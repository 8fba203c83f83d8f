//! A handler with a `Tx` and one without it share a scope, as two versions of a program do during a rolling deploy.
//! While one of them runs a request, the other does not run it.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{PostgresStore, SqliteStore};
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::postgres::{Database, PostgresServer};
use idempotent_tests::{Answer, PATIENCE, Runs, Server, answer};
use sqlx::sqlite::SqliteConnectOptions;

#[idempotent(scope = "deployed-charges", shared_scope)]
async fn plain(State(runs): State<Runs>, body: String) -> String {
    format!("plain {body}: run {}", runs.run().await)
}

#[idempotent(scope = "deployed-waits", shared_scope, in_flight = wait("20s"))]
async fn plain_waits(State(runs): State<Runs>, body: String) -> String {
    format!("plain {body}: run {}", runs.run().await)
}

/// The number of processes that serve the two versions. Two processes share nothing but the database.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Processes {
    One,
    Two,
}

async fn send(server: &Server, path: &str, key: &str, body: &'static str) -> Answer {
    answer(server.post(path).header("idempotency-key", key).body(body)).await
}

macro_rules! versions_over {
    ($name:ident, $database:ty, $start:expr, $rejections_of_two:expr) => {
        mod $name {
            use super::*;

            #[idempotent(scope = "deployed-charges", shared_scope)]
            async fn in_transaction(mut tx: Tx<$database>, State(runs): State<Runs>, body: String) -> String {
                let inserted =
                    sqlx::query("INSERT INTO charges (note) VALUES ($1)").bind(&body).execute(&mut *tx).await;
                inserted.expect("the row is inserted");
                format!("tx {body}: run {}", runs.run().await)
            }

            #[idempotent(scope = "deployed-waits", shared_scope, in_flight = wait("20s"))]
            async fn waits_in_transaction(_tx: Tx<$database>, State(runs): State<Runs>, body: String) -> String {
                format!("tx {body}: run {}", runs.run().await)
            }

            /// Starts both versions. Returns the one with the `Tx`, the one without it, and a value that must outlive
            /// both.
            async fn deploy(runs: &Runs, processes: Processes) -> (Server, Server, impl Sized) {
                let (stores, outlives) = $start.await;
                let [one, other] = stores.map(Registry::new);
                let other = if processes == Processes::One { one.clone() } else { other };
                let with_tx =
                    Router::new().route("/charges", post(in_transaction)).route("/waits", post(waits_in_transaction));
                let without = Router::new().route("/charges", post(plain)).route("/waits", post(plain_waits));
                let with_tx = Server::start(with_tx.with_state(runs.clone()).layer(one.layer())).await;
                let without = Server::start(without.with_state(runs.clone()).layer(other.layer())).await;
                (with_tx, without, outlives)
            }

            async fn plain_beside_a_transaction(processes: Processes, rejections: &[&str]) {
                let runs = Runs::held();
                let (with_tx, without, _outlives) = deploy(&runs, processes).await;
                let (first, ()) = tokio::join!(send(&with_tx, "/charges", "k", "tea"), async {
                    runs.until_started(1).await;
                    let sent = tokio::time::timeout(PATIENCE / 2, send(&without, "/charges", "k", "tea")).await;
                    let rejected = sent.expect("it is rejected, and does not run beside the transaction");
                    let code = rejected.rejection();
                    assert!(rejections.contains(&code.as_str()), "{code}");
                    if rejections == ["in_flight"] {
                        assert_eq!(
                            send(&without, "/charges", "k", "ham").await.rejection(),
                            "key_reused",
                            "422 beats 409"
                        );
                    }
                    assert_eq!(runs.started(), 1);
                    runs.let_finish(1);
                });
                assert_eq!(first.text(), "tx tea: run 1");
                let retry = send(&without, "/charges", "k", "tea").await;
                assert_eq!((retry.text(), retry.is_replay(), runs.started()), (first.text(), true, 1));
            }

            async fn transaction_beside_a_plain_one(processes: Processes) {
                let runs = Runs::held();
                let (with_tx, without, _outlives) = deploy(&runs, processes).await;
                let (first, ()) = tokio::join!(send(&without, "/charges", "k", "tea"), async {
                    runs.until_started(1).await;
                    assert_eq!(send(&with_tx, "/charges", "k", "tea").await.rejection(), "in_flight");
                    assert_eq!(send(&with_tx, "/charges", "k", "ham").await.rejection(), "key_reused");
                    runs.let_finish(1);
                });
                assert_eq!(first.text(), "plain tea: run 1");
                let retry = send(&with_tx, "/charges", "k", "tea").await;
                assert_eq!((retry.text(), retry.is_replay(), runs.started()), (first.text(), true, 1));
            }

            async fn waiting_for_the_other_version(processes: Processes) {
                let runs = Runs::held();
                let (with_tx, without, _outlives) = deploy(&runs, processes).await;
                for (key, first, second) in [("k1", &with_tx, &without), ("k2", &without, &with_tx)] {
                    let before = runs.started();
                    let (first, second) = tokio::join!(send(first, "/waits", key, "tea"), async {
                        runs.until_started(before + 1).await;
                        let mut second = std::pin::pin!(send(second, "/waits", key, "tea"));
                        let early = tokio::time::timeout(Duration::from_millis(300), &mut second).await;
                        assert!(early.is_err(), "it waits: {early:?}");
                        assert_eq!(runs.started(), before + 1);
                        runs.let_finish(1);
                        second.await
                    });
                    assert_eq!((second.text(), second.is_replay()), (first.text(), true));
                    assert_eq!(runs.started(), before + 1);
                }
            }

            /// Sends many requests to both versions at once, so that they interleave in many ways.
            async fn many_at_once(processes: Processes) {
                let runs = Runs::free();
                let (with_tx, without, _outlives) = deploy(&runs, processes).await;
                for round in 1..=20 {
                    let key = format!("k{round}");
                    let servers = [&with_tx, &without];
                    join_all((0..12).map(|number| send(servers[(number + round) % 2], "/charges", &key, "tea"))).await;
                    let settled = idempotent_tests::eventually(
                        async || send(&without, "/charges", &key, "tea").await,
                        |answer| answer.status.is_success(),
                    );
                    assert!(settled.await.is_replay());
                    assert_eq!(runs.started(), round, "one execution for each key");
                }
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_plain_claim_sees_a_transaction_in_one_process() {
                plain_beside_a_transaction(Processes::One, &["in_flight"]).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_plain_claim_sees_a_transaction_in_another_process() {
                plain_beside_a_transaction(Processes::Two, $rejections_of_two).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_transaction_sees_a_plain_claim() {
                transaction_beside_a_plain_one(Processes::One).await;
                transaction_beside_a_plain_one(Processes::Two).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_waiter_waits_for_the_other_version() {
                waiting_for_the_other_version(Processes::One).await;
                waiting_for_the_other_version(Processes::Two).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn both_versions_at_once_execute_each_key_once() {
                many_at_once(Processes::One).await;
                many_at_once(Processes::Two).await;
            }
        }
    };
}

async fn sqlite() -> ([SqliteStore; 2], tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.db");
    let stores = [SqliteStore::open(&path).await, SqliteStore::open(&path).await];
    let options = SqliteConnectOptions::new().filename(&path);
    let pool = sqlx::SqlitePool::connect_with(options).await.expect("the file opens");
    sqlx::raw_sql("CREATE TABLE charges (note TEXT NOT NULL)").execute(&pool).await.expect("the table is made");
    (stores.map(|store| store.expect("the store opens")), folder)
}

// A second process on the file cannot see the transaction. It cannot write at the same time either: its claim waits for
// the write lock until `store_timeout` has passed.
versions_over!(sqlite, sqlx::Sqlite, super::sqlite(), &["in_flight", "store_unavailable"]);

async fn postgres() -> ([PostgresStore; 2], Database) {
    let database = PostgresServer::shared().await.database().await;
    let pools = [database.pool(4).await, database.pool(4).await];
    let stores = pools.clone().map(PostgresStore::new);
    stores[0].migrate().await.expect("the tables are made");
    sqlx::raw_sql("CREATE TABLE charges (note text NOT NULL)").execute(&pools[0]).await.expect("the table is made");
    (stores, database)
}

versions_over!(postgres, sqlx::Postgres, super::postgres(), &["in_flight"]);
