//! Formats at rest: this version reads the data of each released version, and writes the same format.
//!
//! Each file here was written by a released version. Do not change a file: if a test fails, old and new processes of a
//! rolling deploy would not understand each other. A change of a format needs a new version number, a new file and, if
//! the store has migrations, a migration.

mod postgres;

use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::routing::post;
use idempotent_runtime::store::{
    AfterCrash, Claim, ClaimRequest, Held, Owner, RedisStore, SqliteStore, Store, StoreAdmin, StoreError, Token,
};
use idempotent_runtime::{Fingerprint, Record, RecordKey, RecordedBody, Registry, RegistryBuilder, idempotent};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Answer, Server, answer, sealing_key};
use sqlx::{AssertSqlSafe, Connection as _};

const SQLITE_1: &str = include_str!("sqlite-1.sql");
const SQLITE: &str = include_str!("sqlite-2.sql");
const REDIS: &str = include_str!("redis-1.txt");

/// A ttl so long that the entries in the files do not expire.
const CENTURY: Duration = Duration::from_hours(24 * 36_525);

fn key(name: &str) -> RecordKey {
    RecordKey::new("formats", Some("a caller"), name)
}

/// Returns a request with this token and the fingerprint that all entries have.
fn request(token: u128, after_crash: AfterCrash) -> ClaimRequest {
    ClaimRequest::new(Token::from_u128(token), Fingerprint::from_bytes([7; 32]))
        .with_lease(Duration::from_hours(1))
        .with_ttl(CENTURY)
        .with_after_crash(after_crash)
}

fn record(body: RecordedBody) -> Record {
    let headers = vec![
        (HeaderName::from_static("content-type"), HeaderValue::from_static("text/plain")),
        (HeaderName::from_static("x-bytes"), HeaderValue::from_bytes(b"\xff raw").expect("a value")),
    ];
    let recorded_at = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    Record::new(StatusCode::CREATED, headers, body, Fingerprint::from_bytes([7; 32]), recorded_at)
}

fn recorded() -> Record {
    record(RecordedBody::Whole("paid\0\u{fc}".into()))
}

/// Writes a record, a record without its body, a running claim, and a claim with an unknown outcome.
async fn write(store: &impl StoreAdmin) {
    for (token, name, record) in [(1, "recorded", recorded()), (2, "without-body", record(RecordedBody::NotRecorded))] {
        let claim = request(token, AfterCrash::Rerun);
        assert_eq!(store.claim(&key(name), claim).await.expect("it claims"), Claim::Acquired { attempt: 1 });
        let completed = store.complete(&key(name), claim.token, record, CENTURY).await;
        assert_eq!(completed.expect("it records"), Held::Yes);
    }
    let running = request(3, AfterCrash::Rerun);
    assert_eq!(store.claim(&key("running"), running).await.expect("it claims"), Claim::Acquired { attempt: 1 });
    let unknown = request(4, AfterCrash::Reject);
    assert_eq!(store.claim(&key("unknown"), unknown).await.expect("it claims"), Claim::Acquired { attempt: 1 });
    assert_eq!(store.renew(&key("unknown"), unknown.token, Duration::ZERO).await.expect("it renews"), Held::Yes);
}

const IN_FLIGHT: Claim = Claim::InFlight { fingerprint: Fingerprint::from_bytes([7; 32]) };

const LAPSED: Claim = Claim::Lapsed { fingerprint: Fingerprint::from_bytes([7; 32]) };

/// Checks the entries that [`write`] has written, in this version or another one. `unknown` is the answer to a claim of
/// the key with that name.
async fn read(store: &impl StoreAdmin, unknown: Claim) {
    let mut claims = Vec::new();
    for name in ["recorded", "without-body", "running", "unknown"] {
        claims.push(store.claim(&key(name), request(9, AfterCrash::Reject)).await.expect("it reads"));
    }
    let expected =
        [Claim::Completed(recorded()), Claim::Completed(record(RecordedBody::NotRecorded)), IN_FLIGHT, unknown];
    assert_eq!(claims, expected);
    // In a rolling deploy, the process of the running claim is still alive.
    let (running, token) = (key("running"), Token::from_u128(3));
    assert_eq!(store.renew(&running, token, Duration::from_mins(1)).await.expect("it renews"), Held::Yes);
    let completed = store.complete(&running, token, recorded(), CENTURY).await;
    assert_eq!(completed.expect("it records"), Held::Yes);
    let listed = store.list(None, 10).await.expect("it lists");
    assert_eq!(listed.entries.iter().filter(|entry| entry.key.as_str().starts_with("formats/")).count(), 4);
}

async fn sqlite_texts(file: &SqliteFile, query: &str) -> Vec<String> {
    let mut connection = file.connect().await;
    let texts = sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_all(&mut connection).await;
    connection.close().await.expect("it closes");
    texts.expect("the file is read")
}

#[tokio::test]
async fn sqlite_file_of_a_released_version_is_read() {
    for written in [SQLITE_1, SQLITE] {
        let file = SqliteFile::new();
        file.execute(written).await;
        let store = SqliteStore::builder(file.path()).max_bytes(1 << 20).open().await.expect("it opens");
        // Without the file of leases, as after a restore of a backup, each claim gets one more lease.
        read(&store, IN_FLIGHT).await;
        let claim = request(5, AfterCrash::Rerun).with_owner(Owner::from_u128(1));
        assert_eq!(store.claim(&key("new"), claim).await.expect("it claims"), Claim::Acquired { attempt: 1 });
        let counted = file.number("SELECT sum(bytes) FROM idempotency_owners").await;
        assert_eq!(counted, file.number("SELECT counted_bytes FROM idempotency_records WHERE owner IS NOT NULL").await);
        assert!(counted > 300, "{counted}");
    }
}

#[tokio::test]
async fn sqlite_file_is_written_as_released_versions_wrote_it() {
    let (old, new) = (SqliteFile::new(), SqliteFile::new());
    old.execute(SQLITE).await;
    let store = SqliteStore::open(new.path()).await.expect("it opens");
    write(&store).await;
    // The renewals of a running claim are in the file of leases, not in these rows.
    let rows = "SELECT format('%s %s %s %s %d %d %d %s %s %d %d', key, state, fingerprint, token, attempt, claim_ttl, status, \
                headers, hex(body), recorded_at, expires_at = 9223372036854775807) FROM idempotency_records ORDER BY key";
    assert_eq!(sqlite_texts(&new, rows).await, sqlite_texts(&old, rows).await);
    let tables = "SELECT sql FROM sqlite_schema WHERE name LIKE 'idempotency%' AND sql IS NOT NULL ORDER BY name";
    let without_comments = |sql: String| {
        let lines = sql.lines().map(|line| line.split("--").next().unwrap_or_default());
        lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
    };
    let of = async |file| sqlite_texts(file, tables).await.into_iter().map(without_comments).collect::<Vec<_>>();
    assert_eq!(of(&new).await, of(&old).await, "a change of the tables needs a new version of the file");
}

/// Returns the name and the value in each line of the file.
fn redis_values() -> impl Iterator<Item = (&'static str, &'static str)> {
    REDIS.lines().filter_map(|line| line.split_once(' '))
}

async fn store_with(server: &RedisServer) -> RedisStore {
    for (name, value) in redis_values() {
        let mut set = redis::cmd("SET");
        set.arg(name).arg(value);
        if !value.contains("lease_until") {
            set.arg("PX").arg(u64::try_from(CENTURY.as_millis()).expect("a century"));
        }
        let () = set.query_async(&mut server.connection().await).await.expect("the server answers");
    }
    let () = server.command("SADD idempotency:unknown_outcomes idempotency:formats/@a%20caller/unknown").await;
    RedisStore::connect(&server.url()).await.expect("the store opens")
}

/// Replaces the end of the lease, which differs between runs, by a fixed time.
fn without_time(value: &str) -> String {
    let Some((before, _)) = value.split_once("\"lease_until\":") else { return value.to_owned() };
    format!("{before}\"lease_until\":1700000000123}}")
}

#[tokio::test]
async fn redis_values_are_written_as_released_versions_wrote_them() {
    let server = RedisServer::start(&[]).await;
    write(&RedisStore::connect(&server.url()).await.expect("the store opens")).await;
    let mut of_this_store = 0;
    for (name, value) in redis_values().filter(|(name, _)| name.contains(":formats/")) {
        let written: String = server.command(&format!("GET {name}")).await;
        assert_eq!(without_time(&written), value, "{name}");
        of_this_store += 1;
    }
    assert_eq!(of_this_store, 4);
}

fn caller(headers: &HeaderMap) -> Option<String> {
    headers.get("x-caller").and_then(|value| value.to_str().ok()).map(str::to_owned)
}

#[idempotent(scope = "formats-charges", ttl = "36525d", caller = caller(&headers).unwrap_or_default())]
async fn create_charge(headers: HeaderMap, body: String) -> (StatusCode, [(&'static str, &'static str); 1], String) {
    let caller = caller(&headers).unwrap_or_default();
    (StatusCode::CREATED, [("x-charge", "1")], format!("{caller} paid for {body}"))
}

async fn charge(registry: RegistryBuilder, body: &'static str) -> Answer {
    let app = Router::new().route("/charges", post(create_charge)).layer(registry.build().layer());
    let server = Server::start(app).await;
    let request = server.post("/charges?to=you").header("idempotency-key", "k").header("x-caller", "ann");
    answer(request.header("authorization", "Bearer 5").header("content-type", "text/plain").body(body)).await
}

/// Key, fingerprint, record and seal keep their form: a retry that reaches a process of another version must be the
/// same request there.
#[tokio::test]
async fn redis_values_of_a_released_version_are_replayed() {
    let server = RedisServer::start(&[]).await;
    let store = store_with(&server).await;
    read(&store, LAPSED).await;
    let sealed = |store: &RedisStore| Registry::builder(store.clone()).digest_keys().seal_with(sealing_key(1));
    for registry in [Registry::builder(store.clone()), sealed(&store)] {
        let replay = charge(registry, "tea").await;
        assert_eq!((replay.status, replay.is_replay()), (StatusCode::CREATED, true), "{replay:?}");
        assert_eq!((replay.text(), replay.headers["x-charge"].as_bytes()), ("ann paid for tea", b"1".as_slice()));
    }
    for registry in [Registry::builder(store.clone()), sealed(&store)] {
        assert_eq!(charge(registry, "milk").await.rejection(), "key_reused");
    }
}

#[tokio::test]
async fn redis_value_of_a_newer_version_is_rejected_clearly() {
    let server = RedisServer::start(&[]).await;
    let store = store_with(&server).await;
    let (name, value) = redis_values().find(|(name, _)| name.ends_with("/recorded")).expect("a record");
    let newer = value.replace("\"version\":1,", "\"version\":2,\"trailers\":[],");
    let () = server.command(&format!("SET {name} {newer} KEEPTTL")).await;
    let error = store.claim(&key("recorded"), request(9, AfterCrash::Rerun)).await.expect_err("it is newer");
    assert!(matches!(error, StoreError::Damaged(_)), "{error:?}");
    for part in ["version 2", "version 1", "update `idempotent-runtime`"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

/// All stores write headers in this form, and so does the seal.
#[test]
fn sensitive_values_are_written_with_their_mark() {
    let sensitive = |bytes: &[u8]| {
        let mut value = HeaderValue::from_bytes(bytes).expect("a value");
        value.set_sensitive(true);
        (HeaderName::from_static("x-account"), value)
    };
    let mut record = recorded();
    record.headers = vec![sensitive(b"4711"), sensitive(b"\xff")];
    let text = serde_json::to_string(&record).expect("it is text");
    let lines = r#"[["x-account",{"text":"4711","sensitive":true}],["x-account",{"base64":"/w==","sensitive":true}]]"#;
    assert!(text.contains(lines), "{text}");
    let read: Record = serde_json::from_str(&text).expect("it is read");
    assert!(read == record && read.headers.iter().all(|(_, value)| value.is_sensitive()));
}
