//! A server whose handler has two steps. It dies or waits at the place that a request names.
//!
//! The first line that it prints is its address. Each effect of a step is one line in the file that the second argument
//! names.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::{PostgresStore, RedisStore, SqliteStore};
use idempotent_runtime::{Idempotency, Registry, StepError, idempotent};
use idempotent_tests::steps::{DIE_AT, Moment, WAIT_AT, WAITS, go};
use rustix::process::{Signal, getpid, kill_process};
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;

/// Where the effects are written.
#[derive(Clone)]
struct Effects(Arc<Path>);

impl Effects {
    /// Writes one line in a single write, and returns the id of the process that wrote it.
    fn write(&self, what: &str, idempotency: &Idempotency) -> u32 {
        let mut file = File::options().append(true).create(true).open(&self.0).expect("the file can be opened");
        let line = format!("{what} {}\n", idempotency.key().unwrap_or_default());
        file.write_all(line.as_bytes()).expect("the file can be written");
        std::process::id()
    }
}

async fn reach(place: Moment, headers: &HeaderMap, effects: &Effects, idempotency: &Idempotency) {
    let is_named_by = |name| headers.get(name).is_some_and(|value| value.as_bytes() == place.to_string().as_bytes());
    if is_named_by(DIE_AT) {
        kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
        // The signal may arrive a moment later. Nothing more may happen until then.
        std::future::pending::<()>().await;
    }
    if is_named_by(WAIT_AT) {
        effects.write(WAITS, idempotency);
        let go = go(&effects.0, idempotency.key().unwrap_or_default());
        while !go.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[idempotent(scope = "orders", cache = [201], fingerprint = none, lease = "1s")]
async fn create_order(
    State(effects): State<Effects>,
    idempotency: Idempotency,
    headers: HeaderMap,
) -> Result<(StatusCode, String), Response> {
    reach(Moment::BeforeReserve, &headers, &effects, &idempotency).await;
    let step = async |name: &'static str, within: Moment, after: Moment| {
        let ran = idempotency.step(name, || async {
            let process = effects.write(name, &idempotency);
            reach(within, &headers, &effects, &idempotency).await;
            Ok::<_, StepError>(process)
        });
        let process = ran.await?;
        reach(after, &headers, &effects, &idempotency).await;
        Ok::<_, StepError>(process)
    };
    let reserved_by = step("reserve", Moment::InReserve, Moment::Reserved).await?;
    let charged_by = step("charge", Moment::InCharge, Moment::Charged).await?;
    let receipt = format!("attempt {}: {reserved_by} {charged_by}", idempotency.attempt());
    Ok((StatusCode::CREATED, receipt))
}

async fn registry(store: &str) -> Registry {
    if store.starts_with("redis:") {
        return Registry::new(RedisStore::connect(store).await.expect("Redis answers"));
    }
    if store.starts_with("postgres:") {
        let pool = PgPoolOptions::new().max_connections(4).connect(store).await.expect("PostgreSQL answers");
        let store = PostgresStore::new(pool);
        store.migrate().await.expect("the tables are made");
        return Registry::new(store);
    }
    Registry::new(SqliteStore::open(Path::new(store)).await.expect("the file can be opened"))
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let store = arguments.next().expect("the first argument is a URL or the file of a database");
    let effects = arguments.next().expect("the second argument is the file of the effects");
    let effects = Effects(Path::new(&effects).into());
    let app = Router::new().route("/orders", post(create_order)).with_state(effects);
    let app = app.layer(registry(&store).await.layer());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    println!("{}", listener.local_addr().expect("a bound listener has an address"));
    axum::serve(listener, app).await.expect("the server runs");
}
