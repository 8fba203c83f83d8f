//! Measures how much many running handlers delay other requests while their leases are renewed:
//! `lease-load STORE HANDLERS LEASE_SECONDS`, where STORE is `sqlite` or `postgres`. Prints how many responses were not
//! recorded, and how long other requests took.
//!
//! `lease-load STORE REQUESTS burst` sends REQUESTS requests at once. It prints how many were rejected, how long they
//! took, and how many transactions PostgreSQL executed for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::routing::post;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use idempotent_runtime::store::{PostgresStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{IdempotencyLayer, Policy, Registry};
use idempotent_tests::postgres::PostgresServer;
use sqlx::PgPool;
use tokio::sync::watch;
use tower::ServiceExt as _;

#[derive(Clone)]
struct Held {
    started: Arc<watch::Sender<usize>>,
    may_finish: watch::Receiver<bool>,
}

async fn hold(State(mut held): State<Held>) -> StatusCode {
    held.started.send_modify(|started| *started += 1);
    let _ = held.may_finish.wait_for(|may_finish| *may_finish).await;
    StatusCode::CREATED
}

fn request(path: &str, key: &str) -> Request<Body> {
    Request::post(path).header("idempotency-key", key).body(Body::empty()).expect("a well-formed request")
}

async fn measure(store: impl StoreAdmin, handlers: usize, lease: Duration) {
    let registry = Registry::new(store);
    let policy = Policy::builder("load").lease(lease).build().expect("a policy");
    let layer = IdempotencyLayer::new(policy).with_registry(registry.clone());
    let (let_finish, may_finish) = watch::channel(false);
    let held = Held { started: Arc::new(watch::Sender::new(0)), may_finish };
    let app = Router::new()
        .route("/held", post(hold))
        .route("/other", post(async || StatusCode::CREATED))
        .layer(layer)
        .with_state(held.clone());

    // Start the handlers gradually: the program measures their renewals, not a burst of claims.
    let mut started = held.started.subscribe();
    let mut running = Vec::with_capacity(handlers);
    while running.len() < handlers {
        for _ in 0..200.min(handlers - running.len()) {
            let request = request("/held", &format!("k{}", running.len()));
            running.push(tokio::spawn(
                app.clone().oneshot(request).map(|response| response.expect("infallible").status()),
            ));
        }
        let enough = running.len();
        let _ = tokio::time::timeout(Duration::from_secs(10), started.wait_for(|started| *started >= enough)).await;
    }
    println!("{} handlers run", *held.started.borrow());

    let mut times = Vec::new();
    let (begun, mut number) = (Instant::now(), 0);
    while begun.elapsed() < 4 * lease {
        let asked_at = Instant::now();
        let response = app.clone().oneshot(request("/other", &format!("o{number}"))).await.expect("infallible");
        times.push((asked_at.elapsed(), response.status()));
        number += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let failed = times.iter().filter(|(_, status)| *status != StatusCode::CREATED).count();
    times.sort_unstable_by_key(|(time, _)| *time);
    let at = |part: usize| times[(times.len() * part / 1000).min(times.len() - 1)].0;
    println!(
        "others: {}, of which {failed} failed; p50 {:?}, p99 {:?}, most {:?}",
        times.len(),
        at(500),
        at(990),
        at(1000)
    );

    let _ = let_finish.send(true);
    let answers: Vec<_> = join_all(running).await.into_iter().map(|answer| answer.expect("it ran")).collect();
    let created = answers.iter().filter(|status| **status == StatusCode::CREATED).count();
    let lost = answers.iter().filter(|status| **status == StatusCode::CONFLICT).count();
    let left = registry.drain(Duration::from_mins(1)).await;
    let mut replayed = 0;
    for number in 0..handlers {
        let response = app.clone().oneshot(request("/held", &format!("k{number}"))).await.expect("infallible");
        replayed += usize::from(response.headers().contains_key("idempotent-replayed"));
    }
    println!("answered 201: {created}, 409: {lost}; recorded: {replayed}; still under way after a drain: {left}");
}

/// Sends all requests at once, to handlers that respond immediately.
async fn burst(store: impl StoreAdmin, requests: usize) {
    let layer = IdempotencyLayer::new(Policy::builder("load").build().expect("a policy"));
    let app =
        Router::new().route("/", post(async || StatusCode::CREATED)).layer(layer.with_registry(Registry::new(store)));
    let begun = Instant::now();
    let sent: Vec<_> = (0..requests)
        .map(|number| {
            let app = app.clone();
            tokio::spawn(async move {
                let asked_at = Instant::now();
                let response = app.oneshot(request("/", &format!("b{number}"))).await.expect("infallible");
                (response.status(), asked_at.elapsed())
            })
        })
        .collect();
    let answers: Vec<_> = join_all(sent).await.into_iter().map(|answer| answer.expect("it ran")).collect();
    println!("{requests} requests in {:?}", begun.elapsed());
    for status in [StatusCode::CREATED, StatusCode::SERVICE_UNAVAILABLE] {
        let mut times: Vec<_> = answers.iter().filter(|(is, _)| *is == status).map(|(_, time)| *time).collect();
        times.sort_unstable();
        let at = |part: usize| times.get((times.len() * part / 1000).min(times.len().saturating_sub(1)));
        println!("{status}: {}, p50 {:?}, p99 {:?}", times.len(), at(500), at(990));
    }
}

/// The number of transactions of the database so far. Each statement of the store is one transaction.
async fn transactions(pool: &PgPool) -> i64 {
    let count = "SELECT (xact_commit + xact_rollback)::bigint FROM pg_stat_database WHERE datname = current_database()";
    // PostgreSQL updates the counters of a connection at most once a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    sqlx::query_scalar(count).fetch_one(pool).await.expect("the server answers")
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, handlers, seconds] = arguments.as_slice() else {
        eprintln!("usage: lease-load sqlite|postgres HANDLERS LEASE_SECONDS|burst");
        std::process::exit(2);
    };
    let handlers = handlers.parse().expect("a number");
    let lease = (seconds != "burst").then(|| Duration::from_secs(seconds.parse().expect("a number")));
    match store.as_str() {
        "sqlite" => {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let store = SqliteStore::open(folder.path().join("load.db")).await.expect("the store opens");
            match lease {
                Some(lease) => measure(store, handlers, lease).await,
                None => burst(store, handlers).await,
            }
        }
        "postgres" => {
            let database = PostgresServer::shared().await.database().await;
            let store = PostgresStore::new(database.pool(10).await);
            store.migrate().await.expect("the tables are made");
            let Some(lease) = lease else {
                let before = transactions(store.pool()).await;
                burst(store.clone(), handlers).await;
                println!("transactions: {}", transactions(store.pool()).await - before);
                return;
            };
            measure(store, handlers, lease).await;
        }
        other => panic!("no store: {other}"),
    }
}
