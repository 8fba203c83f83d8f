//! The disk under SQLite or PostgreSQL is full. New keys are rejected. Old keys are replayed if the database still
//! runs. The response of a handler that ran meanwhile is recorded as soon as there is room.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{AfterCrash, ClaimRequest, PostgresStore, SqliteStore, StoreAdmin, StoreError, Token};
use idempotent_runtime::{Fingerprint, Idempotency, RecordKey, Registry, idempotent};
use idempotent_tests::postgres::{OnSmallDisk, PostgresServer};
use idempotent_tests::{Executions, PATIENCE, Runs, Server, Tmpfs, eventually};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, PgPool};

/// The length of most responses: large enough to use up the free room in the files of the database soon.
const BODY: usize = 5_000;

/// The length of the response to the key `running`: more than the room that the database has left when it has just
/// rejected a key.
const LARGE_BODY: usize = 400_000;

#[derive(Clone)]
struct App {
    executions: Executions,
    held: Runs,
}

#[idempotent(scope = "full-disk-charges")]
async fn create_charge(State(app): State<App>, idempotency: Idempotency) -> (StatusCode, String) {
    let execution = app.executions.count(idempotency.key().unwrap_or_default());
    if idempotency.key() != Some("running") {
        return (StatusCode::CREATED, body(execution, BODY));
    }
    app.held.run().await;
    (StatusCode::CREATED, body(execution, LARGE_BODY))
}

/// Returns a body of pseudo-random digits, because PostgreSQL compresses a text that has a pattern.
fn body(execution: usize, length: usize) -> String {
    let numbers =
        std::iter::successors(Some(1_u32), |number| Some(number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)));
    let digits = numbers.skip(1).map(|number| char::from_digit(number >> 28, 16).expect("four bits"));
    format!("execution {execution}: ").chars().chain(digits).take(length).collect()
}

struct Service {
    server: Server,
    registry: Registry,
    executions: Executions,
    held: Runs,
    /// The keys whose handler has run.
    accepted: Vec<String>,
}

impl Service {
    async fn start(store: impl StoreAdmin) -> Self {
        let (executions, held, registry) = (Executions::default(), Runs::held(), Registry::new(store));
        let app = App { executions: executions.clone(), held: held.clone() };
        let router = Router::new().route("/charges", post(create_charge)).with_state(app).layer(registry.layer());
        let mut service =
            Self { server: Server::start(router).await, registry, executions, held, accepted: Vec::new() };
        for number in 0..20 {
            service.post_new(number).await.expect("there is room");
        }
        service
    }

    /// Sends a request with a new key. The error is the code of its rejection.
    async fn post_new(&mut self, number: usize) -> Result<(), String> {
        let key = format!("k{number}");
        let answer = self.server.post_with_key("/charges", &key).await;
        if answer.status != StatusCode::CREATED {
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
            return Err(answer.rejection());
        }
        self.accepted.push(key);
        Ok(())
    }

    /// Sends new keys until one is rejected, and returns its number. For a while, the database has room in its own
    /// files, although the disk is full.
    async fn post_until_rejected(&mut self) -> usize {
        for number in self.accepted.len()..10_000 {
            if let Err(code) = self.post_new(number).await {
                assert_eq!(code, "store_unavailable");
                return number;
            }
        }
        panic!("the store is never full");
    }

    /// Checks, when there is room again, that every response is recorded and no key was executed twice.
    async fn assert_nothing_is_lost(&self) {
        assert_eq!(self.registry.drain(PATIENCE).await, 0, "everything that ran is recorded");
        for key in self.accepted.iter().map(String::as_str).chain(["running"]) {
            let retry = self.server.post_with_key("/charges", key).await;
            assert!(retry.is_replay() && retry.body.starts_with(b"execution 1: "), "{key}: {}", retry.status);
        }
        assert_eq!(self.executions.total(), self.accepted.len() + 1);
        assert_eq!(self.executions.repeated(), Vec::new());
    }
}

fn request() -> ClaimRequest {
    ClaimRequest::new(Token::unique(), "07".repeat(32).parse::<Fingerprint>().expect("64 digits"))
        .with_lease(PATIENCE)
        .with_ttl(PATIENCE)
        .with_after_crash(AfterCrash::Rerun)
}

/// Claims keys until the store is full, and returns the error. A small row may still fit where a larger one did not.
async fn until_full(store: &impl StoreAdmin) -> StoreError {
    for number in 0..10_000 {
        if let Err(error) = store.claim(&RecordKey::new("of the test", None, &number.to_string()), request()).await {
            return error;
        }
    }
    panic!("the store is never full");
}

async fn assert_full_and_nothing_lost(store: impl StoreAdmin + Clone, disk: &Tmpfs) {
    let mut service = Service::start(store.clone()).await;
    let held = service.held.clone();
    let running = tokio::spawn(service.server.post("/charges").header("idempotency-key", "running").send());
    held.until_started(1).await;
    let filling = disk.fill();
    let rejected = service.post_until_rejected().await;
    let error = until_full(&store).await;
    assert!(matches!(error, StoreError::Full), "{error:?}");
    for number in 0..20 {
        let replay = service.server.post_with_key("/charges", &format!("k{number}")).await;
        assert!(replay.is_replay(), "k{number}: {}", replay.status);
    }
    held.let_finish(1);
    let running = running.await.expect("the request runs").expect("the server answers");
    assert_eq!(running.status(), StatusCode::CREATED, "what was done is told");
    let duplicate = service.server.post_with_key("/charges", "running").await;
    assert_eq!(duplicate.rejection(), "in_flight", "it is not recorded yet");
    drop(filling);
    service.assert_nothing_is_lost().await;
    service.post_new(rejected).await.expect("there is room again");
    assert_eq!(service.executions.repeated(), Vec::new());
}

#[tokio::test]
async fn sqlite_on_a_full_disk_replays_and_loses_no_record() {
    let disk = Tmpfs::mount(4);
    let file = disk.path().join("idempotency.db");
    let store = SqliteStore::open(&file).await.expect("the store opens");
    assert_full_and_nothing_lost(store, &disk).await;
    let mut connection = SqliteConnectOptions::new().filename(&file).connect().await.expect("the file opens");
    let check: String =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut connection).await.expect("the file can be read");
    assert_eq!(check, "ok");
}

async fn postgres(server: &PostgresServer) -> (PostgresStore, PgPool) {
    let pool = server.database().await.pool(4).await;
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("the tables are made");
    (store, pool)
}

#[tokio::test]
async fn postgres_with_a_full_disk_of_tables_loses_no_record() {
    let server = PostgresServer::start_on_small_disk(OnSmallDisk::Tables, 64).await;
    let (store, pool) = postgres(&server).await;
    assert_full_and_nothing_lost(store, server.disk()).await;
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM idempotency.records").fetch_one(&pool).await.expect("it can");
    assert!(rows > 20);
}

/// PostgreSQL cannot run without its write-ahead log: it stops, fails to recover, and exits. Old keys are rejected too,
/// until there is room and an operator starts it again.
#[tokio::test]
async fn on_a_full_disk_of_its_log_postgres_stops_and_loses_no_record() {
    let server = PostgresServer::start_on_small_disk(OnSmallDisk::LogOfWrites, 16).await;
    let (store, _) = postgres(&server).await;
    let mut service = Service::start(store).await;
    let held = service.held.clone();
    let running = tokio::spawn(service.server.post("/charges").header("idempotency-key", "running").send());
    held.until_started(1).await;
    let filling = server.disk().fill();
    let rejected = service.post_until_rejected().await;
    held.let_finish(1);
    let running = running.await.expect("the request runs").expect("the server answers");
    assert_eq!(running.status(), StatusCode::CREATED, "what was done is told");
    eventually(
        async || std::fs::read_to_string(server.folder().join("log")).unwrap_or_default(),
        |log| log.contains("PANIC") && log.contains("No space left on device"),
    )
    .await;
    drop(filling);
    server.restart().await;
    service.assert_nothing_is_lost().await;
    service.post_new(rejected).await.expect("there is room again");
    assert_eq!(service.executions.repeated(), Vec::new());
}
