//! The isolation level of a handler's transaction, and the answer to a serialization failure.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::PostgresStore;
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::{Executions, Runs, Server, answer, eventually};
use sqlx::Postgres;

use super::scripted_handlers::{OnPostgres, key_of, repeatable, send, serializable};

#[tokio::test]
async fn isolation_is_that_of_the_handlers_transaction() {
    let bench = OnPostgres::new().await;
    let store = PostgresStore::new(bench.pool.clone());
    let app = Router::new().route("/repeatable", post(repeatable)).route("/serializable", post(serializable));
    let server = Server::start(app.layer(Registry::new(store).layer())).await;
    let level = "sql INSERT INTO charges (note) SELECT current_setting('transaction_isolation')";
    for path in ["/repeatable", "/serializable"] {
        for request in [server.post(path), server.post(path).header("idempotency-key", "k")] {
            assert_eq!(answer(request.body(level)).await.status, StatusCode::CREATED, "{path}");
        }
        // The transaction is in order, or an error that is no conflict has aborted it: the client gets the handler's
        // answer.
        for (steps, status) in [("insert a|answer 500", 500), ("sql SELECT 1 / 0|answer 409", 409)] {
            let own = answer(server.post(path).header("idempotency-key", key_of(steps)).body(steps)).await;
            assert_eq!((own.status.as_u16(), own.text()), (status, ""), "{path} {steps}");
        }
    }
    let levels = ["repeatable read", "repeatable read", "serializable", "serializable"];
    assert_eq!(bench.rows().await, levels);
}

#[idempotent(scope = "counts", isolation = "serializable")]
async fn counts(mut tx: Tx<Postgres>, State(runs): State<Runs>, how: String) -> StatusCode {
    let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM charges").fetch_one(&mut *tx).await;
    let count = count.expect("a snapshot is read");
    runs.run().await;
    let write = match how.as_str() {
        "update" => "UPDATE counters SET value = value + $1",
        _ => "INSERT INTO charges (note) VALUES ('n' || $1)",
    };
    match sqlx::query(write).bind(count).execute(&mut *tx).await {
        Ok(_) => StatusCode::CREATED,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[tokio::test]
async fn serialization_failure_is_503_and_the_retry_succeeds() {
    let bench = OnPostgres::new().await;
    sqlx::raw_sql("CREATE TABLE counters (value bigint NOT NULL); INSERT INTO counters VALUES (0)")
        .execute(&bench.pool)
        .await
        .expect("the table is made");
    let runs = Runs::held();
    let registry = Registry::new(PostgresStore::new(bench.pool.clone()));
    let app = Router::new().route("/charges", post(counts)).with_state(runs.clone()).layer(registry.layer());
    let server = Server::start(app).await;
    // `update` fails at its statement, because the row was updated meanwhile. `insert` fails at the record or at
    // COMMIT, because each handler has read what the other one writes.
    for how in ["update", "insert"] {
        let started = runs.started();
        let keys = [format!("{how} 1"), format!("{how} 2")];
        let (answers, ()) = tokio::join!(join_all(keys.iter().map(|key| send(&server, key, how))), async {
            runs.until_started(started + 2).await;
            runs.let_finish(2);
        });
        let lost: Vec<_> = (0..2).filter(|&at| answers[at].status != StatusCode::CREATED).collect();
        assert_eq!(lost.len(), 1, "{answers:?}");
        let rejected = &answers[lost[0]];
        assert_eq!(
            (rejected.status, rejected.rejection()),
            (StatusCode::SERVICE_UNAVAILABLE, "transaction_conflict".to_owned())
        );
        assert_eq!(rejected.headers["retry-after"], "0");
        runs.let_finish(1);
        let retry = send(&server, &keys[lost[0]], how).await;
        assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, false), "{how}");
    }
    assert_eq!(bench.rows().await.len(), 2);
}

#[idempotent(scope = "executions")]
async fn executed(_tx: Tx<Postgres>, State(executions): State<Executions>, key: String) -> StatusCode {
    executions.count(&key);
    StatusCode::CREATED
}

#[tokio::test]
async fn serializable_by_default_no_key_begins_twice() {
    let bench = OnPostgres::new().await;
    let executions = Executions::default();
    let mut servers = Vec::new();
    for _ in 0..2 {
        let pool = bench.database.pool_of_isolation("serializable").await;
        let registry = Registry::new(PostgresStore::new(pool));
        let app = Router::new().route("/charges", post(executed)).with_state(executions.clone());
        servers.push(Server::start(app.layer(registry.layer())).await);
    }
    let keys: Vec<String> = (0..300).map(|number| format!("k{number}")).collect();
    for some in keys.chunks(20) {
        let requests = some.iter().flat_map(|key| (0..4).map(move |number| (key, number)));
        join_all(requests.map(|(key, number)| send(&servers[number % 2], key, key))).await;
    }
    for key in &keys {
        // On a busy machine, each of the four requests may have been rejected before it began.
        eventually(async || send(&servers[0], key, key).await, |answer| answer.status == StatusCode::CREATED).await;
        assert!(send(&servers[1], key, key).await.is_replay());
    }
    assert_eq!((executions.total(), executions.repeated()), (300, Vec::new()));
}
