//! Connections to PostgreSQL that carry nothing any more and are never closed: the service is there again soon after.

use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::PostgresStore;
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::{Mode, Server};
use sqlx::Postgres;
use sqlx::postgres::PgPool;
use tokio::task::JoinSet;

#[idempotent(scope = "stranded-plain")]
async fn plain() -> &'static str {
    "done"
}

#[idempotent(scope = "stranded-in-transaction")]
async fn in_transaction(mut tx: Tx<Postgres>) -> Result<&'static str, String> {
    sqlx::query("SELECT 1").execute(&mut *tx).await.map(|_| "done").map_err(|error| error.to_string())
}

async fn serve(pool: PgPool) -> Server {
    let store = PostgresStore::new(pool);
    store.migrate().await.expect("the tables are made");
    let app = Router::new().route("/plain", post(plain)).route("/in-transaction", post(in_transaction));
    Server::start(app.layer(Registry::new(store).layer())).await
}

/// Sends 40 requests in a second, whatever becomes of them, until one has succeeded; how long that took.
async fn until_first_success(server: &Server, path: &str, round: &str) -> Duration {
    let begun = Instant::now();
    let mut sent = JoinSet::new();
    for number in 0.. {
        let request = server.post(path).header("idempotency-key", format!("{round}{number}"));
        sent.spawn(async move { request.send().await.is_ok_and(|answer| answer.status() == StatusCode::OK) });
        let pause = tokio::time::sleep(Duration::from_millis(25));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                Some(answer) = sent.join_next() => if answer.expect("the task runs") { return begun.elapsed() },
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{path} does not come back");
    }
    unreachable!("numbers do not end")
}

async fn use_all_connections(server: &Server, path: &str) {
    let answers = join_all((0..20).map(async |number| server.post_with_key(path, &format!("before{number}")).await));
    assert!(answers.await.iter().all(|answer| answer.status == StatusCode::OK));
}

async fn strand(path: &str) -> Duration {
    let database = PostgresServer::shared().await.database().await;
    let proxy = database.proxy();
    // A pool whose tests of free connections would find them out.
    let pool = database.untested_pool_of(4, &proxy).await;
    let server = serve(pool).await;
    use_all_connections(&server, path).await;
    proxy.strand();
    until_first_success(&server, path, "after").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stranded_connections_are_replaced_within_5_seconds() {
    let took = strand("/plain").await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stranded_transactions_are_replaced_within_5_seconds() {
    let took = strand("/in-transaction").await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// The line stops for a while. What was sent meanwhile waits on for its turn to be sent again, which comes long after the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_begins_delay_no_request_after_an_outage() {
    let database = PostgresServer::shared().await.database().await;
    let proxy = database.proxy();
    let server = serve(database.untested_pool_of(2, &proxy).await).await;
    use_all_connections(&server, "/in-transaction").await;
    proxy.set(Mode::Stops);
    let mut sent = JoinSet::new();
    for number in 0..120 {
        let request = server.post("/in-transaction").header("idempotency-key", format!("during{number}"));
        sent.spawn(request.send());
        // How long the fault lasts, longer than the time limit of a store call.
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    proxy.strand();
    proxy.set(Mode::Passes);
    let took = until_first_success(&server, "/in-transaction", "after").await;
    assert!(took < Duration::from_secs(4), "{took:?}");
}
