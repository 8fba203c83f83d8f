//! The server for `loopback`, as a separate process. It prints its port, and ends when its input closes.

use std::io::{self, Write as _};
use std::process;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use axum::http::StatusCode;
use axum::routing::post;
use axum::serve::ListenerExt as _;
use axum::{Json, Router};
use idempotent_benches::by_hand;
use idempotent_benches::charge::{CHARGES, Order, Receipt, charge};
use idempotent_runtime::store::{MemoryStore, PostgresStore, RedisStore, SqliteStore};
use idempotent_runtime::{Registry, idempotent};
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;

const USAGE: &str = "usage: server bare | by-hand | memory | sqlite <path> | redis <url> | near-redis <url> \
     | postgres <url> | near-postgres <url>";

/// The size of the pool. More connections would only wait for the same cores and the same disk.
const CONNECTIONS: u32 = 32;

const NEAR_BYTES: usize = 64 * 1024 * 1024;

const NEAR_AGE: Duration = Duration::from_secs(60);

async fn bare(Json(order): Json<Order>) -> (StatusCode, Json<Receipt>) {
    charge(order)
}

#[idempotent(scope = "loopback")]
async fn guarded(Json(order): Json<Order>) -> (StatusCode, Json<Receipt>) {
    charge(order)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // The parent holds the other end of the input, which closes however the parent ends.
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        process::exit(0);
    });
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let router = match arguments.as_slice() {
        ["bare"] => Router::new().route(CHARGES, post(bare)),
        ["by-hand"] => by_hand::router(),
        store => {
            install(store).await?;
            Router::new().route(CHARGES, post(guarded))
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    io::stdout().flush()?;
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("a connection takes the option"));
    axum::serve(listener, router).await?;
    Ok(())
}

async fn install(store: &[&str]) -> anyhow::Result<()> {
    let registry = match store {
        ["memory"] => Registry::builder(MemoryStore::builder().max_bytes(usize::MAX).build()),
        ["sqlite", path] => Registry::builder(SqliteStore::open(path).await?),
        ["redis", url] => Registry::builder(RedisStore::connect(url).await?),
        ["near-redis", url] => Registry::builder(RedisStore::connect(url).await?).near_cache(NEAR_BYTES, NEAR_AGE),
        ["postgres", url] => Registry::builder(postgres(url).await?),
        ["near-postgres", url] => Registry::builder(postgres(url).await?).near_cache(NEAR_BYTES, NEAR_AGE),
        other => bail!("`{}` names no server; {USAGE}", other.join(" ")),
    };
    registry.build().install()?;
    Ok(())
}

async fn postgres(url: &str) -> anyhow::Result<PostgresStore> {
    let options = PgPoolOptions::new().max_connections(CONNECTIONS).test_before_acquire(false);
    let store = PostgresStore::new(options.connect(url).await?);
    store.migrate().await?;
    Ok(store)
}
