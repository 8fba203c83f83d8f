//! The server of the soak test. It is a separate process, so that its readings include nothing of the test.
//!
//! The first line that it prints is its address. It answers every line that it reads with a reading, as JSON. It ends
//! when its input ends.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{MemoryStore, SqliteStore, SqliteSynchronous, StoreAdmin};
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::soak::{MEMORY_BYTES, Reading};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::runtime::Handle;

/// The executions, numbered from 1.
#[derive(Clone, Default)]
struct Executions(Arc<AtomicU64>);

impl Executions {
    /// Runs long enough for duplicates to arrive meanwhile.
    async fn run(&self, query: Option<String>) -> (StatusCode, String) {
        let number = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        let milliseconds = query.and_then(|query| query.parse().ok()).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        (StatusCode::CREATED, format!("{number:020}{}", ".".repeat(500)))
    }
}

#[idempotent(scope = "memory", ttl = "10s", required, store = "memory")]
async fn over_memory(State(executions): State<Executions>, RawQuery(query): RawQuery) -> (StatusCode, String) {
    executions.run(query).await
}

#[idempotent(scope = "sqlite", ttl = "10s", required)]
async fn over_sqlite(State(executions): State<Executions>, RawQuery(query): RawQuery) -> (StatusCode, String) {
    executions.run(query).await
}

#[tokio::main]
async fn main() {
    let file = std::env::args().nth(1).expect("the first argument is the database file");
    let memory = MemoryStore::builder().max_bytes(MEMORY_BYTES).build();
    let sqlite = SqliteStore::builder(Path::new(&file))
        .synchronous(SqliteSynchronous::Normal)
        .delete_expired_every(Duration::from_secs(1))
        .open()
        .await
        .expect("the file can be opened");
    let registry = Registry::builder(sqlite.clone()).store("memory", memory.clone()).build();
    let executions = Executions::default();
    let app = Router::new()
        .route("/memory", post(over_memory))
        .route("/sqlite", post(over_sqlite))
        .with_state(executions.clone())
        .layer(registry.layer());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    println!("{}", listener.local_addr().expect("a bound listener has an address"));
    tokio::spawn(async move { axum::serve(listener, app).await.expect("the server runs") });
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while orders.next_line().await.expect("the input is text").is_some() {
        let reading = Reading {
            executions: executions.0.load(Ordering::Relaxed),
            running: registry.drain(Duration::ZERO).await,
            tasks: Handle::current().metrics().num_alive_tasks(),
            descriptors: descriptors(),
            resident_kib: resident_kib(),
            memory_entries: memory.len(),
            memory_bytes: memory.used_bytes(),
            sqlite_entries: sqlite.list(None, 1).await.expect("the store answers").entries.len(),
        };
        println!("{}", serde_json::to_string(&reading).expect("a reading is JSON"));
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("Linux shows the open descriptors").count()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux shows the process's state");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it names the resident memory");
    line.trim().trim_end_matches(" kB").parse().expect("it is a number of kB")
}
