//! Damaged entries in Redis, PostgreSQL and SQLite: each request with such a key gets 503 and one ERROR line, and runs
//! nothing. An operator finds the entry among the others and purges it.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{MemoryStore, PostgresStore, RedisStore, SqliteStore, StoreAdmin, StoreError};
use idempotent_runtime::{Idempotency, RecordKey, Registry, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Logs, Runs, Server, answer};
use sqlx::{AssertSqlSafe, PgPool};

#[idempotent(scope = "damaged-charges", store = "payments")]
async fn create_charge(State(runs): State<Runs>, idempotency: Idempotency) -> (StatusCode, String) {
    // The test damages the claim of such a key while its handler is held.
    if idempotency.key().is_some_and(|key| key.contains("claimed")) {
        runs.run().await;
    }
    (StatusCode::CREATED, "planted-content".to_owned())
}

/// Damages the stored entry of a key.
trait Damage<D> {
    async fn damage(&self, key: &RecordKey, damage: &D);
}

fn record_key(key: &str) -> RecordKey {
    RecordKey::new("damaged-charges", None, key)
}

/// Checks that requests with damaged entries get 503, and that an operator finds and purges these entries. The handlers
/// of the claimed keys are held until the end.
async fn assert_rejected_and_found<S: StoreAdmin + Clone, D>(
    store: S,
    raw: impl Damage<D>,
    records: &[D],
    claims: &[D],
) {
    let runs = Runs::held();
    let registry = Registry::builder(MemoryStore::new()).store("payments", store.clone()).build();
    let app = Router::new().route("/charges", post(create_charge)).with_state(runs.clone()).layer(registry.layer());
    let (server, logs) = (Server::start(app).await, Logs::collect());
    let mut keys = Vec::new();
    for (number, damage) in records.iter().enumerate() {
        let key = format!("planted-recorded-{number}");
        assert_eq!(server.post_with_key("/charges", &key).await.status, StatusCode::CREATED);
        raw.damage(&record_key(&key), damage).await;
        keys.push(key);
    }
    let mut running = Vec::new();
    for (number, damage) in claims.iter().enumerate() {
        let key = format!("planted-claimed-{number}");
        running.push(tokio::spawn(answer(server.post("/charges").header("idempotency-key", &key))));
        runs.until_started(number + 1).await;
        raw.damage(&record_key(&key), damage).await;
        keys.push(key);
    }
    assert_eq!(server.post_with_key("/charges", "planted-sound").await.status, StatusCode::CREATED);

    for key in &keys {
        let before = logs.of_level("ERROR").len();
        for _ in 0..2 {
            assert_eq!(server.post_with_key("/charges", key).await.rejection(), "store_unavailable", "{key}");
        }
        let errors = logs.of_level("ERROR").split_off(before);
        assert_eq!(errors.len(), 2, "one for each request: {errors:?}");
        for error in errors {
            assert!(error.contains("scope=\"damaged-charges\"") && error.contains("store=\"payments\""), "{error}");
            assert!(!error.contains("planted"), "neither key nor content: {error}");
        }
        let error = store.get(&record_key(key)).await.expect_err("it cannot be read");
        assert!(matches!(error, StoreError::Damaged(_)), "{key}: {error:?}");
    }
    assert_eq!(runs.started(), claims.len(), "none ran again");

    let (found, damaged) = listing(&store).await;
    assert_eq!(found, [record_key("planted-sound")]);
    let mut expected: Vec<_> = keys.iter().map(|key| record_key(key)).collect();
    expected.sort();
    assert_eq!(damaged, expected, "each once");
    for key in &keys[..records.len()] {
        store.purge(&record_key(key)).await.expect("the store answers");
        let renewed = server.post_with_key("/charges", key).await;
        assert_eq!((renewed.status, renewed.is_replay()), (StatusCode::CREATED, false), "{key}");
    }
    runs.let_finish(claims.len());
    for running in running {
        let told = running.await.expect("the request runs");
        // A claim whose token can still be read takes its record.
        assert!(told.status == StatusCode::CREATED || told.rejection() == "claim_lost", "{told:?}");
    }
}

/// Lists the store in small pages. Returns the keys of the readable entries, and those of the damaged ones.
async fn listing(store: &impl StoreAdmin) -> (Vec<RecordKey>, Vec<RecordKey>) {
    let (mut found, mut damaged, mut cursor) = (Vec::new(), Vec::new(), None);
    loop {
        let page = store.list(cursor, 2).await.expect("the store lists");
        assert!(page.entries.len() + page.damaged.len() <= 2);
        found.extend(page.entries.into_iter().map(|entry| entry.key));
        for entry in page.damaged {
            assert!(!entry.reason.contains("planted"), "neither key nor content: {}", entry.reason);
            damaged.extend(entry.key);
        }
        cursor = page.next;
        if cursor.is_none() {
            damaged.sort();
            return (found, damaged);
        }
    }
}

/// A way to damage a value.
enum Value {
    Replaced(Vec<u8>),
    CutTo(usize),
    /// A part of the text is replaced by another text.
    Changed(&'static str, &'static str),
    OfAnotherType,
}

struct RawRedis<'a>(&'a RedisServer);

impl Damage<Value> for RawRedis<'_> {
    async fn damage(&self, key: &RecordKey, damage: &Value) {
        let name = format!("idempotency:{}", key.as_str());
        let mut connection = self.0.connection().await;
        let value: String =
            redis::cmd("GET").arg(&name).query_async(&mut connection).await.expect("the server answers");
        let damaged = match damage {
            Value::Replaced(bytes) => bytes.clone(),
            Value::CutTo(length) => value.as_bytes()[..*length].to_vec(),
            Value::Changed(from, to) => {
                assert!(value.contains(from), "{from} in {value}");
                value.replace(from, to).into_bytes()
            }
            Value::OfAnotherType => {
                let mut replace = redis::pipe();
                replace.cmd("DEL").arg(&name).cmd("RPUSH").arg(&name).arg("x");
                let () = replace.exec_async(&mut connection).await.expect("the server answers");
                return;
            }
        };
        let mut set = redis::cmd("SET");
        set.arg(&name).arg(damaged).arg("KEEPTTL");
        let () = set.exec_async(&mut connection).await.expect("the server answers");
    }
}

/// Returns pseudo-random bytes, the same in every run.
fn bytes_without_sense(length: usize, seed: u32) -> Vec<u8> {
    let next = |number: &u32| Some(number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    std::iter::successors(Some(seed), next).skip(1).map(|number| number.to_be_bytes()[0]).take(length).collect()
}

#[tokio::test]
async fn a_damaged_value_in_redis_is_rejected_and_found() {
    let server = RedisServer::start(&[]).await;
    let store = RedisStore::connect(&server.url()).await.expect("the store opens");
    let mut damages = vec![Value::Replaced(Vec::new()), Value::CutTo(1), Value::CutTo(60), Value::OfAnotherType];
    damages.extend((1..20).map(|number| Value::Replaced(bytes_without_sense(10 * number, 7))));
    let mut records = vec![
        Value::Changed("\"version\":1", "\"version\":2"),
        Value::Changed("\"status\":201", "\"status\":\"201\""),
        Value::Changed("\"status\":201", "\"status\":99999"),
        Value::Changed("\"completed\"", "\"finished\""),
        Value::CutTo(200),
    ];
    records.extend((1..20).map(|number| Value::Replaced(bytes_without_sense(17 * number, 9))));
    let mut claims = vec![
        Value::Changed("\"attempt\":1", "\"attempt\":\"1\""),
        Value::Changed("\"attempt\":1", "\"attempts\":1"),
        Value::Changed("\"claimed\"", "\"taken\""),
    ];
    claims.extend(damages);
    assert_rejected_and_found(store, RawRedis(&server), &records, &claims).await;
}

struct RawPostgres(PgPool);

impl Damage<&str> for RawPostgres {
    async fn damage(&self, key: &RecordKey, damage: &&str) {
        let update = AssertSqlSafe(format!("UPDATE idempotency.records SET {damage} WHERE key = $1"));
        let updated = sqlx::query(update).bind(key.as_str()).execute(&self.0).await.expect("the row is there");
        assert_eq!(updated.rows_affected(), 1);
    }
}

/// Damage to columns that are text in both databases.
const TEXT: [&str; 4] = [
    "state = ''",
    "state = 'of a newer version'",
    "fingerprint = substr(fingerprint, 1, 63)",
    "fingerprint = 'q9-\u{1}\u{7f}'",
];

#[tokio::test]
async fn a_damaged_row_in_postgres_is_rejected_and_found() {
    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("the tables are made");
    let records: Vec<&str> = TEXT.into_iter().chain(["status = NULL", "status = -1", "recorded_at = NULL"]).collect();
    let claims: Vec<&str> = TEXT.into_iter().chain(["attempt = -1"]).collect();
    assert_rejected_and_found(store, RawPostgres(pool), &records, &claims).await;
}

struct RawSqlite<'a>(&'a SqliteFile);

impl Damage<&str> for RawSqlite<'_> {
    async fn damage(&self, key: &RecordKey, damage: &&str) {
        self.0.execute(&format!("UPDATE idempotency_records SET {damage} WHERE key = '{}'", key.as_str())).await;
    }
}

#[tokio::test]
async fn a_damaged_row_in_sqlite_is_rejected_and_found() {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    // The table is strict: SQLite itself rejects a value of another type.
    let records = ["status = NULL", "status = -1", "recorded_at = NULL", "fingerprint = CAST(x'80ff' AS TEXT)"];
    let records: Vec<&str> = TEXT.into_iter().chain(records).collect();
    let claims: Vec<&str> = TEXT.into_iter().chain(["attempt = -1", "lease_until = NULL"]).collect();
    assert_rejected_and_found(store, RawSqlite(&file), &records, &claims).await;
}
