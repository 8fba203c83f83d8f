//! A handler waits for its own statement without a limit, while the connection of its `Tx` no longer transfers
//! anything.

use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::TryStreamExt as _;
use futures_util::future::join_all;
use idempotent_runtime::store::PostgresStore;
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::pgbouncer::PgBouncer;
use idempotent_tests::postgres::{Database, PostgresServer};
use idempotent_tests::{Answer, Proxy, Runs, Server, answer, eventually};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Postgres};

const EFFECT: &str = "INSERT INTO effects (key) VALUES ('k')";

/// Has an effect, and then waits as the body says. It ignores the error of that wait, which no handler should do.
#[idempotent(scope = "lost-statements", cache = [201])]
async fn waits_without_a_limit(mut tx: Tx<Postgres>, State(runs): State<Runs>, how: String) -> StatusCode {
    sqlx::raw_sql(EFFECT).execute(&mut *tx).await.expect("executed");
    let waited = match how.as_str() {
        "for a statement" => {
            runs.run().await;
            sqlx::raw_sql(EFFECT).execute(&mut *tx).await.map(drop)
        }
        "for a row" => {
            runs.run().await;
            sqlx::raw_sql("SELECT 1").fetch_one(&mut *tx).await.map(drop)
        }
        "for a savepoint" => {
            runs.run().await;
            tx.begin().await.map(drop)
        }
        "for the end of a savepoint" => {
            let savepoint = tx.begin().await.expect("it begins");
            runs.run().await;
            savepoint.commit().await
        }
        other => panic!("{other}"),
    };
    if let Err(error) = waited {
        assert!(error.to_string().contains("no longer answers"), "{error}");
        let later = sqlx::raw_sql(EFFECT).execute(&mut *tx).await.expect_err("nothing is sent");
        assert_eq!(later.to_string(), error.to_string());
    }
    StatusCode::CREATED
}

const WAITS: [&str; 4] = ["for a statement", "for a row", "for a savepoint", "for the end of a savepoint"];

async fn send(server: &Server, path: &str, body: &'static str, key: String) -> Answer {
    answer(server.post(path).header("idempotency-key", key).body(body)).await
}

/// Creates the tables, and a role that has only the documented rights and `INSERT` on `effects`. Returns a pool of
/// direct connections.
async fn prepare(database: &Database, role: &str) -> PgPool {
    let direct = database.pool(2).await;
    PostgresStore::new(direct.clone()).migrate().await.expect("the tables are made");
    let rights = format!(
        "CREATE TABLE effects (key text NOT NULL); CREATE ROLE {role} LOGIN; GRANT INSERT ON effects TO {role}; \
         GRANT USAGE ON SCHEMA idempotency TO {role}; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency.records TO {role}"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(rights)).execute(&direct).await.expect("the role is made");
    direct
}

async fn effects(direct: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM effects").fetch_one(direct).await.expect("counted")
}

fn serve(pool: PgPoolOptions, options: PgConnectOptions, is_pooled: bool, runs: &Runs) -> Router {
    let store = PostgresStore::builder(pool.test_before_acquire(false).connect_lazy_with(options));
    let store = if is_pooled { store.pooled() } else { store }.build();
    let app = Router::new().route("/", post(waits_without_a_limit)).with_state(runs.clone());
    app.layer(Registry::new(store).layer())
}

/// Loses all connections at once in each round, each of them during a statement of a handler. Then checks that the same
/// requests succeed. Each round needs all connections of the pool at once.
async fn lose_statements(server: &Server, line: &Proxy, runs: &Runs, rounds: usize, connections: usize) {
    for round in 0..rounds {
        let send_one = move |of: usize| send(server, "/", WAITS[of % WAITS.len()], format!("round{round}-{of}"));
        let (answers, begun) = tokio::join!(join_all((0..connections).map(send_one)), async {
            runs.until_started((2 * round + 1) * connections).await;
            line.strand();
            runs.let_finish(connections);
            Instant::now()
        });
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(answers.iter().all(|answer| answer.rejection() == "store_unavailable"), "{answers:?}");
        runs.let_finish(connections);
        // The connections of the store's own pool are lost too, so a claim may fail. The server may also need a moment
        // to roll a lost transaction back. Until then, the lock of that transaction keeps its key in flight.
        let is_served = |answer: &Answer| {
            answer.status.is_success() || !["store_unavailable", "in_flight"].contains(&answer.rejection().as_str())
        };
        let retried =
            join_all((0..connections).map(|of| eventually(async move || send_one(of).await, is_served))).await;
        let are_run = retried.iter().all(|answer| answer.status == StatusCode::CREATED && !answer.is_replay());
        assert!(are_run, "{retried:?}");
        assert_eq!(runs.started(), 2 * (round + 1) * connections);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_lost_without_a_limit_give_the_pool_back() {
    let database = PostgresServer::shared().await.database().await;
    let direct = prepare(&database, "loses_statements").await;
    let (line, runs) = (database.proxy(), Runs::held());
    let options = database.options_of("loses_statements").socket(line.folder());
    let app = serve(PgPoolOptions::new().max_connections(4), options, false, &runs);
    let server = Server::start(app).await;
    lose_statements(&server, &line, &runs, 2, 4).await;
    // One execution of each key is committed. Each has the effect at its beginning. In each round, one of the four also
    // has the effect of the statement that it waits for.
    assert_eq!(effects(&direct).await, 2 * 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooled_statement_lost_without_a_limit_keeps_nothing() {
    let postgres = PostgresServer::shared().await;
    let database = postgres.database().await;
    let direct = prepare(&database, "loses_pooled_statements").await;
    let pooler = PgBouncer::in_front_of(postgres, 3);
    let (line, runs) = (Proxy::start(pooler.folder()), Runs::held());
    let options = database.options_of("loses_pooled_statements").socket(line.folder());
    let connect = async || options.connect().await.map(drop).map_err(|error| error.to_string());
    eventually(connect, Result::is_ok).await.expect("awaited");
    let app = serve(PgPoolOptions::new().max_connections(2), options, true, &runs);
    let server = Server::start(app).await;
    lose_statements(&server, &line, &runs, 1, 1).await;
    assert_eq!(effects(&direct).await, 2);
}

/// Longer than the time after which a statement counts as lost.
const LONG: Duration = Duration::from_secs(3);

#[idempotent(scope = "slow-statements", cache = [201])]
async fn takes_its_time(mut tx: Tx<Postgres>, State(runs): State<Runs>, how: String) -> StatusCode {
    sqlx::query(EFFECT).execute(&mut *tx).await.expect("executed");
    runs.run().await;
    match how.as_str() {
        "in a query" => _ = sqlx::query("SELECT pg_sleep(3)").execute(&mut *tx).await.expect("executed"),
        "between statements" => tokio::time::sleep(LONG).await,
        "in a lock" => _ = sqlx::query("SELECT pg_advisory_xact_lock(7)").execute(&mut *tx).await.expect("executed"),
        "between rows" => {
            let mut rows = sqlx::query("SELECT repeat('x', 100000) FROM generate_series(1, 50)").fetch(&mut *tx);
            for row in 0..50 {
                assert!(rows.try_next().await.expect("read").is_some());
                if row == 10 {
                    tokio::time::sleep(LONG).await;
                }
            }
            assert!(rows.try_next().await.expect("read").is_none());
        }
        other => panic!("{other}"),
    }
    sqlx::query(EFFECT).execute(&mut *tx).await.expect("executed");
    StatusCode::CREATED
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_handlers_and_statements_are_left_alone() {
    let database = PostgresServer::shared().await.database().await;
    let direct = prepare(&database, "takes_its_time").await;
    let options = database.options_of("takes_its_time");
    let store = PostgresStore::new(PgPoolOptions::new().max_connections(4).connect_lazy_with(options));
    let runs = Runs::held();
    let app = Router::new().route("/slow", post(takes_its_time)).with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(store).layer())).await;
    let mut lock = direct.begin().await.expect("it begins");
    sqlx::query("SELECT pg_advisory_xact_lock(7)").execute(&mut *lock).await.expect("it is free");
    let ways = ["in a query", "between statements", "between rows"];
    let slow = async |way: &'static str| send(&server, "/slow", way, way.replace(' ', "-")).await.status;
    let (waited, others) = tokio::join!(slow("in a lock"), async {
        let begun = async {
            runs.until_started(4).await;
            runs.let_finish(4);
        };
        let (others, ()) = tokio::join!(join_all(ways.map(slow)), begun);
        lock.rollback().await.expect("it ends");
        others
    });
    assert_eq!((waited, others), (StatusCode::CREATED, vec![StatusCode::CREATED; 3]));
    assert_eq!(effects(&direct).await, 8);
}
