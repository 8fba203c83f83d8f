//! Operations of many callers go out in one statement, and each gets its own answer.

mod decisions;
mod failures;
mod load;
mod lost;
mod runtimes;

use futures_util::future::join_all;
use idempotent_runtime::RecordKey;
use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, Held, PostgresStore, Store, StoreError, Token};
use idempotent_tests::PATIENCE;
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::stores::{claim_request, migrated, record};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::task::JoinHandle;

/// More than one statement takes.
const CALLERS: usize = 64;

fn key(name: &str, number: usize) -> RecordKey {
    RecordKey::new("batches", None, &format!("{name}{number}"))
}

fn requests(after_crash: AfterCrash) -> Vec<ClaimRequest> {
    (0..CALLERS).map(|_| claim_request().with_after_crash(after_crash)).collect()
}

/// Each in a task of its own, as requests are.
fn claim_all(
    store: &PostgresStore,
    name: &str,
    requests: &[ClaimRequest],
) -> Vec<JoinHandle<Result<Claim, StoreError>>> {
    let claim = |(number, request): (usize, &ClaimRequest)| {
        let (store, key, request) = (store.clone(), key(name, number), *request);
        tokio::spawn(async move { store.claim(&key, request).await })
    };
    requests.iter().enumerate().map(claim).collect()
}

async fn answers<T>(calls: Vec<JoinHandle<T>>) -> Vec<T> {
    let answered = tokio::time::timeout(PATIENCE, join_all(calls)).await.expect("every caller is answered");
    answered.into_iter().map(|answer| answer.expect("the task runs")).collect()
}

fn is_first_attempt(claim: &Result<Claim, StoreError>) -> bool {
    matches!(claim, Ok(Claim::Acquired { attempt: 1 }))
}

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.expect("the statement runs");
}

async fn count(pool: &PgPool, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.expect("the server answers")
}

#[tokio::test]
async fn many_callers_share_statements_and_no_answers() {
    let server = PostgresServer::start(&["shared_preload_libraries=pg_stat_statements"]).await;
    let database = server.database().await;
    let pool = database.pool(4).await;
    execute(&pool, "CREATE EXTENSION pg_stat_statements").await;
    migrated(&pool).await;
    let statements = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE dbid = \
         (SELECT oid FROM pg_database WHERE datname = current_database()) AND query NOT LIKE '%pg_stat_statements%'";
    for is_pooled in [false, true] {
        let builder = PostgresStore::builder(database.pool(4).await);
        let store = if is_pooled { builder.pooled() } else { builder }.build();
        let name = format!("pooled-{is_pooled}-");
        // The first call of a process looks for a pooler.
        assert_eq!(store.release(&key(&name, 0), Token::unique()).await.expect("it answers"), Held::No);
        let requests = requests(AfterCrash::Rerun);
        let before = count(&pool, statements).await;
        assert!(answers(claim_all(&store, &name, &requests)).await.iter().all(is_first_attempt));
        let complete = |n: usize| {
            let (store, key, request) = (store.clone(), key(&name, n), requests[n]);
            tokio::spawn(
                async move { store.complete(&key, request.token, record(format!("paid {n}")), request.ttl).await },
            )
        };
        let completed = answers((0..CALLERS).map(complete).collect()).await;
        assert!(completed.iter().all(|held| matches!(held, Ok(Held::Yes))), "{completed:?}");
        let replays = answers(claim_all(&store, &name, &self::requests(AfterCrash::Rerun))).await;
        for (number, replay) in replays.into_iter().enumerate() {
            let Ok(Claim::Completed(found)) = replay else { panic!("{replay:?}") };
            assert_eq!(found.body, record(format!("paid {number}")).body);
        }
        let took = count(&pool, statements).await - before;
        assert!(took < 64, "{took} statements for 192 operations");
    }
}

#[tokio::test]
async fn lone_callers_send_statements_of_their_own() {
    let server = PostgresServer::start(&["shared_preload_libraries=pg_stat_statements"]).await;
    let pool = server.database().await.pool(4).await;
    execute(&pool, "CREATE EXTENSION pg_stat_statements").await;
    let store = migrated(&pool).await;
    for number in 0..3 {
        let (key, request) = (key("lone", number), claim_request());
        assert!(is_first_attempt(&store.claim(&key, request).await));
        assert_eq!(
            store.complete(&key, request.token, record("paid"), request.ttl).await.expect("it records"),
            Held::Yes
        );
    }
    let of = async |what: &str| {
        let calls = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE query LIKE ";
        count(&pool, &format!("{calls} '%{what}%'")).await
    };
    assert_eq!((of("turn AS MATERIALIZED").await, of("unnest").await), (3, 0));
}
