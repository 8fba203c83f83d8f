//! One server process: guarded handlers, a ledger of what they did, and named steps at which it can die.

mod fault_injection;
mod handlers;
mod ledger;
mod origins;
mod runtimes;
mod steps;
mod transactional;
mod weakened_store;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{IntoMakeService, get};
use axum::{Router, ServiceExt};
use clap::ValueEnum;
use idempotent_runtime::Registry;
use idempotent_runtime::store::{MemoryStore, PostgresStore, RedisStore, SqliteStore, StoreAdmin};
use idempotent_tests::Wrapped;
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tower::{Service, ServiceExt as _};

use self::fault_injection::BlockedThread;
pub use self::fault_injection::{Ending, HowEnded};
pub use self::handlers::{Order, Outcome};
pub use self::ledger::Ledger;
pub use self::origins::{CREDENTIALS, FORWARD_TO};
pub use self::runtimes::END_RUNTIME;
use self::runtimes::Runtimes;
use self::steps::Steps;
pub use self::steps::{DIE_AT, Step};
pub use self::transactional::{VERSION, VERSIONS};
use self::weakened_store::WeakenedStore;
use crate::family::Family;
use crate::run::StoreKind;

/// A guard of the engine that can be disabled, to test that the checker notices.
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
    /// A claim of a dead process is rejected if the policy says so.
    RejectionAfterCrash,
    /// The effect and the record commit together.
    Transaction,
    /// A lease is renewed while a handler blocks a thread.
    BlockedRenewal,
    /// A lease is renewed while one of several runtimes is blocked or has ended.
    RuntimeRenewal,
    /// The claim of a running handler is remembered for longer than its ttl.
    ClaimOutlivesTtl,
    /// Nothing is kept of a transaction that ended while its handler ran.
    TransactionCheck,
    /// Handlers with and without a `Tx` see each other's claims.
    SharedClaims,
    /// A record belongs to the credentials that it was made for.
    Credentials,
    /// A record belongs to the path that it was made for.
    Target,
}

impl Guard {
    /// The family in which a missing guard is noticed, if there is one.
    pub fn family(self) -> Option<Family> {
        match self {
            Self::BlockedRenewal => Some(Family::BlockedThreads),
            Self::RuntimeRenewal => Some(Family::SeveralRuntimes),
            Self::ClaimOutlivesTtl => Some(Family::ShortTtl),
            Self::TransactionCheck => Some(Family::EndedTransactions),
            Self::SharedClaims => Some(Family::MixedScope),
            Self::Credentials => Some(Family::RotatedCredentials),
            Self::Target => Some(Family::ForwardedRequests),
            _ => None,
        }
    }

    /// Whether the guard exists with this store.
    pub fn fits(self, store: StoreKind) -> bool {
        match self.family() {
            Some(family) => family.fits(store),
            None => self != Self::Transaction || matches!(store, StoreKind::Sqlite | StoreKind::Postgres),
        }
    }
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
    /// How many current-thread runtimes share the requests; with 0 one of two threads has them all.
    #[arg(long, default_value_t = 0)]
    pub runtimes: usize,
}

/// The state that the handlers share.
struct App {
    /// The name of the process, or of one of its runtimes.
    name: String,
    executions: AtomicU64,
    ledger: Ledger,
    steps: Arc<Steps>,
    blocked_thread: Arc<BlockedThread>,
    without: Option<Guard>,
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
        return serve_over(store, transactional::sqlite_router, options).await;
    }
    if url == "memory:" {
        return serve_over(MemoryStore::new(), Router::new, options).await;
    }
    if url.starts_with("redis:") {
        return serve_over(RedisStore::connect(&url).await?, Router::new, options).await;
    }
    let pool = PgPoolOptions::new().max_connections(8).acquire_timeout(Duration::from_secs(2));
    let store = PostgresStore::new(pool.test_before_acquire(false).connect(&url).await.context("PostgreSQL")?);
    store.migrate().await?;
    serve_over(store, transactional::postgres_router, options).await
}

/// Creates the table of the effects that commit with their records. Called once, before the servers start.
///
/// # Errors
///
/// When the database cannot be reached.
pub async fn prepare(store: &str, ledger: &Path) -> anyhow::Result<()> {
    Ledger::create(ledger).await?;
    ledger::create_effects(store).await
}

async fn serve_over<S: StoreAdmin>(
    store: S,
    transactional: fn() -> Router<Arc<App>>,
    options: Options,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (blocked_thread, runtimes) = (Arc::<BlockedThread>::default(), Runtimes::default());
    let store = Arc::new(WeakenedStore::new(store, Arc::clone(&blocked_thread), runtimes.clone(), options.without));
    let mut registry = Registry::builder(Arc::clone(&store));
    if options.without == Some(Guard::SharedClaims) {
        registry = registry.store("apart", MemoryStore::new());
    }
    let site = Site {
        store,
        registry: registry.build(),
        transactional,
        ledger: Ledger::open(&options.ledger).await?,
        blocked_thread,
        name: options.name,
        without: options.without,
    };
    if options.runtimes > 0 {
        return runtimes.serve(listener, options.runtimes, site).await;
    }
    println!("{address}");
    axum::serve(listener, behind_a_balancer(site.router(site.name.clone(), None))).await?;
    Ok(())
}

/// The state that the runtimes of a process share.
struct Site<S: StoreAdmin> {
    store: Arc<Wrapped<WeakenedStore<S>>>,
    registry: Registry,
    transactional: fn() -> Router<Arc<App>>,
    ledger: Ledger,
    blocked_thread: Arc<BlockedThread>,
    name: String,
    without: Option<Guard>,
}

impl<S: StoreAdmin> Site<S> {
    /// The routes of the process, or of the runtime with this name. Handlers with a `Tx` run on `elsewhere` if that is
    /// given.
    fn router(&self, name: String, elsewhere: Option<Handle>) -> Router {
        let mut transactional = match self.without {
            Some(Guard::Transaction | Guard::TransactionCheck) => transactional::router_without_transaction(),
            _ => (self.transactional)(),
        };
        if let Some(runtime) = elsewhere {
            // If a handler were blocked in the middle of its transaction, it would block all writers of the file.
            transactional = transactional.layer(middleware::from_fn_with_state(runtime, runtimes::run_elsewhere));
        }
        let mut router = Router::new()
            .route("/clock", get(async || crate::now().to_string()))
            .merge(handlers::router())
            .merge(origins::router())
            .merge(transactional);
        if self.without == Some(Guard::Disconnect) {
            router = router.layer(middleware::from_fn_with_state(Arc::clone(&self.store), release_on_disconnect));
        }
        let app = Arc::new(App {
            name,
            executions: AtomicU64::new(0),
            ledger: self.ledger.clone(),
            steps: Arc::clone(self.store.steps()),
            blocked_thread: Arc::clone(&self.blocked_thread),
            without: self.without,
        });
        router
            .layer(middleware::from_fn_with_state(Arc::clone(&app), pass_steps))
            .with_state(app)
            .layer(self.registry.layer())
    }
}

/// Makes all servers look the same to the engine: a request does not depend on the server or on the version of HTTP.
fn behind_a_balancer(
    router: Router,
) -> IntoMakeService<
    impl Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static,
> {
    let service = router.map_request(|mut request: Request| {
        let target = request.uri().path_and_query().and_then(|target| target.as_str().parse().ok());
        *request.uri_mut() = target.unwrap_or_default();
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("chaos"));
        request
    });
    ServiceExt::<Request>::into_make_service(service)
}

/// Passes the first and the last step of a request.
async fn pass_steps(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(key) = steps::key_of(request.headers()) else { return next.run(request).await };
    app.steps.expect(&key, request.headers());
    app.steps.reach(&key, Step::BeforeClaim);
    let response = next.run(request).await;
    app.steps.reach(&key, Step::BeforeSend);
    response
}

/// Releases the key if the client disconnects, as a naive layer does.
async fn release_on_disconnect<S: StoreAdmin>(
    State(store): State<Arc<Wrapped<WeakenedStore<S>>>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(key) = steps::key_of(request.headers()) else { return next.run(request).await };
    let mut leaving = weakened_store::Leaving::new(store, key);
    let response = next.run(request).await;
    leaving.stayed();
    response
}
