//! The connection to Redis or PostgreSQL is slow, stops, loses answers or is cut under load. Requests wait or are
//! rejected, and none is executed twice. When the connection works again, requests are served without a restart.

use std::collections::HashSet;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use idempotent_runtime::store::{PostgresStore, RedisStore, StoreAdmin};
use idempotent_runtime::{Idempotency, Registry, Tx, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Executions, Mode, PATIENCE, Proxy, Server, post_until_answered};
use sqlx::{PgPool, Postgres};

#[idempotent(scope = "line-plain")]
async fn plain(State(executions): State<Executions>, idempotency: Idempotency) -> String {
    format!("execution {}", executions.count(idempotency.key().unwrap_or_default()))
}

/// Counts the runs that begin. The table `effects` has the effects of those that were committed.
#[idempotent(scope = "line-in-transaction")]
async fn in_transaction(
    mut tx: Tx<Postgres>,
    State(begun): State<Executions>,
    idempotency: Idempotency,
) -> Result<(), String> {
    begun.count(idempotency.key().unwrap_or_default());
    let insert = sqlx::query("INSERT INTO effects (key) VALUES ($1)").bind(idempotency.key());
    insert.execute(&mut *tx).await.map(drop).map_err(|error| error.to_string())
}

const KEYS: usize = 300;

async fn serve(store: impl StoreAdmin, executions: &Executions, expect: Expect) -> Server {
    let limit = if expect == Expect::Waiting { PATIENCE } else { Duration::from_millis(500) };
    let registry = Registry::builder(store).store_timeout(limit).build();
    let app = Router::new().route("/plain", post(plain)).route("/in-transaction", post(in_transaction));
    Server::start(app.with_state(executions.clone()).layer(registry.layer())).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Waiting,
    Rejections,
}

/// Causes the fault for a while, as soon as ten more executions have begun.
async fn disturb(line: &Proxy, executions: &Executions, mode: Mode) {
    executions.ten_more().await;
    line.set(mode);
    // The duration of the fault.
    tokio::time::sleep(Duration::from_secs(2)).await;
    line.set(Mode::Passes);
}

async fn assert_each_once(server: &Server, line: &Proxy, executions: &Executions, mode: Mode, expect: Expect) {
    let posting = post_until_answered(server, "/plain", "p", KEYS);
    let ((answers, rejected), ()) = tokio::join!(posting, disturb(line, executions, mode));
    assert_eq!(rejected > 0, expect == Expect::Rejections, "{rejected} rejections");
    assert!(answers.iter().all(|answer| answer.text() == "execution 1"));
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), KEYS);
    assert_eq!((executions.total(), executions.repeated()), (KEYS, Vec::new()));
}

async fn over_redis(mode: Mode, expect: Expect) {
    let (redis, executions) = (RedisServer::start(&[]).await, Executions::default());
    let line = Proxy::to(redis.address()).await;
    let store = RedisStore::connect(&format!("redis://{}/", line.address())).await.expect("the store opens");
    let server = serve(store, &executions, expect).await;
    assert_each_once(&server, &line, &executions, mode, expect).await;
}

async fn over_postgres(mode: Mode, expect: Expect) {
    let database = PostgresServer::shared().await.database().await;
    let (line, pool, executions) = (database.proxy(), database.pool(1).await, Executions::default());
    let store = PostgresStore::new(database.pool_over(&line).await);
    store.migrate().await.expect("the tables are made");
    sqlx::query("CREATE TABLE effects (key text NOT NULL)").execute(&pool).await.expect("the table is made");
    let server = serve(store, &executions, expect).await;
    assert_each_once(&server, &line, &executions, mode, expect).await;

    let posting = post_until_answered(&server, "/in-transaction", "t", KEYS);
    let ((answers, rejected), ()) = tokio::join!(posting, disturb(&line, &executions, mode));
    assert_eq!(rejected > 0, expect == Expect::Rejections, "{rejected} rejections");
    assert_eq!((answers.len(), effects(&pool).await), (2 * KEYS, (KEYS, KEYS)));
}

/// Returns the number of effects, and the number of different keys among them.
async fn effects(pool: &PgPool) -> (usize, usize) {
    let effects = sqlx::query_scalar::<_, String>("SELECT key FROM effects").fetch_all(pool).await;
    let effects = effects.expect("the server answers");
    (effects.len(), effects.iter().collect::<HashSet<_>>().len())
}

const SLOW: Mode = Mode::Delays(Duration::from_millis(20));

/// Longer than `store_timeout`: a command still arrives, but its caller no longer waits for it.
const TOO_SLOW: Mode = Mode::Delays(Duration::from_millis(800));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_line_to_redis_is_waited_for() {
    over_redis(SLOW, Expect::Waiting).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_to_redis_that_is_too_slow_executes_nothing_twice() {
    over_redis(TOO_SLOW, Expect::Rejections).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_to_redis_that_stops_executes_nothing_twice() {
    over_redis(Mode::Stops, Expect::Rejections).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_to_redis_that_loses_answers_executes_nothing_twice() {
    over_redis(Mode::LosesAnswers, Expect::Rejections).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_to_redis_that_is_cut_executes_nothing_twice() {
    over_redis(Mode::IsCut, Expect::Rejections).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_line_to_postgres_is_waited_for() {
    over_postgres(SLOW, Expect::Waiting).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_to_postgres_that_is_too_slow_executes_nothing_twice() {
    over_postgres(TOO_SLOW, Expect::Rejections).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_to_postgres_that_stops_executes_nothing_twice() {
    over_postgres(Mode::Stops, Expect::Rejections).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_to_postgres_that_loses_answers_executes_nothing_twice() {
    over_postgres(Mode::LosesAnswers, Expect::Rejections).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_to_postgres_that_is_cut_executes_nothing_twice() {
    over_postgres(Mode::IsCut, Expect::Rejections).await;
}
