//! How often a request to a handler with a `Tx` waits for PostgreSQL.

use std::time::Duration;

use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::PostgresStore;
use idempotent_tests::{Proxy, eventually};
use sqlx::PgPool;

use super::scripted_handlers::{OnPostgres, in_postgres, send, server};

/// Returns how often clients have waited for the server, when the connection is back in the pool.
async fn requests(proxy: &Proxy, pool: &PgPool) -> usize {
    eventually(async || pool.num_idle(), |&idle| idle == 1).await;
    proxy.requests()
}

#[tokio::test]
async fn first_execution_of_a_tx_is_six_round_trips() {
    let bench = OnPostgres::new().await;
    let proxy = bench.database.proxy();
    let pool = bench.database.untested_pool_over(&proxy).await;
    let store = PostgresStore::builder(pool.clone()).delete_expired_every(Duration::from_hours(1)).build();
    let server = server(store, post(in_postgres)).await;
    // The first claim finds out whether there is a pooler. The others prepare the statements, that of the look-up too. After the
    // last one, no row is expected.
    for key in ["first", "second", "first", "first", "third"] {
        assert_eq!(send(&server, key, "insert a").await.status, StatusCode::CREATED);
        requests(&proxy, &pool).await;
    }
    let before = requests(&proxy, &pool).await;
    assert_eq!(send(&server, "k", "insert a").await.status, StatusCode::CREATED);
    // BEGIN with the locks, the row of the key, the handler's INSERT, the proof, the record, and COMMIT.
    let of_first = requests(&proxy, &pool).await - before;
    assert_eq!(of_first, 6);
    // The first replay begins a transaction, which is rolled back. After it, rows are expected and looked up first.
    let mut of_replays = Vec::new();
    for _ in 0..3 {
        let before = requests(&proxy, &pool).await;
        assert!(send(&server, "k", "insert a").await.is_replay());
        of_replays.push(requests(&proxy, &pool).await - before);
    }
    assert_eq!(of_replays, [4, 1, 1]);
}
