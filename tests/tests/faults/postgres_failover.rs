//! A primary is demoted and still reachable at its address, and its standby takes its place. When the address leads to
//! the new primary, requests are soon served again.

use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{PostgresStore, StoreAdmin};
use idempotent_runtime::{RecordKey, Registry, Tx, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::{Proxy, Runs, Server, eventually};
use sqlx::Postgres;

#[idempotent(scope = "demoted-plain")]
async fn plain() -> &'static str {
    "done"
}

#[idempotent(scope = "demoted-in-transaction")]
async fn in_transaction(mut tx: Tx<Postgres>) -> Result<&'static str, String> {
    sqlx::query("SELECT 1").execute(&mut *tx).await.map(|_| "done").map_err(|error| error.to_string())
}

/// A primary behind a proxy, its standby, and a store that knows only the proxy's address.
struct Replicated {
    primary: PostgresServer,
    standby: PostgresServer,
    proxy: Proxy,
    store: PostgresStore,
}

impl Replicated {
    async fn start() -> Self {
        let primary = PostgresServer::start(&[]).await;
        let database = primary.database().await;
        let proxy = database.proxy();
        let store = PostgresStore::new(database.pool_over(&proxy).await);
        store.migrate().await.expect("the tables are made");
        let standby = primary.standby().await;
        Self { primary, standby, proxy, store }
    }
}

async fn use_all_connections(server: &Server, path: &str, round: &str) -> Vec<StatusCode> {
    let answers = (0..12).map(async |number| server.post_with_key(path, &format!("{round}{number}")).await.status);
    join_all(answers).await
}

/// The address moves late, as a virtual address can: connections to the former primary are still opened, and stay open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_a_demoted_primary_are_replaced_in_5_seconds() {
    let Replicated { primary, standby, proxy, store } = Replicated::start().await;
    let app = Router::new().route("/plain", post(plain)).route("/in-transaction", post(in_transaction));
    let server = Server::start(app.layer(Registry::new(store.clone()).layer())).await;
    for path in ["/plain", "/in-transaction"] {
        assert_eq!(use_all_connections(&server, path, "before").await, [StatusCode::OK; 12], "{path}");
    }

    // Demote before promoting, so that the standby has received everything.
    primary.demote().await;
    standby.promote().await;
    let key = RecordKey::new("demoted-plain", None, "before0");
    let entry = async || store.get(&key).await.ok().flatten();
    eventually(entry, Option::is_some).await;
    for path in ["/plain", "/in-transaction"] {
        let statuses = use_all_connections(&server, path, "during").await;
        assert_eq!(statuses, [StatusCode::SERVICE_UNAVAILABLE; 12], "{path}");
    }
    proxy.lead_to(standby.address());
    let moved = Instant::now();
    for path in ["/plain", "/in-transaction"] {
        let answer = async || server.post_with_key(path, "during0").await;
        let answer = eventually(answer, |answer| answer.status != StatusCode::SERVICE_UNAVAILABLE).await;
        assert_eq!((answer.status, answer.is_replay()), (StatusCode::OK, false), "{path}");
        println!("{path}: {:.2?} after the address has moved", moved.elapsed());
        assert!(server.post_with_key(path, "before0").await.is_replay(), "{path}");
    }
    assert!(moved.elapsed() < Duration::from_secs(5), "{:?}", moved.elapsed());
}

#[idempotent(scope = "demoted-exact-charges")]
async fn charge(mut tx: Tx<Postgres>, State(runs): State<Runs>) -> Result<String, String> {
    sqlx::query("SELECT 1").execute(&mut *tx).await.map_err(|error| error.to_string())?;
    Ok(format!("run {}", runs.run().await))
}

/// For a `Tx`, the store's own connections only read, so no failed write shows that their server was demoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_recorded_after_a_demotion_is_replayed() {
    let Replicated { primary, standby, proxy, store } = Replicated::start().await;
    let runs = Runs::free();
    let app = Router::new().route("/", post(charge)).with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(store).layer())).await;
    assert_eq!(use_all_connections(&server, "/", "before").await, [StatusCode::OK; 12]);
    primary.demote().await;
    standby.promote().await;
    let send = async || server.post_with_key("/", "k").await;
    eventually(async || server.post_with_key("/", "before0").await.is_replay(), |is_replay| *is_replay).await;
    assert_eq!(send().await.status, StatusCode::SERVICE_UNAVAILABLE);
    proxy.lead_to(standby.address());
    assert_eq!(eventually(send, |answer| answer.status == StatusCode::OK).await.text(), "run 13");
    for _ in 0..5 {
        assert!(send().await.is_replay());
    }
    assert_eq!(runs.started(), 13);
}
