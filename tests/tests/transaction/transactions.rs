//! Handlers that take a `Tx`: their writes and their record commit together, or not at all.

use axum::Router;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::routing::{any, post};
use futures_util::future::join_all;
use idempotent_runtime::__private::{OnStoreError, Policy, Settings};
use idempotent_runtime::store::{MemoryStore, PostgresStore, SqliteStore};
use idempotent_runtime::{Idempotency, Registry, Tx, idempotent};
use idempotent_tests::postgres::Database;
use idempotent_tests::stores::postgres_beside;
use idempotent_tests::{Answer, Logs, PATIENCE, Runs, Server, answer, eventually};
use reqwest::Method;
use sqlx::sqlite::SqliteConnectOptions;
use tower_http::catch_panic::CatchPanicLayer;

/// Since the policy is a static, these panics are errors of the compiler.
#[test]
fn second_tx_and_runs_without_its_store_do_not_compile() {
    let message = |databases: &[Option<&'static str>], settings| {
        let built = std::panic::catch_unwind(|| Policy::of_handler("shop", "charge", || "", databases, settings));
        built.err().map(|panic| *panic.downcast_ref::<&str>().expect("a message"))
    };
    let unguarded = Settings { on_store_error: OnStoreError::Run, ..Settings::DEFAULT };
    assert!(message(&[Some("SQLite"), None, Some("SQLite")], Settings::DEFAULT).expect("two").contains("remove one"));
    assert!(message(&[Some("SQLite")], unguarded).expect("it would run").contains("remove `on_store_error`"));
    assert_eq!((message(&[Some("SQLite"), None], Settings::DEFAULT), message(&[None], unguarded)), (None, None));
}

/// Defines the handlers and tests of one database.
macro_rules! transactions_of {
    ($name:ident, $database:ty, $records:literal, $start:expr, $outlives:ty) => {
        mod $name {
            use super::*;

            async fn insert(connection: &mut <$database as sqlx::Database>::Connection, note: &str) {
                let inserted =
                    sqlx::query("INSERT INTO charges (note) VALUES ($1)").bind(note).execute(connection).await;
                inserted.expect("the row is inserted");
            }

            /// Answers with the status in the body, or with 201 if there is none.
            #[idempotent(scope = "charges", shared_scope, cache = [201, 402])]
            async fn create_charge(
                mut tx: Tx<$database>,
                State(runs): State<Runs>,
                idempotency: Idempotency,
                body: String,
            ) -> (StatusCode, String) {
                insert(&mut tx, &body).await;
                let run = runs.run().await;
                let status = body.parse().ok().and_then(|status| StatusCode::from_u16(status).ok());
                (status.unwrap_or(StatusCode::CREATED), format!("run {run}, attempt {}", idempotency.attempt()))
            }

            #[idempotent(scope = "waits", shared_scope, in_flight = wait("20s"))]
            async fn waits(mut tx: Tx<$database>, State(runs): State<Runs>, body: String) -> String {
                insert(&mut tx, &body).await;
                format!("run {}", runs.run().await)
            }

            #[idempotent(scope = "panics", shared_scope)]
            async fn panics(mut tx: Tx<$database>, State(runs): State<Runs>) -> String {
                insert(&mut tx, "panic").await;
                let run = runs.run().await;
                assert!(run > 1, "run {run} panics");
                format!("run {run}")
            }

            #[idempotent(scope = "large", shared_scope, max_body = "1KiB")]
            async fn large(mut tx: Tx<$database>, State(runs): State<Runs>) -> String {
                insert(&mut tx, "large").await;
                runs.run().await;
                "x".repeat(100_000)
            }

            #[idempotent(scope = "large-reruns", shared_scope, max_body = "1KiB", oversize = "rerun")]
            async fn large_reruns(mut tx: Tx<$database>, State(runs): State<Runs>) -> String {
                insert(&mut tx, "large").await;
                runs.run().await;
                "x".repeat(100_000)
            }

            /// Drops the table of the records in its first run, so its record cannot be written.
            #[idempotent(scope = "unrecordable", shared_scope)]
            async fn unrecordable(mut tx: Tx<$database>, State(runs): State<Runs>) -> String {
                insert(&mut tx, "unrecordable").await;
                if runs.run().await == 1 {
                    let dropped = sqlx::query(concat!("DROP TABLE ", $records)).execute(&mut *tx).await;
                    dropped.expect("the table is dropped");
                }
                "done".to_owned()
            }

            /// Violates a deferred constraint in its first run, so the COMMIT fails.
            #[idempotent(scope = "violates", shared_scope)]
            async fn violates(mut tx: Tx<$database>, State(runs): State<Runs>) -> String {
                insert(&mut tx, "violates").await;
                if runs.run().await == 1 {
                    let orphan = sqlx::query("INSERT INTO refunds (charge) VALUES (1000)").execute(&mut *tx).await;
                    orphan.expect("the constraint is deferred");
                }
                "done".to_owned()
            }

            #[idempotent(scope = "savepoints", shared_scope)]
            async fn savepoints(mut tx: Tx<$database>) -> String {
                let mut savepoint = tx.begin().await.expect("a savepoint");
                insert(&mut savepoint, "undone").await;
                savepoint.rollback().await.expect("the savepoint is rolled back");
                insert(&mut tx, "kept").await;
                "done".to_owned()
            }

            #[idempotent(scope = "unused", shared_scope)]
            async fn unused(_tx: Tx<$database>, State(runs): State<Runs>) -> String {
                format!("run {}", runs.run().await)
            }

            /// Spawns a task that still has the transaction when the handler has answered.
            #[idempotent(scope = "keeps", shared_scope)]
            async fn keeps(mut tx: Tx<$database>, State(runs): State<Runs>) -> String {
                insert(&mut tx, "kept").await;
                tokio::spawn(async move {
                    runs.run().await;
                    drop(tx);
                });
                "done".to_owned()
            }

            /// Spawns a task that uses the transaction for the first time when the handler has answered.
            #[idempotent(scope = "keeps-unused", shared_scope)]
            async fn keeps_unused(mut tx: Tx<$database>, State(runs): State<Runs>) -> String {
                tokio::spawn(async move {
                    runs.run().await;
                    insert(&mut tx, "late").await;
                });
                "done".to_owned()
            }

            /// Extracts two transactions. With two `Tx` arguments, a handler does not compile.
            #[derive(FromRequestParts)]
            struct Two {
                _first: Tx<$database>,
                _second: Tx<$database>,
            }

            #[idempotent(scope = "two", shared_scope)]
            async fn two(_two: Two) {}

            async fn not_annotated(mut tx: Tx<$database>) {
                insert(&mut tx, "not annotated").await;
            }

            pub(super) fn router(runs: &Runs) -> Router {
                Router::new()
                    .route("/charges", any(create_charge))
                    .route("/waits", post(waits))
                    .route("/panics", post(panics))
                    .route("/large", post(large))
                    .route("/large-reruns", post(large_reruns))
                    .route("/unrecordable", post(unrecordable))
                    .route("/violates", post(violates))
                    .route("/savepoints", post(savepoints))
                    .route("/unused", post(unused))
                    .route("/keeps", post(keeps))
                    .route("/keeps-unused", post(keeps_unused))
                    .route("/two", post(two))
                    .route("/not-annotated", post(not_annotated))
                    .with_state(runs.clone())
                    .layer(CatchPanicLayer::new())
            }

            pub(super) struct Bench {
                pub(super) server: Server,
                registry: Registry,
                pool: sqlx::Pool<$database>,
                #[allow(dead_code)]
                pub(super) outlives: $outlives,
            }

            impl Bench {
                pub(super) async fn new(runs: &Runs) -> Self {
                    let (store, pool, outlives) = $start.await;
                    let registry = Registry::new(store);
                    let server = Server::start(router(runs).layer(registry.layer())).await;
                    Self { server, registry, pool, outlives }
                }

                async fn post(&self, path: &str, key: &str, body: &'static str) -> Answer {
                    answer(self.server.post(path).header("idempotency-key", key).body(body)).await
                }

                /// Returns the rows that the handlers have written.
                pub(super) async fn rows(&self) -> Vec<String> {
                    let rows = sqlx::query_scalar("SELECT note FROM charges ORDER BY id").fetch_all(&self.pool).await;
                    rows.expect("the table is read")
                }
            }

            #[tokio::test]
            async fn a_recorded_status_commits_and_any_other_rolls_back() {
                let bench = Bench::new(&Runs::free()).await;
                for (body, is_recorded) in [("201", true), ("402", true), ("500", false), ("400", false)] {
                    let first = bench.post("/charges", body, body).await;
                    assert_eq!((first.status.as_str(), first.is_replay()), (body, false));
                    assert_eq!(bench.rows().await.contains(&body.to_owned()), is_recorded, "{body}");
                    let retry = bench.post("/charges", body, body).await;
                    assert_eq!((retry.status.as_str(), retry.is_replay()), (body, is_recorded));
                }
                assert_eq!(bench.rows().await, ["201", "402"]);
            }

            #[tokio::test]
            async fn fifty_at_once_write_once() {
                let runs = Runs::held();
                let bench = Bench::new(&runs).await;
                let (answers, ()) =
                    tokio::join!(join_all((0..50).map(|_| bench.post("/charges", "k", "tea"))), async {
                        runs.until_started(1).await;
                        runs.let_finish(50);
                    });
                assert_eq!((runs.started(), bench.rows().await), (1, vec!["tea".to_owned()]));
                let first = answers.iter().filter(|answer| answer.status == StatusCode::CREATED && !answer.is_replay());
                assert_eq!(first.count(), 1);
                for answer in answers.iter().filter(|answer| answer.status != StatusCode::CREATED) {
                    assert_eq!(answer.rejection(), "in_flight");
                }
            }

            #[tokio::test]
            async fn running_transaction_rejects_duplicates_and_other_requests() {
                let runs = Runs::held();
                let bench = Bench::new(&runs).await;
                let (first, ()) = tokio::join!(bench.post("/charges", "k", "tea"), async {
                    runs.until_started(1).await;
                    assert_eq!(bench.post("/charges", "k", "tea").await.rejection(), "in_flight");
                    assert_eq!(bench.post("/charges", "k", "ham").await.rejection(), "key_reused");
                    runs.let_finish(1);
                });
                assert_eq!(first.text(), "run 1, attempt 1");
                assert_eq!(bench.post("/charges", "k", "ham").await.rejection(), "key_reused");
                assert_eq!(bench.rows().await, ["tea"]);
            }

            #[tokio::test]
            async fn waiters_get_the_response_of_the_one_that_runs() {
                let runs = Runs::held();
                let bench = Bench::new(&runs).await;
                let (answers, ()) = tokio::join!(join_all((0..20).map(|_| bench.post("/waits", "k", "tea"))), async {
                    runs.until_started(1).await;
                    runs.let_finish(20);
                });
                assert!(answers.iter().all(|answer| answer.text() == "run 1"), "{answers:?}");
                assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), 1);
                assert_eq!(bench.rows().await, ["tea"]);
            }

            #[tokio::test]
            async fn a_client_that_hangs_up_gets_its_charge_and_its_record() {
                let runs = Runs::held();
                let bench = Bench::new(&runs).await;
                let request =
                    b"POST /charges HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: k\r\ncontent-length: 3\r\n\r\ntea";
                drop(bench.server.connect_and_send(request).await);
                runs.until_started(1).await;
                runs.let_finish(1);
                assert_eq!(bench.registry.drain(PATIENCE).await, 0);
                let retry = bench.post("/charges", "k", "tea").await;
                assert_eq!((retry.text(), retry.is_replay()), ("run 1, attempt 1", true));
                assert_eq!(bench.rows().await, ["tea"]);
            }

            #[tokio::test]
            async fn a_panic_rolls_back_and_the_next_attempt_starts_at_once() {
                let bench = Bench::new(&Runs::free()).await;
                assert_eq!(bench.post("/panics", "k", "").await.status, StatusCode::INTERNAL_SERVER_ERROR);
                assert_eq!(bench.rows().await, [""; 0]);
                assert_eq!(bench.post("/panics", "k", "").await.text(), "run 2");
                assert!(bench.post("/panics", "k", "").await.is_replay());
                assert_eq!(bench.rows().await, ["panic"]);
            }

            #[tokio::test]
            async fn response_over_the_cap_commits_and_its_retry_is_as_policy() {
                let bench = Bench::new(&Runs::free()).await;
                for path in ["/large", "/large-reruns"] {
                    assert_eq!(bench.post(path, "k", "").await.body.len(), 100_000);
                }
                assert_eq!(bench.post("/large", "k", "").await.rejection(), "response_not_recorded");
                assert_eq!(bench.post("/large-reruns", "k", "").await.body.len(), 100_000);
                assert_eq!(bench.rows().await, ["large"; 3]);
            }

            #[tokio::test]
            async fn failed_record_or_commit_keeps_nothing_and_is_told() {
                let stored = "the store failed a handler's transaction: nothing was kept, and the client gets 503";
                for (path, expected, line_of) in [
                    ("/unrecordable", (503, "store_unavailable"), stored),
                    ("/violates", (500, "transaction_failed"), "the handler's transaction failed: the client gets 500"),
                ] {
                    let bench = Bench::new(&Runs::free()).await;
                    let logs = Logs::collect();
                    let failed = bench.post(path, "planted-key", "").await;
                    let code = failed.rejection();
                    assert_eq!((failed.status.as_u16(), code.as_str()), expected);
                    assert_eq!(bench.rows().await, [""; 0], "{path}");
                    let errors = logs.of_level("ERROR");
                    assert!(errors.iter().any(|line| line.contains(line_of)), "{errors:?}");
                    assert!(!logs.text().contains("planted-key"));
                    let retry = bench.post(path, "planted-key", "").await;
                    assert_eq!((retry.text(), retry.is_replay()), ("done", false), "{path}");
                    assert!(bench.post(path, "planted-key", "").await.is_replay(), "{path}");
                    assert_eq!(bench.rows().await, [&path[1..]]);
                }
            }

            #[tokio::test]
            async fn a_nested_transaction_is_a_savepoint() {
                let bench = Bench::new(&Runs::free()).await;
                assert_eq!(bench.post("/savepoints", "k", "").await.text(), "done");
                assert_eq!(bench.rows().await, ["kept"]);
            }

            #[tokio::test]
            async fn handler_that_never_uses_its_transaction_is_recorded() {
                let bench = Bench::new(&Runs::free()).await;
                assert_eq!(bench.post("/unused", "k", "").await.text(), "run 1");
                assert!(bench.post("/unused", "k", "").await.is_replay());
            }

            #[tokio::test]
            async fn transaction_without_key_commits_on_a_recorded_status() {
                let bench = Bench::new(&Runs::free()).await;
                for body in ["201", "500", "402", "201"] {
                    assert_eq!(answer(bench.server.post("/charges").body(body)).await.status.as_str(), body);
                }
                // A request with a method that the policy does not guard is treated as one without a key.
                let got = bench.server.request(Method::GET, "/charges").header("idempotency-key", "k").body("201");
                assert_eq!(answer(got).await.status, StatusCode::CREATED);
                assert_eq!(bench.rows().await, ["201", "402", "201", "201"]);
            }

            #[tokio::test]
            async fn transaction_not_given_back_is_rolled_back_and_500() {
                let runs = Runs::held();
                let bench = Bench::new(&runs).await;
                let logs = Logs::collect();
                for (number, path) in (1..).zip(["/keeps", "/keeps-unused"]) {
                    let kept = bench.post(path, "k", "").await;
                    assert_eq!(
                        (kept.status, kept.rejection().as_str()),
                        (StatusCode::INTERNAL_SERVER_ERROR, "transaction_failed")
                    );
                    let errors = logs.of_level("ERROR");
                    let told = errors.iter().filter(|line| line.contains("did not give its `Tx` back"));
                    assert_eq!(told.count(), number, "{errors:?}");
                    if path == "/keeps-unused" {
                        // The key was free when the client was answered.
                        assert_eq!(bench.post(path, "k", "").await.rejection(), "transaction_failed");
                        runs.let_finish(1);
                    }
                    runs.let_finish(1);
                    runs.until_finished(number).await;
                }
                let after = eventually(
                    async || bench.post("/unused", "after", "").await.status,
                    |&status| status == StatusCode::OK,
                );
                runs.let_finish(10);
                after.await;
                assert_eq!(bench.rows().await, [""; 0]);
            }

            #[tokio::test]
            async fn second_or_unannotated_transaction_is_500() {
                let bench = Bench::new(&Runs::free()).await;
                assert_eq!(bench.post("/two", "k", "").await.rejection(), "transaction_failed");
                assert_eq!(bench.post("/not-annotated", "k", "").await.status, StatusCode::INTERNAL_SERVER_ERROR);
                assert_eq!(bench.rows().await, [""; 0]);
            }

            #[tokio::test]
            async fn store_of_another_database_is_a_500_that_the_log_explains() {
                let logs = Logs::collect();
                let registry = Registry::new(MemoryStore::new());
                let server = Server::start(router(&Runs::free()).layer(registry.layer())).await;
                for request in [server.post("/charges"), server.post("/charges").header("idempotency-key", "k")] {
                    let rejected = answer(request).await;
                    let code = rejected.rejection();
                    assert_eq!(
                        (rejected.status, code.as_str()),
                        (StatusCode::INTERNAL_SERVER_ERROR, "transaction_failed")
                    );
                }
                let errors = logs.of_level("ERROR");
                let name = <$database as sqlx::Database>::NAME;
                assert!(
                    errors.iter().all(|line| line.contains(name) && line.contains("no transactions")),
                    "{errors:?}"
                );
                assert_eq!(errors.len(), 2, "{errors:?}");
            }

            #[tokio::test]
            async fn without_a_registry_it_is_503_with_and_without_a_key() {
                let server = Server::start(router(&Runs::free())).await;
                for request in [server.post("/charges"), server.post("/charges").header("idempotency-key", "k")] {
                    assert_eq!(answer(request).await.rejection(), "store_unavailable");
                }
            }

            #[tokio::test]
            async fn a_unit_test_calls_the_handler_with_a_transaction_of_its_own() {
                let bench = Bench::new(&Runs::free()).await;
                let transaction = bench.pool.begin().await.expect("a transaction");
                let response = unused(transaction.into(), State(Runs::free()).into()).await;
                assert_eq!(response.status(), StatusCode::OK);
            }
        }
    };
}

async fn sqlite() -> (SqliteStore, sqlx::SqlitePool, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.db");
    let store = SqliteStore::open(&path).await.expect("the store opens");
    let pool =
        sqlx::SqlitePool::connect_with(SqliteConnectOptions::new().filename(&path)).await.expect("the file opens");
    let schema = "
        CREATE TABLE charges (id INTEGER PRIMARY KEY, note TEXT NOT NULL);
        CREATE TABLE refunds (charge INTEGER REFERENCES charges (id) DEFERRABLE INITIALLY DEFERRED);
    ";
    sqlx::raw_sql(schema).execute(&pool).await.expect("the tables are made");
    (store, pool, folder)
}

transactions_of!(sqlite, sqlx::Sqlite, "idempotency_records", super::sqlite(), tempfile::TempDir);

async fn postgres() -> (PostgresStore, sqlx::PgPool, Database) {
    let schema = "
        CREATE TABLE charges (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL);
        CREATE TABLE refunds (charge bigint REFERENCES charges (id) DEFERRABLE INITIALLY DEFERRED);
    ";
    postgres_beside(schema, 4).await
}

transactions_of!(postgres, sqlx::Postgres, "idempotency.records", super::postgres(), Database);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicate_of_another_process_waits_for_sqlite_and_replays() {
    let runs = Runs::free();
    let bench = sqlite::Bench::new(&runs).await;
    // A second store on the file has the role of a second process: both stores share nothing but the file.
    let path = bench.outlives.path().join("app.db");
    let other = Registry::new(SqliteStore::open(path).await.expect("the store opens"));
    let elsewhere = Server::start(sqlite::router(&runs).layer(other.layer())).await;
    for number in 1..=30 {
        let key = format!("k{number}");
        let send = |server: &Server| answer(server.post("/charges").header("idempotency-key", &key).body("tea"));
        let (first, second) = tokio::join!(send(&bench.server), send(&elsewhere));
        assert_eq!((first.status, first.text()), (second.status, second.text()));
        assert!(first.is_replay() != second.is_replay(), "one of them ran: {first:?} {second:?}");
        assert_eq!((runs.started(), bench.rows().await.len()), (number, number));
    }
}
