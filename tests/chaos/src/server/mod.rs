//! One server process: three handlers with three guarantees, a ledger of what they did, and places to die at.

mod handlers;
mod ledger;
mod rigged;
mod steps;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use clap::ValueEnum;
use idempotent_runtime::Registry;
use idempotent_runtime::store::{MemoryStore, PostgresStore, RedisStore, SqliteStore, Store};
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;

pub use self::handlers::{Order, Outcome};
pub use self::ledger::Ledger;
use self::rigged::Rigged;
use self::steps::Steps;
pub use self::steps::{DIE_AT, Step};

/// A guard of the engine that is taken out, to see that the judge notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Guard {
    /// Only the holder of the current token may complete.
    Token,
    /// The response is recorded before it is sent.
    RecordFirst,
    /// A client that leaves does not free its key.
    Disconnect,
    /// A running handler's lease is renewed.
    Renewal,
    /// A claim of a dead process is refused where the policy says so.
    RefusalAfterCrash,
    /// The effect and the record commit together.
    Transaction,
}

/// What a server process is started with.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Tells this process from all others of the run.
    #[arg(long)]
    pub name: String,
    /// `memory:`, `sqlite:PATH`, `redis://…` or `postgres://…`.
    #[arg(long)]
    pub store: String,
    /// The file of the ledger.
    #[arg(long)]
    pub ledger: PathBuf,
    /// The guard to take out.
    #[arg(long)]
    pub without: Option<Guard>,
}

/// What the handlers share.
struct App {
    name: String,
    executions: AtomicU64,
    ledger: Ledger,
    steps: Arc<Steps>,
}

impl App {
    fn next_execution(&self) -> String {
        format!("{}-{}", self.name, self.executions.fetch_add(1, Ordering::Relaxed))
    }
}

/// Serves until the process is killed.
///
/// # Errors
///
/// When the store or the ledger cannot be opened.
pub async fn serve(options: Options) -> anyhow::Result<()> {
    let url = options.store.clone();
    if let Some(path) = url.strip_prefix("sqlite:") {
        let store = SqliteStore::open(path).await?;
        return serve_over(store, handlers::exactly_once_in_sqlite_router(), options).await;
    }
    if url == "memory:" {
        return serve_over(MemoryStore::new(), Router::new(), options).await;
    }
    if url.starts_with("redis:") {
        return serve_over(RedisStore::connect(&url).await?, Router::new(), options).await;
    }
    let pool = PgPoolOptions::new().max_connections(8).acquire_timeout(Duration::from_secs(2));
    let store = PostgresStore::new(pool.test_before_acquire(false).connect(&url).await.context("PostgreSQL")?);
    store.migrate().await?;
    serve_over(store, handlers::exactly_once_in_postgres_router(), options).await
}

/// Makes the table of the effects that commit with their records, once, before the servers start.
///
/// # Errors
///
/// When the database cannot be reached.
pub async fn prepare(store: &str, ledger: &Path) -> anyhow::Result<()> {
    Ledger::create(ledger).await?;
    ledger::create_effects(store).await
}

async fn serve_over(store: impl Store, exactly_once: Router<Arc<App>>, options: Options) -> anyhow::Result<()> {
    let steps = Arc::<Steps>::default();
    let store = Arc::new(Rigged::new(store, Arc::clone(&steps), options.without));
    let ledger = Ledger::open(&options.ledger).await?;
    let app = App { name: options.name, executions: AtomicU64::new(0), ledger, steps };
    let exactly_once = match options.without {
        Some(Guard::Transaction) => handlers::exactly_once_without_transaction_router(),
        _ => exactly_once,
    };
    let mut router = Router::new()
        .route("/clock", get(async || crate::now().to_string()))
        .route("/at-least-once", post(handlers::at_least_once))
        .route("/at-most-once", post(handlers::at_most_once))
        .merge(exactly_once);
    if options.without == Some(Guard::Disconnect) {
        router = router.layer(middleware::from_fn_with_state(Arc::clone(&store), release_on_disconnect));
    }
    let app = Arc::new(app);
    let router = router
        .layer(middleware::from_fn_with_state(Arc::clone(&app), pass_steps))
        .with_state(app)
        .layer(Registry::new(store).layer());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    axum::serve(listener, router).await?;
    Ok(())
}

/// The first and the last step of a request.
async fn pass_steps(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(key) = steps::key_of(request.headers()) else { return next.run(request).await };
    app.steps.expect(&key, request.headers());
    app.steps.reach(&key, Step::BeforeClaim);
    let response = next.run(request).await;
    app.steps.reach(&key, Step::BeforeSend);
    response
}

/// What a naive layer does.
async fn release_on_disconnect<S: Store>(
    State(store): State<Arc<Rigged<S>>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(key) = steps::key_of(request.headers()) else { return next.run(request).await };
    let mut leaving = rigged::Leaving::new(store, key);
    let response = next.run(request).await;
    leaving.stayed();
    response
}
