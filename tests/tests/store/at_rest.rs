//! Data at rest: keys as digests, sealed records, and what happens to both when the sealing keys change.

use std::path::Path;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use idempotent_runtime::store::{EntryState, MemoryStore, PostgresStore, RedisStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, RegistryBuilder, SealingKey, Tx, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Answer, Dump, Fault, FaultyStore, Logs, Runs, Server, answer, eventually, sealing_key};
use sqlx::{Connection, Postgres, Sqlite, SqliteConnection};

const DAY: Duration = Duration::from_hours(24);
const KEY: &str = "planted-key-5b1f";
const CALLER: &str = "planted-caller-77c2";
const CREDENTIALS: &str = "planted-credentials-0e9d";
const REQUEST: &str = "planted-card-4242424242424242";
const RESPONSE_HEADER: &str = "planted-header-ab31";
const RESPONSE: &str = "planted-response-of-card-4242";

fn caller(headers: &HeaderMap) -> Option<String> {
    headers.get("x-caller").and_then(|value| value.to_str().ok()).map(str::to_owned)
}

type Charged = (StatusCode, [(&'static str, &'static str); 1], &'static str);

#[idempotent(scope = "at-rest-charges", caller = caller(&headers).unwrap_or_default())]
async fn create_charge(State(runs): State<Runs>, headers: HeaderMap, body: String) -> Charged {
    drop(body);
    runs.run().await;
    (StatusCode::CREATED, [("x-receipt", RESPONSE_HEADER)], RESPONSE)
}

#[idempotent(scope = "exact", caller = caller(&headers).unwrap_or_default())]
async fn in_sqlite(_: Tx<Sqlite>, State(runs): State<Runs>, headers: HeaderMap, body: String) -> Charged {
    drop(body);
    runs.run().await;
    (StatusCode::CREATED, [("x-receipt", RESPONSE_HEADER)], RESPONSE)
}

#[idempotent(scope = "exact-too", caller = caller(&headers).unwrap_or_default())]
async fn in_postgres(_: Tx<Postgres>, State(runs): State<Runs>, headers: HeaderMap, body: String) -> Charged {
    drop(body);
    runs.run().await;
    (StatusCode::CREATED, [("x-receipt", RESPONSE_HEADER)], RESPONSE)
}

#[idempotent(scope = "short", lease = "500ms")]
async fn with_short_lease(State(runs): State<Runs>, idempotency: Idempotency) -> String {
    runs.run().await;
    format!("attempt {}, {}", idempotency.attempt(), idempotency.downstream_key("network"))
}

#[idempotent(scope = "bytes")]
async fn any_bytes(body: axum::body::Bytes) -> (StatusCode, HeaderMap, Vec<u8>) {
    let mut headers = HeaderMap::new();
    for value in [b"\xff\xfe raw".as_slice(), b"", b"second"] {
        headers.append("x-raw", value.try_into().expect("a header's value"));
    }
    (StatusCode::CREATED, headers, body.to_vec())
}

async fn serve(registry: RegistryBuilder, runs: &Runs) -> Server {
    let app = Router::new()
        .route("/charges", post(create_charge))
        .route("/in-sqlite", post(in_sqlite))
        .route("/in-postgres", post(in_postgres))
        .route("/short", post(with_short_lease))
        .route("/bytes", post(any_bytes));
    Server::start(app.with_state(runs.clone()).layer(registry.build().layer())).await
}

async fn charge(server: &Server, path: &str) -> Answer {
    let request = server.post(path).header("idempotency-key", KEY).header("x-caller", CALLER);
    answer(request.header("authorization", CREDENTIALS).body(REQUEST)).await
}

/// Sends a charge to a plain store, whose dump must show the recorded texts, and to a private one, whose dump must not
/// show them.
async fn a_dump_shows_no_secret<S: StoreAdmin>(
    path: &str,
    (plain, plain_folder): (S, &Path),
    (private, private_folder): (S, &Path),
    flush: impl AsyncFn(),
) {
    let runs = Runs::free();
    let server = serve(Registry::builder(plain), &runs).await;
    assert_eq!(charge(&server, path).await.status, StatusCode::CREATED);
    flush().await;
    let dump = Dump::of(plain_folder);
    for recorded in [KEY, CALLER, RESPONSE_HEADER, RESPONSE] {
        assert!(dump.shows(recorded), "a search that misses {recorded} proves nothing");
    }
    for never_stored in [REQUEST, CREDENTIALS] {
        assert!(!dump.shows(never_stored), "{never_stored}");
    }

    let server = serve(Registry::builder(private).digest_keys().seal_with(sealing_key(1)), &runs).await;
    let first = charge(&server, path).await;
    let replay = charge(&server, path).await;
    assert!(replay.is_replay(), "{replay:?}");
    assert_eq!((replay.status, replay.text()), (first.status, RESPONSE));
    assert_eq!(replay.headers["x-receipt"], RESPONSE_HEADER);
    assert_eq!(runs.started(), 2, "once in each store");
    flush().await;
    let dump = Dump::of(private_folder);
    assert!(dump.shows("completed"), "the record is in it");
    for secret in [KEY, CALLER, RESPONSE_HEADER, RESPONSE, REQUEST, CREDENTIALS] {
        assert!(!dump.shows(secret), "{secret}");
    }
}

#[tokio::test]
async fn a_dump_of_sqlite_shows_no_secret() {
    for path in ["/charges", "/in-sqlite"] {
        let (plain, private) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let open = async |folder: &Path| SqliteStore::open(folder.join("records.db")).await.expect("the store opens");
        let stores = (open(plain.path()).await, open(private.path()).await);
        a_dump_shows_no_secret(path, (stores.0, plain.path()), (stores.1, private.path()), async || {}).await;
    }
}

#[tokio::test]
async fn a_dump_of_redis_shows_no_secret() {
    let (plain, private) = (RedisServer::start(&[]).await, RedisServer::start(&[]).await);
    let open = async |server: &RedisServer| RedisStore::connect(&server.url()).await.expect("the store opens");
    let stores = (open(&plain).await, open(&private).await);
    a_dump_shows_no_secret("/charges", (stores.0, plain.folder()), (stores.1, private.folder()), async || {
        for server in [&plain, &private] {
            let _: String = server.command("SAVE").await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_dump_of_postgres_shows_no_secret() {
    for path in ["/charges", "/in-postgres"] {
        let (plain, private) = (PostgresServer::start(&[]).await, PostgresServer::start(&[]).await);
        let open = async |server: &PostgresServer| {
            let store = PostgresStore::new(server.database().await.pool(5).await);
            store.migrate().await.expect("the tables are made");
            store
        };
        let stores = (open(&plain).await, open(&private).await);
        a_dump_shows_no_secret(path, (stores.0, plain.folder()), (stores.1, private.folder()), async || {
            for server in [&plain, &private] {
                let mut connection = server.connect("postgres").await;
                sqlx::query("CHECKPOINT").execute(&mut connection).await.expect("it is written");
            }
        })
        .await;
    }
}

#[tokio::test]
async fn sealed_responses_come_back_byte_for_byte() {
    let runs = Runs::free();
    let server = serve(Registry::builder(MemoryStore::new()).seal_with(sealing_key(1)), &runs).await;
    for (key, body) in [("none", Vec::new()), ("all", (0..=255).collect()), ("large", vec![7; 1024 * 1024])] {
        let send = || answer(server.post("/bytes").header("idempotency-key", key).body(body.clone()));
        let (first, replay) = (send().await, send().await);
        assert!(replay.is_replay());
        assert_eq!((replay.status, &replay.body), (first.status, &first.body));
        let raw = |answer: &Answer| answer.headers.get_all("x-raw").iter().cloned().collect::<Vec<_>>();
        assert_eq!((raw(&replay).len(), raw(&replay)), (3, raw(&first)));
    }
}

#[tokio::test]
async fn any_listed_key_opens_and_the_first_one_seals() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let server = async |keys: Vec<SealingKey>| serve(Registry::builder(store.clone()).seal_with(keys), &runs).await;
    assert_eq!(charge(&server(vec![sealing_key(1)]).await, "/charges").await.status, StatusCode::CREATED);
    let rotated = server(vec![sealing_key(2), sealing_key(1)]).await;
    assert!(charge(&rotated, "/charges").await.is_replay());
    let other =
        answer(rotated.post("/charges").header("idempotency-key", KEY).header("x-caller", CALLER).body("other"));
    assert_eq!(other.await.rejection(), "key_reused");

    let by_client = |server: &Server, client: &'static str| {
        answer(server.post("/bytes").header("idempotency-key", "by-client").header("x-api-key", client).body("tea"))
    };
    assert!(by_client(&server(vec![sealing_key(1)]).await, "acme").await.status.is_success());
    assert!(by_client(&rotated, "acme").await.is_replay());
    assert_eq!(by_client(&rotated, "globex").await.rejection(), "other_credentials", "told by the older key");

    let fresh = |server: &Server| answer(server.post("/charges").header("idempotency-key", "fresh").body("tea"));
    assert_eq!(fresh(&rotated).await.status, StatusCode::CREATED);
    assert!(fresh(&server(vec![sealing_key(2)]).await).await.is_replay(), "the first key has sealed it");
    assert_eq!(runs.started(), 2);
}

#[tokio::test]
async fn a_record_that_no_key_opens_is_rejected_and_never_run_again() {
    let (runs, store, logs) = (Runs::free(), MemoryStore::new(), Logs::collect());
    let sealed = serve(Registry::builder(store.clone()).seal_with(sealing_key(1)), &runs).await;
    charge(&sealed, "/charges").await;
    let other = serve(Registry::builder(store.clone()).seal_with(sealing_key(2)), &runs).await;
    assert_eq!(charge(&other, "/charges").await.rejection(), "store_unavailable");
    let without = serve(Registry::builder(store), &runs).await;
    assert_eq!(charge(&without, "/charges").await.rejection(), "store_unavailable");
    assert_eq!(runs.started(), 1);
    let errors = logs.of_level("ERROR");
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0].contains("none of the registry's keys has the id"), "{errors:?}");
    assert!(errors[1].contains("built without `seal_with`"), "{errors:?}");
}

#[tokio::test]
async fn sealed_record_moved_or_changed_is_rejected_and_logged() {
    let (runs, logs) = (Runs::free(), Logs::collect());
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("records.db");
    let store = SqliteStore::open(&path).await.expect("the store opens");
    let server = serve(Registry::builder(store).seal_with(sealing_key(1)), &runs).await;
    let send = |key: &'static str| answer(server.post("/charges").header("idempotency-key", key).body("tea"));
    for key in ["mine", "theirs"] {
        assert_eq!(send(key).await.status, StatusCode::CREATED);
    }
    let mut connection =
        SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.expect("the file opens");
    for damage in [
        "UPDATE idempotency_records SET body = (SELECT body FROM idempotency_records WHERE key LIKE '%theirs') \
         WHERE key LIKE '%mine'",
        "UPDATE idempotency_records SET body = x'01', status = 201",
        "UPDATE idempotency_records SET body = x''",
        "UPDATE idempotency_records SET body = NULL",
        "UPDATE idempotency_records SET body = x'02ffffffff'",
    ] {
        sqlx::query(damage).execute(&mut connection).await.expect("it is changed");
        let before = logs.of_level("ERROR").len();
        assert_eq!(send("mine").await.rejection(), "store_unavailable", "{damage}");
        let errors = logs.of_level("ERROR");
        assert_eq!(errors.len(), before + 1, "{errors:?}");
        let line = &errors[before];
        assert!(line.contains("scope=\"at-rest-charges\"") && line.contains("store=\"default\""), "{line}");
        assert!(!line.contains("mine"), "{line}");
    }
    assert_eq!(runs.started(), 2);
}

#[tokio::test]
async fn unsealed_record_is_replayed_until_the_date_only() {
    let (runs, store, logs) = (Runs::free(), MemoryStore::new(), Logs::collect());
    charge(&serve(Registry::builder(store.clone()), &runs).await, "/charges").await;
    let sealing = || Registry::builder(store.clone()).seal_with(sealing_key(1));
    let (yesterday, tomorrow) = (SystemTime::now() - DAY, SystemTime::now() + DAY);
    for strict in [sealing(), sealing().accept_unsealed_until(yesterday)] {
        assert_eq!(charge(&serve(strict, &runs).await, "/charges").await.rejection(), "store_unavailable");
        assert!(logs.of_level("ERROR").pop().is_some_and(|line| line.contains("the record is not sealed")));
    }
    let sealing = serve(sealing().accept_unsealed_until(tomorrow), &runs).await;
    assert!(charge(&sealing, "/charges").await.is_replay());
    let other =
        answer(sealing.post("/charges").header("idempotency-key", KEY).header("x-caller", CALLER).body("other"));
    assert_eq!(other.await.rejection(), "key_reused");
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn a_claim_from_before_the_rotation_is_taken_over() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let dying = serve(Registry::builder(store.clone()).seal_with(sealing_key(1)), &runs).await;
    store.on_renew(Fault::Unreachable);
    let first = dying.post("/short").header("idempotency-key", KEY).body("tea").send();
    let first = tokio::spawn(first);
    runs.until_started(1).await;
    let rotated = [sealing_key(2), sealing_key(1)];
    let free = Runs::free();
    let successor = serve(Registry::builder(store.inner().clone()).seal_with(rotated).digest_keys(), &free).await;
    let digested = answer(successor.post("/short").header("idempotency-key", KEY).body("tea")).await;
    assert!(digested.text().starts_with("attempt 1, "), "digests are other keys: {digested:?}");

    let rotated = [sealing_key(2), sealing_key(1)];
    let successor = serve(Registry::builder(store.inner().clone()).seal_with(rotated), &free).await;
    let retried = eventually(
        async || answer(successor.post("/short").header("idempotency-key", KEY).body("tea")).await,
        |answer| answer.status == StatusCode::OK,
    )
    .await;
    assert!(retried.text().starts_with("attempt 2, "), "{retried:?}");
    let downstream = |answer: &Answer| answer.text().split(", ").nth(1).map(str::to_owned);
    assert_eq!(downstream(&retried), downstream(&digested), "what is passed on does not depend on how keys are stored");
    runs.let_finish(1);
    first.await.expect("the task ends").expect("the server answers");
}

#[tokio::test]
async fn an_operator_finds_a_digested_key_by_its_parts() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    charge(&serve(Registry::builder(store.clone()).digest_keys(), &runs).await, "/charges").await;
    let key = RecordKey::new("at-rest-charges", Some(CALLER), KEY);
    assert_eq!(store.get(&key).await.expect("the store answers"), None);
    let entry = store.get(&key.digested()).await.expect("the store answers").expect("it is there");
    assert!(matches!(entry.state, EntryState::Completed { status: StatusCode::CREATED, .. }));
    assert!(store.purge(&key.digested()).await.expect("the store answers"));
}

#[test]
fn a_text_that_is_no_sealing_key_says_what_is_wrong() {
    let error = |text: &str| text.parse::<SealingKey>().expect_err("no key").to_string();
    assert!(error("not base64!").contains("openssl rand -base64 32"));
    assert!(error("c2hvcnQ=").contains("this one has 5"));
    assert!(error("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").contains("this one repeats one byte"));
}
