//! What is limited, and by which setting: very long durations and sizes, calls that wait for a store, claims that are
//! given back.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{MemoryStore, PostgresStore, RedisStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{IdempotencyLayer, InFlight, Policy, RecordKey, Registry, RegistryBuilder, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Fault, FaultyStore, Logs, PATIENCE, Runs, Server, answer, eventually};
use sha2::Digest as _;
use sqlx::Connection as _;
use tower::ServiceExt;

#[idempotent(scope = "limits-charges")]
async fn create_charge(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "limits-rejects", after_crash = "reject")]
async fn rejects_after_crash(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "briefly", after_crash = "reject", lease = "300ms")]
async fn rejects_after_crash_briefly(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

async fn plain(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

fn app(runs: &Runs, registry: &Registry) -> Router {
    Router::new()
        .route("/charges", post(create_charge))
        .route("/rejects", post(rejects_after_crash))
        .route("/briefly", post(rejects_after_crash_briefly))
        .with_state(runs.clone())
        .layer(registry.layer())
}

fn layered(runs: &Runs, policy: Policy, registry: Registry) -> Router {
    let layer = IdempotencyLayer::new(policy).with_registry(registry);
    Router::new().route("/", post(plain)).with_state(runs.clone()).layer(layer)
}

/// Sets every limit to its largest value.
fn boundless(registry: RegistryBuilder) -> Registry {
    let registry = registry.store_timeout(Duration::MAX).near_cache(usize::MAX, Duration::MAX);
    registry.max_in_flight_per_caller(usize::MAX).build()
}

const HUNDRED_YEARS: Duration = Duration::from_hours(100 * 8766);

#[tokio::test]
async fn a_store_timeout_without_end_runs_each_key_once() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let registry = boundless(Registry::builder(store));
    let server = Server::start(app(&runs, &registry)).await;
    assert_eq!(server.post_with_key("/charges", "k").await.text(), "charge 1");
    for _ in 0..2 {
        let retry = server.post_with_key("/charges", "k").await;
        assert_eq!((retry.text(), retry.is_replay()), ("charge 1", true));
    }
    assert_eq!((registry.drain(Duration::MAX).await, runs.started()), (0, 1));
}

#[tokio::test]
async fn a_wait_without_end_gets_the_response() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let policy = Policy::builder("api").in_flight(InFlight::Wait(Duration::MAX)).max_body(usize::MAX);
    let policy = policy.ttl(HUNDRED_YEARS).lease(HUNDRED_YEARS).build().expect("it is valid");
    let server = Server::start(layered(&runs, policy, boundless(Registry::builder(store.clone())))).await;
    let first = tokio::spawn(answer(server.post("/").header("idempotency-key", "k")));
    runs.until_started(1).await;
    let waiter = tokio::spawn(answer(server.post("/").header("idempotency-key", "k")));
    eventually(async || store.claims(), |&claims| claims >= 2).await;
    runs.let_finish(2);
    assert_eq!(first.await.expect("the request runs").text(), "charge 1");
    let waiter = waiter.await.expect("the request runs");
    assert_eq!((waiter.text(), waiter.is_replay(), runs.started()), ("charge 1", true, 1));
}

#[tokio::test]
async fn the_longest_ttl_and_lease_outlast_an_outage_at_recording() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let policy = Policy::builder("api").ttl(HUNDRED_YEARS).lease(HUNDRED_YEARS).build().expect("it is valid");
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(50)).build();
    let server = Server::start(layered(&runs, policy, registry.clone())).await;
    store.on_complete(Fault::Unreachable);
    assert_eq!(server.post_with_key("/", "k").await.text(), "charge 1");
    store.on_complete(Fault::None);
    assert_eq!(registry.drain(PATIENCE).await, 0);
    let retry = server.post_with_key("/", "k").await;
    assert_eq!((retry.text(), retry.is_replay(), runs.started()), ("charge 1", true, 1));
}

#[test]
fn durations_over_a_century_are_invalid_policies() {
    let wrong = Policy::builder("api").ttl(Duration::MAX).lease(Duration::MAX).build();
    let mistakes: Vec<String> = wrong.expect_err("both are too long").mistakes().map(ToOwned::to_owned).collect();
    assert_eq!(
        mistakes,
        [
            "`ttl` must be at most 100years; write `.ttl(Duration::from_secs(24 * 60 * 60))`",
            "`lease` must be at most 100years; write `.lease(Duration::from_secs(30))`",
        ]
    );
}

#[tokio::test]
async fn stores_take_intervals_without_end() {
    let (runs, file) = (Runs::free(), SqliteFile::new());
    let store = SqliteStore::builder(file.path()).delete_expired_every(Duration::MAX).busy_timeout(Duration::MAX);
    let store = store.max_bytes(u64::MAX).open().await.expect("the store opens");
    let sqlite = Server::start(app(&runs, &Registry::new(store))).await;
    assert_eq!(sqlite.post_with_key("/charges", "k").await.text(), "charge 1");
    assert!(sqlite.post_with_key("/charges", "k").await.is_replay());

    let pool = PostgresServer::shared().await.database().await.pool(2).await;
    let store = PostgresStore::builder(pool).delete_expired_every(Duration::MAX).build();
    store.migrate().await.expect("the tables are made");
    let postgres = Server::start(app(&runs, &Registry::new(store))).await;
    assert_eq!(postgres.post_with_key("/charges", "k").await.text(), "charge 2");
    assert!(postgres.post_with_key("/charges", "k").await.is_replay());
}

#[tokio::test]
async fn a_drain_waits_until_a_lost_claim_is_given_back() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(50)).build();
    let server = Server::start(app(&runs, &registry)).await;
    store.on_claim(Fault::AnswerIsLost);
    store.on_release(Fault::Unreachable);
    assert_eq!(server.post_with_key("/rejects", "k").await.rejection(), "store_unavailable");
    let logs = Logs::collect();
    assert_eq!(registry.drain(Duration::from_millis(50)).await, 0, "no handler runs");
    assert!(logs.of_level("WARN").iter().any(|line| line.contains("given back")), "{}", logs.text());
    store.on_claim(Fault::None);
    store.on_release(Fault::None);
    assert_eq!(registry.drain(PATIENCE).await, 0);
    assert!(store.inner().is_empty(), "the release has reached the store");
    let next_process = Server::start(app(&runs, &Registry::new(store))).await;
    assert_eq!(next_process.post_with_key("/rejects", "k").await.text(), "charge 1");
}

#[tokio::test]
async fn a_drain_waits_for_a_claim_that_arrives_late() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(50)).build();
    let server = Server::start(app(&runs, &registry)).await;
    store.on_claim(Fault::ArrivesLate);
    assert_eq!(server.post_with_key("/rejects", "k").await.rejection(), "store_unavailable");
    eventually(async || store.ends(), |&tried| tried >= 1).await;
    let draining = tokio::spawn(async move { registry.drain(PATIENCE).await });
    store.let_through();
    assert_eq!(draining.await.expect("the drain ends"), 0);
    assert!(store.inner().is_empty(), "it was given back after it had arrived");
}

#[tokio::test]
async fn a_claim_that_arrives_after_its_lease_rejects_nothing() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(50)).build();
    let server = Server::start(app(&runs, &registry)).await;
    store.on_claim(Fault::ArrivesLate);
    for _ in 0..2 {
        assert_eq!(server.post_with_key("/briefly", "k").await.rejection(), "store_unavailable");
    }
    assert_eq!(registry.drain(PATIENCE).await, 0);
    assert_eq!(registry.drain(PATIENCE).await, 0, "it is not tried any more");
    store.on_claim(Fault::None);
    for _ in 0..2 {
        // The claim runs on this thread before the next request is answered.
        store.let_through();
    }
    assert_eq!(server.post_with_key("/briefly", "other").await.text(), "charge 1");
    let retry = server.post_with_key("/briefly", "k").await;
    assert_eq!((retry.text(), runs.started()), ("charge 2", 2));
}

#[tokio::test]
async fn a_claim_that_postgres_holds_up_rejects_nothing() {
    let database = PostgresServer::shared().await.database().await;
    let store = PostgresStore::new(database.pool(4).await);
    store.migrate().await.expect("the tables are made");
    let mut other = sqlx::PgConnection::connect(&database.url()).await.expect("the server answers");
    // Like a row whose commit waits for a standby: the row exists, and is not visible yet.
    let key = RecordKey::new("briefly", None, "k");
    let insert =
        "INSERT INTO idempotency.records (digest, key, state, fingerprint, token, attempt, claim_ttl, expires_at)
                  VALUES ($1, $2, 'claimed', '', '', 1, 1000, 'infinity')";
    sqlx::raw_sql("BEGIN").execute(&mut other).await.expect("it begins");
    let inserting = sqlx::query(insert).bind(sha2::Sha256::digest(key.as_str()).to_vec()).bind(key.as_str());
    inserting.execute(&mut other).await.expect("it is inserted");

    let (runs, store) = (Runs::free(), FaultyStore::around(store));
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(200)).build();
    let server = Server::start(app(&runs, &registry)).await;
    assert_eq!(server.post_with_key("/briefly", "k").await.rejection(), "store_unavailable");
    assert_eq!(registry.drain(PATIENCE).await, 0, "it is given back although its statement waits");
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.expect("it is rolled back");
    eventually(async || server.post_with_key("/briefly", "k").await.status, |&status| status == StatusCode::CREATED)
        .await;
    assert_eq!(runs.started(), 1);
}

/// The claim arrives after another request has had its key and an operator has purged the record of that request.
async fn late_claim_after_a_purge_rejects_nothing(store: impl StoreAdmin) {
    let (runs, store) = (Runs::free(), FaultyStore::around(store));
    let registry = Registry::builder(store.clone()).store_timeout(PATIENCE).build();
    let in_haste = Registry::builder(store.clone()).store_timeout(Duration::from_millis(50)).build();
    let (server, hasty) = (Server::start(app(&runs, &registry)).await, Server::start(app(&runs, &in_haste)).await);
    store.on_claim(Fault::ArrivesLate);
    assert_eq!(hasty.post_with_key("/briefly", "k").await.rejection(), "store_unavailable");
    eventually(async || in_haste.drain(PATIENCE).await, |&running| running == 0).await;
    store.on_claim(Fault::None);
    assert_eq!(server.post_with_key("/briefly", "k").await.text(), "charge 1");
    assert!(store.purge(&RecordKey::new("briefly", None, "k")).await.expect("the store purges"));
    store.let_through();
    // This claim is sent after the late one, over the same connection.
    assert_eq!(server.post_with_key("/briefly", "other").await.text(), "charge 2");
    let next = server.post_with_key("/briefly", "k").await;
    assert_eq!((next.text(), runs.started()), ("charge 3", 3));
}

#[tokio::test]
async fn late_claim_after_a_purge_rejects_nothing_in_any_store() {
    late_claim_after_a_purge_rejects_nothing(MemoryStore::new()).await;
    let file = SqliteFile::new();
    late_claim_after_a_purge_rejects_nothing(SqliteStore::open(file.path()).await.expect("the store opens")).await;
    let store = PostgresStore::new(PostgresServer::shared().await.database().await.pool(1).await);
    store.migrate().await.expect("the tables are made");
    late_claim_after_a_purge_rejects_nothing(store).await;
    let redis = RedisServer::start(&[]).await;
    late_claim_after_a_purge_rejects_nothing(RedisStore::connect(&redis.url()).await.expect("the store opens")).await;
}

#[tokio::test]
async fn rejected_requests_of_one_caller_leave_no_tasks() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(5));
    let registry = registry.max_in_flight_per_caller(2).build();
    let app = app(&runs, &registry);
    store.on_claim(Fault::AnswerIsLost);
    store.on_renew(Fault::Hangs);
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for pair in 0..150 {
        let send = |number: usize| {
            let request = Request::post("/charges").header("idempotency-key", format!("{pair}-{number}"));
            app.clone().oneshot(request.body(Body::empty()).expect("a well-formed request"))
        };
        for answer in join_all([send(0), send(1)]).await {
            assert_eq!(answer.expect("infallible").status(), StatusCode::SERVICE_UNAVAILABLE);
        }
    }
    let left = tasks() - before;
    assert!(left <= 2, "{left} tasks are alive");
}

#[tokio::test]
async fn a_claim_that_waited_for_a_connection_is_not_given_back() {
    let database = PostgresServer::shared().await.database().await;
    let store = PostgresStore::new(database.pool(1).await);
    store.migrate().await.expect("the tables are made");
    let mut other = sqlx::PgConnection::connect(&database.url()).await.expect("the server answers");
    sqlx::raw_sql("BEGIN; LOCK TABLE idempotency.records").execute(&mut other).await.expect("it is locked");
    let (runs, store) = (Runs::free(), FaultyStore::around(store));
    // The claim that has the connection waits for the lock, and the others wait for the connection.
    let ends = given_back_after_twenty(&runs, &store).await;
    assert!(ends <= 5, "{ends} of 20 were given back");
}

#[tokio::test]
async fn a_claim_that_waited_for_the_writer_is_not_given_back() {
    let (runs, file) = (Runs::free(), SqliteFile::new());
    let store = FaultyStore::around(SqliteStore::open(file.path()).await.expect("the store opens"));
    let mut other = file.connect().await;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.expect("it is locked");
    assert_eq!(given_back_after_twenty(&runs, &store).await, 0);
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.expect("it is free");
    assert_eq!(store.inner().list(None, 100).await.expect("it answers").entries, [], "none was claimed later");
}

/// Returns how many of twenty claims that do not get through are given back.
async fn given_back_after_twenty<S: StoreAdmin>(runs: &Runs, store: &FaultyStore<S>) -> usize {
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(200)).build();
    let server = Server::start(app(runs, &registry)).await;
    let keys: Vec<String> = (0..20).map(|number| format!("k{number}")).collect();
    for answer in join_all(keys.iter().map(|key| server.post_with_key("/charges", key))).await {
        assert_eq!(answer.rejection(), "store_unavailable");
    }
    // Everything that is given back is tried at once.
    let _ = registry.drain(Duration::from_millis(20)).await;
    // The store looks for each claim before it ends it.
    store.looks()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overload_costs_what_it_serves_and_is_rejected_early() {
    // A busy machine serves fewer requests within the limit. The rejected ones do not wait for a part of the limit.
    const LIMIT: Duration = Duration::from_millis(1_500);
    const REQUESTS: usize = 600;
    let database = PostgresServer::shared().await.database().await;
    let store = PostgresStore::new(database.pool(2).await);
    store.migrate().await.expect("the tables are made");
    // Each claim takes 20 ms: 100 claims per second, and 150 within the limit.
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END $$;
                CREATE TRIGGER slow BEFORE INSERT ON idempotency.records FOR EACH ROW EXECUTE FUNCTION slow()";
    sqlx::raw_sql(slow).execute(store.pool()).await.expect("it is made");
    let (runs, store) = (Runs::free(), FaultyStore::around(store));
    let registry = Registry::builder(store.clone()).store_timeout(LIMIT).build();
    let app = app(&runs, &registry);
    let burst = |name: &'static str| {
        let send = |number: usize| {
            let request = Request::post("/charges").header("idempotency-key", format!("{name}-{number}"));
            let answer = app.clone().oneshot(request.body(Body::empty()).expect("a well-formed request"));
            async move {
                let begun = std::time::Instant::now();
                let status = answer.await.expect("infallible").status();
                (status, begun.elapsed())
            }
        };
        join_all((0..REQUESTS).map(send).collect::<Vec<_>>())
    };
    // During the first burst, the store's speed is measured.
    burst("first").await;
    let second = burst("second").await;
    let done = second.iter().filter(|(status, _)| *status == StatusCode::CREATED).count();
    let rejected = second.iter().filter(|(status, _)| *status == StatusCode::SERVICE_UNAVAILABLE);
    let rejected: Vec<Duration> = rejected.map(|(_, after)| *after).collect();
    assert!(done > 0, "it serves what it can");
    assert!(rejected.len() > REQUESTS / 2, "{} rejected", rejected.len());
    // A claim that the store has accepted waits for the whole limit.
    let early = rejected.iter().filter(|after| **after < LIMIT).count();
    assert!(early > rejected.len() / 2, "{early} of {} are rejected early", rejected.len());
    // At the end of each burst, two statements of 32 claims are under way.
    let ends = store.ends();
    assert!(ends <= 2 * 2 * 32, "{ends} claims were given back");
}

/// A PostgreSQL store with two connections, in which a claim takes some time. Claims that such a store cannot serve
/// within three seconds are rejected.
struct Slow {
    store: PostgresStore,
    app: Router,
}

impl Slow {
    /// `pause` is an SQL expression: how many seconds each insertion waits.
    async fn new(pause: &str) -> Self {
        let database = PostgresServer::shared().await.database().await;
        let store = PostgresStore::new(database.pool(2).await);
        store.migrate().await.expect("the tables are made");
        let slow = format!(
            "CREATE SEQUENCE inserted;
             CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep({pause}); RETURN NEW; END $$;
             CREATE TRIGGER slow BEFORE INSERT ON idempotency.records FOR EACH ROW EXECUTE FUNCTION slow()"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(slow)).execute(store.pool()).await.expect("it is made");
        let registry = Registry::builder(store.clone()).store_timeout(Duration::from_secs(3)).build();
        Self { store, app: app(&Runs::free(), &registry) }
    }

    async fn becomes_fast(&self) {
        sqlx::raw_sql("DROP TRIGGER slow ON idempotency.records")
            .execute(self.store.pool())
            .await
            .expect("it is dropped");
    }

    /// Sends this many requests at once, and returns how many are rejected.
    async fn rejected_of(&self, burst: &str, requests: usize) -> usize {
        let send = |number: usize| {
            let request = Request::post("/charges").header("idempotency-key", format!("{burst}-{number}"));
            self.app.clone().oneshot(request.body(Body::empty()).expect("a well-formed request"))
        };
        let answers = join_all((0..requests).map(send)).await;
        let statuses = answers.into_iter().map(|answer| answer.expect("infallible").status());
        statuses.filter(|status| *status == StatusCode::SERVICE_UNAVAILABLE).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_time_rejects_nothing_after_its_end() {
    let slow = Slow::new("0.05").await;
    assert_eq!(slow.rejected_of("slow", 40).await, 0, "they take 1 s");
    slow.becomes_fast().await;
    assert_eq!(slow.rejected_of("fast", 200).await, 0, "at the former pace, they would take 5 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_beginning_of_a_burst_rejects_nothing() {
    // As while connections are being opened: the first twenty claims take 0.5 s. At that speed, all claims would take 5
    // s.
    let slow = Slow::new("CASE WHEN nextval('inserted') <= 20 THEN 0.05 ELSE 0 END").await;
    assert_eq!(slow.rejected_of("burst", 200).await, 0);
}
