//! The time of the inspector's first page, and of the first page of claims, among many records.
//!
//! `IDEMPOTENT_ENTRIES=<number>` sets the number of records. By default there are few; `cargo xtask entries` uses
//! millions.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use idempotent_runtime::inspector::Inspector;
use idempotent_runtime::store::{
    AfterCrash, ClaimRequest, ImmediateStore as _, MemoryStore, RedisStore, SqliteStore, StoreAdmin, Token,
};
use idempotent_runtime::testing::decoders::redis_value;
use idempotent_runtime::{Fingerprint, Record, RecordKey, RecordedBody, Registry};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{eventually, stores};
use sqlx::Connection as _;

use crate::inspector::shop::Shop;

const CLAIMS_OF_A_KIND: usize = 100;

const DAY: Duration = Duration::from_hours(24);

fn entries() -> usize {
    match std::env::var("IDEMPOTENT_ENTRIES") {
        Ok(entries) => entries.parse().expect("IDEMPOTENT_ENTRIES is a number"),
        Err(_) => 2_000,
    }
}

fn record() -> Record {
    let fingerprint = Fingerprint::from_bytes([1; 32]);
    let body = RecordedBody::Whole("paid".into());
    Record::new(StatusCode::CREATED, Vec::new(), body, fingerprint, SystemTime::now())
}

fn key(number: usize) -> RecordKey {
    RecordKey::new("charges", None, &format!("r{number:08}"))
}

async fn leave_claims(store: &impl StoreAdmin) {
    let kinds =
        [("runs", AfterCrash::Rerun, false), ("stuck", AfterCrash::Rerun, true), ("unknown", AfterCrash::Reject, true)];
    for (name, after_crash, is_over) in kinds {
        for number in 0..CLAIMS_OF_A_KIND {
            let request = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32]))
                .with_lease(Duration::from_hours(1))
                .with_ttl(DAY)
                .with_after_crash(after_crash);
            let key = RecordKey::new("charges", None, &format!("{name}-{number}"));
            let _ = store.claim(&key, request).await.expect("it claims");
            if is_over {
                let _ = store.renew(&key, request.token, Duration::ZERO).await.expect("the lease ends");
            }
        }
    }
}

async fn first_page_tells_all_claims(name: &str, store: impl StoreAdmin + Clone) {
    leave_claims(&store).await;
    let began = Instant::now();
    let page = store.claims(None, 10_000).await.expect("it lists").expect("there is an index");
    let of_claims = began.elapsed();
    assert_eq!(page.entries.len(), 3 * CLAIMS_OF_A_KIND);
    let registry = Registry::new(store);
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    // This request opens the connection, so that it is not measured.
    assert_eq!(shop.get("/nowhere").await.status, StatusCode::NOT_FOUND);
    let began = Instant::now();
    let first = shop.get("").await;
    let of_page = began.elapsed();
    assert_eq!(first.status, StatusCode::OK, "{}", first.text());
    println!("{name}: {} records: claims {of_claims:.2?}, first page of the inspector {of_page:.2?}", entries());
    let counts = &shop.json("/api/summary").await["counts"];
    assert_eq!([&counts["in_flight"], &counts["past_lease"], &counts["outcome_unknown"]], [CLAIMS_OF_A_KIND; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_page_among_many_in_memory_tells_all_claims() {
    let store = MemoryStore::builder().max_bytes(usize::MAX).build();
    for number in 0..entries() {
        let (key, token) = (key(number), Token::unique());
        let request = ClaimRequest::new(token, Fingerprint::from_bytes([1; 32])).with_ttl(DAY);
        let _ = store.claim_now(&key, request).expect("it claims");
        let _ = store.complete_now(&key, token, &record(), DAY).expect("it records");
    }
    first_page_tells_all_claims("memory", store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_page_among_many_in_sqlite_tells_all_claims() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("idempotency.db");
    let store = SqliteStore::open(&file).await.expect("the store opens");
    let mut connection =
        sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.expect("a file");
    let expires = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970") + DAY;
    let records = "WITH RECURSIVE numbers (number) AS (SELECT 0 UNION ALL SELECT number + 1 FROM numbers WHERE number < ?1 - 1) \
         INSERT INTO idempotency_records (key, state, fingerprint, token, attempt, claim_ttl, expires_at, recorded_at, status, \
         headers, body) SELECT printf('charges//r%08d', number), 'completed', ?3, ?4, 1, 86400000, ?2, ?2 - 86400000, 201, '[]', \
         CAST('paid' AS BLOB) FROM numbers";
    let filling = sqlx::query(records).bind(i64::try_from(entries()).expect("it fits"));
    let filling = filling.bind(i64::try_from(expires.as_millis()).expect("it fits"));
    let filling = filling.bind("01".repeat(32)).bind("0".repeat(32)).execute(&mut connection).await;
    filling.expect("the records are made");
    connection.close().await.expect("the connection ends");
    first_page_tells_all_claims("SQLite", store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_page_among_many_in_postgres_tells_all_claims() {
    let server = PostgresServer::start(&["max_wal_size=8GB", "maintenance_work_mem=512MB"]).await;
    let pool = server.database().await.pool(10).await;
    let store = stores::migrated(&pool).await;
    let records = "INSERT INTO idempotency.records (digest, key, state, fingerprint, token, attempt, claim_ttl, expires_at, \
         delete_after, recorded_at, status, headers, body) SELECT sha256(convert_to(key, 'UTF8')), key, 'completed', \
         repeat('01', 32), repeat('0', 32), 1, 86400000, now() + interval '1 day', now() + interval '1 day', now(), 201, '[]', \
         'paid' FROM (SELECT 'charges//r' || number AS key FROM generate_series(1, $1) AS number) AS keys";
    let filling = sqlx::query(records).bind(i32::try_from(entries()).expect("it fits"));
    filling.execute(&pool).await.expect("the records are made");
    // Records that arrive over several days have already been visited by the search for claims.
    let swept = "INSERT INTO idempotency.records (digest, key, state, fingerprint, token, attempt, claim_ttl, expires_at, \
         delete_after) SELECT '', '', 'given back', '', '', 0, max(id), 'infinity', 'infinity' FROM idempotency.records \
         ON CONFLICT (digest) DO UPDATE SET claim_ttl = excluded.claim_ttl";
    for statement in [swept, "ANALYZE idempotency.records"] {
        sqlx::query(statement).execute(&pool).await.expect("the server takes it");
    }
    first_page_tells_all_claims("PostgreSQL", store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_page_among_many_in_redis_tells_all_claims() {
    let server = RedisServer::start(&["--appendonly no"]).await;
    let value = redis_value(Token::unique(), &record()).expect("a record is written");
    let connection = server.connection().await;
    let some = redis::Script::new(
        "for number = ARGV[1], ARGV[2] - 1 do \
         redis.call('SET', string.format('idempotency:charges//r%08d', number), ARGV[3], 'PX', 86400000) end",
    );
    for first in (0..entries()).step_by(5_000) {
        let mut filling = some.arg(first);
        let filling = filling.arg(entries().min(first + 5_000)).arg(&value);
        // On a busy machine, the answer may be too late. Then send the same command again.
        let fill = async || filling.invoke_async::<()>(&mut connection.clone()).await;
        eventually(fill, Result::is_ok).await.expect("the server takes them");
    }
    let store = RedisStore::connect(&server.url()).await.expect("the store opens");
    first_page_tells_all_claims("Redis", store).await;
}
